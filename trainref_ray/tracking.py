"""MLflow, and nothing but MLflow: one run a curation, metrics a stage and round, the report and the model."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trainref_ray.config import TrackingSettings
from trainref_ray.run import Storage

PARAMETER_LENGTH = 500
"""Characters of a parameter that every MLflow store takes."""
BATCH_PARAMETERS = 100
"""Parameters of one request; MLflow allows no more."""


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class Tracker:
    """One MLflow run of one run folder; started again, it goes on with the same MLflow run."""

    def __init__(self, settings: TrackingSettings, storage: Storage, config: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        from mlflow import MlflowClient  # imported late: it takes seconds

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # else it tells of each table of a new database
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._storage = storage
        self._uri = settings.uri or self._embedded_uri()
        self._client = MlflowClient(tracking_uri=self._uri)
        experiment = self._client.get_experiment_by_name(settings.experiment)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        elif settings.uri is None and storage.is_local:
            # an sqlite store would put artifacts relative to the process that creates the experiment
            artifacts = Path(storage.location("mlflow-artifacts")).as_uri()
            experiment_id = self._client.create_experiment(settings.experiment, artifact_location=artifacts)
        else:
            experiment_id = self._client.create_experiment(settings.experiment)
        parameters = {name: str(value)[:PARAMETER_LENGTH] for name, value in flatten(config).items()}
        self.run_id = self._known_run(parameters) or self._new_run(experiment_id, parameters)
        storage.write_json("mlflow-run.json", {"run_id": self.run_id})
        self._client.update_run(self.run_id, status="RUNNING")

    def _new_run(self, experiment_id: str, parameters: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        run_id = self._client.create_run(experiment_id, run_name=Path(self._storage.root).name).info.run_id
        entries = [Param(name, value) for name, value in parameters.items()]
        for start in range(0, len(entries), BATCH_PARAMETERS):
            self._client.log_batch(run_id, params=entries[start : start + BATCH_PARAMETERS])
        return run_id

    def _embedded_uri(self) -> str:
        folder = Path(self._storage.location()) if self._storage.is_local else Path("mlruns")
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{(folder / 'mlflow.db').absolute()}"

    def _known_run(self, parameters: Mapping[str, str]) -> str | None:
        """The MLflow run of an earlier start with these settings. MLflow's parameters cannot be changed, so a start
        with others is another MLflow run."""
        from mlflow.exceptions import MlflowException

        if not self._storage.exists("mlflow-run.json"):
            return None
        run_id = self._storage.read_json("mlflow-run.json")["run_id"]
        try:
            known = self._client.get_run(run_id).data.params
        except MlflowException:
            return None
        return run_id if known == parameters else None

    def metrics(self, values: Mapping[str, float | None], step: int) -> None:
        """Log the values that exist, at a round."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, value in values.items() if value is not None]
        if entries:
            self._client.log_batch(self.run_id, metrics=entries)

    def stage(self, record: Mapping[str, Any]) -> None:
        """Log what a finished stage cost, at its round."""
        name = record["name"]
        figures = {f"stage/{name}/{key}": record[key] for key in ("seconds", "items", "items_per_second")}
        self.metrics(figures, record["round"])

    def artifact(self, storage: Storage, name: str, folder: str) -> None:
        """Log a file of the run folder under `folder`."""
        with TemporaryDirectory() as scratch:
            local = Path(scratch) / Path(name).name
            local.write_bytes(storage.read_bytes(name))
            self._client.log_artifact(self.run_id, str(local), folder or None)

    def model(self, storage: Storage, image_size: int, classes: int) -> None:
        """Log the released model as a loadable MLflow model: images uint8 in, class probabilities out.

        It is logged from code with safetensors beside it: nothing is pickled.
        """
        import mlflow
        import mlflow.pyfunc  # before warnings are caught: it changes the filters
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        signature = ModelSignature(
            Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "images")]),
            Schema([TensorSpec(np.dtype(np.float32), (-1, classes), "probabilities")]),
        )
        mlflow.set_tracking_uri(self._uri)
        with (
            TemporaryDirectory() as scratch,
            mlflow.start_run(run_id=self.run_id),
            warnings.catch_warnings(record=True),
        ):
            # recorded and left: MLflow would rather derive the signature than be given it
            folder = Path(scratch) / "model"
            folder.mkdir()
            for name in storage.names("model"):
                (folder / name).write_bytes(storage.read_bytes(f"model/{name}"))
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"model": str(folder)},
                signature=signature,
                pip_requirements=["trainref-ray"],
                metadata={"image_size": image_size},
            )

    def finish(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._client.set_terminated(self.run_id, status)
