"""`sweep`: trials of a curation on Ray Tune, which share every stage that their settings do not touch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import yaml
from ray import tune
from ray.util.queue import Queue
from rich.console import Console

from trainref_ray.config import Config, SweepSettings, make_config
from trainref_ray.distributed.context import Inputs, weights_digest
from trainref_ray.distributed.job import check_noise, check_settings, embedded_sample, environment, find_inputs
from trainref_ray.distributed.preflight import preflight, tell
from trainref_ray.distributed.session import Cluster, connect, node_resources, plan_cluster, set_up_process
from trainref_ray.distributed.sweep_log import SweepLog, sweep_log
from trainref_ray.distributed.trial import run_trial
from trainref_ray.errors import ConfigError, ResourceError
from trainref_ray.progress import Reporter, StageRecord
from trainref_ray.report.sweep_page import write_sweep_page
from trainref_ray.report.sweep_summary import best_point, summarise_sweep
from trainref_ray.results import CurationSweep, load_sweep
from trainref_ray.run import INVENTORY_FILE, SWEEP_FILE, RunLock, Storage, open_run, remove_results
from trainref_ray.schemas import SCHEMA_VERSION
from trainref_ray.search_space import (
    CONDITIONS,
    Dimension,
    Point,
    grid_points,
    load_space,
    nested,
    random_points,
    title,
)
from trainref_ray.trials import Trial, TrialResult
from trainref_ray.version import METHOD_VERSION

METRIC = "agreement"
"""What trials are compared by: the share of references left out whose curated class is the trusted one."""
FAILED = -1.0
"""Reported in place of the agreement by a trial that failed: below every agreement, so a search turns away."""
MOST_TRIALS_AT_ONCE = 4
"""By default. More wait for the same pre-training, and each is a process of about 500 MB."""
LOST_TRIALS_REPLACED = 2
"""Starts of a trial again after its process or node was lost."""
MESSAGE_SECONDS = 0.5
"""Between two looks for messages of the trials."""
SHOWN_SECONDS = 5.0
"""Stages of a trial that took less are not told of: eight trials have eighty."""
IN_NO_NAME: dict[str, Any] = {
    **dict.fromkeys(("data", "test_data", "reference", "classes"), True),  # paths: what is in them is in the name
    "model": {"weights"},  # so is what is in this one
    **dict.fromkeys(("out", "resume", "retry_quarantined", "resources", "report", "tracking", "evaluate"), True),
}
"""Settings that change no trial's result."""
SCRATCH = "ray_tune"
"""Folder that Ray Tune wants to have; it holds nothing that is needed later."""
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else the first Ctrl-C is taken for the end of the sweep
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of data stay what they were
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class SweepPlan:
    """All that is known before the first trial.

    Attributes:
        config: the settings that the points change, as the trials use them.
        settings: of the sweep.
        space: what is varied.
        points: what is tried, in this order; empty where a search decides as it goes.
        storage: the sweep's folder.
        inputs: shards and references of all trials.
        cluster: what one trial may use.
        at_once: trials at once.
    """

    config: Config
    settings: SweepSettings
    space: tuple[Dimension, ...]
    points: tuple[Point, ...]
    storage: Storage
    inputs: Inputs
    cluster: Cluster
    at_once: int

    @property
    def most_per_class(self) -> int | None:
        """The most references a class that a trial draws; None where they come from a file."""
        if self.config.reference is not None:
            return None
        varied = [dimension.values for dimension in self.space if dimension.name == "reference_per_class"]
        return max(varied[0]) if varied else self.config.reference_per_class

    def trial(self, point: Point) -> Trial:
        """The trial of a point."""
        config = make_config(self.config.model_dump(), nested(point))
        content = config.model_dump(mode="json", exclude=IN_NO_NAME)
        weights = weights_digest(config)
        return Trial(_digest({"settings": content, "weights": weights, **self._facts()}), point, config)

    def _facts(self) -> dict[str, Any]:
        """What a trial's result depends on besides its settings."""
        inputs = self.inputs
        return {
            "shards": [(shard.shard_id, shard.etag) for shard in [*inputs.shards, *inputs.test_shards]],
            "references": inputs.reference_rows,
            "classes": inputs.class_names,
            "most_per_class": self.most_per_class,
            "folds": self.settings.folds,
            "versions": [SCHEMA_VERSION, METHOD_VERSION],
        }


