"""`--limit`: the first so many samples, found by reading headers in order and no further than needed."""

from __future__ import annotations

from dataclasses import replace

from trainref_ray.data.shards import count_samples
from trainref_ray.distributed.datasource import ShardRead


def first_samples(shards: list[ShardRead], limit: int) -> list[ShardRead]:
    """The shards that hold the first `limit` samples, the last one cut to fit; its etag says where."""
    taken: list[ShardRead] = []
    left = limit
    for shard in shards:
        rows = count_samples(shard.url, stop_after=left)
        cut = replace(shard, limit=rows, etag=f"{shard.etag}#{rows}") if rows >= left else shard
        taken.append(cut)
        left -= rows
        if left <= 0:
            break
    return taken
