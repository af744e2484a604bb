"""Noise: rates by hand, who is flipped to what, and files of human labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
        ("h.npz:best", "has no 'best'; it has worse, other"),
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
