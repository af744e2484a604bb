"""Generalised cross-entropy and the weighting of clean and hard images."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from trainref_ray.baselines.objectives import generalised_cross_entropy, supervised_loss

LOGITS = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])
"""Probabilities (3/4, 1/4), (3/4, 1/4), (1/2, 1/2)."""


def test_generalised_cross_entropy_by_hand() -> None:
    labels = torch.tensor([0, 1, 0])
    found = generalised_cross_entropy(LOGITS, labels, 0.5)
    assert found.tolist() == pytest.approx([2 * (1 - math.sqrt(0.75)), 2 * (1 - 0.5), 2 * (1 - math.sqrt(0.5))])
    assert generalised_cross_entropy(LOGITS, labels, 1.0).tolist() == pytest.approx([0.25, 0.75, 0.5])


def test_generalised_cross_entropy_nears_cross_entropy_for_a_small_power() -> None:
    labels = torch.tensor([0, 1, 1])
    near = generalised_cross_entropy(LOGITS.double(), labels, 1e-4)
    assert near.tolist() == pytest.approx(functional.cross_entropy(LOGITS, labels, reduction="none").tolist(), rel=1e-3)


def test_a_hopeless_sample_has_a_finite_gradient() -> None:
    logits = torch.tensor([[300.0, 0.0]], requires_grad=True)
    generalised_cross_entropy(logits, torch.tensor([1]), 0.7).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_supervised_loss_by_hand() -> None:
    """One clean and one hard image of three: (CE + λ·GCE) / 3; the third counts in the share alone."""
    labels = torch.tensor([0, 1, 0])
    clean, hard = torch.tensor([True, False, False]), torch.tensor([False, True, False])
    found = supervised_loss(LOGITS, labels, clean, hard, hard_weight=0.2, power=0.5)
    assert float(found) == pytest.approx((-math.log(0.75) + 0.2 * 2 * (1 - 0.5)) / 3)


def test_supervised_loss_of_clean_images_alone_is_cross_entropy_and_of_none_is_zero() -> None:
    labels = torch.tensor([0, 1, 1])
    everyone, nobody = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    alone = supervised_loss(LOGITS, labels, everyone, nobody, hard_weight=1.0, power=0.7)
    assert float(alone) == pytest.approx(float(functional.cross_entropy(LOGITS, labels)))
    assert float(supervised_loss(LOGITS, labels, nobody, nobody, hard_weight=1.0, power=0.7)) == 0
