"""Reading a finished run: its tables, figures and model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from trainref_ray.config import VoteSettings, make_config
from trainref_ray.errors import ConfigError, ResumeError
from trainref_ray.run import RUN_FILE, SWEEP_FILE, Stage, Storage
from trainref_ray.schemas import to_matrix
from trainref_ray.training.calibrate import fit_held_out, softmax

HELD_OUT = "held_out"
"""References that no training sees, and their trusted labels."""
HELD_OUT_SAMPLES = "held_out_samples"
"""Curated samples that a fine-tuning does not see, and their label distributions."""


def held_out_logits(model: Stage, file: str = HELD_OUT) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits float32 [n, C] of what a model was not trained on, and their labels.

    Args:
        model: the stage of its training.
        file: `HELD_OUT`, labels int64 [n], or `HELD_OUT_SAMPLES`, labels float32 [n, C].

    Returns:
        None if there is nothing of the kind, or the model has no head.
    """
    path = model.path(f"{file}_logits.safetensors")
    if not model.storage.exists(path):
        return None
    content = model.storage.read_tensors(path)
    return content["logits"], content["labels"]


def model_temperature(model: Stage) -> float:
    """The temperature of a model by the references, and the curated samples, that it was not trained on; 1 without."""
    return fit_held_out(held_out_logits(model), held_out_logits(model, HELD_OUT_SAMPLES))


def given_weight_of(transition: Stage, settings: VoteSettings) -> float:
    """How much the given label weighs in a round: as the stage of its table has fitted it, else as set."""
    return float(transition.facts().get("given_weight", settings.given_weight))


@lru_cache(maxsize=4)
def label_mass_of(transition: Stage) -> np.ndarray:
    """How much of each class lies under each given label in a round, float64 [C, C], class by label."""
    return transition.storage.read_tensors(transition.path("transition.safetensors"))["mass"]


