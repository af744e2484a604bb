"""Exact merge of the answers of several index shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MISSING_SIMILARITY = -2.0
"""Similarity written beside id −1: below any cosine, and finite."""


def top_k(similarity: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row by falling similarity, then rising id; id −1 is no candidate.

    Args:
        similarity: float32 [N, P].
        ids: int64 [N, P], −1 = missing.
        k: wanted.

    Returns:
        float32 [N, k] and int64 [N, k]; `MISSING_SIMILARITY` and −1 where there are fewer than k.
    """
    short = max(k - ids.shape[1], 0)
    ids = np.pad(ids, ((0, 0), (0, short)), constant_values=-1)
    similarity = np.pad(similarity, ((0, 0), (0, short)))
    missing = ids < 0
    similarity = np.where(missing, np.float32(MISSING_SIMILARITY), similarity)
    order = np.lexsort((ids, -similarity, missing), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(ids, order, axis=1)


def merge(parts: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest over all shards, as one index over all members would give them.

    Args:
        parts: for each shard similarity float32 [N, k'] and ids int64 [N, k'], its own k nearest (k' ≥ k, or fewer
            where the shard is smaller); −1 = missing.
        k: wanted.

    Returns:
        similarity float32 [N, k] and ids int64 [N, k], by falling similarity, ties by rising id;
        `MISSING_SIMILARITY` and −1 where there are fewer than k.

    Raises:
        ValueError: there is no part.
    """
    if not parts:
        raise ValueError("merge needs the answer of at least one shard")
    similarity = np.concatenate([part[0] for part in parts], axis=1).astype(np.float32)
    ids = np.concatenate([part[1] for part in parts], axis=1).astype(np.int64)
    return top_k(similarity, ids, k)
