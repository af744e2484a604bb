"""Noise: rates by hand, who is flipped to what, and files of human labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA

from trainref_ray.data.noise import inject, parse_noise
from trainref_ray.errors import ConfigError

N = 40_000
LABELS = np.arange(N) % 10
"""4,000 a class; the standard error of a share of 0.4 of all is 0.0025, so 0.01 is four of them."""


def wrong(spec: str, **options: object) -> np.ndarray:
    return inject(LABELS, 10, spec, 0, **options) != LABELS  # type: ignore[arg-type]


def test_symmetric_noise_draws_from_all_classes() -> None:
    assert wrong("sym:0.4").mean() == pytest.approx(0.4 * 9 / 10, abs=0.01)
    assert wrong("sym:1").mean() == pytest.approx(0.9, abs=0.01)
    noisy = inject(LABELS, 10, "sym:1", 0)
    assert np.bincount(noisy[LABELS == 3], minlength=10).min() > 300  # 400 of each are expected


def test_symflip_draws_from_the_others() -> None:
    assert wrong("symflip:0.4").sum() == 16_000
    noisy = inject(LABELS, 10, "symflip:1", 0)
    counts = np.bincount(noisy[LABELS == 3], minlength=10)
    assert counts[3] == 0
    assert np.delete(counts, 3).min() > 340  # 444 of each are expected


def test_asymmetric_noise_follows_the_table() -> None:
    confusion = np.array([0, 1, 0, 5, 7, 3, 6, 7, 8, 1])
    noisy = inject(LABELS, 10, "asym:0.4", 0, confusion=confusion)
    for label in (2, 3, 4, 5, 9):
        given = noisy[label == LABELS]
        assert set(given.tolist()) == {label, int(confusion[label])}
        assert (given != label).mean() == pytest.approx(0.4, abs=0.035)
    for label in (0, 1, 6, 7, 8):
        assert (noisy[label == LABELS] == label).all()
    assert (noisy != LABELS).mean() == pytest.approx(0.4 * 5 / 10, abs=0.01)


def test_instance_noise_has_its_rate_and_depends_on_the_features() -> None:
    features = np.random.default_rng(1).standard_normal((N, 6))
    noisy = inject(LABELS, 10, "instance:0.3", 0, features=lambda: features)
    # rates are normal around 0.3 with deviation 0.1, cut to [0, 1]: the mean stays 0.3 to 0.001
    assert (noisy != LABELS).mean() == pytest.approx(0.3, abs=0.01)
    flipped = (LABELS == 4) & (noisy != 4)
    group = features[:, 0] > 1.5
    shares = [np.bincount(noisy[flipped & part], minlength=10) / (flipped & part).sum() for part in (group, ~group)]
    assert np.abs(shares[0] - shares[1]).max() > 0.1
    same = inject(LABELS, 10, "instance:0.3", 0, features=lambda: np.zeros((N, 6)))
    assert np.bincount(same[(LABELS == 4) & (same != 4)], minlength=10)[[0, 9]].min() > 70  # 133 of each are expected


def test_one_sample_of_instance_noise_by_hand() -> None:
    rng = np.random.default_rng(5)
    rate = rng.normal(0.5, 0.1, 1)[0]
    draw = rng.random(1)[0]
    feature = np.array([0.3, -0.2])
    weights = rng.standard_normal((2, 3), np.float32)
    scores = feature @ weights
    other = np.exp(scores[1:]) / np.exp(scores[1:]).sum() * rate
    expected = 0 if draw < 1 - rate else 1 if draw < 1 - rate + other[0] else 2
    assert inject(np.array([0]), 3, "instance:0.5", 5, features=lambda: feature[None]).tolist() == [expected]


@pytest.mark.parametrize("spec", ["sym:0.3", "symflip:0.3", "none"])
def test_seeds_decide(spec: str) -> None:
    first, again, other = (inject(LABELS, 10, spec, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (spec == "none")
    assert np.array_equal(inject(LABELS, 10, spec.split(":")[0] + ":0", 0) if spec != "none" else LABELS, LABELS)


def test_human_labels_from_every_file(tmp_path: Path) -> None:
    given = np.array([2, 0, 1], np.uint8)
    np.save(tmp_path / "h.npy", given)
    np.savez(tmp_path / "h.npz", worse=given, other=given * 0)
    (tmp_path / "h.csv").write_text("key,worse\na,2\nb,0\nc,1\n")
    for spec in ("h.npy", "h.npz:worse", "h.csv:worse"):
        assert inject(np.array([0, 1, 2]), 3, f"human:{tmp_path}/{spec}", 0).tolist() == [2, 0, 1]
    for spec, message in (
        ("none.npy", "does not exist"),
        ("h.npz:best", "has no column 'best'; it has worse, other"),
        ("h.csv:best", "has no column 'best'; it has key, worse"),
        ("h.csv:key", "cannot be read"),
        ("h.txt", "allowed are"),
    ):
        with pytest.raises(ConfigError, match=message):
            inject(np.array([0, 1, 2]), 3, f"human:{tmp_path}/{spec}", 0)
    with pytest.raises(ConfigError, match=r"shape \(3,\); 2 are needed"):
        inject(np.array([0, 1]), 3, f"human:{tmp_path}/h.npy", 0)
    with pytest.raises(ConfigError, match="run from 0 to 2, not 0 to 1"):
        inject(np.array([0, 1, 1]), 2, f"human:{tmp_path}/h.npy", 0)


def human(path: Path, true_labels: np.ndarray, classes: int = 10) -> np.ndarray:
    return inject(true_labels, classes, f"human:{path}:worse_label", 0)


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_such_as_cifar_ns(tmp_path: Path, legacy: bool) -> None:
    import torch

    clean, worse = LABELS[:50], (LABELS[:50] + 1) % 10
    path = tmp_path / "CIFAR-10_human.pt"
    for kind in (np.int64, np.uint8, torch.from_numpy):
        content = {"clean_label": clean, "worse_label": worse}
        content = {name: kind(v) if kind is torch.from_numpy else v.astype(kind) for name, v in content.items()}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert np.array_equal(human(path, clean), worse)
    if legacy:  # the published files were written with numpy 1, whose module had another name
        torch.save({"clean_label": clean, "worse_label": worse}, path, _use_new_zipfile_serialization=False)
        numpy_1 = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy.core.multiarray" in numpy_1
        assert b"numpy._core" not in numpy_1
        path.write_bytes(numpy_1)
        assert np.array_equal(human(path, clean), worse)
    with pytest.raises(ConfigError, match=r"has no column 'best'; it has clean_label, worse_label"):
        inject(clean, 10, f"human:{path}:best", 0)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_file_of_torch_is_run(tmp_path: Path, legacy: bool) -> None:
    import torch

    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    objects = np.array([Payload(f"touch {trace}")], dtype=object)
    for content in ({"worse_label": Payload(f"touch {trace}")}, {"worse_label": objects}):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ConfigError, match=r"cannot be loaded safely.* If you trust it, export it to an npz file"):
            human(path, LABELS[:1])
    assert not trace.exists()
    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match="holds a list, not a dictionary"):
        human(path, LABELS[:2])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigError, match="cannot be loaded safely"):
        human(path, LABELS[:2])


def test_the_command_that_exports_a_file_of_torch_works(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "labels.pt"
    torch.save({"worse_label": LABELS[:9], "note": np.array(["a"], dtype=object)}, path)
    with pytest.raises(ConfigError) as caught:
        human(path, LABELS[:9])
    command = str(caught.value).partition("npz file: python -c ")[2]
    subprocess.run(f"{sys.executable} -c {command}", shell=True, check=True, cwd=tmp_path, timeout=120)
    assert np.array_equal(human(tmp_path / "labels.npz", LABELS[:9]), LABELS[:9])


def test_human_labels_of_other_data_or_another_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.npz"
    np.savez(path, clean_label=LABELS[:6], worse_label=LABELS[:6])
    assert np.array_equal(human(path, LABELS[:6]), LABELS[:6])
    with pytest.raises(ConfigError, match=r"differs from the true labels in 2 of 6 samples, first in number 1;"):
        human(path, np.array([0, 2, 1, 3, 4, 5]))


@pytest.mark.skipif(not (SHARED_DATA / "cifar10n").is_dir(), reason=f"no CIFAR-10N labels in {SHARED_DATA}")
def test_real_cifar_10n_labels_are_as_wrong_as_published(tmp_path: Path) -> None:
    import torch

    with np.load(SHARED_DATA / "cifar10n" / "train-labels.npz", allow_pickle=False) as file:
        columns = {name: file[name].astype(np.int64) for name in file.files if "label" in name}
    torch.save(columns, tmp_path / "CIFAR-10_human.pt")
    clean = columns["clean_label"]
    rates = {"aggre_label": 0.090, "random_label1": 0.172, "worse_label": 0.402}  # Wei et al. 2022, table 1, rounded
    for name, rate in rates.items():
        given = inject(clean, 10, f"human:{tmp_path}/CIFAR-10_human.pt:{name}", 0)
        assert (given != clean).mean() == pytest.approx(rate, abs=5e-4)


def test_pickled_labels_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        inject(np.array([0]), 1, f"human:{tmp_path}/evil.npy", 0)


@pytest.mark.parametrize("spec", ["", "sym", "sym:", "salt:0.4", "none:0.1", "human:"])
def test_unknown_noise_lists_what_is_allowed(spec: str) -> None:
    with pytest.raises(ConfigError, match="allowed: none, sym:RATE"):
        parse_noise(spec)


@pytest.mark.parametrize("rate", ["1.1", "-0.1", "nan", "x"])
def test_rates_are_checked(rate: str) -> None:
    with pytest.raises(ConfigError, match="number from 0 to 1"):
        parse_noise(f"sym:{rate}")


def test_noise_that_the_data_cannot_have() -> None:
    with pytest.raises(ConfigError, match="table of confused classes"):
        inject(LABELS, 10, "asym:0.4", 0)
    with pytest.raises(ConfigError, match="needs features"):
        inject(LABELS, 10, "instance:0.4", 0)
    with pytest.raises(ConfigError, match="labels run from 0 to 9"):
        inject(LABELS, 9, "sym:0.4", 0)
