"""A training worker whose shards hold nothing to train on: told, instead of read for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from trainref_ray.distributed import train_worker
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.errors import ResourceError

SHARD = ShardRead(0, "0.tar", "etag", 1024, rows=4)


def job(cache_bytes: int, held_out: frozenset[int]) -> Any:
    spec = SimpleNamespace(classes=2)
    return SimpleNamespace(
        shards=(SHARD,), rows=4, workers=1, seed=0, spec=spec, held_out=held_out, cache_bytes=cache_bytes
    )


@pytest.mark.parametrize("cache_bytes", [0, 2**20], ids=["streamed", "in memory"])
def test_a_worker_without_images_is_told(cache_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = pa.table({"uid": np.arange(4)})
    monkeypatch.setattr(train_worker, "_blocks", lambda job, shards: iter([block]))
    monkeypatch.setattr(train_worker, "pixels_of", lambda block, side: np.zeros((4, side, side, 3), np.uint8))
    monkeypatch.setattr(train_worker, "_targets", lambda job, block: np.zeros((4, 2), np.float32))
    some = train_worker._source(job(cache_bytes, frozenset()), 0, 1, 8, 4)
    assert [len(pixels) for pixels, _ in some(0)] == [4]
    message = "training worker 0 has no images to train on: those of its 1 shards.*lower resources.train_workers"
    with pytest.raises(ResourceError, match=message):
        list(train_worker._source(job(cache_bytes, frozenset(range(4))), 0, 1, 8, 4)(0))
    monkeypatch.setattr(train_worker, "_blocks", lambda job, shards: iter([]))
    with pytest.raises(ResourceError, match=message):
        list(train_worker._source(job(cache_bytes, frozenset()), 0, 1, 8, 4)(0))
