"""Ray Data source of WebDataset tar shards: strict, one tar a read task, one row a sample.

`ray.data.read_webdataset` is not used because it drops the rest of a damaged tar without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from trainref_ray.data.samples import Sample, SampleFormat, read_samples
from trainref_ray.data.shards import open_shard
from trainref_ray.errors import ShardError
from trainref_ray.run import Stage
from trainref_ray.schemas import OK, QUARANTINED, SOFT_LABEL, make_uids

BLOCK_ROWS = 256
"""Rows of a block, which is also the largest batch that is embedded at once: it never crosses a shard."""


@dataclass(frozen=True)
class ShardRead:
    """One tar to read.

    Attributes:
        shard_id: the shard's number in the run.
        url: where the tar is.
        etag: identity of the file's content.
        bytes: size of the tar.
        rows: rows the inventory counted, or None when this read is the inventory.
        limit: rows after which reading stops, or None.
    """

    shard_id: int
    url: str
    etag: str
    bytes: int
    rows: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class ReadPlan:
    """What a read yields of each sample.

    Attributes:
        format: where labels are and what is accepted.
        pixels: decoded squares (uint8, `stored_size` of the image size) in the column `pixels`.
        image_bytes: the files' bytes in the column `image`.
        truth: the true label in the column `true_label`; for the inventory alone.
        usable_only: leave out the quarantined samples, which the inventory has.
        whole_shards: one block a shard; for the inventory, which does not know yet how many rows make a shard.
        wanted: per shard, the only rows to yield; None for all.
        targets: the stage whose `soft_label` is read beside each tar, row by row; rows without one are left out.
        labels: the stage whose `label` stands for the tar's own, row by row; None = the tar's.
    """

    format: SampleFormat
    pixels: bool = False
    image_bytes: bool = False
    truth: bool = False
    usable_only: bool = True
    whole_shards: bool = False
    wanted: dict[int, frozenset[int]] | None = None
    targets: Stage | None = field(default=None)
    labels: Stage | None = None


class ShardDatasource(Datasource):
    """Reads tar shards as Arrow blocks of at most `BLOCK_ROWS` rows; each block is of one shard."""

    def __init__(self, shards: Iterable[ShardRead], plan: ReadPlan) -> None:
        super().__init__()
        self._shards = list(shards)
        self._plan = plan

    def get_name(self) -> str:
        """Name in Ray's logs."""
        return "WebDatasetShards"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks, roughly: decoded images are larger than their files."""
        return sum(shard.bytes for shard in self._shards) * (4 if self._plan.pixels else 1)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task a shard, whatever parallelism is asked for: a tar can only be read from its start."""
        return [
            ReadTask(
                _read_function(shard, self._plan_of(shard)),
                BlockMetadata(num_rows=None, size_bytes=shard.bytes, input_files=(shard.url,), exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for shard in self._shards
        ]

    def _plan_of(self, shard: ShardRead) -> ReadPlan:
        """The plan with the wanted rows of this shard alone, so that tasks stay small."""
        if self._plan.wanted is None:
            return self._plan
        return replace(self._plan, wanted={shard.shard_id: self._plan.wanted.get(shard.shard_id, frozenset())})


def _read_function(shard: ShardRead, plan: ReadPlan) -> Callable[[], Iterator[pa.Table]]:
    return lambda: read_blocks(shard, plan)


def read_blocks(shard: ShardRead, plan: ReadPlan) -> Iterator[pa.Table]:
    """Blocks of one shard, in its order.

    Raises:
        ShardError: the tar does not hold as many samples as the inventory counted.
        OSError: the storage failed; the engine starts the task again.
    """
    targets = _by_row(plan.targets, shard.shard_id, "soft_label") if plan.targets is not None else None
    labels = _by_row(plan.labels, shard.shard_id, "label") if plan.labels is not None else None
    wanted = None if plan.wanted is None else plan.wanted[shard.shard_id]
    rows: list[Sample] = []
    count = 0
    with open_shard(shard.url) as stream:
        for sample in read_samples(stream, plan.format, limit=shard.limit, wanted=wanted):
            count += 1
            skipped = wanted is not None and sample.row not in wanted
            if skipped or (plan.usable_only and sample.error is not None):
                continue
            if targets is not None and targets[sample.row] is None:
                continue
            rows.append(sample if labels is None else replace(sample, label=labels[sample.row]))
            if len(rows) == BLOCK_ROWS and not plan.whole_shards:
                yield _block(rows, shard, plan, targets)
                rows = []
    if shard.rows is not None and count != shard.rows:
        raise ShardError(
            f"{shard.url}: {count} samples now, {shard.rows} when it was inventoried: the file has changed"
        )
    if rows:
        yield _block(rows, shard, plan, targets)


def _by_row(stage: Stage, shard_id: int, column: str) -> list[Any]:
    """A column of a table with a row for every sample of the tar, in the tar's order."""
    table = stage.read_shard(shard_id, ["uid", column])
    order = np.argsort(table["uid"].to_numpy())
    return table[column].take(pa.array(order)).to_pylist()


def _block(samples: list[Sample], shard: ShardRead, plan: ReadPlan, targets: list[Any] | None) -> pa.Table:
    base = int(make_uids(shard.shard_id, 1)[0])
    columns: dict[str, pa.Array] = {
        "uid": pa.array([base + sample.row for sample in samples], pa.int64()),
        "key": pa.array([sample.key for sample in samples], pa.string()),
        "label": pa.array([sample.label for sample in samples], pa.int32()),
        "width": pa.array([sample.width for sample in samples], pa.int32()),
        "height": pa.array([sample.height for sample in samples], pa.int32()),
        "sha256": pa.array([sample.sha256 for sample in samples], pa.string()),
        "status": pa.array([OK if sample.error is None else QUARANTINED for sample in samples], pa.string()),
        "error": pa.array([sample.error for sample in samples], pa.string()),
    }
    if plan.truth:
        columns["true_label"] = pa.array([sample.true_label for sample in samples], pa.int32())
    if plan.image_bytes:
        columns["image"] = pa.array([sample.image_bytes for sample in samples], pa.large_binary())
    if plan.pixels:
        squares = [None if sample.pixels is None else sample.pixels.tobytes() for sample in samples]
        columns["pixels"] = pa.array(squares, pa.large_binary())
    if targets is not None:
        columns["soft_label"] = pa.array([targets[sample.row] for sample in samples], SOFT_LABEL)
    return pa.table(columns)


def pixels_of(block: pa.Table, side: int) -> np.ndarray:
    """The column `pixels` of a block as uint8 [rows, side, side, 3]."""
    column = block["pixels"].combine_chunks()
    buffer = np.frombuffer(b"".join(value.as_py() for value in column), np.uint8)
    return buffer.reshape(len(column), side, side, 3)
