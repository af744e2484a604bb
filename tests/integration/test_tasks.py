"""Tasks on a real Ray whose workers die, run out of memory or raise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from heads import clean_environment
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from trainref_ray.distributed.session import set_up_process
from trainref_ray.distributed.stages import blocks_of, collect
from trainref_ray.distributed.tasks import MAX_FAILURES, Task, completed, run_all
from trainref_ray.errors import ShardError

pytestmark = pytest.mark.ray

WITHOUT_MEMORY = """
import time

import ray

from trainref_ray.distributed.tasks import Task, completed, run_all
from trainref_ray.errors import ResourceError

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
sleep = Task(lambda: time.sleep(60), ())
(found,) = completed({"probe": sleep})
print(type(found[1]).__name__, found[1])
try:
    run_all({"probe": sleep})
except ResourceError as error:
    print("raised", error)
"""
SECONDS = 120
"""Ten on an idle machine of 2 cores; a task that Ray begins again does not end in ten times as long."""


def dies(times: int, folder: Path) -> Task:
    """Its worker dies in the first calls; each leaves a file."""

    def work(place: str) -> int:
        import os
        import tempfile

        tempfile.mkstemp(dir=place)
        if len(os.listdir(place)) <= times:
            os._exit(1)
        return 7

    return Task(work, (str(folder),), {"num_cpus": 1})


def test_results_are_in_the_order_of_the_tasks_and_those_that_run_are_looked_at(local_ray: None) -> None:
    looks: list[list[str]] = []
    tasks = {str(number): Task(lambda value: value**2, (number,), {"num_cpus": 1}) for number in (3, 1, 2)}
    assert dict(completed(tasks, lambda names: looks.append(list(names)))) == {"1": 1, "2": 4, "3": 9}
    assert looks[-1] == []
    assert list(run_all(tasks).items()) == [("3", 9), ("1", 1), ("2", 4)]


@pytest.mark.parametrize("times", [MAX_FAILURES, MAX_FAILURES + 1])
def test_a_task_whose_worker_dies_is_begun_again_but_not_without_end(
    local_ray: None, tmp_path: Path, times: int
) -> None:
    tasks = {"probe": dies(times, tmp_path), "other": Task(lambda: 4, (), {"num_cpus": 1})}
    if times <= MAX_FAILURES:
        assert run_all(tasks) == {"probe": 7, "other": 4}
    else:
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            run_all(tasks)
    assert len(list(tmp_path.iterdir())) == MAX_FAILURES + 1


def test_what_a_task_raises_on_purpose_is_raised_here_in_its_one_line(local_ray: None) -> None:
    def work() -> Any:
        raise ShardError("train-7.tar: cut off")

    with pytest.raises(ShardError, match=r"\Atrain-7\.tar: cut off\Z"):
        run_all({"probe": Task(work, ())})


class Broken(Datasource):
    def estimate_inmemory_data_size(self) -> int:
        return 1

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        def read() -> Iterator[pa.Table]:
            raise ShardError("train-7.tar: cut off")
            yield

        return [ReadTask(read, BlockMetadata(num_rows=1, size_bytes=1, input_files=None, exec_stats=None))]


@pytest.mark.parametrize("part", ["read", "map"])
def test_what_ray_data_hands_on_is_one_line_too(local_ray: None, part: str) -> None:
    def fails(block: pa.Table) -> pa.Table:
        raise ShardError("train-7.tar: cut off")

    set_up_process()
    progress: Any = None  # no block arrives
    dataset = ray.data.read_datasource(Broken()) if part == "read" else ray.data.range(2).map_batches(fails)
    with pytest.raises(ShardError, match=r"\Atrain-7\.tar: cut off\Z"):
        collect(blocks_of(dataset), {0: 1}, lambda shard, table: None, progress)


def test_a_task_without_memory_is_told_and_not_begun_again(tmp_path: Path) -> None:
    """A Ray that kills every task, since this machine uses more than a thousandth of its memory."""
    limits = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY],
        env=clean_environment(tmp_path) | limits | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ResourceError probe ran out of memory: "), done.stdout
    assert lines[1].startswith("raised probe ran out of memory: "), done.stdout