@dataclass(frozen=True)
class CurationRun:
    """A run folder whose tables are complete.

    Attributes:
        storage: the run folder.
        tables: where its stages are: the same, or for a trial of a sweep the sweep's folder.
    """

    storage: Storage
    tables: Storage

    @property
    def path(self) -> str:
        """Where the run is."""
        return self.storage.location()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summary.json`: counts, metrics, rounds, baselines, stages, settings, versions."""
        return self.storage.read_json("summary.json")

    @cached_property
    def stages(self) -> dict[str, Any]:
        """Fingerprints of every stage, shards, class names and references."""
        return self.storage.read_json("stages.json")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings as they were used."""
        return yaml.safe_load(self.storage.read_bytes(RUN_FILE))

    def settled(self, round_: int) -> dict[str, Any]:
        """The settings, with the weight of the given label that a round has fitted, if it has, in place of the fit."""
        config = make_config(self.settings)
        if not config.fits_given_weight:
            return self.settings
        weight = given_weight_of(self.stage("transition", round_), config.vote)
        return self.settings | {"vote": self.settings["vote"] | {"given_weight": weight, "fit_given_weight": "never"}}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 0 .. C-1."""
        return self.stages["class_names"]

    @property
    def rounds(self) -> int:
        """Number of curation rounds."""
        return len(self.stages["rounds"])

    def stage(self, name: str, round_: int | None = None) -> Stage:
        """A stage of a round (the last by default), e.g. `run.stage("probe")`.

        Raises:
            ConfigError: there is no such round; the first is 1.
        """
        number = self.rounds if round_ is None else round_
        if number not in range(1, self.rounds + 1):
            raise ConfigError(f"{self.path} has no round {number}; allowed: 1 to {self.rounds}")
        return Stage(self.tables, name, number, self.stages["rounds"][number - 1][name])

    def table(self, name: str, round_: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """A table over all shards, by uid: embeddings, evidence, supporters or decisions."""
        stage = self.stage(name, round_)
        return pa.concat_tables([stage.read_shard(shard, columns) for shard in self.stages["shards"]])

    def model_logits(self, round_: int | None = None) -> np.ndarray | None:
        """Logits float16 [N, C] of the model that made a round's embeddings, in the order of their table; None if it
        was trained without labels and has no head."""
        if not self._has_head(round_):
            return None
        return to_matrix(self.table("embeddings", round_, ["model_logits"])["model_logits"])

    def model_probabilities(self, round_: int | None = None) -> np.ndarray | None:
        """What the model that made a round's embeddings says of each sample, float32 [N, C], as the curation takes it;
        else as `model_logits`."""
        logits, number = self.model_logits(round_), self.rounds if round_ is None else round_
        if logits is None:
            return None
        if not self.settings["vote"]["calibrate_model"]:
            return softmax(logits)
        model = self.model_stage(min(number, len(self.stages["models"])) - 1)  # without fine-tuning there is one model
        return softmax(logits, model_temperature(model))

    def model_classes(self, round_: int | None = None) -> np.ndarray | None:
        """The class that this model itself would give each sample, int64 [N]; else as `model_logits`, of which only one
        shard's are in memory."""
        if not self._has_head(round_):
            return None
        stage = self.stage("embeddings", round_)
        shards = (stage.read_shard(shard, ["model_logits"]) for shard in self.stages["shards"])
        return np.concatenate([to_matrix(table["model_logits"]).argmax(axis=1) for table in shards])

    def _has_head(self, round_: int | None) -> bool:
        first = self.stage("embeddings", round_).read_shard(self.stages["shards"][0])
        return "model_logits" in first.column_names

    def decisions(self, round_: int | None = None) -> pa.Table:
        """One row a sample, the quarantined included (`trainref_ray.schemas.DECISION`)."""
        return self.table("decisions", round_)

    def supporters(self, round_: int | None = None) -> pa.Table:
        """The supporters of every usable sample."""
        return self.table("supporters", round_)

    def references(self, round_: int | None = None) -> pa.Table:
        """The references in use, given and added (`trainref_ray.schemas.REFERENCES`)."""
        stage = self.stage("references", round_)
        return self.tables.read_table(stage.path("members.parquet"))

    def _by_shards(self, name: str, *, test: bool) -> pa.Table | None:
        shards, noisy = self.stages["test_shards" if test else "shards"], self.stages.get("noisy")
        stage = Stage(self.tables, name, 0, self.stages["inventory"])
        if noisy is not None and not test:
            stage = Stage(self.tables, "noisy" if name == "inventory" else name, 0, noisy)
        return pa.concat_tables([stage.read_shard(shard) for shard in shards]) if shards else None

    def samples(self, *, test: bool = False) -> pa.Table:
        """The inventory's rows of the training (or test) shards."""
        table = self._by_shards("inventory", test=test)
        if table is None:
            raise ResumeError(f"{self.path}: this run has no test shards")
        return table

    def truth(self, *, test: bool = False) -> pa.Table:
        """True labels, null where unknown. For evaluation alone."""
        table = self._by_shards("truth", test=test)
        if table is None:
            raise ResumeError(f"{self.path}: this run has no test shards")
        return table

    def model_stage(self, index: int = -1) -> Stage:
        """Where a model is: 0 = pre-trained, -1 = the released one."""
        entry = self.stages["models"][index]
        return Stage(self.tables, entry["name"], entry["round"], entry["fingerprint"])

    def predictions(self, round_: int) -> pa.Table | None:
        """Logits of the test images under the model of a round, if there are test images."""
        fingerprint = self.stages["predictions"].get(str(round_))
        if fingerprint is None:
            return None
        stage = Stage(self.tables, "predictions", round_, fingerprint)
        return pa.concat_tables([stage.read_shard(shard) for shard in self.stages["test_shards"]])

    def model(self) -> Any:
        """The released model: a torch module in evaluation mode, `trainref_ray.models.backbones.Classifier`."""
        from trainref_ray.models.backbones import load_model

        with TemporaryDirectory() as folder:
            return load_model(self.storage.download("model", Path(folder)))[0].eval()

    @property
    def reference_uids(self) -> np.ndarray:
        """uids int64 [R] of the given references."""
        return np.array(self.stages["references"]["uids"], np.int64)

    @property
    def is_curating(self) -> np.ndarray:
        """bool [R]: the references that samples are compared with; the others only choose epoch and temperature."""
        return np.isin(self.reference_uids, self.stages["curating"])


def load_run(path: str | PathLike[str]) -> CurationRun:
    """Open a run folder (path or URL).

    Raises:
        ResumeError: there is no run there, or it is not finished.
    """
    storage = _storage(path)
    if not storage.exists(RUN_FILE):
        raise ResumeError(f"{path} holds no run: {RUN_FILE} is missing")
    if not (storage.exists("stages.json") and storage.exists("summary.json")):
        raise ResumeError(f"{path}: this run is not finished; start it again with the same --out")
    return open_tables(storage)


def _storage(path: str | PathLike[str]) -> Storage:
    location = fspath(path)
    return Storage(location if "://" in location else str(Path(location).expanduser().absolute()))


def open_tables(storage: Storage) -> CurationRun:
    """A run whose tables are complete, and its summary perhaps not."""
    run = CurationRun(storage, storage)
    store = run.stages.get("store")
    return run if store is None else CurationRun(storage, storage.above(store))


@dataclass(frozen=True)
class CurationSweep:
    """A finished sweep."""

    storage: Storage

    @property
    def path(self) -> str:
        """Where the sweep is."""
        return self.storage.location()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`sweep.json`: the trials, and their settings from the best to the worst."""
        return self.storage.read_json("sweep.json")

    def trial(self, name: str) -> CurationRun:
        """A trial's curation, by its name in the summary."""
        return load_run(self.storage.location(f"trials/{name}"))


def load_sweep(path: str | PathLike[str]) -> CurationSweep:
    """Open a sweep's folder (path or URL).

    Raises:
        ResumeError: there is no sweep there, or it has not finished yet.
    """
    storage = _storage(path)
    if not storage.exists(SWEEP_FILE):
        raise ResumeError(f"{path} holds no sweep: {SWEEP_FILE} is missing")
    if not storage.exists("sweep.json"):
        raise ResumeError(f"{path}: this sweep has not finished; start it again with the same --out")
    return CurationSweep(storage)
