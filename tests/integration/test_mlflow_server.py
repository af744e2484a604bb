"""Trials of a sweep, several at once, logged to a real MLflow server that the environment names."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY
from mlflow_server import mlflow_server

from trainref_ray import make_config
from trainref_ray.config import SweepSettings
from trainref_ray.distributed.sweep import sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_sweep_is_logged_to_the_server_of_the_environment(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "space.yaml").write_text("vote.k: {grid: [5, 8, 10]}")
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        config = make_config(
            TINY, {"out": str(tmp_path / "sweep"), "tracking": {"enabled": True}, "pretrain": {"epochs": 1}}
        )
        finished = sweep(config, SweepSettings(space=str(tmp_path / "space.yaml"), max_concurrent=2))
        assert not (tmp_path / "sweep" / "mlflow.db").exists()
        client = MlflowClient(url)
        experiment = client.get_experiment_by_name("trainref")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        parent = runs.pop("sweep")
        assert parent.info.status == "FINISHED"
        assert {item.path for item in client.list_artifacts(parent.info.run_id, "report")} >= {"report/sweep.html"}
    rows = {row["title"]: row for row in finished.summary["trials"]}
    assert set(runs) == set(rows)
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.metrics["agreement"] == pytest.approx(rows[name]["agreement"])
        assert run.data.metrics["noise_auroc"] == pytest.approx(rows[name]["metrics"]["noise_auroc"])
