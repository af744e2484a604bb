"""The supporter index as a pool of Ray actors: each holds one FAISS shard, searches are merged exactly."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray

from trainref_ray.distributed.session import gpu_share
from trainref_ray.errors import ResourceError
from trainref_ray.retrieval.index import SupporterIndex
from trainref_ray.retrieval.merge import merge
from trainref_ray.run import Storage

QUERY_BATCH = 2048
"""Queries of one request. Measured on four shards of 40,000 x 128: 67 queries/s one at a time, 4,339/s in batches of
256, 12,514/s in batches of 2,048."""


class IndexShard:
    """One FAISS shard in an actor. Built from a path and a digest alone, so that it can be started again anywhere."""

    def __init__(self, storage: Storage, path: str, sha256: str, gpu: bool) -> None:
        with TemporaryDirectory() as folder:
            local = Path(folder) / "index.faiss"
            local.write_bytes(storage.read_bytes(path))
            self._index = SupporterIndex.load(local, sha256, gpu=gpu)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest members of this shard: similarity float32 [N, k], uid int64 [N, k], -1 where there is none."""
        return self._index.search(queries, k)


@dataclass(frozen=True)
class SupporterPool:
    """Handles of the pool's actors; can be sent to any task.

    Attributes:
        shards: for each shard of the index, its replicas.
        timeout: seconds to wait for an answer, restarts of actors included.
    """

    shards: tuple[tuple[Any, ...], ...]
    timeout: float

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest members of the whole index, exactly as one index would give them.

        Args:
            queries: float32 [N, D], unit norm.
            k: neighbours of a query.

        Returns:
            similarity float32 [N, k], largest first, and uid int64 [N, k]; -1 where there are fewer than k members.

        Raises:
            ResourceError: not every shard answered in time. A partial answer is never given.
        """
        parts = [
            self._search_batch(queries[start : start + QUERY_BATCH], k) for start in range(0, len(queries), QUERY_BATCH)
        ]
        if not parts:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _search_batch(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        shared = ray.put(queries)
        answers = [random.choice(replicas).search.remote(shared, k) for replicas in self.shards]
        try:
            return merge(ray.get(answers, timeout=self.timeout), k)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
            raise ResourceError(
                f"the supporter index did not answer within {self.timeout:g} s (resources.timeout): "
                f"{type(error).__name__}"
            ) from None


@contextmanager
def supporter_pool(
    storage: Storage, files: Sequence[tuple[str, str]], *, replicas: int, gpus: float, timeout: float, trials: int = 1
) -> Iterator[SupporterPool]:
    """Start the pool and end it with the context, so that the next stage has the machine for itself.

    Args:
        storage: of the run.
        files: path and sha256 of each shard of the index.
        replicas: actors a shard; an actor that dies is started again.
        gpus: GPUs to share between the actors, 0 for none.
        timeout: seconds to wait for an answer.
        trials: pools of this size that share the GPUs at once.
    """
    share = gpu_share(gpus, len(files) * replicas * trials) if gpus else 0.0
    actor = ray.remote(IndexShard).options(
        num_cpus=0,  # resident actors that hold CPUs starve the stages that come after them
        num_gpus=share,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy="SPREAD",
    )
    shards: tuple[tuple[Any, ...], ...] = tuple(
        tuple(actor.remote(storage, path, sha256, gpus > 0) for _ in range(replicas)) for path, sha256 in files
    )
    try:
        yield SupporterPool(shards, timeout)
    finally:
        for handle in itertools.chain.from_iterable(shards):
            ray.kill(handle)
