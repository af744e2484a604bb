"""Leaving references out, to judge a curation by labels it was not given (METHOD 7)."""

from __future__ import annotations

import numpy as np


def deal_folds(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deal references into folds so that each class that has two or more keeps one at least when a fold is left out.

    Args:
        labels: int [R], trusted labels.
        folds: F, 2 and up.
        seed: of the order within each class.

    Returns:
        int64 [R]: the fold of each, 0 to F - 1; -1 = never left out, the only reference of its class.
    """
    labels = np.asarray(labels)
    dealt = np.full(len(labels), -1, np.int64)
    for label in np.unique(labels):
        rows = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            dealt[rows] = np.arange(len(rows)) % folds
    return dealt
