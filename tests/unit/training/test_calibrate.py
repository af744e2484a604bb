"""Temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.training.calibrate import HIGHEST, LOWEST, fit_temperature, softmax


def mean_nll(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(labels)), labels]).mean())


def test_softmax_by_hand() -> None:
    logits = np.log(np.array([[1.0, 4.0]]))
    np.testing.assert_allclose(softmax(logits), [[0.2, 0.8]], atol=1e-6)
    np.testing.assert_allclose(softmax(logits, 2.0), [[1 / 3, 2 / 3]], atol=1e-6)
    assert softmax(logits.astype(np.float32)).dtype == np.float32
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0]])), [[1, 0]])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_finds_the_temperature_that_made_the_labels(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 5)) * 2
    probabilities = softmax(logits, temperature).astype(np.float64)
    labels = (probabilities.cumsum(1) < random.random((len(logits), 1))).sum(1).clip(max=4)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_two_classes_by_hand() -> None:
    """Logit difference d, share a right: T = d / log(a / (1 - a)), but for the prior, which 4,000 samples outweigh."""
    logits = np.tile([[3.0, 0.0]], (4000, 1))
    labels = (np.arange(4000) % 4 == 0).astype(int)
    assert fit_temperature(logits, labels) == pytest.approx(3 / np.log(3), rel=2e-3)


def test_ten_samples_that_are_all_right_do_not_make_it_certain() -> None:
    """Without the prior the best temperature is the lowest allowed."""
    logits = np.eye(10) * 3
    found = fit_temperature(logits, np.arange(10))
    assert 0.2 < found < 1
    assert mean_nll(logits, np.arange(10), LOWEST) < mean_nll(logits, np.arange(10), found)


def test_a_sample_without_information_leaves_one() -> None:
    assert fit_temperature(np.zeros((5, 3)), np.zeros(5, int)) == pytest.approx(1, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 30),
    spread=st.sampled_from([1e-3, 1.0, 50.0, 1e4]),
)
def test_is_the_minimum_and_in_range(seed: int, count: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(count, 4)) * spread, random.integers(0, 4, count)
    found = fit_temperature(logits, labels)
    assert LOWEST <= found <= HIGHEST

    def cost(temperature: float) -> float:
        scaled = logits / temperature
        peak = scaled.max(1)
        log_sum = peak + np.log(np.exp(scaled - peak[:, None]).sum(1))
        return float((log_sum - scaled[np.arange(count), labels]).sum() + 0.5 * np.log(temperature) ** 2)

    others = np.exp(np.linspace(np.log(LOWEST), np.log(HIGHEST), 200))
    assert cost(found) <= min(cost(other) for other in others) + 1e-6 * (1 + cost(found))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "n of 1 or more"),
        (np.zeros((2, 3)), np.zeros(3, int), "need"),
        (np.zeros((1, 3)), np.array([3]), "allowed: 0 to 2"),
        (np.array([[np.nan, 0.0]]), np.array([0]), "not finite"),
    ],
)
def test_impossible_input_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)
