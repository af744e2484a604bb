"""What makes two trials the same, and the preset of the best."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from trainref_ray.config import SweepSettings, make_config
from trainref_ray.distributed.context import Inputs
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.session import Cluster
from trainref_ray.distributed.sweep import SweepPlan, _known_results, best_preset, most_rounds
from trainref_ray.distributed.sweep_log import SweepLog
from trainref_ray.errors import TrackingError
from trainref_ray.progress import Reporter
from trainref_ray.run import Storage
from trainref_ray.schemas import INVENTORY
from trainref_ray.search_space import Dimension
from trainref_ray.tracking import Tracker
from trainref_ray.trials import TrialResult

SHARD = ShardRead(0, "0.tar", "one", 100)
SPACE = (Dimension("vote.k", "grid", (5, 10), True), Dimension("noise", "grid", ("none", "sym:0.2"), False))
POINT = {"vote.k": 5, "noise": "none"}


def plan(shard: ShardRead = SHARD, folds: int = 3, **settings: Any) -> SweepPlan:
    config = make_config({"data": ["a"], "reference_per_class": 3}, settings)
    sweep = SweepSettings(space="space.yaml", folds=folds)
    inputs = Inputs([shard], [], ["cat", "dog"], None, INVENTORY.empty_table())
    return SweepPlan(config, sweep, SPACE, (), Storage("/nowhere"), inputs, cast(Cluster, None), 1)


NOT_OF_THE_RESULT: list[dict[str, Any]] = [
    {"out": "elsewhere"},
    {"data": ["b"]},
    {"resources": {"train_workers": 2}},
    {"report": {"gallery": 3}},
    {"tracking": {"enabled": False}},
    {"evaluate": {"bootstrap": 7}},
]
OF_THE_RESULT: list[dict[str, Any]] = [
    {"label_field": "other"},
    {"truth_field": "other"},
    {"read": {"max_bytes": 5}},
    {"allow_missing_classes": True},
    {"probe": {"epochs": 3}},
    {"seed": 1},
    {"reference_per_class": 4},
    {"folds": 2},
    {"shard": replace(SHARD, etag="two")},
]


@pytest.mark.parametrize("change", NOT_OF_THE_RESULT, ids=str)
def test_a_trial_is_found_again_whatever_changes_no_result(change: dict[str, Any]) -> None:
    assert plan(**change).trial(POINT).name == plan().trial(POINT).name


@pytest.mark.parametrize("change", OF_THE_RESULT, ids=str)
def test_a_trial_is_another_if_its_result_may_be(change: dict[str, Any]) -> None:
    assert plan(**change).trial(POINT).name != plan().trial(POINT).name


def test_a_trial_is_another_if_the_file_of_weights_is(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"one")
    weights = {"model": {"weights": str(file)}}
    first = plan(**weights).trial(POINT).name
    assert plan(**weights).trial(POINT).name == first
    other = tmp_path / "moved.safetensors"
    other.write_bytes(b"one")
    assert plan(model={"weights": str(other)}).trial(POINT).name == first
    file.write_bytes(b"two")
    assert plan(**weights).trial(POINT).name != first


def test_a_trial_has_the_settings_of_its_point() -> None:
    trial = plan().trial({"vote.k": 10, "noise": "sym:0.2"})
    assert trial.name != plan().trial(POINT).name
    assert (trial.config.vote.k, trial.config.noise) == (10, "sym:0.2")


def test_the_most_references_of_any_trial_are_drawn() -> None:
    assert plan().most_per_class == 3
    varied = replace(plan(), space=(Dimension("reference_per_class", "grid", (1, 7, 2), True),))
    assert varied.most_per_class == 7
    from_file = make_config({"data": ["a"], "reference": "refs.csv"})
    assert replace(plan(), config=from_file).most_per_class is None


def test_the_preset_of_the_best_has_what_differs_from_the_defaults_but_no_condition(tmp_path: Path) -> None:
    config = make_config(
        {"data": ["a"], "reference_per_class": 3, "noise": "sym:0.4", "out": "x", "vote": {"temperature": 0.7}}
    )
    best = best_preset(config, {"vote.k": 7}, ["vote.k", "noise"])
    assert best == {"data": ["a"], "reference_per_class": 3, "vote": {"k": 7, "temperature": 0.7}}


def test_asha_counts_the_rounds_of_the_longest_trial() -> None:
    config = make_config({"rounds": 2})
    assert most_rounds(config, (Dimension("vote.k", "grid", (5, 10), True),)) == 2
    assert most_rounds(config, (Dimension("rounds", "grid", (1, 3), True),)) == 3


def test_results_outside_the_space_or_of_settings_that_are_not_allowed_now_are_not_counted(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    space = (Dimension("model.weights", "grid", ("none", str(weights)), False),)
    before = replace(plan(), space=space, storage=Storage(str(tmp_path / "sweep")))
    for value in space[0].values:
        trial = before.trial({"model.weights": value})
        TrialResult(trial.name, trial.point, status="complete").write(trial.home(before.storage))
    assert len(_known_results(before)) == 2
    narrower = replace(before, space=(replace(space[0], values=("none",)),))
    assert [result.point for result in _known_results(narrower)] == [{"model.weights": "none"}]
    weights.unlink()
    assert [result.point for result in _known_results(before)] == [{"model.weights": "none"}]


def test_an_error_of_mlflow_is_told_once_and_no_trial_hangs_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Tracker:
        raise OSError("no connection")

    monkeypatch.setattr("trainref_ray.distributed.sweep_log.Tracker", gone)
    console = Console(record=True, file=io.StringIO(), width=200)
    parent = cast(Tracker, SimpleNamespace(uri="sqlite:///x.db", run_id="0"))
    log = SweepLog(parent, "trainref", Storage(str(tmp_path)), Reporter(console))
    trial = plan().trial(POINT)
    log.start(trial)
    log.trial(TrialResult(trial.name, trial.point, status="complete"), trial)
    with pytest.raises(TrackingError, match="no connection"):
        log.end("FINISHED")
    assert console.export_text().count("MLflow cannot be used any more: no connection") == 1
