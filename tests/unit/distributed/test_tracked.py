"""A tracking server that goes away: it hides no other error, and what it does not take is told in a line."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from trainref_ray.config import Config
from trainref_ray.distributed import job
from trainref_ray.errors import ResourceError, TrackingError
from trainref_ray.progress import Reporter, StageRecord
from trainref_ray.run import Storage


class GoneTracker:
    """One that was reached and is so no more."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def stage(self, record: dict[str, Any]) -> None:
        raise ConnectionError("mlflow gone\nwith many lines")

    def finish(self, status: str) -> None:
        raise ConnectionError("mlflow gone")


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> Reporter:
    monkeypatch.setattr(job, "Tracker", GoneTracker)
    monkeypatch.setattr(job, "tracking_uri", lambda settings, storage: "sqlite:///nowhere")
    return Reporter(Console(file=io.StringIO(), width=200))


def told(reporter: Reporter) -> str:
    return reporter.console.file.getvalue()  # type: ignore[attr-defined]


def test_the_error_of_a_curation_is_not_hidden_by_mlflow_s(reporter: Reporter, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the real reason"), job.tracked(Config(), Storage(str(tmp_path)), reporter):
        raise ResourceError("the real reason")


def test_a_finished_run_that_mlflow_does_not_take_is_told_in_a_line(reporter: Reporter, tmp_path: Path) -> None:
    complete = pytest.raises(
        TrackingError, match="run folder is complete, but MLflow cannot be used any more: mlflow gone"
    )
    with complete, job.tracked(Config(), Storage(str(tmp_path)), reporter):
        assert reporter.on_stage is not None
        for number in (1, 2):
            reporter.on_stage(StageRecord("probe", number, shards=1, shards_reused=0))
    assert told(reporter).count("MLflow does not take figures of stages any more: mlflow gone") == 1
    assert "many lines" not in told(reporter)
    assert reporter.on_stage is None


def test_of_a_round_s_figures_the_numbers_are_logged(tmp_path: Path) -> None:
    """MLflow takes no list of class names."""
    logged: dict[int, dict[str, float]] = {}
    tracker: Any = SimpleNamespace(
        metrics=lambda values, step: logged.setdefault(step, {name: float(value) for name, value in values.items()}),
        artifact=lambda *arguments: None,
    )
    pipeline: Any = SimpleNamespace(context=SimpleNamespace(storage=Storage(str(tmp_path))), models=[])
    figures = {"noise_auroc": 0.9, "references": 20}
    rounds = [figures | {"classes_left_short": ["dog"]}]
    job.log_run(tracker, pipeline, {"rounds": rounds, "metrics": figures, "baselines": {}, "temperature": None})
    assert logged == {1: figures}
