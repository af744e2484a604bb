"""MLflow, and nothing but MLflow: one run a curation, metrics a stage and round, the report and the model."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from trainref_ray.config import TrackingSettings
from trainref_ray.run import Storage

PARAMETER_LENGTH = 500
"""Characters of a parameter that every MLflow store takes."""
PARENT_TAG = "mlflow.parentRunId"
"""Under which MLflow's pages find the run that a run belongs to."""
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


NO_DATABASE = (
    "MLflow is off: the run folder is in an object store, where its embedded database cannot be; give --tracking.uri, "
    "or set MLFLOW_TRACKING_URI"
)


def tracking_uri(settings: TrackingSettings, storage: Storage) -> str | None:
    """Where to log: the setting, else the environment's MLFLOW_TRACKING_URI, else a database in the run folder; None
    where tracking is off, or the run folder is no place for a database."""
    if not settings.enabled:
        return None
    known = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if known or not storage.is_local:
        return known or None
    folder = Path(storage.location())
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(folder / 'mlflow.db').absolute()}"


@contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """MLflow's default store for as long as the context lasts: part of its interface takes no other, and it would stay
    in the environment, where the next run of this process would find it."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None is taken, and unsets the variable


class Tracker:
    """One MLflow run of one run folder; started again, it goes on with the same MLflow run.

    Args:
        uri: of the MLflow store.
        experiment: its name; made if there is none.
        storage: the run folder, which remembers the MLflow run.
        config: settings, logged as parameters.
        name: of the MLflow run; by default the run folder's.
        parent: MLflow run that this one belongs to.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        storage: Storage,
        config: Mapping[str, Any],
        *,
        name: str | None = None,
        parent: str | None = None,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # ours is enough
        from mlflow import MlflowClient  # imported late: it takes seconds

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # else it tells of each table of a new database
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._storage = storage
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri)
        self._name, self._tags = name or Path(storage.root).name, {} if parent is None else {PARENT_TAG: parent}
        experiment_id = self._experiment(experiment)
        parameters = {name: str(value)[:PARAMETER_LENGTH] for name, value in flatten(config).items()}
        self.run_id = self._known_run(parameters) or self._new_run(experiment_id, parameters)
        storage.write_json("mlflow-run.json", {"run_id": self.run_id})
        self._client.update_run(self.run_id, status="RUNNING")

    def _new_run(self, experiment_id: str, parameters: Mapping[str, str]) -> str:
        from mlflow.entities import Param

        run = self._client.create_run(experiment_id, run_name=self._name, tags=self._tags)
        run_id = run.info.run_id
        entries = [Param(name, value) for name, value in parameters.items()]
        for start in range(0, len(entries), BATCH_PARAMETERS):
            self._client.log_batch(run_id, params=entries[start : start + BATCH_PARAMETERS])
        return run_id

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return known.experiment_id
        embedded = self.uri.startswith("sqlite:///")
        # an sqlite store would put artifacts relative to the process that creates the experiment
        beside = Path(self.uri.removeprefix("sqlite:///")).absolute().parent / "mlflow-artifacts"
        try:
            return self._client.create_experiment(name, artifact_location=beside.as_uri() if embedded else None)
        except MlflowException:  # another job has just made it
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return found.experiment_id

    def _known_run(self, parameters: Mapping[str, str]) -> str | None:
        """The MLflow run of an earlier start with these settings and this parent. MLflow's parameters cannot be
        changed, so a start with others is another MLflow run."""
        from mlflow.exceptions import MlflowException

        if not self._storage.exists("mlflow-run.json"):
            return None
        run_id = self._storage.read_json("mlflow-run.json")["run_id"]
        try:
            known = self._client.get_run(run_id).data
        except MlflowException:
            return None
        same = known.params == parameters and known.tags.get(PARENT_TAG) == self._tags.get(PARENT_TAG)
        return run_id if same else None

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
        with (
            _default_store(self.uri),
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
