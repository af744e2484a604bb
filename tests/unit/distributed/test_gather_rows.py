"""Rows of several shards by uid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from trainref_ray.distributed.stages import gather_rows
from trainref_ray.run import Stage, Storage
from trainref_ray.schemas import fixed_size_list, make_uids, to_matrix


def test_in_the_order_asked_for_and_none_of_none(tmp_path: Path) -> None:
    stage = Stage(Storage(str(tmp_path)), "embeddings", 1, "00000000")
    for shard in (0, 3):
        vectors = np.arange(6, dtype=np.float32).reshape(3, 2) + 10 * shard
        table = pa.table({"uid": make_uids(shard, 3), "embedding": fixed_size_list(vectors, pa.float32())})
        stage.write_shard(shard, "etag", table, ok=3, quarantined=0)
    uids = np.array([make_uids(3, 3)[2], make_uids(0, 3)[1]])
    assert to_matrix(gather_rows(stage, uids, ["embedding"])["embedding"]).tolist() == [[34, 35], [2, 3]]
    nothing = gather_rows(stage, uids[:0], ["embedding"])
    assert to_matrix(nothing["embedding"]).shape == (0, 2)
