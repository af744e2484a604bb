"""One trial of a sweep: a curation whose stages lie in the sweep's folder, beside those of the other trials."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trainref_ray.distributed.context import Context, Inputs, References
from trainref_ray.distributed.inventory import drawn_references
from trainref_ray.distributed.job import environment, release_model, stage_list, write_settings
from trainref_ray.distributed.left_out import judge_round
from trainref_ray.distributed.pipeline import Pipeline
from trainref_ray.distributed.session import Cluster
from trainref_ray.errors import TrainRefError
from trainref_ray.progress import Reporter
from trainref_ray.report.summary import summarise
from trainref_ray.results import open_tables
from trainref_ray.run import Storage
from trainref_ray.trials import Trial, TrialResult


def run_trial(
    trial: Trial,
    storage: Storage,
    inputs: Inputs,
    cluster: Cluster,
    reporter: Reporter,
    *,
    most_per_class: int | None,
    folds: int,
    on_round: Callable[[int, TrialResult], None],
) -> TrialResult:
    """Curate, judge each round by references left out, and save what came of it in the trial's folder.

    An error on purpose is a result too: the other trials go on.

    Args:
        trial: settings and name.
        storage: of the sweep, where the stages go.
        inputs: shards and references, the same for all trials.
        cluster: what this trial may use.
        reporter: shows its stages.
        most_per_class: where references are drawn, the most that any trial of the sweep draws; a trial with fewer is
            judged by the others.
        folds: references are left out in so many parts.
        on_round: called after each round with its number.
    """
    home, started = trial.home(storage), time.monotonic()
    result = TrialResult(trial.name, trial.point)
    write_settings(trial.config, home)
    home.write_json("environment.json", environment())
    inputs = inputs if trial.config.finetune_model else replace(inputs, test_shards=[])
    context = Context(trial.config, storage, home, cluster, reporter, inputs)

    def judge(round_: int) -> None:
        spare = _spare_references(context, most_per_class)
        judgement = judge_round(context, pipeline.models[-1], pipeline.rounds[-1], spare, folds=folds)
        if judgement is not None:
            result.rounds.append({"agreement": judgement.agreement, "log_likelihood": judgement.log_likelihood})
            result.judged = {
                "uids": judgement.uids.tolist(),
                "right": judgement.right.tolist(),
                "probability": judgement.probability.tolist(),
            }
        result.write(home)
        on_round(round_, result)

    pipeline = Pipeline(context, lambda: None, judge)
    try:
        pipeline.run()
    except TrainRefError as error:
        result.status, result.error = "failed", str(error)
    else:
        home.write_json("stages.json", stage_list(pipeline) | {"store": 2})
        summary = summarise(open_tables(home), [record.as_dict() for record in reporter.records])
        home.write_json("summary.json", summary)
        if trial.config.finetune_model:
            release_model(pipeline, summary["temperature"])
        result.status, result.metrics = "complete", summary["metrics"]
    result.stages = [record.as_dict() for record in reporter.records]
    result.seconds = round(time.monotonic() - started, 3)
    result.write(home)
    return result


def _spare_references(context: Context, most_per_class: int | None) -> References:
    """References that other trials draw and this one does not."""
    mine = context.references
    if most_per_class is None:
        return References(mine.uids[:0], mine.labels[:0])
    most = drawn_references(context, most_per_class)
    others = ~np.isin(most.uids, mine.uids)
    return most.rows(others)
