"""A curation from tar shards to decisions and a model: which stage follows which, and what each hands on (METHOD 6)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from safetensors.numpy import save as save_safetensors

from trainref_ray.config import Config, TrainSettings, fingerprint
from trainref_ray.data.reference import check_classes, draw_references, match_keys
from trainref_ray.data.samples import SampleFormat
from trainref_ray.distributed import curation
from trainref_ray.distributed.curation import RoundStages
from trainref_ray.distributed.datasource import ReadPlan, ShardDatasource, ShardRead, pixels_of
from trainref_ray.distributed.session import Cluster
from trainref_ray.distributed.stages import collect, gather_rows, map_shards, unfinished
from trainref_ray.distributed.supporter_pool import supporter_pool
from trainref_ray.distributed.trainer import HeldOut, TrainJob, run_training, save_held_out
from trainref_ray.errors import ReferenceSetError, ShardError
from trainref_ray.method import augment, influence, ood, steps
from trainref_ray.models.backbones import ModelSpec, load_model, predict, stored_side
from trainref_ray.models.probe import fit_probe
from trainref_ray.progress import Reporter
from trainref_ray.retrieval.index import SupporterIndex
from trainref_ray.run import RunLock, Stage, Storage
from trainref_ray.schemas import (
    DECISION,
    OK,
    REFERENCES,
    SAMPLES,
    SHARD_BITS,
    TRUTH,
    check,
    embeddings,
    evidence,
    fixed_size_list,
    predictions,
    supporters,
    to_matrix,
)


@dataclass(frozen=True)
class References:
    """The trusted set: uids int64 [R], ascending, and their labels int64 [R]."""

    uids: np.ndarray
    labels: np.ndarray

    @property
    def digest(self) -> str:
        """Changes with any reference or label."""
        return hashlib.sha256(self.uids.tobytes() + self.labels.tobytes()).hexdigest()[:16]


@dataclass
class Inputs:
    """What was found out before any worker started."""

    shards: list[ShardRead]
    test_shards: list[ShardRead]
    class_names: list[str] | None
    reference_rows: list[tuple[str, int]] | None


@dataclass
class Pipeline:
    """One curation in one run folder, on one Ray."""

    config: Config
    storage: Storage
    cluster: Cluster
    reporter: Reporter
    lock: RunLock
    inputs: Inputs
    class_names: list[str] = field(default_factory=list)
    usable: dict[int, int] = field(default_factory=dict)
    references: References = field(default_factory=lambda: References(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    rounds: list[RoundStages] = field(default_factory=list)
    models: list[Stage] = field(default_factory=list)
    predictions: dict[int, Stage] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    # ------------------------------------------------------------------ inventory and references

    def run(self) -> None:
        """Every stage, in order. What an earlier start finished is not done again."""
        self._inventory()
        self._choose_references()
        self._pretrain()
        for round_ in range(1, self.config.rounds + 1):
            self.lock.check()
            self._curate(round_)
            if self.config.finetune_model:
                self._finetune(round_)
        for round_ in sorted({0, len(self.models) - 1}):
            self._predict(round_)

    def _format(self) -> SampleFormat:
        config = self.config
        return SampleFormat(
            label_field=config.label_field,
            truth_field=config.truth_field,
            classes=len(self.inputs.class_names) if self.inputs.class_names else None,
            class_names=tuple(self.inputs.class_names or ()),
            max_pixels=config.read.max_pixels,
            max_bytes=config.read.max_bytes,
            image_size=config.image_size,
        )

    def _stage(self, name: str, round_: int, *upstream: str) -> Stage:
        return Stage(self.storage, name, round_, fingerprint(self.config, name, *upstream))

    def _inventory(self) -> None:
        """Read every tar once: keys, labels, sizes, digests, and what is unusable and why."""
        self.inventory = self._stage("inventory", 0, ",".join(self.inputs.class_names or ()))
        self.truth = replace(self.inventory, name="truth")
        shards = [*self.inputs.shards, *self.inputs.test_shards]
        missing = self._to_read(shards)
        if missing:
            with self.reporter.stage(
                "inventory", 0, shards=len(shards), reused=len(shards) - len(missing), items=0
            ) as progress:
                plan = ReadPlan(
                    replace(self._format(), image_size=None), truth=True, usable_only=False, whole_shards=True
                )
                dataset = ray.data.read_datasource(ShardDatasource(missing, plan), override_num_blocks=len(missing))
                waiting = {shard.shard_id: shard for shard in missing}
                for shard_id, table in whole_shards(dataset):
                    self._write_inventory(waiting.pop(shard_id), table)
                    progress.advance(table.num_rows, shards=1)
                for shard in waiting.values():
                    self._write_inventory(shard, pa.schema([*SAMPLES, TRUTH.field("true_label")]).empty_table())
        else:
            self.reporter.reused("inventory", 0, len(shards))
        markers = self.inventory.done_shards()
        self.usable = {shard.shard_id: markers[shard.shard_id]["ok"] for shard in shards}
        rows = {shard_id: marker["ok"] + marker["quarantined"] for shard_id, marker in markers.items()}
        self.inputs.shards = [replace(shard, rows=rows[shard.shard_id]) for shard in self.inputs.shards]
        self.inputs.test_shards = [replace(shard, rows=rows[shard.shard_id]) for shard in self.inputs.test_shards]
        if not sum(self.usable[shard.shard_id] for shard in self.inputs.shards):
            errors = self.inventory.read_shard(self.inputs.shards[0].shard_id)["error"].drop_null()
            reason = errors[0].as_py() if len(errors) else "the shards are empty"
            raise ShardError(f"no usable sample in {len(self.inputs.shards)} shards; the first reason: {reason}")
        self._name_samples()

    def _to_read(self, shards: list[ShardRead]) -> list[ShardRead]:
        missing = unfinished(self.inventory, shards)
        if self.config.retry_quarantined:
            again = {shard_id for shard_id, marker in self.inventory.done_shards().items() if marker["quarantined"]}
            listed = {shard.shard_id for shard in missing}
            missing += [shard for shard in shards if shard.shard_id in again - listed]
        return missing

    def _write_inventory(self, shard: ShardRead, table: pa.Table) -> None:
        ok = int(np.sum(np.array(table["status"].to_pylist()) == OK))
        counts = {"ok": ok, "quarantined": table.num_rows - ok}
        truth = check(table.select(["uid", "true_label"]), TRUTH, f"truth of {shard.url}")
        samples = check(table.drop_columns(["true_label"]), SAMPLES, f"samples of {shard.url}")
        self.truth.write_shard(shard.shard_id, shard.etag, truth, **counts)
        self.inventory.write_shard(shard.shard_id, shard.etag, samples, **counts)

    def _name_samples(self) -> None:
        """Names for people: keys that are not unique over all shards are written as `shard:key`."""
        counts: Counter[str] = Counter()
        for shard in self.inputs.shards:
            counts.update(self.inventory.read_shard(shard.shard_id, ["key"])["key"].to_pylist())
        self.names = {
            "duplicated": {key for key, count in counts.items() if count > 1},
            "shards": {shard.shard_id: PurePosixPath(shard.url).stem for shard in self.inputs.shards},
        }

    def _samples(self, columns: list[str]) -> pa.Table:
        """Usable samples of the training shards, by uid."""
        tables = [self.inventory.read_shard(shard.shard_id, [*columns, "status"]) for shard in self.inputs.shards]
        table = pa.concat_tables(tables)
        return table.filter(pa.array(np.array(table["status"].to_pylist()) == OK)).select(columns)

    def _choose_references(self) -> None:
        """Match the reference file's keys, or draw by the trusted field, which is read here and in evaluation only."""
        samples = self._samples(["uid", "key", "label"])
        uids = samples["uid"].to_numpy()
        names = self.inputs.class_names
        if self.inputs.reference_rows is not None:
            keys = samples["key"].to_pylist()
            rows = np.array(match_keys([key for key, _ in self.inputs.reference_rows], keys), np.int64)
            labels = np.array([label for _, label in self.inputs.reference_rows], np.int64)
        else:
            truth_tables = [self.truth.read_shard(shard.shard_id) for shard in self.inputs.shards]
            truth = pa.concat_tables(truth_tables)
            known = dict(zip(truth["uid"].to_pylist(), truth["true_label"].to_pylist(), strict=True))
            true_labels = [known[uid] for uid in uids.tolist()]
            if all(label is None for label in true_labels):
                raise ReferenceSetError(
                    f"no sample has the trusted field {self.config.truth_field!r}, from which references are to be "
                    "drawn; give --reference FILE, or --truth-field"
                )
            trusted = np.array([-1 if label is None else label for label in true_labels], np.int64)
            classes = len(names) if names else int(max(trusted.max(), samples["label"].to_numpy().max())) + 1
            rows = draw_references(
                uids, trusted, per_class=self.config.reference_per_class or 1, classes=classes, seed=self.config.seed
            )
            labels = trusted[rows]
        self.class_names = names or [str(label) for label in range(int(labels.max()) + 1)]
        check_classes(labels, self.class_names, allow_missing=self.config.allow_missing_classes)
        order = np.argsort(uids[rows])
        self.references = References(uids[rows][order], labels[order])
        chosen = samples.take(pa.array(rows[order]))
        content = "key,label\n" + "".join(
            f"{key},{label}\n" for key, label in zip(chosen["key"].to_pylist(), labels[order].tolist(), strict=True)
        )
        self.storage.write_bytes("references.csv", content.encode())

    def _data_digest(self) -> str:
        """Changes with any training shard or its usable samples."""
        parts = [f"{shard.shard_id}:{shard.etag}:{self.usable[shard.shard_id]}" for shard in self.inputs.shards]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ models

    def _spec(self) -> ModelSpec:
        model = self.config.model
        return ModelSpec(
            self.config.backbone, len(self.class_names), self.config.image_size, model.cifar_stem, model.weights
        )

    def held_out(self) -> References:
        """References that no training sees: they choose the epoch and the temperature. The first of each class by a
        seeded order, so that more of them are left for training where there are many."""
        order = np.random.default_rng(self.config.seed).permutation(len(self.references.uids))
        taken: Counter[int] = Counter()
        rows = []
        for row in order:
            label = int(self.references.labels[row])
            if taken[label] < self.config.calibrate.per_class:
                taken[label] += 1
                rows.append(row)
        rows.sort()
        return References(self.references.uids[rows], self.references.labels[rows])

    def read_images(self, uids: np.ndarray, *, pixels: bool) -> dict[int, Any]:
        """Chosen images by uid: uint8 squares, or the bytes of their files."""
        wanted = {
            int(s): frozenset((uids[uids >> SHARD_BITS == s] & ((1 << SHARD_BITS) - 1)).tolist())
            for s in np.unique(uids >> SHARD_BITS)
        }
        shards = [shard for shard in [*self.inputs.shards, *self.inputs.test_shards] if shard.shard_id in wanted]
        plan = ReadPlan(self._format(), pixels=pixels, image_bytes=not pixels, wanted=wanted)
        if not shards:
            return {}
        dataset = ray.data.read_datasource(ShardDatasource(shards, plan), override_num_blocks=len(shards))
        images: dict[int, Any] = {}
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            if block.num_rows:
                values = pixels_of(block, stored_side(self.config.image_size)) if pixels else block["image"].to_pylist()
                images.update(zip(block["uid"].to_pylist(), values, strict=True))
        return images

    def _train(
        self, stage: Stage, settings: TrainSettings, *, targets: Stage | None, start: str | None, hard: bool
    ) -> None:
        held_out = self.held_out()
        shards = tuple(shard for shard in self.inputs.shards if self.usable[shard.shard_id])
        rows = self._rows_to_train(targets, held_out)
        if stage.is_done():
            self.reporter.reused(stage.name, stage.round, len(shards))
            return
        if len(held_out.uids):
            images = self.read_images(held_out.uids, pixels=True)
            save_held_out(stage, HeldOut(np.stack([images[uid] for uid in held_out.uids.tolist()]), held_out.labels))
        job = TrainJob(
            stage=stage,
            shards=shards,
            rows=rows,
            plan=ReadPlan(self._format(), pixels=True, targets=targets),
            labels=dict(zip(self.references.uids.tolist(), self.references.labels.tolist(), strict=True)),
            held_out=frozenset(held_out.uids.tolist()),
            spec=self._spec(),
            start=start,
            settings=settings,
            seed=self.config.seed,
            hard_targets=hard,
            cluster=self.cluster,
            workers=self.config.resources.train_workers,
            cache_bytes=self.config.resources.cache_bytes,
        )
        epochs = settings.epochs
        with self.reporter.stage(
            stage.name, stage.round, shards=len(shards), reused=0, items=rows * epochs
        ) as progress:
            run_training(job, progress)

    def _rows_to_train(self, targets: Stage | None, held_out: References) -> int:
        if targets is None:
            return sum(self.usable[shard.shard_id] for shard in self.inputs.shards) - len(held_out.uids)
        counts = self.decision_counts(targets)
        return counts["keep"] + counts["relabel"] + counts["soften"] - len(held_out.uids)

    def decision_counts(self, stage: Stage) -> Counter[str]:
        """Decisions of all samples."""
        counts: Counter[str] = Counter()
        for shard in self.inputs.shards:
            counts.update(stage.read_shard(shard.shard_id, ["decision"])["decision"].to_pylist())
        return counts

    def _pretrain(self) -> None:
        stage = self._stage("pretrain", 0, self.inventory.fingerprint, self._data_digest(), self.references.digest)
        self._train(stage, self.config.pretrain, targets=None, start=None, hard=True)
        self.models.append(stage)

    def _finetune(self, round_: int) -> None:
        decisions = self.rounds[-1].decisions
        settings = self.config.finetune
        stage = self._stage("finetune", round_, decisions.fingerprint, self.models[-1].fingerprint)
        start = None if settings.reset else self.models[-1].path("model")
        self._train(stage, settings, targets=decisions, start=start, hard=settings.targets == "hard")
        self.models.append(stage)

    def _predict(self, index: int) -> None:
        """Logits of the test images under one of the models."""
        if not self.inputs.test_shards:
            return
        model = self.models[index]
        stage = self._stage("predictions", model.round, model.fingerprint, self.inventory.fingerprint)
        self._embed_shards(stage, model, self.inputs.test_shards, logits=True)
        self.predictions[model.round] = stage

    def _embed_shards(self, stage: Stage, model: Stage, shards: list[ShardRead], *, logits: bool) -> None:
        missing = unfinished(stage, shards)
        if not missing:
            self.reporter.reused(stage.name, stage.round, len(shards))
            return
        rows = {shard.shard_id: self.usable[shard.shard_id] for shard in missing}
        by_id = {shard.shard_id: shard for shard in missing}
        width = self.storage.read_json(model.path("model/model.json"))["width"]
        schema = predictions(len(self.class_names)) if logits else embeddings(width)

        def finish(shard_id: int, table: pa.Table) -> None:
            shard = by_id[shard_id]
            quarantined = (shard.rows or 0) - rows[shard_id]
            stage.write_shard(
                shard_id, shard.etag, check(table, schema, stage.folder), ok=rows[shard_id], quarantined=quarantined
            )

        total = sum(rows.values())
        with self.reporter.stage(
            stage.name, stage.round, shards=len(shards), reused=len(shards) - len(missing), items=total
        ) as progress:
            for shard_id in [shard_id for shard_id, count in rows.items() if not count]:
                finish(shard_id, schema.empty_table())
            todo = [shard for shard in missing if rows[shard.shard_id]]
            if not todo:
                return
            dataset = ray.data.read_datasource(
                ShardDatasource(todo, ReadPlan(self._format(), pixels=True)), override_num_blocks=len(todo)
            ).map_batches(
                Embedder,
                fn_constructor_args=(
                    model,
                    logits,
                    self.cluster.device,
                    self.cluster.bf16,
                    self.config.resources.embed_batch,
                ),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=min(self.cluster.embed_workers, len(todo))),
                num_gpus=1 if self.cluster.gpus else None,
                num_cpus=0 if self.cluster.gpus or self.cluster.cpus <= self.cluster.embed_workers else 1,
            )
            collect(dataset, rows, finish, progress)

    # ------------------------------------------------------------------ one round of curation

    def _curate(self, round_: int) -> None:
        """embed, probe, evidence, references, supporters, out-of-distribution, decisions."""
        model = self.models[-1]
        embedded = self._stage("embeddings", round_, model.fingerprint, self.inventory.fingerprint)
        probe = self._stage("probe", round_, embedded.fingerprint, self._data_digest(), self.references.digest)
        evidence_ = self._stage("evidence", round_, probe.fingerprint)
        references = self._stage("references", round_, evidence_.fingerprint)
        found = self._stage("supporters", round_, references.fingerprint)
        cut = self._stage("ood", round_, found.fingerprint)
        decided = self._stage("decisions", round_, cut.fingerprint)
        stages = RoundStages(self.inventory, embedded, probe, evidence_, references, found, cut, decided)
        self._embed_shards(embedded, model, self.inputs.shards, logits=False)
        self._fit_probe(stages)
        self._map(
            evidence_,
            evidence(len(self.class_names)),
            curation.evidence_table,
            stages=stages,
            classes=len(self.class_names),
            device=self._task_device(),
        )
        self._augment(stages)
        self._find_supporters(stages)
        self._cut_ood(stages)
        arguments = {
            "stages": stages,
            "config": self.config,
            "class_names": self.class_names,
            "names": self.names,
            "device": self._task_device(),
        }
        rows = {shard.shard_id: shard.rows or 0 for shard in self.inputs.shards}
        map_shards(decided, self.inputs.shards, rows, DECISION, curation.decisions_table, arguments, self.reporter)
        self.rounds.append(stages)

    def _task_device(self) -> str:
        return "cpu"

    def _map(self, stage: Stage, schema: pa.Schema, function: Any, **arguments: Any) -> None:
        map_shards(stage, self.inputs.shards, self.usable, schema, function, arguments, self.reporter)

    def _fit_probe(self, stages: RoundStages) -> None:
        stage = stages.probe
        if stage.is_done():
            self.reporter.reused("probe", stage.round, 1)
            return
        with self.reporter.stage(
            "probe",
            stage.round,
            shards=1,
            reused=0,
            items=sum(self.usable[s.shard_id] for s in self.inputs.shards),
            unit="samples",
        ) as progress:
            options = {"num_gpus": 1} if self.cluster.gpus else {"num_cpus": min(1, self.cluster.cpus)}
            samples = self._samples(["uid", "label"])
            fit = ray.remote(fit_probe_task).options(**options)
            ray.get(
                fit.remote(
                    stages,
                    [shard.shard_id for shard in self.inputs.shards],
                    samples,
                    self.references,
                    self.config,
                    len(self.class_names),
                    self.cluster.device,
                    self.cluster.train_threads,
                )
            )
            stage.finish({})
            progress.advance(samples.num_rows, shards=1)

    def _augment(self, stages: RoundStages) -> None:
        """Phase II: who joins the reference set, and the index over them (METHOD 2)."""
        stage, settings = stages.references, self.config.augment
        if stage.is_done():
            self.reporter.reused("references", stage.round, 1)
            return
        with self.reporter.stage("references", stage.round, shards=1, reused=0, items=0, unit="references") as progress:
            table = pa.concat_tables([stages.evidence.read_shard(shard.shard_id) for shard in self.inputs.shards])
            min_norm = augment.least_norm(table["evidence_norm"].to_numpy(), settings.min_norm)
            uids = table["uid"].to_numpy()
            is_given = np.isin(uids, self.references.uids)
            others = np.flatnonzero(~is_given)
            labels = table["label"].to_numpy()
            chosen = others[
                augment.candidates(
                    uids[others],
                    labels[others],
                    table["label_evidence"].to_numpy()[others],
                    table["evidence_norm"].to_numpy()[others],
                    classes=len(self.class_names),
                    delta=settings.delta,
                    min_norm=min_norm,
                    per_class=settings.per_class,
                )
            ]
            rows = np.sort(np.concatenate([np.flatnonzero(is_given), chosen]))
            rows = rows[np.argsort(uids[rows])]
            members = pa.table(
                {
                    "uid": uids[rows],
                    "label": labels[rows],
                    "given": is_given[rows],
                    "evidence": table["label_evidence"].to_numpy()[rows],
                    "sha256": gather_rows(self.inventory, uids[rows], ["sha256"])["sha256"],
                }
            )
            stored = gather_rows(stages.embeddings, uids[rows], ["embedding"])["embedding"]
            vectors = influence.unit_rows(to_matrix(stored))
            self.storage.write_table(stage.path("members.parquet"), check(members, REFERENCES, stage.folder))
            self.storage.write_bytes(stage.path("vectors.safetensors"), save_safetensors({"vectors": vectors}))
            stage.finish(
                {
                    "members": len(rows),
                    "given": int(is_given.sum()),
                    "min_norm": min_norm,
                    "classes_left_short": augment.classes_left_short(labels[chosen], len(self.class_names)),
                }
            )
            progress.advance(len(rows), shards=1)

    def _find_supporters(self, stages: RoundStages) -> None:
        schema = supporters(self.config.vote.k)
        if not unfinished(stages.supporters, self.inputs.shards):
            self.reporter.reused("supporters", stages.supporters.round, len(self.inputs.shards))
            return
        settings = self.config.resources
        files = self._index_files(stages)
        with supporter_pool(
            self.storage, files, replicas=settings.index_replicas, gpus=0.0, timeout=settings.timeout
        ) as pool:
            self._map(
                stages.supporters, schema, curation.supporters_table, stages=stages, config=self.config, pool=pool
            )

    def _index_files(self, stages: RoundStages) -> list[tuple[str, str]]:
        """One FAISS file for each index shard. Their number changes no result, so no fingerprint has it."""
        members = curation.members(stages.references)
        uids, vectors = members.uids, members.embeddings
        count = min(self.config.resources.index_shards, len(uids))
        return [
            SupporterIndex.build(vectors[part::count], uids[part::count]).write(
                self.storage, stages.references.path(f"index-{part}-of-{count}.faiss")
            )
            for part in range(count)
        ]

    def _cut_ood(self, stages: RoundStages) -> None:
        """Fit the Gaussian on D*_ref and set the cut on random samples that are left out of the fit (METHOD 4)."""
        stage, settings = stages.ood, self.config.ood
        if stage.is_done():
            self.reporter.reused("ood", stage.round, 1)
            return
        with self.reporter.stage("ood", stage.round, shards=1, reused=0, items=0, unit="samples") as progress:
            table = pa.concat_tables([stages.evidence.read_shard(shard.shard_id) for shard in self.inputs.shards])
            uids = table["uid"].to_numpy()
            passes = augment.passes_bar(
                table["label_evidence"].to_numpy(),
                table["evidence_norm"].to_numpy(),
                classes=len(self.class_names),
                delta=self.config.augment.delta,
                min_norm=stages.references.facts()["min_norm"],
            )
            passes &= ~np.isin(uids, self.references.uids)
            members = curation.members(stages.references)
            rows = ood.calibration_rows(
                uids, passes, np.isin(uids, members.uids), settings.calibration_samples, self.config.seed
            )
            calibration = np.sort(uids[rows])
            vectors = gather_rows(stages.embeddings, calibration, ["embedding"])["embedding"]
            fitted = steps.fit_ood(
                members,
                calibration,
                influence.unit_rows(to_matrix(vectors)),
                curation.read_supporters(
                    gather_rows(
                        stages.supporters, calibration, ["supporter_uid", "supporter_similarity", "supporter_label"]
                    )
                ),
                score=settings.score,
                classes=len(self.class_names),
                shrinkage=settings.shrinkage,
                quantile=settings.quantile,
            )
            nothing = np.zeros((0, 0), np.float32)
            gaussian = fitted.gaussian or ood.Gaussian(nothing, nothing)
            content = {"means": gaussian.means, "precision": gaussian.precision}
            self.storage.write_bytes(stage.path("gaussian.safetensors"), save_safetensors(content))
            stage.finish({"cut": fitted.cut, "calibration_samples": len(calibration)})
            progress.advance(len(calibration), shards=1)


