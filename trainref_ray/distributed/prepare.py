"""Shards of sources that are lists of files, written on Ray: one task a shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import ray
from ray.exceptions import RayTaskError

from trainref_ray.config import ResourceSettings
from trainref_ray.data.listed import (
    ListedJob,
    ListedShard,
    begin,
    clear_leftovers,
    finish,
    finished,
    write_listed_shard,
)
from trainref_ray.data.prepare import Prepared, PrepareResult, PrepareSettings, listed_splits, open_listed, open_storage
from trainref_ray.distributed.session import connect
from trainref_ray.distributed.stages import own_error
from trainref_ray.errors import ShardError
from trainref_ray.progress import Reporter
from trainref_ray.run import RunLock

TASKS_A_CPU = 2
"""Tasks handed to Ray at once: enough that no CPU waits, few enough that their lists of files take no memory."""
RETRIES = 3
"""Starts of a task again after its worker died or the storage failed."""


def prepare_listed(settings: PrepareSettings, reporter: Reporter | None = None) -> Prepared:
    """Write the splits of a source in `trainref_ray.data.prepare.LISTED`.

    Started again after it was interrupted, it goes on with the shards that are not finished.

    Raises:
        ConfigError: a setting that does not fit the source, missing or damaged lists, other shards in the folder.
        ResumeError: another job is writing into the folder.
        ShardError: the images cannot be read, or the shards not be written.
    """
    splits = listed_splits(settings)
    reporter = reporter or Reporter()
    with RunLock(open_storage(settings.out), reporter.message) as lock:
        # All lists are read before anything is written: a damaged one should not come to light after hours.
        sources = {split: open_listed(settings, split) for split in splits}
        begun = [
            begin(source, settings.out, split=split, seed=settings.seed, shard_size=settings.shard_size)
            for split, source in sources.items()
        ]
        if all(isinstance(split, PrepareResult) for split in begun):
            return Prepared(tuple(split for split in begun if isinstance(split, PrepareResult)))
        with connect(ResourceSettings()) as cluster:
            tasks = max(1, int(cluster.cpus)) * TASKS_A_CPU
            return Prepared(
                tuple(
                    split if isinstance(split, PrepareResult) else _write(split, tasks, lock, reporter)
                    for split in begun
                )
            )


def _write(job: ListedJob, tasks: int, lock: RunLock, reporter: Reporter) -> PrepareResult:
    """Write the shards of a split that are not finished, at most `tasks` at once."""
    clear_leftovers(job)
    markers = finished(job)
    left = [shard for shard in job.shards if shard.name not in markers]
    files = sum(len(shard.files) for shard in left)
    with reporter.stage(
        f"prepare {job.split}", 0, shards=len(job.shards), reused=len(markers), items=files, unit="files"
    ) as progress:
        for shard, marker in _run(left, tasks):
            lock.check()
            markers[shard.name] = marker
            progress.advance(len(shard.files), shards=1)
    return finish(job, markers)


def _run(shards: Iterable[ListedShard], tasks: int) -> Iterator[tuple[ListedShard, dict[str, Any]]]:
    """Each shard with its marker, as they are finished."""
    task = ray.remote(write_listed_shard).options(num_cpus=1, max_retries=RETRIES, retry_exceptions=[OSError])
    waiting = iter(shards)
    running: dict[ray.ObjectRef, ListedShard] = {}
    while True:
        running |= {task.remote(shard): shard for shard in islice(waiting, tasks - len(running))}
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(done), _marker(done)


def _marker(done: ray.ObjectRef) -> dict[str, Any]:
    try:
        return ray.get(done)
    except RayTaskError as error:
        if isinstance(error.cause, OSError):
            raise ShardError(f"a shard could not be written: {error.cause}; start again to go on") from error
        raise own_error(error) from error
