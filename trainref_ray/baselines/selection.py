"""Which images DISC trusts: clean, hard, purified or left out (METHOD 8; Li et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CLEAN, HARD, PURIFIED, LEFT_OUT = 0, 1, 2, 3
"""Subsets, in the order in which they are tried."""


@dataclass(frozen=True)
class Selection:
    """The subsets of an epoch.

    Attributes:
        subset: int64 [N], one of CLEAN, HARD, PURIFIED and LEFT_OUT.
        labels: int64 [N], the label to train on: the given one, and the predicted one of purified images.
    """

    subset: Tensor
    labels: Tensor


def select(
    weak: Tensor,
    strong: Tensor,
    labels: Tensor,
    weak_threshold: Tensor,
    strong_threshold: Tensor,
    *,
    sigma: float,
    ceiling: float,
) -> Selection:
    """Sort images by what the two views say of their given label.

    Clean: the given label's probability is above the image's threshold in both views. Hard: in exactly one. Purified:
    in neither, and the largest mean probability of the views is above min(mean threshold + sigma, ceiling).

    Args:
        weak, strong: float [N, C], softmax outputs of the two views.
        labels: int64 [N], given labels.
        weak_threshold, strong_threshold: float [N], the images' own thresholds.
        sigma: what a new label needs above the mean threshold.
        ceiling: largest probability that is asked of a new label.
    """
    by_weak = weak.gather(1, labels[:, None])[:, 0] > weak_threshold
    by_strong = strong.gather(1, labels[:, None])[:, 0] > strong_threshold
    confidence, predicted = ((weak + strong) / 2).max(dim=1)
    needed = ((weak_threshold + strong_threshold) / 2 + sigma).clamp(max=ceiling)
    subset = torch.full_like(labels, LEFT_OUT)
    subset[confidence > needed] = PURIFIED
    subset[by_weak | by_strong] = HARD
    subset[by_weak & by_strong] = CLEAN
    return Selection(subset, torch.where(subset == PURIFIED, predicted, labels))


def updated_threshold(threshold: Tensor, probabilities: Tensor, momentum: float) -> Tensor:
    """τ ← λτ + (1 − λ)·max p: float [N] thresholds and float [N, C] probabilities of one view, 0 <= λ < 1."""
    return momentum * threshold + (1 - momentum) * probabilities.max(dim=1).values
