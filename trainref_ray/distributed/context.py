"""What every stage of a curation needs: settings, the run folder, the cluster, the shards and the references."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from trainref_ray.config import Config, fingerprint
from trainref_ray.data.images import stored_size
from trainref_ray.data.reference import curate_with, hold_out
from trainref_ray.data.samples import SampleFormat, sample_format
from trainref_ray.distributed.datasource import ReadPlan, ShardDatasource, ShardRead, pixels_of
from trainref_ray.distributed.session import Cluster
from trainref_ray.models.backbones import ModelSpec, weights_path
from trainref_ray.progress import Reporter
from trainref_ray.run import Stage, Storage, claimed
from trainref_ray.schemas import OK, SHARD_BITS


@dataclass(frozen=True)
class References:
    """The trusted set: uids int64 [R], ascending, and their labels int64 [R]."""

    uids: np.ndarray
    labels: np.ndarray

    def rows(self, wanted: np.ndarray) -> References:
        """A part, by bool [R]."""
        return References(self.uids[wanted], self.labels[wanted])

    @property
    def digest(self) -> str:
        """Changes with any reference or label."""
        return hashlib.sha256(self.uids.tobytes() + self.labels.tobytes()).hexdigest()[:16]


@dataclass
class Inputs:
    """What was found out before any worker started.

    Attributes:
        shards, test_shards: by number, so that tables which are read shard by shard are in the order of their uids.
        class_names: None where they are not known yet.
        reference_rows: keys and labels of a reference file.
        inventory: number, url and etag of every shard that the run folder knows, of `schemas.INVENTORY`.
    """

    shards: list[ShardRead]
    test_shards: list[ShardRead]
    class_names: list[str] | None
    reference_rows: list[tuple[str, int]] | None
    inventory: pa.Table


def weights_digest(config: Config) -> str:
    """The weights to start from: the digest of their file, as its path does not say what is in it, else their kind."""
    path = weights_path(config.model.weights)
    return config.model.weights if path is None else hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def model_spec(config: Config, classes: int) -> ModelSpec:
    """What the settings say of a model of so many classes, 0 = without a head."""
    settings = config.model
    return ModelSpec(
        config.backbone, classes, config.image_size, settings.cifar_stem, settings.weights, mirror=settings.mirror
    )


NO_REFERENCES = References(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass
class Context:
    """One curation on one Ray.

    Attributes:
        config: all settings.
        storage: where the stages are. The trials of a sweep share it.
        home: where this curation's own files go; the run folder, which is also `storage`, or a trial's.
        cluster: what the stages may use.
        reporter: shows them.
        inputs: what was found out before any worker started.
        inventory: what the tars hold.
        labelled: the inventory with the labels that the curation is given; the same stage but in experiments.
        truth: true labels.
        usable: usable samples of each shard.
        names: for people, see `curation.display_names`.
        class_names: of the classes 0 .. C-1.
        references: the trusted set.
        curating: those of them that samples are compared with, see `data.reference.curate_with`.

    The last eight are filled by `trainref_ray.distributed.inventory`.
    """

    config: Config
    storage: Storage
    home: Storage
    cluster: Cluster
    reporter: Reporter
    inputs: Inputs
    inventory: Stage = field(init=False)
    labelled: Stage = field(init=False)
    truth: Stage = field(init=False)
    usable: dict[int, int] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    references: References = NO_REFERENCES
    curating: References = NO_REFERENCES

    @property
    def shards(self) -> list[ShardRead]:
        """Training shards."""
        return self.inputs.shards

    @property
    def classes(self) -> int:
        """C."""
        return len(self.class_names)

    def stage(self, name: str, round_: int, *upstream: str) -> Stage:
        """A stage with the fingerprint of its settings and of what it reads."""
        return Stage(self.storage, name, round_, fingerprint(self.config, name, *upstream))

    def once(self, stage: Stage, is_done: Callable[[], bool], shards: int, compute: Callable[[], None]) -> None:
        """Compute a stage that is not done. Of several curations that want the same one, one computes, the others wait.

        Args:
            stage: what is computed.
            is_done: looks whether it is.
            shards: of the stage, for people.
            compute: does it, and shows it.
        """
        if not is_done():
            with self.claim(stage):
                if not is_done():
                    compute()
                    return
        self.reporter.reused(stage.name, stage.round, shards)

    def claim(self, *stages: Stage) -> AbstractContextManager[None]:
        """Keep other curations off these stages while they are computed. A run folder has one job, so no other."""
        return nullcontext() if self.home == self.storage else claimed(stages)

    def format(self) -> SampleFormat:
        """How samples are read."""
        return sample_format(self.config, self.inputs.class_names, image_size=self.config.image_size)

    def samples(self, columns: list[str]) -> pa.Table:
        """Usable samples of the training shards, by uid."""
        tables = [self.labelled.read_shard(shard.shard_id, [*columns, "status"]) for shard in self.shards]
        table = pa.concat_tables(tables)
        return table.filter(pa.array(np.array(table["status"].to_pylist()) == OK)).select(columns)

    def data_digest(self) -> str:
        """Changes with any training shard or its usable samples."""
        parts = [f"{shard.shard_id}:{shard.etag}:{self.usable[shard.shard_id]}" for shard in self.shards]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    def image_digest(self) -> str:
        """Changes with any usable training image and its place; not with labels, references or class names."""
        samples = self.samples(["uid", "sha256"])
        digest = hashlib.sha256(samples["uid"].to_numpy().tobytes())
        digest.update("|".join(samples["sha256"].to_pylist()).encode())
        return digest.hexdigest()[:16]

    def held_out(self) -> References:
        """References that no training sees: they choose the epoch and the temperature."""
        per_class = self.config.calibrate.per_class
        return self.references.rows(hold_out(self.references.labels, per_class, self.config.seed))

    def curating_references(self) -> References:
        """References that samples are compared with."""
        held_out = np.isin(self.references.uids, self.held_out().uids)
        return self.references.rows(curate_with(self.references.labels, held_out))

    def read_images(self, uids: np.ndarray, *, pixels: bool) -> dict[int, Any]:
        """Chosen images by uid: uint8 squares, or the bytes of their files."""
        wanted = {
            int(s): frozenset((uids[uids >> SHARD_BITS == s] & ((1 << SHARD_BITS) - 1)).tolist())
            for s in np.unique(uids >> SHARD_BITS)
        }
        shards = [shard for shard in [*self.shards, *self.inputs.test_shards] if shard.shard_id in wanted]
        plan = ReadPlan(self.format(), pixels=pixels, image_bytes=not pixels, wanted=wanted)
        if not shards:
            return {}
        dataset = ray.data.read_datasource(ShardDatasource(shards, plan), override_num_blocks=len(shards))
        images: dict[int, Any] = {}
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            if block.num_rows:
                values = pixels_of(block, stored_size(self.config.image_size)) if pixels else block["image"].to_pylist()
                images.update(zip(block["uid"].to_pylist(), values, strict=True))
        return images
