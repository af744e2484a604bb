"""Where MLflow's runs go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainref_ray.config import TrackingSettings
from trainref_ray.run import Storage
from trainref_ray.tracking import _default_store, flatten, tracking_uri

REMOTE = Storage("s3://bucket/run")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_setting_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert tracking_uri(TrackingSettings(uri="http://setting"), REMOTE) == "http://setting"
    assert tracking_uri(TrackingSettings(), REMOTE) == "http://environment"
    assert tracking_uri(TrackingSettings(enabled=False, uri="http://setting"), REMOTE) is None


def test_a_run_folder_on_a_disk_has_its_own_database(tmp_path: Path) -> None:
    assert tracking_uri(TrackingSettings(), Storage(str(tmp_path / "run"))) == f"sqlite:///{tmp_path}/run/mlflow.db"
    assert (tmp_path / "run").is_dir()


def test_an_object_store_has_none() -> None:
    assert tracking_uri(TrackingSettings(), REMOTE) is None


def test_settings_are_flattened_to_dotted_names() -> None:
    assert flatten({"vote": {"k": 5, "near": {"x": 1}}, "seed": 0}) == {"vote.k": 5, "vote.near.x": 1, "seed": 0}


@pytest.mark.parametrize("before", [None, "http://environment"])
def test_logging_a_model_leaves_the_environment_as_it_was(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", before)
    with _default_store(f"sqlite:///{tmp_path}/mlflow.db"):
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert os.environ.get("MLFLOW_TRACKING_URI") == before
    assert tracking_uri(TrackingSettings(), REMOTE) == before