def sweep(config: Config, settings: SweepSettings, reporter: Reporter | None = None) -> CurationSweep:
    """Try settings of a curation, rank them by references left out, and write the best as a preset.

    Started again after it was interrupted, it goes on: finished trials are not run again, and of an unfinished one the
    stages that are done are not.

    Args:
        config: settings of the curation, `out` being the sweep's folder.
        settings: what is varied, and how.
        reporter: shows progress; by default on the terminal's standard error.

    Returns:
        The finished sweep: `sweep.json`, `best.yaml`, `report/sweep.html`, and a run folder a trial.

    Raises:
        ConfigError: the space or a setting of it is wrong; told before anything is started.
        ResourceError: all trials failed; names the first reason.
        TrainRefError: whatever else makes every curation fail.
    """
    reporter = reporter or Reporter()
    space = load_space(settings.space)
    points = choose_points(space, settings, config.seed)
    trial_config = _trial_config(config, settings)
    _check_points(trial_config, settings, space, points)
    storage = open_run(config.out, mark=SWEEP_FILE)
    with RunLock(storage, reporter.message) as lock:
        settings_text = {"curation": config.model_dump(mode="json"), "sweep": settings.model_dump(mode="json")}
        content = yaml.safe_dump(settings_text, sort_keys=False).encode()
        if not storage.exists(SWEEP_FILE):
            storage.write_bytes(SWEEP_FILE, content)  # it says that the folder is a sweep's, whatever comes next
        trial_config = embedded_sample(trial_config, storage)
        inputs = find_inputs(trial_config, storage)
        for noise in (value for dimension in space if dimension.name == "noise" for value in dimension.values):
            check_noise(noise, inputs.class_names)
        if not config.resume:
            remove_results(storage, SWEEP_FILE)
        storage.write_bytes(SWEEP_FILE, content)
        storage.write_table(INVENTORY_FILE, inputs.inventory)
        storage.write_json("environment.json", environment())
        with (
            sweep_log(config, settings, storage, reporter) as log,
            connect(config.resources, reporter.message) as cluster,
        ):
            at_once = trials_at_once(settings, cluster)
            share = plan_cluster(config.resources, ray.cluster_resources(), at_once, node_resources())
            tell(preflight(trial_config, storage, share, inputs), reporter)
            plan = SweepPlan(trial_config, settings, space, tuple(points), storage, inputs, share, at_once)
            results = _run_trials(plan, log, reporter)
            lock.check()
            _finish(plan, config, results, log)
    failed = [result for result in results if result.status == "failed"]
    if failed and len(failed) == len(results):
        raise ResourceError(f"all {len(failed)} trials failed; the first, {title(failed[0].point)}: {failed[0].error}")
    return load_sweep(storage.root)


def choose_points(space: tuple[Dimension, ...], settings: SweepSettings, seed: int) -> list[Point]:
    """The points of a grid or random search; none where a search decides as it goes.

    Raises:
        ConfigError: the search does not fit the space.
    """
    search = settings.search or ("grid" if all(dimension.kind == "grid" for dimension in space) else "random")
    conditions = [dimension.name for dimension in space if dimension.name in CONDITIONS]
    if conditions and (search == "optuna" or settings.scheduler == "asha"):
        name = "--search optuna" if search == "optuna" else "--scheduler asha"
        raise ConfigError(
            f"{name} compares single trials, and {conditions[0]} is a condition under which settings are compared; "
            "take --search grid or random with --scheduler fifo"
        )
    if search == "optuna":
        return []
    return grid_points(space) if search == "grid" else random_points(space, settings.samples, seed)


def _trial_config(config: Config, settings: SweepSettings) -> Config:
    """What all trials have in common: no intervals, and without --finetune one round and no model."""
    changes: dict[str, Any] = {"evaluate": {"bootstrap": 0, "fewer_references": ()}, "finetune_model": True}
    if not settings.finetune:
        changes |= {"finetune_model": False, "rounds": 1}
    return make_config(config.model_dump(), changes)


