"""One FAISS shard of the reference set: build, save, load, search."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from trainref_ray.retrieval.merge import MISSING_SIMILARITY, top_k

SLACK = 8
"""Neighbours asked of FAISS beyond k, so that rounding inside FAISS cannot push a true neighbour out."""
ROUNDING = 1e-5
"""FAISS's float32 sums differ with the size of the batch by up to about 1e-6; closer than this counts as a tie."""
GPU_REACH = 2048
"""The largest number of neighbours that FAISS's GPU indexes give."""
RESCORE_ELEMENTS = 2**24
"""Most components gathered at once to score neighbours exactly: 64 MiB of float32."""


class BytesStore(Protocol):
    """Where an index can be written to, such as the storage of a run."""

    def write_bytes(self, path: str, content: bytes, /) -> Any:
        """Write a whole file."""


class SupporterIndex:
    """Exact inner-product search over unit vectors with int64 ids.

    FAISS finds the neighbours; their similarities are then computed again in float64 and ties broken by id, so that an
    answer depends neither on how members are split over shards, nor on the batch, nor on CPU or GPU.
    """

    def __init__(self, index: faiss.IndexIDMap2, *, gpu: bool = False) -> None:
        self._index = index
        flat = faiss.downcast_index(index.index)
        self._ids: np.ndarray = faiss.vector_to_array(index.id_map).astype(np.int64)
        self._vectors: np.ndarray = flat.reconstruct_n(0, flat.ntotal).reshape(-1, flat.d)
        self._flat = flat
        self._on_gpu: Any = None
        if gpu and faiss.get_num_gpus() > 0:
            self._on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, flat)

    @classmethod
    def build(cls, vectors: np.ndarray, ids: np.ndarray, *, gpu: bool = False) -> SupporterIndex:
        """An index over members.

        Args:
            vectors: float32 [M, D], unit norm; M may be 0.
            ids: int64 [M], not negative, unique.
            gpu: search on a GPU if there is one.

        Raises:
            ValueError: shapes differ, or an id is negative or comes twice.
        """
        if vectors.ndim != 2 or ids.shape != (len(vectors),):
            raise ValueError(f"vectors {vectors.shape} and ids {ids.shape} do not fit; wanted [M, D] and [M]")
        if len(ids) and (ids.min() < 0 or len(np.unique(ids)) < len(ids)):
            raise ValueError("ids must be unique and not negative: -1 stands for missing")
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))
        return cls(index, gpu=gpu)

    def to_bytes(self) -> bytes:
        """The index as the content of a FAISS file."""
        return faiss.serialize_index(self._index).tobytes()

    def write(self, storage: BytesStore, path: str) -> tuple[str, str]:
        """Write the FAISS file into a store; returns its path there and its sha256."""
        content = self.to_bytes()
        storage.write_bytes(path, content)
        return path, hashlib.sha256(content).hexdigest()

    @classmethod
    def load(cls, path: str | Path, sha256: str, *, gpu: bool = False) -> SupporterIndex:
        """Read a file that `save` or `write` wrote.

        Raises:
            ValueError: the file's digest is not `sha256`; names both. Nothing of such a file is interpreted.
        """
        content = Path(path).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise ValueError(f"index {path} has sha256 {found}, not {sha256}")
        index: Any = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        return cls(index, gpu=gpu)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest members of this shard.

        Args:
            queries: float32 [N, D], unit norm.
            k: neighbours wanted, 1 or more.

        Returns:
            similarity float32 [N, k], largest first, ties by id, and ids int64 [N, k]; −2 and −1 where there are fewer
            than k members.
        """
        count = len(queries)
        similarity, ids = np.full((count, k), MISSING_SIMILARITY, np.float32), np.full((count, k), -1, np.int64)
        members = len(self._ids)
        if not members:
            return similarity, ids
        queries = np.ascontiguousarray(queries, np.float32)
        pending, reach = np.arange(count), min(k + SLACK, members)
        while len(pending):
            searcher = self._flat if self._on_gpu is None or reach > GPU_REACH else self._on_gpu
            rough, positions = searcher.search(queries[pending], reach)
            exact = self._similarity(queries[pending], positions)
            similarity[pending], ids[pending] = top_k(exact, self._ids[positions], k)
            if reach == members:
                break
            # members tied with the k-th may lie beyond the reach: look further for these rows alone
            pending = pending[rough[:, k - 1] - rough[:, -1] < ROUNDING]
            reach = min(4 * reach, members)
        return similarity, ids

    def _similarity(self, queries: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """float32 [n, P]: inner products of queries [n, D] and the members at positions [n, P], summed in float64."""
        exact = np.empty(positions.shape, np.float32)
        step = max(1, RESCORE_ELEMENTS // (positions.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            exact[part] = np.einsum("npd,nd->np", self._vectors[positions[part]], queries[part], dtype=np.float64)
        return exact
