"""Which images a person should look at next, to make them references."""

from __future__ import annotations

import numpy as np

BLOCK = 1024
"""Candidates whose gains are computed at once."""


def suggest(
    candidates: np.ndarray, points: np.ndarray, weights: np.ndarray, references: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images that leave the least doubt far from every reference.

    Weighted facility location by the greedy algorithm (Nemhauser, Wolsey and Fisher 1978; for training data Wei,
    Iyer and Bilmes, ICML 2015). With c_i the largest cosine of point i to a reference or to an image chosen before, 0
    at least, each next image is the j with the largest Σ_i w_i · max(cos(z_i, z_j) − c_i, 0); of equal ones the first.
    What an image near one chosen before would add is small, so copies and near neighbours are not chosen twice.

    Args:
        candidates: float32 [N, D], unit norm, images that may be chosen.
        points: float32 [P, D], unit norm, the images that the sum runs over, such as the candidates.
        weights: float [P], 0 and up: how much there is to learn of each point.
        references: float32 [R, D], unit norm; R may be 0.
        count: how many, at most N.

    Returns:
        rows int64 [at most count], the most useful first; and float64 [1 + rows]: the weighted mean of c_i before the
        first and after each, 0 to 1.
    """
    similarity = np.maximum(candidates @ points.T, 0.0)
    nearest = np.zeros(len(points), np.float32)
    if len(references):
        nearest = np.maximum(nearest, (references @ points.T).max(axis=0))
    share = np.asarray(weights, np.float64) / max(float(np.sum(weights)), np.finfo(np.float64).tiny)
    free = np.ones(len(candidates), bool)
    chosen: list[int] = []
    reached = [float(nearest @ share)]
    for _ in range(min(count, len(candidates))):
        gains = np.where(free, _gains(similarity, nearest, share), -1.0)
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
    return np.concatenate(blocks)
