"""The linear probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trainref_ray.models.probe import Probe, fit_probe

SETTINGS: dict[str, Any] = {
    "classes": 3,
    "epochs": 6,
    "batch_size": 32,
    "learning_rate": 0.05,
    "weight_decay": 1e-4,
    "scale": 16.0,
    "checkpoints": 3,
    "bias": True,
    "seed": 0,
}


def clusters(count: int = 150, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated directions in 8 dimensions."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    vectors = np.eye(8)[labels] + 0.1 * random.normal(size=(count, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def test_probabilities_by_hand() -> None:
    weight = np.log(np.array([[[2.0, 1.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 3.0]]], np.float32))
    bias = np.log(np.array([[1.0, 1.0], [3.0, 1.0]], np.float32))
    embeddings = np.eye(2, dtype=np.float32)
    expected = [[[2 / 3, 1 / 3], [1 / 2, 1 / 2]], [[3 / 4, 1 / 4], [1 / 2, 1 / 2]]]
    found = Probe(weight, bias).probabilities(embeddings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    without = Probe(weight, None).probabilities(embeddings.astype(np.float16))
    np.testing.assert_allclose(without[1], [[1 / 2, 1 / 2], [1 / 4, 3 / 4]], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_separable_classes_are_learned(bias: bool) -> None:
    vectors, labels = clusters()
    probe = fit_probe(vectors, labels, **SETTINGS | {"bias": bias})
    assert probe.weight.shape == (3, 3, 8)
    assert probe.weight.dtype == np.float32
    assert (probe.bias is not None) == bias
    for probabilities in probe.probabilities(vectors):
        assert (probabilities.argmax(1) == labels).mean() > 0.98
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_one_step_of_adam_by_hand() -> None:
    """From zero, Adam's first step moves every parameter by the learning rate against its gradient's sign."""
    vectors, labels = np.array([[0.6, -0.8]], np.float32), np.array([1])
    settings = SETTINGS | {"classes": 2, "epochs": 1, "checkpoints": 1, "weight_decay": 0.0, "scale": 10.0}
    probe = fit_probe(vectors, labels, **settings)
    assert probe.bias is not None
    # The gradient of the logits is p - y = (1/2, -1/2): class 0 moves down along z, class 1 up; the scale is applied.
    np.testing.assert_allclose(probe.weight[0], [[-0.5, 0.5], [0.5, -0.5]], atol=1e-5)
    np.testing.assert_allclose(probe.bias[0], [-0.05, 0.05], atol=1e-6)


def test_checkpoints_are_at_equal_distances_of_the_same_training() -> None:
    vectors, labels = clusters()
    whole = fit_probe(vectors, labels, **SETTINGS)
    third = fit_probe(vectors, labels, **SETTINGS | {"epochs": 2, "checkpoints": 1})
    last = fit_probe(vectors, labels, **SETTINGS | {"checkpoints": 1})
    np.testing.assert_array_equal(whole.weight[0], third.weight[0])
    np.testing.assert_array_equal(whole.weight[2], last.weight[0])
    assert not np.array_equal(whole.weight[1], whole.weight[2])


def test_the_seed_decides_and_the_global_generator_does_not() -> None:
    vectors, labels = clusters()
    torch.manual_seed(1)
    first = fit_probe(vectors, labels, **SETTINGS)
    torch.manual_seed(2)
    np.testing.assert_array_equal(first.weight, fit_probe(vectors, labels, **SETTINGS).weight)
    assert not np.array_equal(first.weight, fit_probe(vectors, labels, **SETTINGS | {"seed": 1}).weight)


@pytest.mark.parametrize(
    ("change", "labels", "message"),
    [
        ({}, np.array([0, 1]), "150 embeddings and 2 labels"),
        ({}, np.full(150, 3), "allowed: 0 to 2"),
        ({}, np.full(150, -1), "allowed: 0 to 2"),
        ({"epochs": 1, "batch_size": 200}, np.zeros(150, np.int64), "too few for 3 checkpoints"),
    ],
)
def test_impossible_requests_are_refused(change: dict[str, Any], labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_probe(clusters()[0], labels, **SETTINGS | change)
