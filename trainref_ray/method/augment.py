"""Which samples join the reference set, since a few trusted images a class are too few to vote (METHOD 2)."""

from __future__ import annotations

import math

import numpy as np


def evidence_bar(delta: float, classes: int) -> float:
    """Least normalised evidence of the given label, δ·√((C−1)/C): the root is the ceiling of a zero-sum unit vector."""
    return delta * math.sqrt((classes - 1) / classes)


def least_norm(evidence_norm: np.ndarray, share: float) -> float:
    """Least length of the evidence, as `share` of the median over the samples [N]; 0 without samples."""
    return share * float(np.median(evidence_norm)) if len(evidence_norm) else 0.0


def passes_bar(
    label_evidence: np.ndarray, evidence_norm: np.ndarray, *, classes: int, delta: float, min_norm: float
) -> np.ndarray:
    """bool [N]: the given label has enough evidence, and the evidence was not tiny before it was normalised.

    Args:
        label_evidence: float32 [N], normalised evidence of the given label.
        evidence_norm: float32 [N], length of the evidence before that; foreign images have little.
        classes: C.
        delta: share of what C classes allow.
        min_norm: least length, absolute.
    """
    return (label_evidence >= evidence_bar(delta, classes)) & (evidence_norm >= min_norm)


def candidates(
    uids: np.ndarray,
    labels: np.ndarray,
    label_evidence: np.ndarray,
    evidence_norm: np.ndarray,
    *,
    classes: int,
    delta: float,
    min_norm: float,
    per_class: int,
) -> np.ndarray:
    """Rows that join the reference set: those that pass the bar, at most `per_class` a class, best first (METHOD 2).

    The same function serves one shard and the concatenated candidates of all: the best of the shards' best are the
    best of all rows at once, since ties are broken by uid alone. Given references are not to be among the rows.

    Args:
        uids: int64 [N], unique.
        labels: int [N], given labels, 0 to C − 1.
        label_evidence: float32 [N], normalised evidence of the given label, −1 to 1.
        evidence_norm: float32 [N], length of the evidence before it was normalised.
        classes: C.
        delta: share of the evidence that C classes allow.
        min_norm: least length of the evidence, absolute.
        per_class: most rows of a class.

    Returns:
        int64 [n] row numbers, by class, then by falling evidence, then by uid.
    """
    rows = np.flatnonzero(passes_bar(label_evidence, evidence_norm, classes=classes, delta=delta, min_norm=min_norm))
    order = np.lexsort((uids[rows], -label_evidence[rows], labels[rows]))
    rows = rows[order]
    counts = np.bincount(labels[rows], minlength=classes)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(rows)) - first[labels[rows]]
    return rows[rank < per_class]


def classes_left_short(labels_added: np.ndarray, classes: int) -> list[int]:
    """Classes that no sample joined, so that they keep just the given references: the summary says so (METHOD 2).

    Args:
        labels_added: int [A], labels of the samples that joined.
        classes: C.
    """
    return np.flatnonzero(np.bincount(np.asarray(labels_added, dtype=np.int64), minlength=classes) == 0).tolist()
