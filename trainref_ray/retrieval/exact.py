"""Exact search with torch alone, on any of its devices: for machines without FAISS."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trainref_ray.retrieval.merge import top_k

QUERIES = 4096
"""Queries at once: with 20,000 members 313 MiB of similarities."""


def build_exact_search(
    vectors: np.ndarray, ids: np.ndarray, *, device: str = "cpu"
) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """A search over members with the contract of `SupporterIndex.search`, but for ties.

    Similarities are float32 sums: members within a rounding error (1e-6) of each other may come in another order than
    with `SupporterIndex`, which sums in float64. Of more such members than there is room for at the end of the k, any
    may be among them; `SupporterIndex` takes those of the lowest ids.

    Args:
        vectors: float32 [M, D], unit norm; M may be 0.
        ids: int64 [M], not negative, unique.
        device: where the members are kept and compared.

    Returns:
        A function of queries float32 [N, D] and k: similarity float32 [N, k], largest first, and ids int64 [N, k]; −2
        and −1 where there are fewer than k members.
    """
    members = torch.from_numpy(np.ascontiguousarray(vectors, np.float32)).to(device)

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        reach = min(k, len(ids))
        similarity, positions = np.zeros((len(queries), reach), np.float32), np.zeros((len(queries), reach), np.int64)
        for start in range(0, len(queries), QUERIES):
            rows = slice(start, start + QUERIES)
            batch = torch.from_numpy(np.ascontiguousarray(queries[rows], np.float32)).to(device)
            found = (batch @ members.T).topk(reach, dim=1)
            similarity[rows], positions[rows] = found.values.cpu().numpy(), found.indices.cpu().numpy()
        return top_k(similarity, ids[positions], k)

    return search
