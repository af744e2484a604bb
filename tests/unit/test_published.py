"""The benchmark of published settings: without Ray, FAISS and pydantic, and in pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from trainref_ray import make_config
from trainref_ray.training.loop import TrainPlan

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "faiss", "pydantic", "yaml", "mlflow", "sklearn", "cleanlab")))
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def residual(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N, 3, 32, 32] of uint8 [N, 32, 32, 3]: what `read_images` undoes."""
    channels = pixels.transpose(0, 3, 1, 2).copy()
    channels[:, 0] -= channels[:, 1]
    channels[:, 2] -= channels[:, 1]
    channels = np.diff(channels, axis=2, prepend=np.uint8(0))
    return np.diff(channels, axis=3, prepend=np.uint8(0))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of coloured noise, 400 images to train on and 50 to test."""
    folder = tmp_path_factory.mktemp("images") / "cifar10"
    folder.mkdir()
    random = np.random.default_rng(0)
    colours = random.integers(40, 215, (10, 3))
    for name, count in (("train-0", 200), ("train-1", 200), ("test", 50)):
        labels = np.arange(count) % 10
        pixels = np.clip(colours[labels][:, None, None] + random.normal(0, 20, (count, 32, 32, 3)), 0, 255)
        np.savez(folder / name, residual=residual(pixels.astype(np.uint8)), label=labels, index=np.arange(count))
    return folder.parent


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = json.loads((BENCHMARKS / "published.json").read_text())
    content["model"]["backbone"] = "cnn_small"
    content["references"] = {"per_class": 4, "held_out": 2}
    content["curation"]["ood"]["calibration_samples"] = 40
    for group in ("contrastive", "pretrain", "finetune"):
        content[group] |= {"epochs": 2, "batch_size": 50}
    path = tmp_path_factory.mktemp("recipe") / "recipe.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """With one thread: sums of several are bitwise the same only for as many."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import published

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield published
    torch.set_num_threads(threads)


