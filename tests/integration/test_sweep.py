"""Sweeps on a real local Ray: what trials share, how they are judged, what is logged, and starting again."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import TINY
from rich.console import Console

from trainref_ray import make_config
from trainref_ray.config import SweepSettings
from trainref_ray.distributed.sweep import sweep
from trainref_ray.errors import ConfigError
from trainref_ray.progress import Reporter
from trainref_ray.results import CurationSweep

pytestmark = pytest.mark.ray

ONCE = ("inventory", "pretrain", "embeddings", "probe", "evidence", "references")
"""Stages that the number of supporters does not touch."""


def start(folder: Path, space: dict[str, Any], *, options: dict[str, Any] | None = None, **changes: Any) -> tuple:
    """The finished sweep, and what it printed."""
    folder.mkdir(exist_ok=True)
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    printed = io.StringIO()
    config = make_config(TINY, {"out": str(folder / "sweep")}, changes)
    settings = SweepSettings(space=str(folder / "space.yaml"), **(options or {}))
    return sweep(config, settings, Reporter(Console(file=printed, width=200))), printed.getvalue()


@pytest.fixture(scope="module")
def swept(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CurationSweep]:
    """Two trials at once, with MLflow's database in the sweep's folder."""
    folder = tmp_path_factory.mktemp("sweeps") / "k"
    finished, _ = start(
        folder, {"vote.k": {"grid": [5, 10]}}, options={"max_concurrent": 2}, tracking={"enabled": True}
    )
    return folder, finished


def test_what_a_setting_does_not_touch_is_computed_once(swept: tuple[Path, CurationSweep]) -> None:
    counts = Counter(name for trial in swept[1].summary["trials"] for name in trial["stages_computed"])
    assert {name: counts[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert {name: counts[name] for name in ("supporters", "decisions")} == {"supporters": 2, "decisions": 2}
    assert len(list((swept[0] / "sweep" / "round-0").glob("pretrain-*"))) == 1


def test_no_lock_and_no_scratch_is_left(swept: tuple[Path, CurationSweep]) -> None:
    left = [path for pattern in ("lock.json", "ray_t*", "*.part") for path in (swept[0] / "sweep").rglob(pattern)]
    assert left == []


def test_each_trial_is_a_run(swept: tuple[Path, CurationSweep]) -> None:
    for row in swept[1].summary["trials"]:
        run = swept[1].trial(row["name"])
        assert run.settings["vote"]["k"] == row["point"]["vote.k"]
        assert run.decisions().num_rows == 500
        assert len(run.supporters()["supporter_uid"][0]) == row["point"]["vote.k"]
        assert run.summary["metrics"]["relabel_accuracy"] == row["metrics"]["relabel_accuracy"]


def test_every_reference_is_judged_once_by_a_reference_set_without_it(swept: tuple[Path, CurationSweep]) -> None:
    run = swept[1].trial(swept[1].summary["trials"][0]["name"])
    everything = set(run.reference_uids.tolist())
    given = []
    for path in (swept[0] / "sweep" / "round-1").glob("references-*/members.parquet"):
        members = pq.read_table(path)
        given.append(set(members.filter(members["given"])["uid"].to_pylist()))
    without = [everything - part for part in given if part != everything]
    assert len(without) == 3
    assert sorted(uid for part in without for uid in part) == sorted(everything)
    for row in swept[1].summary["trials"]:
        assert row["references_left_out"] == 30
        assert row["agreement"] > 0.3  # by chance it is 0.1


def test_the_best_settings_are_a_preset(swept: tuple[Path, CurationSweep]) -> None:
    best = yaml.safe_load((swept[0] / "sweep" / "best.yaml").read_text())
    assert best["vote"]["k"] == swept[1].summary["settings"][0]["setting"]["vote.k"]
    config = make_config(best)
    assert config.limit == 500
    assert config.data == ("sample:digits",)
    assert config.finetune_model
    assert config.evaluate.bootstrap == 20


def test_mlflow_has_a_parent_and_a_child_a_trial(swept: tuple[Path, CurationSweep]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{swept[0] / 'sweep' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("trainref")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sweep", "vote.k=5", "vote.k=10"}
    parent = runs.pop("sweep")
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"sweep.json", "best.yaml", "report"}
    rows = {row["title"]: row for row in swept[1].summary["trials"]}
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["agreement"] == pytest.approx(rows[name]["agreement"])
        assert run.data.metrics["stage/supporters/items"] == 500
        assert f"vote.k={run.data.params['vote.k']}" == name


def test_started_again_it_runs_what_is_new_alone(swept: tuple[Path, CurationSweep]) -> None:
    folder, before = swept
    times = {path: path.stat().st_mtime_ns for path in (folder / "sweep").glob("trials/*/result.json")}
    again, printed = start(folder, {"vote.k": {"grid": [5, 10]}}, options={"max_concurrent": 2})
    assert "resuming: 2 of 2 trials done before" in printed
    assert again.summary["settings"] == before.summary["settings"]
    wider, printed = start(folder, {"vote.k": {"grid": [5, 10, 12]}}, options={"max_concurrent": 2})
    assert "resuming: 2 of 3 trials done before" in printed
    assert len(wider.summary["trials"]) == 3
    assert [set(row["stages_computed"]) & set(ONCE) for row in wider.summary["trials"]][2] == set()
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.slow
def test_noise_is_put_into_clean_labels_and_fewer_references_are_judged_by_the_others(
    local_ray: None, tmp_path: Path
) -> None:
    space = {"noise": {"grid": ["sym:0.2", "symflip:0.6"]}, "reference_per_class": {"grid": [1, 3]}}
    finished, _ = start(tmp_path, space, pretrain={"epochs": 1, "objective": "contrastive"})
    # no label is read, so neither noise nor references make another model
    assert len(list((tmp_path / "sweep" / "round-0").glob("pretrain-*"))) == 1
    assert len(list((tmp_path / "sweep" / "round-1").glob("embeddings-*"))) == 1
    rates = {"sym:0.2": 0.2 * 0.9, "symflip:0.6": 0.6}
    for row in finished.summary["trials"]:
        run = finished.trial(row["name"])
        truth = run.truth()["true_label"].to_numpy()
        given = run.samples()["label"].to_numpy()
        wrong = (given != truth)[truth >= 0].mean()
        assert wrong == pytest.approx(rates[row["point"]["noise"]], abs=0.05)
        assert len(run.reference_uids) == 10 * row["point"]["reference_per_class"]
        # one a class cannot be left out, so the twenty that only the other trials were given judge it
        assert row["references_left_out"] == {1: 20, 3: 30}[row["point"]["reference_per_class"]]
    assert [part["condition"] for part in finished.summary["conditions"]] == [
        {"noise": "sym:0.2"},
        {"noise": "symflip:0.6"},
    ]
    assert all(entry["trials"] == 2 for entry in finished.summary["settings"])
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert "noise" not in best
    report = tmp_path / "sweep" / "report"
    assert {path.name for path in report.glob("*.svg")} >= {"agreement_by_noise.svg", "heat_map.svg"}


@pytest.mark.slow
def test_a_trial_that_fails_does_not_end_the_others(local_ray: None, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    space = {"model.weights": {"grid": [str(broken), "none"]}}
    finished, printed = start(tmp_path, space, pretrain={"epochs": 1})
    rows = {row["point"]["model.weights"]: row for row in finished.summary["trials"]}
    assert rows["none"]["status"] == "complete"
    assert rows[str(broken)]["status"] == "failed"
    assert f"model.weights '{broken}'" in rows[str(broken)]["error"]
    assert "failed: " in printed
    assert [entry["setting"]["model.weights"] for entry in finished.summary["settings"]] == ["none"]


@pytest.mark.slow
def test_optuna_draws_and_goes_on_from_what_it_found(local_ray: None, tmp_path: Path) -> None:
    space = {"vote.temperature": {"uniform": [0.2, 1.0]}, "vote.k": {"loguniform": [4, 12]}}
    options = {"search": "optuna", "samples": 2, "max_concurrent": 1}
    first, _ = start(tmp_path, space, options=options, pretrain={"epochs": 1})
    points = [row["point"] for row in first.summary["trials"]]
    assert len(points) == 2
    assert all(0.2 <= point["vote.temperature"] <= 1 and 4 <= point["vote.k"] <= 12 for point in points)
    more, printed = start(tmp_path, space, options=options | {"samples": 3}, pretrain={"epochs": 1})
    assert "resuming: 2 of 3 trials done before" in printed
    drawn = [row["point"] for row in more.summary["trials"]]
    assert len(drawn) == 3
    assert all(point in drawn for point in points)


@pytest.mark.slow
def test_with_models_the_last_curation_is_a_round_more_of_the_same_training(local_ray: None, tmp_path: Path) -> None:
    finished, _ = start(tmp_path, {"final_curation": {"grid": [False, True]}}, options={"finetune": True})
    runs = {row["point"]["final_curation"]: finished.trial(row["name"]) for row in finished.summary["trials"]}
    counts = Counter(name for row in finished.summary["trials"] for name in row["stages_computed"])
    assert counts["finetune"] == 1
    assert {last: run.rounds for last, run in runs.items()} == {False: 1, True: 2}
    assert runs[True].table("decisions", 1).equals(runs[False].table("decisions", 1))
    assert runs[True].summary["metrics"]["accuracy"] == runs[False].summary["metrics"]["accuracy"]
    judged = {row["point"]["final_curation"]: row for row in finished.summary["trials"]}
    assert {row["references_left_out"] for row in judged.values()} == {30}
    assert judged[True]["log_likelihood"] != judged[False]["log_likelihood"]


@pytest.mark.slow
def test_asha_stops_the_worse_trial_after_its_first_round(local_ray: None, tmp_path: Path) -> None:
    # the second trial takes every member for a copy, so no one supports a sample, and nothing else may speak
    silent = {"influence_weight": 0.0, "model_weight": 0.0, "given_weight": 0.0}
    finished, _ = start(
        tmp_path,
        {"vote.near_duplicate": {"grid": [0.9999, 1e-6]}},
        options={"scheduler": "asha", "finetune": True, "max_concurrent": 1},
        rounds=2,
        vote=silent,
        finetune={"epochs": 1},
    )
    better, worse = finished.summary["trials"]
    assert better["rounds"][0]["agreement"] > worse["rounds"][0]["agreement"]
    assert (better["status"], len(better["rounds"])) == ("complete", 2)
    assert (worse["status"], len(worse["rounds"])) == ("stopped", 1)
    assert better["metrics"]["accuracy"] > 0.3
    assert finished.trial(better["name"]).model() is not None
    assert [entry["setting"] for entry in finished.summary["settings"]] == [{"vote.near_duplicate": 0.9999}]


@pytest.mark.parametrize(
    ("space", "options", "changes", "message"),
    [
        ({"vote.k": {"grid": [5, 0]}}, {}, {}, "setting 'vote.k' is 0"),
        ({"vote.k": {"grid": [5, "many"]}}, {}, {}, "setting 'vote.k' is 'many'"),
        ({"noise": {"grid": ["salt:0.1"]}}, {}, {}, "noise 'salt:0.1' is unknown"),
        ({"noise": {"grid": ["instance:0.1"]}}, {}, {}, "allowed: none, sym:RATE"),
        ({"finetune.epochs": {"grid": [1, 2]}}, {}, {}, "add --finetune"),
        ({"noise": {"grid": ["sym:0.1"]}}, {"search": "optuna"}, {}, "--search optuna compares single trials"),
        ({"vote.k": {"grid": [5]}}, {"scheduler": "asha"}, {}, "needs --finetune and --rounds 2 or more"),
        ({"vote.k": {"uniform": [2, 5]}}, {"search": "grid"}, {}, "a grid search needs lists"),
        ({"vote.k": {"grid": [5]}}, {"max_concurrent": 9}, {}, "--max-concurrent is 9 and Ray has 2 CPUs"),
        ({"noise": {"grid": ["asym:0.1"]}}, {}, {}, "needs CIFAR-10's or CIFAR-100's class names"),
    ],
)
def test_wrong_input_is_told_before_any_trial(
    local_ray: None,
    tmp_path: Path,
    space: dict[str, Any],
    options: dict[str, Any],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=r"\A[^\n]*\Z") as caught:
        start(tmp_path, space, options=options, **changes)
    assert message in str(caught.value)
    assert not list(tmp_path.glob("sweep/trials/*"))


def test_a_run_folder_is_no_place_for_a_sweep(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "run.yaml").write_text("{}")
    with pytest.raises(Exception, match="holds something else than a sweep"):
        start(tmp_path, {"vote.k": {"grid": [5]}})


def test_agreement_is_that_of_a_curation_without_the_reference(swept: tuple[Path, CurationSweep]) -> None:
    """The trusted class of a reference left out has no say: a curation of arrays that never saw it mostly agrees."""
    from trainref_ray import curate_arrays
    from trainref_ray.method.folds import deal_folds
    from trainref_ray.schemas import to_matrix

    row = next(row for row in swept[1].summary["trials"] if row["point"]["vote.k"] == 10)
    run = swept[1].trial(row["name"])
    result = yaml.safe_load((swept[0] / "sweep" / "trials" / row["name"] / "result.json").read_text())
    right = dict(zip(result["judged"]["uids"], result["judged"]["right"], strict=True))
    table = run.table("embeddings", None, ["uid", "embedding"])
    uids, features = table["uid"].to_numpy(), to_matrix(table["embedding"]).astype(np.float32)
    given = run.samples()["label"].to_numpy().astype(np.int64)
    trusted = np.array(run.stages["references"]["labels"])
    dealt = deal_folds(trusted, 3, run.settings["seed"])
    same = []
    for fold in range(3):
        kept = np.searchsorted(uids, run.reference_uids[dealt != fold])
        others = ~np.isin(np.arange(len(uids)), kept)
        curated = curate_arrays(
            features[others],
            given[others],
            features[kept],
            trusted[dealt != fold],
            settings=make_config(run.settings),
            model_probabilities=run.model_probabilities()[others],
        )
        best = dict(zip(uids[others].tolist(), curated.best_class.tolist(), strict=True))
        for uid, label in zip(run.reference_uids[dealt == fold].tolist(), trusted[dealt == fold].tolist(), strict=True):
            same.append((best[uid] == label) == right[uid])
    assert np.mean(same) >= 0.9
