"""The loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from trainref_ray.training.objectives import soft_cross_entropy


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
