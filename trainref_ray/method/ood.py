"""Out-of-distribution scores and a cut that flags a stated share of ordinary samples (METHOD 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainref_ray.method.draw import random_order

NO_SUPPORTER_DISTANCE = 2.0
"""Cosine distance of a sample without supporters: the largest there is."""


@dataclass(frozen=True)
class Gaussian:
    """One Gaussian, or one a class with a shared covariance.

    Attributes:
        means: float32 [G, D]; G = 1 class-agnostic, else one for each class that has members.
        precision: float32 [D, D], the inverse of the shrunk covariance.
    """

    means: np.ndarray
    precision: np.ndarray


def fit_gaussian(embeddings: np.ndarray, labels: np.ndarray | None, *, classes: int, shrinkage: float) -> Gaussian:
    """Fit to the members of the reference set (METHOD 4).

    The covariance is shrunk towards the mean variance times the identity, since D may exceed the members. A class with
    one member tells nothing of the covariance and does not count in its degrees of freedom.

    Args:
        embeddings: float [M, D].
        labels: int [M] for one mean a class, None for a single mean.
        classes: C.
        shrinkage: 0 = the covariance as it is, 1 = the identity alone.

    Raises:
        ValueError: there is no member at all.
    """
    if not len(embeddings):
        raise ValueError("a Gaussian needs at least one member; there is none")
    values = embeddings.astype(np.float64)
    groups = np.zeros(len(values), np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    sums = np.zeros((1 if labels is None else classes, values.shape[1]))
    np.add.at(sums, groups, values)
    counts = np.bincount(groups, minlength=len(sums))
    means: np.ndarray = sums / np.maximum(counts, 1)[:, None]
    centred = values - means[groups]
    freedom = max(len(values) - np.count_nonzero(counts), 1)
    covariance = centred.T @ centred / freedom
    width = len(covariance)
    variance = np.trace(covariance) / width
    if variance <= 0:  # every class has a single member: distances are then Euclidean
        return Gaussian(means[counts > 0].astype(np.float32), np.eye(width, dtype=np.float32))
    shrunk = (1.0 - shrinkage) * covariance + shrinkage * variance * np.eye(width)
    # without shrinkage the covariance may be singular: a floor far below any direction that carries information
    shrunk += 1e-6 * variance * np.eye(width)
    return Gaussian(means[counts > 0].astype(np.float32), np.linalg.inv(shrunk).astype(np.float32))


def mahalanobis(embeddings: np.ndarray, gaussian: Gaussian) -> np.ndarray:
    """Distance to the nearest mean under the Gaussian, float32 [N], 0 and up (METHOD 4).

    Args:
        embeddings: float [N, D].
        gaussian: with G means.
    """
    values = embeddings.astype(np.float64)
    means, precision = gaussian.means.astype(np.float64), gaussian.precision.astype(np.float64)
    # ‖a − b‖² by parts: N x G, never N x G x D. float64, since the parts cancel
    to_means = means @ precision
    squared = np.einsum("nd,nd->n", values @ precision, values)[:, None] - values @ (to_means.T + precision @ means.T)
    squared += np.einsum("gd,gd->g", to_means, means)
    return np.sqrt(np.maximum(squared.min(axis=1), 0.0)).astype(np.float32)


def knn_distance(similarity: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Mean cosine distance to the supporters, float32 [N], 0 to 2 (METHOD 4).

    Args:
        similarity: float32 [N, k].
        valid: bool [N, k], which supporters exist; a sample without any gets the largest distance.
    """
    count = valid.sum(axis=1)
    total = np.where(valid, 1.0 - similarity.astype(np.float64), 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), NO_SUPPORTER_DISTANCE).astype(np.float32)


def draw_passing(
    uids: np.ndarray, passes: np.ndarray, *, calibration: int, fit: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows on which the cut is set, and other rows to which the Gaussian is fitted: a random draw (METHOD 4).

    Both are drawn from the samples that pass the evidence bar. At random, not the best-ranked: easy samples are not
    typical. What is drawn depends on uids and seed alone, not on the order of the rows or on how many do not pass. The
    fit to all that pass finds foreign images better than the fit to the reference set in use, whose members are the
    best-ranked (CIFAR-10, AUROC higher by 0.005 to 0.015).

    Args:
        uids: int64 [N], unique.
        passes: bool [N]; given references are not to be among them.
        calibration: most rows of the first draw; at most half of those that pass.
        fit: most rows of the second.
        seed: of the draw.

    Returns:
        two int64 arrays of row numbers without a common one, in the order of the draw.
    """
    rows = np.flatnonzero(passes)
    rows = rows[random_order(uids[rows], seed)]
    first = min(calibration, len(rows) // 2)
    return rows[:first], rows[first : first + fit]


def cut(raw: np.ndarray, quantile: float) -> float:
    """Raw score above which a sample is flagged: the upper quantile for a finite sample (METHOD 4).

    The ⌈(n + 1)·quantile⌉-th smallest of n calibration scores, as in split conformal prediction: a new sample drawn
    alike lies above it with a probability of at most 1 − quantile. Infinity, so that nothing is flagged, where n is too
    small for that (below 19 for a quantile of 0.95): above the largest of n scores lies one in n + 1.

    Args:
        raw: float [n], scores of the calibration samples.
        quantile: share of ordinary samples to leave below the cut.
    """
    # the small subtraction keeps 20 * 0.95 = 19.000000000000004 from becoming the 20th
    rank = max(math.ceil((len(raw) + 1) * quantile - 1e-9), 1)
    return float(np.sort(raw)[rank - 1]) if rank <= len(raw) else math.inf


def ood_score(raw: np.ndarray, cut: float) -> np.ndarray:
    """raw / (raw + cut): float32 [N] in [0, 1), rising with raw (METHOD 4).

    Exactly 0.5 at the cut, and above 0.5 for every larger raw score, however close: rounding moves none across. Without
    a cut (infinity) half of raw / (raw + 1), which ranks and flags nothing.

    Args:
        raw: float [N], 0 and up.
        cut: 0 and up, may be infinite.
    """
    values = raw.astype(np.float64)
    if math.isinf(cut):
        return (0.5 * values / (values + 1.0)).astype(np.float32)
    total = values + cut
    score = np.where(total > 0, values / np.where(total > 0, total, 1.0), 0.5).astype(np.float32)
    half = np.float32(0.5)
    score = np.where(values > cut, np.maximum(score, np.nextafter(half, np.float32(1.0))), np.minimum(score, half))
    return np.minimum(score, np.nextafter(np.float32(1.0), half))
