"""A sweep in MLflow: one parent run, a child a trial. All is logged from the driver, which alone sees the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from trainref_ray.config import Config, SweepSettings
from trainref_ray.distributed.job import no_longer_tracked, started
from trainref_ray.errors import first_line
from trainref_ray.progress import Reporter
from trainref_ray.run import Storage
from trainref_ray.search_space import title
from trainref_ray.tracking import NO_DATABASE, Tracker, tracking_uri
from trainref_ray.trials import Trial, TrialResult

ENDS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""What MLflow calls a trial that ended so."""


class SweepLog:
    """The MLflow runs of a sweep; without a tracker nothing is logged.

    An error of MLflow's while trials run is told, and nothing is logged after it: no result hangs on it. `end` raises
    it.
    """

    def __init__(self, parent: Tracker | None, experiment: str, storage: Storage, reporter: Reporter) -> None:
        self._parent, self._experiment, self._storage, self._reporter = parent, experiment, storage, reporter
        self._running: dict[str, Tracker] = {}
        self._error: Exception | None = None

    def start(self, trial: Trial) -> None:
        """A child run for a trial that begins."""
        self._attempt(lambda: self._start(trial))

    def trial(self, result: TrialResult, trial: Trial) -> None:
        """What came of a trial; one that an earlier start has finished gets its child run, if it has none here."""
        self._attempt(lambda: self._trial(result, trial))

    def finish(self, summary: dict[str, Any], figures: Sequence[str]) -> None:
        """The sweep's own figures and files."""
        self._attempt(lambda: self._finish(summary, figures))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED, for the sweep and the trials that still run.

        Raises:
            TrackingError: MLflow failed, now or before.
        """
        self._attempt(lambda: self._end(status))
        if self._error is not None:
            raise no_longer_tracked(self._error) from self._error

    def _attempt(self, log: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            log()
        except Exception as error:  # MLflow's stores raise errors of many libraries
            self._error = error
            self._reporter.message(f"MLflow cannot be used any more: {first_line(error)}; the trials go on without it")

    def _start(self, trial: Trial) -> None:
        if self._parent is not None:
            settings = trial.config.model_dump(mode="json", exclude={"out", "resources", "report", "tracking"})
            self._running[trial.name] = Tracker(
                self._parent.uri,
                self._experiment,
                trial.home(self._storage),
                settings,
                name=title(trial.point),
                parent=self._parent.run_id,
            )

    def _trial(self, result: TrialResult, trial: Trial) -> None:
        if self._parent is None:
            return
        if trial.name not in self._running:
            self._start(trial)
        child = self._running.pop(trial.name)
        for record in result.stages:
            child.stage(record)
        for round_, figures in enumerate(result.rounds, start=1):
            child.metrics(figures, round_)
        child.metrics({name: value for name, value in result.metrics.items() if is_number(value)}, len(result.rounds))
        child.metrics({"seconds": result.seconds}, 0)
        child.finish(ENDS[result.status])

    def _finish(self, summary: dict[str, Any], figures: Sequence[str]) -> None:
        if self._parent is None:
            return
        for best in summary["settings"][:1]:
            self._parent.metrics({f"best/{name}": best[name] for name in ("agreement", "log_likelihood")}, 0)
        self._parent.metrics({"trials": len(summary["trials"])}, 0)
        for name in ("sweep.json", "best.yaml", "report/sweep.html", *figures):
            if self._storage.exists(name):
                self._parent.artifact(self._storage, name, name.rpartition("/")[0])

    def _end(self, status: str) -> None:
        for child in self._running.values():
            child.finish("KILLED")
        if self._parent is not None:
            self._parent.finish(status)


def is_number(value: Any) -> bool:
    """Whether MLflow takes it for a metric."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def sweep_log(config: Config, settings: SweepSettings, storage: Storage, reporter: Reporter) -> Iterator[SweepLog]:
    """The sweep's MLflow runs, ended with the context.

    Raises:
        TrackingError: MLflow cannot be used; said before any trial runs.
    """
    uri = tracking_uri(config.tracking, storage)
    if uri is None and config.tracking.enabled:
        reporter.message(NO_DATABASE)
    parent = None
    if uri is not None:
        content = {**config.model_dump(mode="json"), "sweep": settings.model_dump(mode="json")}
        parent = started(partial(Tracker, uri, config.tracking.experiment, storage, content))
    log = SweepLog(parent, config.tracking.experiment, storage, reporter)
    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        with contextlib.suppress(Exception) if status != "FINISHED" else contextlib.nullcontext():
            log.end(status)
