"""The benchmark of published settings: without Ray, FAISS and pydantic, and in pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from trainref_ray import make_config
from trainref_ray.training.loop import TrainPlan

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WITHOUT = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "faiss", "pydantic", "yaml", "mlflow"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
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


def test_in_pieces_and_without_ray_it_gives_what_it_gives_at_once(
    data: Path, recipe: Path, published: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_once, pieces = tmp_path / "at_once", tmp_path / "pieces"
    command = [sys.executable, "-c", WITHOUT, str(BENCHMARKS / "published.py"), *options(data, recipe, at_once)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, timeout=300, capture_output=True, text=True, env=one_thread)
    assert done.returncode == 0, done.stderr
    codes = [published.main(options(data, recipe, pieces, "--minutes", "0")) for _ in range(8)]
    assert codes == [75] * 8  # after each of the two epochs of the four trainings
    assert not (pieces / "published.json").exists()
    assert published.main(options(data, recipe, pieces)) == 0
    expected, found = (json.loads((folder / "published.json").read_text()) for folder in (at_once, pieces))
    assert found == expected
    assert found["rows"][0]["test"]["accuracy"] > 0.5
    assert found["rows"][0]["rounds"][-1]["noise_auroc"] > 0.8
    assert "cifar10:sym:0.4 | 0 |" in (pieces / "published.md").read_text()
    capsys.readouterr()


def test_wrong_input_is_named(
    data: Path, recipe: Path, published: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, message in (("cifar11:sym:0.4", "cifar10 and cifar100"), ("cifar10:much", "noise 'much' is unknown")):
        assert published.main([*options(data, recipe, tmp_path)[:-1], setting]) == 2
        assert message in capsys.readouterr().err
    assert published.main(["--data", str(tmp_path), *options(data, recipe, tmp_path)[2:]]) == 2
    assert "no train*.npz" in capsys.readouterr().err


def test_the_recipe_fits_the_settings() -> None:
    """Each group of the curation is complete, and the trainings have no name that a plan has not."""
    content = json.loads((BENCHMARKS / "published.json").read_text())
    curation = content["curation"]
    assert make_config(curation).model_dump(include=set(curation)) == curation
    for group in ("contrastive", "pretrain", "finetune"):
        assert set(content[group]) - {"batch_size", "projection_width"} <= set(TrainPlan.__dataclass_fields__)