def _check_points(
    config: Config, settings: SweepSettings, space: tuple[Dimension, ...], points: Sequence[Point]
) -> None:
    """Every setting that a trial may get is allowed; of a range both ends are tried."""
    of_models = ("finetune", "rounds", "final_curation")
    idle = [dimension.name for dimension in space if dimension.name.split(".")[0] in of_models]
    if idle and not settings.finetune:
        raise ConfigError(f"{settings.space}: {idle[0]} changes nothing without a model; add --finetune")
    if settings.scheduler == "asha" and (not settings.finetune or most_rounds(config, space) < 2):
        raise ConfigError(
            "--scheduler asha compares trials after each round; it needs --finetune and --rounds 2 or more"
        )
    check_settings(config)
    ends = [{dimension.name: value} for dimension in space for value in dimension.values]
    for point in [*ends, *points]:
        try:
            check_settings(make_config(config.model_dump(), nested(point)))
        except ConfigError as error:
            raise ConfigError(f"{settings.space}: {error}") from None


def most_rounds(config: Config, space: tuple[Dimension, ...]) -> int:
    """Rounds of the longest trial."""
    return max(
        [value for dimension in space if dimension.name == "rounds" for value in dimension.values] or [config.rounds]
    )


def trials_at_once(settings: SweepSettings, cluster: Cluster) -> int:
    """How many trials run at the same time, each with an equal share of the CPUs.

    Raises:
        ConfigError: more are asked for than there are CPUs.
    """
    if settings.max_concurrent is None:
        return max(1, min(MOST_TRIALS_AT_ONCE, int(cluster.cpus) // 2))
    if settings.max_concurrent > cluster.cpus:
        raise ConfigError(f"--max-concurrent is {settings.max_concurrent} and Ray has {cluster.cpus:g} CPUs; lower it")
    return settings.max_concurrent


def _run_trials(plan: SweepPlan, log: SweepLog, reporter: Reporter) -> list[TrialResult]:
    """Results of all trials: those of earlier starts, then what Tune runs."""
    known = _known_results(plan)
    results = {result.name: result for result in known}
    if plan.points:
        results = {name: results[name] for point in plan.points if (name := plan.trial(point).name) in results}
    waiting = [point for point in plan.points if plan.trial(point).name not in results]
    draws = 0 if plan.points else max(0, plan.settings.samples - len(results))
    if results:
        reporter.message(f"resuming: {len(results)} of {len(results) + len(waiting) + draws} trials done before")
    for result in results.values():
        log.trial(result, plan.trial(result.point))
    if waiting or draws:
        queue = Queue(actor_options={"num_cpus": 0})
        follower = _Follower(plan, queue, log, reporter, results, len(results) + len(waiting) + draws)
        _tune(plan, waiting, draws, list(results.values()), queue, follower)
        follower.drain()
        queue.shutdown()
    order = {plan.trial(point).name: place for place, point in enumerate(plan.points)}
    return sorted(results.values(), key=lambda result: order.get(result.name, 0))


def _known_results(plan: SweepPlan) -> list[TrialResult]:
    """Complete results in the sweep's folder that can be compared with this sweep's trials."""
    found = []
    names = {dimension.name for dimension in plan.space}
    for name in plan.storage.names("trials"):
        result = TrialResult.read(plan.storage.below(f"trials/{name}"))
        if result is None or result.status != "complete" or set(result.point) != names:
            continue
        result.point = _as_in_space(result.point)
        if not all(dimension.allows(result.point[dimension.name]) for dimension in plan.space):
            continue
        try:
            trial = plan.trial(result.point)
        except (ConfigError, OSError):  # with what is set now there can be no such trial; weights that are gone
            continue
        if trial.name == result.name:
            found.append(result)
    return found


def _as_in_space(point: Point) -> Point:
    """JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in point.items()}


def _tune(
    plan: SweepPlan,
    waiting: Sequence[Point],
    draws: int,
    known: Sequence[TrialResult],
    queue: Queue,
    follower: _Follower,
) -> None:
    """Let Tune run the waiting points, or the draws of a search that learns from the known results."""
    # a byte, since Tune must reserve something: a trial that held a CPU would keep its own stages from it
    trainable = tune.with_resources(tune.with_parameters(_run_in_tune, plan=plan, queue=queue), {"memory": 1})
    if waiting:
        space: dict[str, Any] = {"point": tune.grid_search(list(waiting))}
        search = None
    else:
        space = {"point": {}}
        search = _optuna(plan, known)
    scheduler = None
    if plan.settings.scheduler == "asha":
        scheduler = tune.schedulers.ASHAScheduler(
            time_attr="round", max_t=most_rounds(plan.config, plan.space), grace_period=1, reduction_factor=2
        )
    filesystem, folder = plan.storage.resolved(SCRATCH)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns of files that it was told not to write
    with _environment(TUNE_ENVIRONMENT):
        tune.Tuner(
            trainable,
            param_space=space if search is None else None,
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode="max",
                search_alg=search,
                scheduler=scheduler,
                num_samples=1 if waiting else draws,
                max_concurrent_trials=plan.at_once,
                reuse_actors=True,  # a new process takes seconds to import what a trial needs
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=folder,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=LOST_TRIALS_REPLACED),
                callbacks=[follower],
                verbose=0,
            ),
        ).fit()
    plan.storage.remove(SCRATCH)


def _optuna(plan: SweepPlan, known: Sequence[TrialResult]) -> Any:
    """Optuna's TPE over the space, told of what earlier starts of this sweep found."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from ray.tune.search.optuna import OptunaSearch

    def distribution(dimension: Dimension) -> BaseDistribution:
        if dimension.kind in ("grid", "choice"):
            return CategoricalDistribution(dimension.values)
        kind = IntDistribution if dimension.whole else FloatDistribution
        low, high = dimension.values
        return kind(low, high, log=dimension.kind == "loguniform")

    judged = [(result.point, result.rounds[-1][METRIC]) for result in known if result.rounds]
    return OptunaSearch(
        space={dimension.name: distribution(dimension) for dimension in plan.space},
        metric=METRIC,
        mode="max",
        seed=plan.config.seed + len(judged),  # else a second start would draw the first one's points again
        points_to_evaluate=[point for point, _ in judged] or None,
        evaluated_rewards=[agreement for _, agreement in judged] or None,
    )


def _point(tune_config: Mapping[str, Any]) -> Point:
    return dict(tune_config.get("point") or tune_config)


def _run_in_tune(tune_config: dict[str, Any], plan: SweepPlan, queue: Queue) -> None:
    """One trial, in a process of Tune's."""
    set_up_process()
    trial = plan.trial(_point(tune_config))
    reporter = _TrialReporter(queue, title(trial.point))

    def on_round(round_: int, result: TrialResult) -> None:
        if round_ < trial.config.rounds:
            _report(result, round_)

    result = run_trial(
        trial,
        plan.storage,
        plan.inputs,
        plan.cluster,
        reporter,
        most_per_class=plan.most_per_class,
        folds=plan.settings.folds,
        on_round=on_round,
    )
    _report(result, trial.config.rounds)


def _report(result: TrialResult, round_: int) -> None:
    judged = result.rounds and result.status != "failed"
    tune.report({METRIC: result.rounds[-1][METRIC] if judged else FAILED, "round": round_})


class _TrialReporter(Reporter):
    """Hands on what takes long; the driver prints it."""

    def __init__(self, queue: Queue, name: str) -> None:
        super().__init__(Console(quiet=True))
        self._queue, self._name = queue, name
        self.on_stage = self._tell

    def plain(self, line: str) -> None:
        self._queue.put(f"{self._name}: {line}")

    def _tell(self, record: StageRecord) -> None:
        if record.seconds >= SHOWN_SECONDS:
            self._queue.put(f"{self._name}: {record.name}: {record.seconds:.1f} s")


class _Follower(tune.Callback):
    """Tune's events in the driver: messages and results of trials, to the terminal and to MLflow."""

    def __init__(
        self,
        plan: SweepPlan,
        queue: Queue,
        log: SweepLog,
        reporter: Reporter,
        results: dict[str, TrialResult],
        total: int,
    ) -> None:
        self._plan, self._queue, self._log, self._reporter = plan, queue, log, reporter
        self._results, self._total = results, total
        self._looked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune saves its callbacks; what this one knows lies in the sweep's folder

    def drain(self) -> None:
        """Show the messages that have come."""
        for line in self._queue.get_nowait_batch(self._queue.size()):
            self._reporter.message(line)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._looked >= MESSAGE_SECONDS:
            self._looked = time.monotonic()
            self.drain()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._log.start(self._plan.trial(_point(trial.config)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self._plan.trial(_point(trial.config))
        result = TrialResult.read(mine.home(self._plan.storage))
        if result is None:
            raise ResourceError(f"trial {mine.name} ended without a result")
        if result.status == "running":  # it was not let finish
            result.status = "stopped"
            result.write(mine.home(self._plan.storage))
        self._finished(mine, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        mine = self._plan.trial(_point(trial.config))
        reason = str(trial.get_error() or "its process was lost").strip().splitlines()[-1]
        result = TrialResult.read(mine.home(self._plan.storage))
        if result is None or result.status != "complete":  # else only what followed it in Tune went wrong
            result = TrialResult(mine.name, mine.point, status="failed", error=reason)
            result.write(mine.home(self._plan.storage))
        self._finished(mine, result)

    def _finished(self, trial: Trial, result: TrialResult) -> None:
        self._results[trial.name] = result
        self._log.trial(result, trial)
        self.drain()
        place = f"trial {len(self._results)} of {self._total}, {title(trial.point)}"
        self._reporter.message(f"{place}: {_outcome(result)}")


def _outcome(result: TrialResult) -> str:
    judgement = result.judgement
    if result.status == "failed":
        return f"failed: {result.error}"
    if judgement is None:
        return f"{result.status}, no reference could be left out, {result.seconds:.1f} s"
    found = f"{judgement.agreement:.3f} of {len(judgement.uids)} references left out agree"
    return f"{found}, {result.seconds:.1f} s" if result.status == "complete" else f"{result.status}, {found}"


def _finish(plan: SweepPlan, config: Config, results: Sequence[TrialResult], log: SweepLog) -> None:
    """The sweep's own files."""
    space = {dimension.name: {dimension.kind: list(dimension.values)} for dimension in plan.space}
    summary = summarise_sweep(results, space) | {
        "config": config.model_dump(mode="json"),
        "sweep": plan.settings.model_dump(mode="json"),
    }
    plan.storage.write_json("sweep.json", summary)
    best = best_point(summary)
    if best is not None:
        content = best_preset(config, best, [dimension.name for dimension in plan.space])
        note = f"# Best of {len(results)} trials by references left out: {title(best)}\n"
        plan.storage.write_bytes("best.yaml", (note + yaml.safe_dump(content, sort_keys=False)).encode())
    figures = write_sweep_page(summary, plan.storage)
    log.finish(summary, figures)


def best_preset(config: Config, best: Point, varied: Sequence[str]) -> dict[str, Any]:
    """The sweep's settings with the best of the varied ones, as far as they differ from the defaults.

    What was a condition (noise, seed) is left at its default: it was not chosen.
    """
    content = _without(config.model_dump(mode="json", exclude={"out", "resume", "retry_quarantined"}), varied)
    chosen = make_config(content, nested(best)).model_dump(mode="json")
    return _differences(chosen, make_config().model_dump(mode="json"))


def _differences(content: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            inner = _differences(value, default[name])
            if inner:
                changed[name] = inner
        elif value != default[name]:
            changed[name] = value
    return changed


def _without(content: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Nested settings without some, by dotted name."""
    left = {}
    for key, value in content.items():
        if key in names:
            continue
        inner = [name.partition(".")[2] for name in names if name.startswith(f"{key}.")]
        left[key] = _without(value, inner) if inner else value
    return left


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for as long as the context lasts; what the user has set stays."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
