"""Folds of references: every class keeps one at least."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainref_ray.method.folds import deal_folds


def test_each_class_is_dealt_round_and_a_single_reference_stays() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    dealt = deal_folds(labels, 3, seed=0)
    assert sorted(dealt[labels == 0]) == [0, 0, 1, 2]
    assert dealt[labels == 1].tolist() == [-1]
    assert sorted(dealt[labels == 2]) == [0, 1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(2, 6), st.integers(0, 5))
def test_no_fold_takes_a_class_away(labels: list[int], folds: int, seed: int) -> None:
    trusted = np.array(labels)
    dealt = deal_folds(trusted, folds, seed)
    for fold in range(folds):
        assert set(trusted[dealt != fold]) == set(labels)
    assert np.array_equal(dealt, deal_folds(trusted, folds, seed))
