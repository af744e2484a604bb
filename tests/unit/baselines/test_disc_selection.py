"""DISC's subsets and thresholds, by hand and in general."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.baselines.selection import CLEAN, HARD, LEFT_OUT, PURIFIED, Selection, select, updated_threshold

WEAK = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9], [0.1, 0.9], [0.4, 0.6], [0.1, 0.9]])
STRONG = torch.tensor([[0.7, 0.3], [0.3, 0.7], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.3, 0.7], [0.05, 0.95]])
LABELS = torch.tensor([0, 0, 0, 0, 0, 0, 0])
WEAK_THRESHOLD = torch.tensor([0.5, 0.5, 0.5, 0.2, 0.4, 0.4, 0.9])
STRONG_THRESHOLD = torch.tensor([0.6, 0.6, 0.5, 0.4, 0.4, 0.4, 0.9])


def test_subsets_by_hand() -> None:
    """Probability of the given label against the threshold, weak and strong:

    0: 0.8 > 0.5 and 0.7 > 0.6: clean.           1: 0.8 > 0.5, 0.3 not: hard.      2: 0.3 not, 0.6 > 0.5: hard.
    3: neither; mean of class 1 is 0.8, needed (0.2 + 0.4) / 2 + 0.5 = 0.8: not above, left out.
    4: neither; mean 0.85, needed 0.9: left out.  5: equal to the weak threshold is not above; mean 0.65: left out.
    6: neither; mean 0.925, needed 0.9 + 0.5, but never more than the ceiling of 0.92: purified.
    """
    found = select(WEAK, STRONG, LABELS, WEAK_THRESHOLD, STRONG_THRESHOLD, sigma=0.5, ceiling=0.92)
    assert found.subset.tolist() == [CLEAN, HARD, HARD, LEFT_OUT, LEFT_OUT, LEFT_OUT, PURIFIED]
    assert found.labels.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_a_smaller_margin_purifies_more_and_a_high_ceiling_less() -> None:
    def subsets(sigma: float, ceiling: float) -> list[int]:
        found = select(WEAK, STRONG, LABELS, WEAK_THRESHOLD, STRONG_THRESHOLD, sigma=sigma, ceiling=ceiling)
        return found.subset.tolist()

    assert subsets(0.4, 0.99)[3:] == [PURIFIED, PURIFIED, LEFT_OUT, LEFT_OUT]
    assert subsets(0.5, 0.93)[6] == LEFT_OUT


def test_thresholds_by_hand() -> None:
    """0.9 · 0.5 + 0.1 · 0.8 = 0.53 and 0.9 · 1/7 + 0.1 · 0.6."""
    probabilities = torch.tensor([[0.2, 0.8], [0.6, 0.4]])
    found = updated_threshold(torch.tensor([0.5, 1 / 7]), probabilities, 0.9)
    assert found.tolist() == pytest.approx([0.53, 0.9 / 7 + 0.06])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), classes=st.integers(2, 6))
def test_every_image_is_in_one_subset_with_the_label_that_fits(seed: int, count: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    weak, strong = (torch.from_numpy(random.dirichlet(np.full(classes, 0.3), count)).float() for _ in range(2))
    labels = torch.from_numpy(random.integers(0, classes, count))
    low, high = (torch.from_numpy(random.random(count)).float() * 0.6 for _ in range(2))

    def found(order: torch.Tensor) -> Selection:
        return select(weak[order], strong[order], labels[order], low[order], high[order], sigma=0.3, ceiling=0.95)

    whole = found(torch.arange(count))
    kept = whole.subset != PURIFIED
    assert torch.equal(whole.labels[kept], labels[kept])
    mean = (weak + strong) / 2
    assert torch.equal(whole.labels[~kept], mean.argmax(dim=1)[~kept])
    own = torch.stack([weak[range(count), labels] > low, strong[range(count), labels] > high]).sum(dim=0)
    assert torch.equal(whole.subset == CLEAN, own == 2)
    assert torch.equal(whole.subset == HARD, own == 1)
    shuffled = torch.from_numpy(random.permutation(count))
    assert torch.equal(found(shuffled).subset, whole.subset[shuffled])
