"""How a stage runs over shards: what is done is skipped, what is finished is written by the driver, data first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.errors import ShardError, TrainRefError, first_line
from trainref_ray.progress import Reporter, StageProgress
from trainref_ray.run import Stage
from trainref_ray.schemas import SHARD_BITS, check


def unfinished(stage: Stage, shards: Iterable[ShardRead], usable: Mapping[int, int] | None = None) -> list[ShardRead]:
    """Shards without a marker of this fingerprint, this etag and the inventory's number of rows; and, where the
    fingerprint does not know them, of usable ones (a sample that was quarantined may have been read since)."""
    done = stage.done_shards()

    def is_done(shard: ShardRead) -> bool:
        marker = done.get(shard.shard_id)
        if marker is None or marker["etag"] != shard.etag:
            return False
        if usable is not None and marker["ok"] != usable[shard.shard_id]:
            return False
        return shard.rows is None or marker["ok"] + marker["quarantined"] == shard.rows

    return [shard for shard in shards if not is_done(shard)]


def collect(
    blocks: Iterator[pa.Table],
    expected: Mapping[int, int],
    finish: Callable[[int, pa.Table], None],
    progress: StageProgress,
) -> None:
    """Gather blocks by shard until every shard is whole; hand each, sorted by uid, to `finish`.

    Args:
        blocks: with a column `uid`, each of one of the expected shards.
        expected: rows of each shard, at least one.
        finish: called once a shard, in the driver.
        progress: moved by each block and shard.

    Raises:
        ShardError: the blocks ended and a shard has fewer rows than expected.
        TrainRefError: whatever error on purpose a worker met.
    """
    gathered: dict[int, list[pa.Table]] = {}
    counts = dict.fromkeys(expected, 0)
    waiting = set(expected)
    try:
        while waiting:
            block = next(blocks, None)
            if block is None:
                shard_id = min(waiting)
                raise ShardError(
                    f"shard {shard_id}: {counts[shard_id]} of {expected[shard_id]} rows arrived; start again to go on"
                )
            shard_id = block["uid"][0].as_py() >> SHARD_BITS
            gathered.setdefault(shard_id, []).append(block)
            counts[shard_id] += block.num_rows
            whole = counts[shard_id] == expected[shard_id]
            if whole:
                finish(shard_id, pa.concat_tables(gathered.pop(shard_id)).sort_by("uid").combine_chunks())
                waiting.remove(shard_id)
            progress.advance(block.num_rows, shards=int(whole))
    except ray.exceptions.RayError as error:
        raise own_error(error) from error


def blocks_of(dataset: Dataset) -> Iterator[pa.Table]:
    """The data set's blocks that are not empty, as they are."""
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
        table = cast(pa.Table, block)
        if table.num_rows:
            yield table


def own_error(error: BaseException) -> BaseException:
    """The error on purpose behind an engine's error, or the engine's own."""
    cause: BaseException | None = error
    while cause is not None:
        # Ray's own error of a task is of both kinds, and says the worker's whole traceback
        if isinstance(cause, TrainRefError) and not isinstance(cause, ray.exceptions.RayTaskError):
            return type(cause)(first_line(cause))  # Ray Data adds lines about its attempts
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def map_shards(
    stage: Stage,
    shards: list[ShardRead],
    rows: Mapping[int, int],
    schema: pa.Schema,
    function: Callable[..., pa.Table],
    arguments: Mapping[str, Any],
    reporter: Reporter,
) -> None:
    """Run a stage that makes a table from tables: one task a shard.

    Args:
        stage: what is made.
        shards: all shards of the stage, not all of them finished; the finished ones are skipped.
        rows: rows of each shard's table.
        schema: of the table.
        function: called in a worker as `function(shard_id, **arguments)`; returns the shard's table.
        arguments: small things and handles; big ones are read from the run folder by the worker.
        reporter: shows the stage.
    """
    missing = unfinished(stage, shards)
    by_id = {shard.shard_id: shard for shard in missing}
    todo = [shard_id for shard_id in by_id if rows[shard_id]]

    def finish(shard_id: int, table: pa.Table) -> None:
        checked = check(table, schema, f"{stage.folder} of shard {shard_id}")
        shard, ok = by_id[shard_id], rows[shard_id]
        stage.write_shard(shard_id, shard.etag, checked, ok=ok, quarantined=(shard.rows or 0) - ok)

    total = sum(rows[shard_id] for shard_id in todo)
    with reporter.stage(
        stage.name, stage.round, shards=len(shards), reused=len(shards) - len(missing), items=total
    ) as progress:
        for shard_id in by_id.keys() - set(todo):
            finish(shard_id, schema.empty_table())
            progress.advance(0, shards=1)
        if not todo:
            return

        def run(batch: pa.Table) -> pa.Table:
            return function(int(batch["id"][0].as_py()), **arguments)

        items = ray.data.from_items([{"id": shard_id} for shard_id in todo], override_num_blocks=len(todo))
        dataset = items.map_batches(run, batch_size=1, batch_format="pyarrow")
        collect(blocks_of(dataset), {shard_id: rows[shard_id] for shard_id in todo}, finish, progress)


def gather_rows(stage: Stage, uids: np.ndarray, columns: list[str] | None = None) -> pa.Table:
    """Rows of a stage's tables by uid, in the order of `uids`, with all columns or some; only the shards that hold some
    are read."""
    parts = []
    shard_ids = np.unique(uids >> SHARD_BITS).tolist() or [min(stage.done_shards())]  # of no uid, an empty table
    for shard_id in shard_ids:
        table = stage.read_shard(int(shard_id), None if columns is None else ["uid", *columns])
        parts.append(table.filter(pa.array(np.isin(table["uid"].to_numpy(), uids))))
    table = pa.concat_tables(parts).combine_chunks()
    found = table["uid"].to_numpy()
    order = np.argsort(found, kind="stable")
    return table.take(pa.array(order[np.searchsorted(found[order], uids)]))
