"""Which shards of a stage are still to be done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.stages import unfinished
from trainref_ray.run import Stage, Storage

SHARD = ShardRead(3, "3.tar", "etag", 1024, rows=11)


def test_a_shard_is_done_with_its_etag_its_rows_and_its_usable_samples(tmp_path: Path) -> None:
    stage = Stage(Storage(str(tmp_path)), "embeddings", 1, "aaaaaaaa")
    assert unfinished(stage, [SHARD]) == [SHARD]
    stage.write_shard(3, "etag", pa.table({"uid": range(10)}), ok=10, quarantined=1)
    assert unfinished(stage, [SHARD], {3: 10}) == []
    changed = [replace(SHARD, etag="other"), replace(SHARD, rows=12)]
    assert unfinished(stage, changed) == changed
    assert unfinished(stage, [SHARD], {3: 11}) == [SHARD]  # what was quarantined has been read since
    assert unfinished(stage, [SHARD]) == []
