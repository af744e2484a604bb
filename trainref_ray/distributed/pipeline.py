"""A curation from tar shards to decisions and a model: which stage follows which, and what each hands on (METHOD 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainref_ray.config import FinetuneSettings, PretrainSettings, TrainSettings
from trainref_ray.distributed.context import NO_REFERENCES, Context, model_spec, weights_digest
from trainref_ray.distributed.curation import RoundStages
from trainref_ray.distributed.datasource import ReadPlan
from trainref_ray.distributed.embedding import Output, apply_model
from trainref_ray.distributed.inventory import add_noise, choose_references, take_inventory
from trainref_ray.distributed.rounds import curate_round, round_stages
from trainref_ray.distributed.stages import gather_rows
from trainref_ray.distributed.trainer import HeldOut, TrainJob, run_training, save_held_out, write_weights
from trainref_ray.method.draw import draw_samples
from trainref_ray.results import HELD_OUT, HELD_OUT_SAMPLES
from trainref_ray.run import Stage
from trainref_ray.schemas import dense_soft_labels

CURATED = ("keep", "relabel", "soften")
"""Decisions of samples that a model is trained on."""


@dataclass
class Pipeline:
    """The stages of one curation, in order.

    Attributes:
        context: what all stages need.
        check: called between stages; raises when the job has lost its run folder.
        on_round: called with the number of a round whose tables are complete.
        rounds: where the tables of each finished round are; the last may be the released model's curation.
        models: the pre-trained model's stage, then each round's fine-tuned one's.
        predictions: logits of the test images, by the model's round.
    """

    context: Context
    check: Callable[[], None]
    on_round: Callable[[int], None] = lambda round_: None
    rounds: list[RoundStages] = field(default_factory=list)
    models: list[Stage] = field(default_factory=list)
    predictions: dict[int, Stage] = field(default_factory=dict)

    def run(self) -> None:
        """Every stage, in order. What an earlier start finished is not done again."""
        take_inventory(self.context)
        choose_references(self.context)
        add_noise(self.context)
        self._pretrain()
        config = self.context.config
        for round_ in range(1, config.rounds + 1):
            self.check()
            self._curate(round_)
            if config.finetune_model:
                self.check()
                self._finetune(round_)
        if config.finetune_model and config.final_curation:
            self.check()
            self._curate(config.rounds + 1)
        apply_model(self.context, self.models[-1], self._predictions(self.models[-1]))

    def _curate(self, round_: int) -> None:
        """The tables of a round, by the latest model."""
        model = self.models[-1]
        stages = round_stages(self.context, model, round_, first=self.rounds[0] if self.rounds else None)
        embedded = Output(stages.embeddings, self.context.shards, logits=False)
        apply_model(self.context, model, [embedded, *self._predictions(model)])
        curate_round(self.context, stages)
        self.rounds.append(stages)
        self.on_round(round_)

    def _predictions(self, model: Stage) -> list[Output]:
        """Logits of the test images under a model, where there are test images and a trained head and it was not done
        in this run."""
        shards = self.context.inputs.test_shards
        has_head = model.round > 0 or self.context.config.pretrain.reads_labels
        if not shards or not has_head or model.round in self.predictions:
            return []
        stage = self.context.stage("predictions", model.round, model.fingerprint, self.context.inventory.fingerprint)
        self.predictions[model.round] = stage
        return [Output(stage, shards, logits=True)]

    def _pretrain(self) -> None:
        context, settings = self.context, self.context.config.pretrain
        if settings.objective == "none":
            self._take_weights()
            return
        if settings.objective == "contrastive":
            stage = self._label_free_stage(context.image_digest())
        else:
            stage = context.stage(
                "pretrain",
                0,
                context.labelled.fingerprint,
                context.data_digest(),
                context.references.digest,
                str(context.classes),
                weights_digest(context.config),
            )
        rows = sum(context.usable[shard.shard_id] for shard in context.shards)
        labels = None if context.labelled == context.inventory else context.labelled
        plan = ReadPlan(context.format(), pixels=True, labels=labels if settings.reads_labels else None)
        self._train(stage, settings, rows, plan, start=None)

    def _label_free_stage(self, *upstream: str) -> Stage:
        """The pre-training's stage where no label is read: whatever the labels, classes and references, it is one."""
        context = self.context
        stage = context.stage("pretrain_label_free", 0, *upstream, weights_digest(context.config))
        return replace(stage, name="pretrain")

    def _take_weights(self) -> None:
        """No pre-training: the backbone is the one of `model.weights`."""
        context = self.context
        stage = self._label_free_stage()
        self.models.append(stage)

        def compute() -> None:
            with context.reporter.stage(stage.name, stage.round, shards=1, reused=0, items=0) as progress:
                write_weights(stage, model_spec(context.config, 0))
                progress.advance(0, shards=1)

        context.once(stage, stage.is_done, 1, compute)

    def _finetune(self, round_: int) -> None:
        context, settings = self.context, self.context.config.finetune
        decisions = self.rounds[-1].decisions
        stage = context.stage("finetune", round_, decisions.fingerprint, self.models[-1].fingerprint)
        uids = curated_uids(context, decisions)
        drawn = draw_samples(
            np.setdiff1d(uids, context.references.uids), context.config.calibrate.samples, context.config.seed
        )
        plan = ReadPlan(context.format(), pixels=True, targets=decisions)
        start = None if settings.reset else self.models[-1].path("model")
        self._train(stage, settings, len(uids), plan, start=start, drawn=drawn)

    def _train(
        self,
        stage: Stage,
        settings: TrainSettings,
        rows: int,
        plan: ReadPlan,
        *,
        start: str | None,
        drawn: np.ndarray = NO_REFERENCES.uids,
    ) -> None:
        """Train a model in its stage, on `rows` images less the held-out references and the samples that are drawn,
        int64 uids; on all, if no label is read."""
        context, config = self.context, self.context.config
        reads_labels = not isinstance(settings, PretrainSettings) or settings.reads_labels
        references, held_out = context.references, context.held_out()
        if not reads_labels:
            references = held_out = NO_REFERENCES
        shards = tuple(shard for shard in context.shards if context.usable[shard.shard_id])
        rows -= len(held_out.uids) + len(drawn)
        self.models.append(stage)
        job = TrainJob(
            stage=stage,
            shards=shards,
            rows=rows,
            plan=plan,
            labels=dict(zip(references.uids.tolist(), references.labels.tolist(), strict=True)),
            held_out=frozenset([*held_out.uids.tolist(), *drawn.tolist()]),
            spec=model_spec(context.config, context.classes if reads_labels else 0),
            start=start,
            settings=settings,
            seed=config.seed,
            hard_targets=isinstance(settings, FinetuneSettings) and settings.targets == "hard",
            cluster=context.cluster,
            workers=config.resources.train_workers,
            cache_bytes=config.resources.cache_bytes,
        )

        def compute() -> None:
            items, epochs = rows * settings.epochs, settings.epochs
            with context.reporter.stage(
                stage.name, stage.round, shards=len(shards), reused=0, items=items, epochs=epochs
            ) as progress:
                if len(held_out.uids):
                    save_held_out(stage, HELD_OUT, HeldOut(self._images(held_out.uids), held_out.labels))
                if plan.targets is not None and len(drawn):
                    targets = gather_rows(plan.targets, drawn, ["soft_label"])["soft_label"]
                    labels = dense_soft_labels(targets, context.classes)
                    save_held_out(stage, HELD_OUT_SAMPLES, HeldOut(self._images(drawn), labels))
                run_training(job, context.home, progress)

        context.once(stage, stage.is_done, len(shards), compute)

    def _images(self, uids: np.ndarray) -> np.ndarray:
        """uint8 [n, S, S, 3]."""
        images = self.context.read_images(uids, pixels=True)
        return np.stack([images[uid] for uid in uids.tolist()])


def curated_uids(context: Context, decisions: Stage) -> np.ndarray:
    """uids int64 [n] of the samples that have a label distribution: kept, relabelled, softened."""
    tables = [decisions.read_shard(shard.shard_id, ["uid", "decision"]) for shard in context.shards]
    used = [pc.is_in(table["decision"].cast(pa.string()), pa.array(CURATED)) for table in tables]
    return np.concatenate([table["uid"].filter(mask).to_numpy() for table, mask in zip(tables, used, strict=True)])