def options(data: Path, recipe: Path, folder: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--work", str(folder / "work"), "--out", str(folder)]
    return [*places, "--recipe", str(recipe), "--settings", "cifar10:sym:0.4", *more]


def test_images_are_read_back(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from cifar import read_images

    found = read_images(data / "cifar10", "train")
    assert found.pixels.shape == (400, 32, 32, 3)
    assert (residual(found.pixels[:200]) == np.load(data / "cifar10" / "train-0.npz")["residual"]).all()
    assert found.first(3).labels.tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def at_once(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an undisturbed process writes that has nothing but torch and its like."""
    folder = tmp_path_factory.mktemp("at_once")
    command = [sys.executable, "-c", WITHOUT, str(BENCHMARKS / "published.py"), *options(data, recipe, folder)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "published.json").read_text())


def test_in_pieces_it_gives_what_it_gives_at_once(
    data: Path,
    recipe: Path,
    published: ModuleType,
    at_once: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    codes = [published.main(options(data, recipe, tmp_path, "--minutes", "0")) for _ in range(8)]
    assert codes == [75] * 8  # after each of the two epochs of the four trainings
    assert not (tmp_path / "published.json").exists()
    assert published.main(options(data, recipe, tmp_path)) == 0
    found = json.loads((tmp_path / "published.json").read_text())
    assert found == at_once
    assert found["rows"][0]["test"]["accuracy"] > 0.5
    assert found["rows"][0]["rounds"][-1]["noise_auroc"] > 0.8
    figures = found["rows"][0]["rounds"]
    assert [set(round_) >= {"ood_flag_rate", "trained_on"} for round_ in figures] == [True] * 3
    assert 0 < figures[0]["trained_on"] <= 400
    assert "| cifar10:sym:0.4 | 400 | 0 |" in (tmp_path / "published.md").read_text()
    left = [path.name for path in (tmp_path / "work").rglob("*") if path.suffix == ".part" or "tensors-" in path.name]
    assert left == []  # a state is three times as large as the model
    capsys.readouterr()


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code handles it."""


def test_killed_at_any_file_and_started_again_it_ends_with_the_same_row(
    data: Path,
    recipe: Path,
    published: ModuleType,
    at_once: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed before the third rename, the fourth, the fifth, the third again: an aside is left, its file is missing."""
    replace, left = os.replace, 0

    def mortal(aside: str, target: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        replace(aside, target)

    monkeypatch.setattr(os, "replace", mortal)
    killed, code = 0, 75
    while code == 75 and killed < 40:
        left = 2 + killed % 3
        try:
            code = published.main(options(data, recipe, tmp_path, "--minutes", "0"))
        except Killed:
            killed += 1
    assert code == 0
    assert killed >= 3
    assert json.loads((tmp_path / "published.json").read_text()) == at_once
    capsys.readouterr()


def test_rows_of_other_seeds_stay_and_of_other_recipes_and_images_are_others(
    data: Path, recipe: Path, published: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(recipe.read_text())
    for group in ("contrastive", "pretrain", "finetune"):
        content[group]["epochs"] = 1
    short, other = tmp_path / "short.json", tmp_path / "other.json"
    short.write_text(json.dumps(content))
    content["finetune"]["mixup"] = 0.1
    other.write_text(json.dumps(content))

    def rows(*more: str, of: Path = short) -> list[tuple[str, int, int]]:
        assert published.main(options(data, of, tmp_path, "--minutes", "10", *more)) == 0
        content = json.loads((tmp_path / "published.json").read_text())
        return [(row["setting"], row["images"], row["seed"]) for row in content["rows"]]

    assert rows() == [("cifar10:sym:0.4", 400, 0)]
    assert rows("--seeds", "1") == [("cifar10:sym:0.4", 400, 0), ("cifar10:sym:0.4", 400, 1)]
    line = (tmp_path / "published.md").read_text().splitlines()[-1]
    assert line.startswith("| cifar10:sym:0.4 | 400 | 0, 1 | ")
    assert line.count("±") == 10
    assert rows("--limit", "300") == [("cifar10:sym:0.4", 300, 0), *[("cifar10:sym:0.4", 400, seed) for seed in (0, 1)]]
    assert rows(of=other) == [("cifar10:sym:0.4", 400, 0)]
    capsys.readouterr()


def test_published_figures_are_beside_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from published_table import table

    names = ("cifar100:sym:0.8", "cifar10:human:train-labels.npz:worse_label", "cifar10:sym:0.8")
    rows = [
        {"setting": name, "images": 50_000, "seed": 0, "rounds": [{}], "test": {"accuracy": 0.5}, "devices": [device]}
        for name, device in zip(names, ("one", "two", "one"), strict=True)
    ]
    text = table(rows, json.loads((BENCHMARKS / "published.json").read_text()))
    assert text.startswith("one, two. resnet18 from scratch at 32 px")
    ends = {line.split(" | ")[0]: line.split(" | ")[-2:] for line in text.splitlines()[-3:]}
    assert ends == {
        "| cifar100:sym:0.8": ["71.7", "77.85 |"],
        "| cifar10:human:train-labels.npz:worse_label": ["–", "94.75 |"],
        "| cifar10:sym:0.8": ["–", "– |"],
    }


def test_wrong_input_is_named(
    data: Path, recipe: Path, published: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, message in (("cifar11:sym:0.4", "cifar10 and cifar100"), ("cifar10:much", "noise 'much' is unknown")):
        assert published.main([*options(data, recipe, tmp_path)[:-1], setting]) == 2
        assert message in capsys.readouterr().err
    assert published.main(["--data", str(tmp_path), *options(data, recipe, tmp_path)[2:]]) == 2
    assert "no train*.npz" in capsys.readouterr().err
    more = options(data, recipe, tmp_path, "cifar10:human:none.npz:worse_label")
    assert published.main(more) == 2
    assert "human labels none.npz: no file" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()  # the setting before it was not begun


def test_the_recipe_fits_the_settings() -> None:
    """Each group of the curation is complete, and the trainings have no name that a plan has not."""
    content = json.loads((BENCHMARKS / "published.json").read_text())
    curation = content["curation"]
    assert make_config(curation).model_dump(include=set(curation)) == curation
    for group in ("contrastive", "pretrain", "finetune"):
        assert set(content[group]) - {"batch_size", "projection_width"} <= set(TrainPlan.__dataclass_fields__)
