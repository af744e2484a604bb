"""The losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from trainref_ray.training.objectives import nt_xent, soft_cross_entropy


def test_by_hand() -> None:
    logits = torch.log(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    expected = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_label_smoothing_by_hand() -> None:
    logits = torch.log(torch.tensor([[1.0, 3.0]]))
    expected = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)  # 0.2 spread over two classes leaves 0.9 and 0.1
    assert soft_cross_entropy(logits, torch.tensor([[0.0, 1.0]]), 0.2).item() == pytest.approx(expected, abs=1e-6)


def test_equals_torch_on_one_hot_targets_and_stays_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 5, generator=generator)
    labels = torch.randint(5, (9,), generator=generator)
    targets = functional.one_hot(labels, 5).float()
    torch.testing.assert_close(
        soft_cross_entropy(logits, targets, 0.1), functional.cross_entropy(logits, labels, label_smoothing=0.1)
    )
    assert soft_cross_entropy(logits.bfloat16(), targets).dtype == torch.float32


def test_contrastive_loss_by_hand() -> None:
    """Two images, whose views are 0 and 90, 90 and 0 degrees: the positive has cosine 0, the others 1 and 0."""
    projections = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
    expected = math.log(2 + math.exp(1 / 0.5))  # -log of exp(0) over exp(0) + exp(0) + exp(2), of every view
    assert nt_xent(projections, 0.5).item() == pytest.approx(expected, abs=1e-6)
    same = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])  # positives 1, all others -1
    expected = -math.log(math.e / (math.e + 2 / math.e))
    assert nt_xent(same, 1.0).item() == pytest.approx(expected, abs=1e-6)


def test_contrastive_loss_equals_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    projections = torch.randn(14, 5, generator=generator, dtype=torch.float64)
    temperature = 0.2

    def cosine(i: int, j: int) -> float:
        return float(projections[i] @ projections[j] / projections[i].norm() / projections[j].norm())

    losses = []
    for i in range(14):
        positive = i + 7 if i < 7 else i - 7
        others = sum(math.exp(cosine(i, j) / temperature) for j in range(14) if j != i)
        losses.append(-math.log(math.exp(cosine(i, positive) / temperature) / others))
    assert nt_xent(projections.float(), temperature).item() == pytest.approx(sum(losses) / 14, abs=1e-5)


def test_contrastive_loss_is_float32_with_finite_gradients_and_needs_pairs() -> None:
    projections = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    loss = nt_xent(projections, 0.5)
    loss.backward()
    assert loss.dtype == torch.float32
    assert projections.grad is not None
    assert projections.grad.isfinite().all()
    for rows in (0, 3):
        with pytest.raises(ValueError, match=f"{rows} projections"):
            nt_xent(torch.zeros(rows, 2), 0.5)
