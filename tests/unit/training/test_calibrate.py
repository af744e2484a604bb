"""Temperature scaling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.training.calibrate import (
    HIGHEST,
    LOWEST,
    TemperatureFit,
    fit_distributions,
    fit_held_out,
    fit_labels,
    fit_temperature,
    pool_fits,
    softmax,
)


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


def test_distributions_by_hand() -> None:
    """Logits d and 0, all targets (a, 1 - a): the model is to say a, so T = d / log(a / (1 - a)), but for the prior."""
    logits = np.tile([[3.0, 0.0]], (4000, 1))
    found = fit_distributions(logits, np.tile([[0.75, 0.25]], (4000, 1)))
    assert found.temperature == pytest.approx(3 / np.log(3), rel=2e-3)
    # a sample's cost bends by a (1 - a) (d / T)^2 there, and the prior by 1
    assert found.variance == pytest.approx(1 / (1 + 4000 * 0.75 * 0.25 * np.log(3) ** 2), rel=1e-2)


def test_a_label_is_a_distribution_of_one_class() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(50, 4)) * 3, random.integers(0, 4, 50)
    assert fit_distributions(logits, np.eye(4)[labels]).temperature == pytest.approx(fit_temperature(logits, labels))


def test_variance_is_what_draws_of_the_labels_scatter_by() -> None:
    random = np.random.default_rng(0)
    fits = []
    for _ in range(200):
        logits = random.normal(size=(300, 5)) * 2
        labels = (softmax(logits, 0.7).cumsum(1) < random.random((300, 1))).sum(1).clip(max=4)
        fits.append(fit_labels(logits, labels))
    scatter = np.std([fit.log_temperature for fit in fits])
    assert scatter == pytest.approx(np.sqrt(np.mean([fit.variance for fit in fits])), rel=0.15)


def test_variance_of_a_single_sample() -> None:
    """The minimum of log(1 + exp(-3 / T)) + (log T)^2 / 2, and its second derivative there, by hand."""
    found = fit_labels(np.array([[3.0, 0.0]]), np.array([0]))
    scaled = -3 * np.exp(-found.log_temperature)
    wrong = 1 / (1 + np.exp(-scaled))
    assert found.log_temperature == pytest.approx(wrong * scaled, rel=1e-4)  # the first derivative is 0
    assert found.log_temperature == pytest.approx(-0.1129, abs=1e-4)
    assert found.variance == pytest.approx(1 / (1 + wrong * (1 - wrong) * scaled**2 + wrong * scaled), rel=1e-4)
    assert found.variance == pytest.approx(0.798, abs=1e-3)


def test_nothing_known_is_the_priors_variance() -> None:
    assert fit_labels(np.zeros((5, 3)), np.zeros(5, int)).variance == pytest.approx(1)


def test_fits_that_agree_are_averaged_by_their_variances() -> None:
    pooled = pool_fits(TemperatureFit(np.log(2), 0.3), TemperatureFit(0.0, 0.1))  # differ by 0.69, of a scatter of 0.63
    squared_error = np.log(2) ** 2 - 0.4
    weights = np.array([1 / 0.3, 1 / (0.1 + squared_error)])
    assert pooled == pytest.approx(np.exp(weights[0] * np.log(2) / weights.sum()))
    assert pool_fits(TemperatureFit(0.3, 0.3), TemperatureFit(0.0, 0.1)) == pytest.approx(np.exp(0.3 / 4))


def test_many_references_outweigh_distributions_that_are_off() -> None:
    trusted = TemperatureFit(0.0, 1e-4)
    assert pool_fits(trusted, TemperatureFit(1.0, 1e-4)) == pytest.approx(1, abs=2e-3)
    assert pool_fits(TemperatureFit(0.0, 0.5), TemperatureFit(1.0, 1e-4)) == pytest.approx(
        np.exp(1 / 0.5001 / (1 / 0.5 + 1 / 0.5001)), rel=1e-3
    )


@settings(max_examples=50, deadline=None)
@given(
    first=st.floats(-3, 3),
    second=st.floats(-3, 3),
    variances=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)),
)
def test_the_pooled_temperature_lies_between(first: float, second: float, variances: tuple[float, float]) -> None:
    pooled = np.log(pool_fits(TemperatureFit(first, variances[0]), TemperatureFit(second, variances[1])))
    assert min(first, second) - 1e-9 <= pooled <= max(first, second) + 1e-9


def test_what_is_held_out_decides_what_is_fitted() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(200, 3)) * 4, random.integers(0, 3, 200)
    curated = logits[50:], softmax(logits[50:], 2.0)
    trusted = logits[:50], labels[:50]
    assert fit_held_out(None, None) == 1
    assert fit_held_out(trusted, None) == fit_temperature(*trusted)
    assert fit_held_out(None, curated) == fit_distributions(*curated).temperature == pytest.approx(2, rel=0.02)
    assert fit_held_out(trusted, curated) == pool_fits(fit_labels(*trusted), fit_distributions(*curated))


def test_distributions_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="need \\[n, C\\]"):
        fit_distributions(np.zeros((2, 3)), np.zeros((2, 4)))
