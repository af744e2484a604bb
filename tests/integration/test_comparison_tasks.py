"""Tasks of a comparison whose workers die or run out of memory."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from trainref_ray.distributed import compare
from trainref_ray.progress import Reporter

pytestmark = pytest.mark.ray


@pytest.fixture
def seed(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> compare._Seed:
    """One that can run tasks, and nothing else."""
    found = object.__new__(compare._Seed)
    found._reporter, found._seed, found._node_cpus = Reporter(Console(file=io.StringIO())), 0, 1.0
    monkeypatch.setattr(compare, "epochs_written", lambda stage: 0)
    return found


@pytest.mark.parametrize(("deaths", "survives"), [(3, True), (4, False)])
def test_a_method_whose_worker_dies_is_begun_again(
    seed: compare._Seed, tmp_path: Path, deaths: int, survives: bool
) -> None:
    def work(job: Any) -> None:
        import os
        import tempfile

        tempfile.mkstemp(dir=job.folder)
        if len(os.listdir(job.folder)) <= deaths:
            os._exit(1)

    job: Any = SimpleNamespace(folder=str(tmp_path), stage=SimpleNamespace(facts=lambda: {"seconds": 1.0}))
    if survives:
        assert seed._run(work, {"knn": job}) == {"knn": None}
    else:
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            seed._run(work, {"knn": job})
    assert len(list(tmp_path.iterdir())) == 4


def test_a_method_without_memory_is_told_and_the_others_go_on(
    seed: compare._Seed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(job: Any) -> None:
        return None

    def get(reference: ray.ObjectRef) -> None:
        failed.append(reference)
        if len(failed) == 1:
            raise ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory: ...")

    failed: list[ray.ObjectRef] = []
    monkeypatch.setattr(ray, "get", get)
    job: Any = SimpleNamespace(stage=SimpleNamespace(facts=lambda: {"seconds": 1.0}))
    found = seed._run(work, {"knn": job, "logistic_regression": job})
    assert sorted(found.values(), key=str) == [
        None,
        "out of memory: Task was killed due to the node running low on memory.",
    ]