def fit_probe_task(
    stages: RoundStages,
    shard_ids: list[int],
    samples: pa.Table,
    references: References,
    config: Config,
    classes: int,
    device: str,
    threads: int,
) -> None:
    """Fit the linear head on all embeddings and keep the references' embeddings beside it; runs in one worker."""
    import torch

    torch.set_num_threads(threads)
    storage, stage = stages.probe.storage, stages.probe
    tables = [stages.embeddings.read_shard(shard_id, ["uid", "embedding"]) for shard_id in shard_ids]
    uids = np.concatenate([table["uid"].to_numpy() for table in tables])
    vectors = influence.unit_rows(np.concatenate([to_matrix(table["embedding"]) for table in tables]))
    labels = samples["label"].to_numpy().astype(np.int64)
    if not np.array_equal(uids, samples["uid"].to_numpy()):
        raise ShardError(f"{stages.embeddings.folder}: rows differ from the inventory's usable samples")
    rows = np.searchsorted(uids, references.uids)
    labels[rows] = references.labels
    settings = config.probe
    probe = fit_probe(
        vectors,
        labels,
        classes=classes,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        scale=settings.scale,
        checkpoints=settings.checkpoints,
        bias=settings.bias,
        seed=config.seed,
        device=device,
    )
    content = {"weight": probe.weight} | ({} if probe.bias is None else {"bias": probe.bias})
    storage.write_bytes(stage.path("probe.safetensors"), save_safetensors(content))
    given = {"uids": references.uids, "labels": references.labels, "embeddings": vectors[rows]}
    storage.write_bytes(stage.path("given.safetensors"), save_safetensors(given))


class Embedder:
    """An actor that holds the model: decoded blocks in, embeddings (or logits) out; pixels end here."""

    def __init__(self, model: Stage, logits: bool, device: str, bf16: bool, batch: int) -> None:
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            self._model, spec = load_model(model.storage.download(model.path("model"), Path(folder) / "model"))
        self._side = stored_side(spec.image_size)
        self._logits = logits
        self._device = device
        self._bf16 = bf16
        self._batch = batch

    def __call__(self, block: pa.Table) -> pa.Table:
        """One block, all of one shard."""
        pixels = pixels_of(block, self._side)
        vectors, logits = predict(self._model, pixels, device=self._device, bf16=self._bf16, batch=self._batch)
        if self._logits:
            return pa.table({"uid": block["uid"], "logits": fixed_size_list(logits, pa.float32())})
        return pa.table(
            {
                "uid": block["uid"],
                "embedding": fixed_size_list(vectors, pa.float16()),
                "model_class": logits.argmax(1).astype(np.int32),
            }
        )


def whole_shards(dataset: Any) -> Iterable[tuple[int, pa.Table]]:
    """Blocks that are a whole shard each, with the shard's number."""
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        if block.num_rows:
            yield block["uid"][0].as_py() >> SHARD_BITS, block
