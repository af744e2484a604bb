"""Which images a person should look at next, to make them references."""

from __future__ import annotations

import numpy as np

BLOCK = 1024
"""Candidates whose gains are computed at once."""


def suggest(
    candidates: np.ndarray, doubt: np.ndarray, references: np.ndarray, *, points: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images that leave the least doubt far from every reference.

    Weighted facility location by the greedy algorithm (Nemhauser, Wolsey and Fisher 1978; for training data Wei, Iyer
    and Bilmes, ICML 2015). With w_i the doubt about image i and c_i its largest cosine to a reference or to an image
    chosen before, 0 at least, each next image is the j with the largest w_j · Σ_i w_i · max(cos(z_i, z_j) − c_i, 0); of
    equal ones the first. Near an image that is chosen there is little left to gain, so copies are not chosen twice. The
    factor w_j is not in the usual form: an image that nobody doubts is a reference by augmentation anyway. Measured:
    benchmarks/results/suggestions.md.

    Args:
        candidates: float32 [N, D], unit norm, images that may be chosen.
        doubt: float [N], 0 and up, such as the entropy of their distributions.
        references: float32 [R, D], unit norm; R may be 0.
        points: the sum runs over the first so many candidates.
        count: how many, at most N.

    Returns:
        rows int64 [at most count], the most useful first; and float64 [1 + rows]: the weighted mean of c_i before the
        first and after each, 0 to 1.
    """
    similarity = np.maximum(candidates @ candidates[:points].T, 0.0)
    nearest = np.zeros(similarity.shape[1], np.float32)
    if len(references):
        nearest = np.maximum(nearest, (references @ candidates[:points].T).max(axis=0))
    weights = np.asarray(doubt[:points], np.float64)
    share = weights / max(weights.sum(), np.finfo(np.float64).tiny)
    free = np.ones(len(candidates), bool)
    chosen: list[int] = []
    reached = [float(nearest @ share)]
    for _ in range(min(count, len(candidates))):
        gains = np.where(free, doubt * _gains(similarity, nearest, share), -1.0)
        best = int(gains.argmax())
        free[best] = False
        nearest = np.maximum(nearest, similarity[best])
        chosen.append(best)
        reached.append(float(nearest @ share))
    return np.array(chosen, np.int64), np.array(reached)


def _gains(similarity: np.ndarray, nearest: np.ndarray, share: np.ndarray) -> np.ndarray:
    """What each candidate would add, float64 [N]."""
    blocks = [
        np.maximum(similarity[start : start + BLOCK] - nearest, 0.0) @ share
        for start in range(0, len(similarity), BLOCK)
    ]
    return np.concatenate([np.zeros(0), *blocks])
