"""A curation from tar shards to decisions and a model: which stage follows which, and what each hands on (METHOD 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from trainref_ray.config import FinetuneSettings, PretrainSettings, TrainSettings
from trainref_ray.distributed.context import NO_REFERENCES, Context, References
from trainref_ray.distributed.curation import RoundStages
from trainref_ray.distributed.datasource import ReadPlan
from trainref_ray.distributed.embedding import Output, apply_model
from trainref_ray.distributed.inventory import add_noise, choose_references, take_inventory
from trainref_ray.distributed.rounds import curate_round, round_stages
from trainref_ray.distributed.trainer import HeldOut, TrainJob, run_training, save_held_out, write_weights
from trainref_ray.models.backbones import ModelSpec
from trainref_ray.run import Stage


@dataclass
class Pipeline:
    """The stages of one curation, in order.

    Attributes:
        context: what all stages need.
        check: called between stages; raises when the job has lost its run folder.
        on_round: called with the number of a round whose tables are complete.
        rounds: where the tables of each finished round are.
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
        for round_ in range(1, self.context.config.rounds + 1):
            self.check()
            model = self.models[-1]
            stages = round_stages(self.context, model, round_, first=self.rounds[0] if self.rounds else None)
            embedded = Output(stages.embeddings, self.context.shards, logits=False)
            apply_model(self.context, model, [embedded, *self._predictions(model)])
            curate_round(self.context, stages)
            self.rounds.append(stages)
            self.on_round(round_)
            if self.context.config.finetune_model:
                self.check()
                self._finetune(round_)
        apply_model(self.context, self.models[-1], self._predictions(self.models[-1]))

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
                *context.weights_digest(),
            )
        rows = sum(context.usable[shard.shard_id] for shard in context.shards)
        labels = None if context.labelled == context.inventory else context.labelled
        plan = ReadPlan(context.format(), pixels=True, labels=labels if settings.reads_labels else None)
        self._train(stage, settings, rows, plan, start=None)

    def _label_free_stage(self, *upstream: str) -> Stage:
        """The pre-training's stage where no label is read: whatever the labels, classes and references, it is one."""
        context = self.context
        stage = context.stage("pretrain_label_free", 0, *upstream, *context.weights_digest())
        return replace(stage, name="pretrain")

    def _take_weights(self) -> None:
        """No pre-training: the backbone is the one of `model.weights`."""
        context = self.context
        stage = self._label_free_stage()
        self.models.append(stage)

        def compute() -> None:
            with context.reporter.stage(stage.name, stage.round, shards=1, reused=0, items=0) as progress:
                write_weights(stage, self._spec(classes=0))
                progress.advance(0, shards=1)

        context.once(stage, stage.is_done, 1, compute)

    def _spec(self, *, classes: int) -> ModelSpec:
        config = self.context.config
        return ModelSpec(config.backbone, classes, config.image_size, config.model.cifar_stem, config.model.weights)

    def _finetune(self, round_: int) -> None:
        context, settings = self.context, self.context.config.finetune
        decisions = self.rounds[-1].decisions
        stage = context.stage("finetune", round_, decisions.fingerprint, self.models[-1].fingerprint)
        counts = decision_counts(context, decisions)
        rows = counts["keep"] + counts["relabel"] + counts["soften"]
        plan = ReadPlan(context.format(), pixels=True, targets=decisions)
        start = None if settings.reset else self.models[-1].path("model")
        self._train(stage, settings, rows, plan, start=start)

    def _train(self, stage: Stage, settings: TrainSettings, rows: int, plan: ReadPlan, *, start: str | None) -> None:
        """Train a model in its stage, on `rows` images less the held-out references; on all, if no label is read."""
        context, config = self.context, self.context.config
        reads_labels = not isinstance(settings, PretrainSettings) or settings.reads_labels
        references, held_out = context.references, context.held_out()
        if not reads_labels:
            references = held_out = NO_REFERENCES
        shards = tuple(shard for shard in context.shards if context.usable[shard.shard_id])
        rows -= len(held_out.uids)
        self.models.append(stage)
        job = TrainJob(
            stage=stage,
            shards=shards,
            rows=rows,
            plan=plan,
            labels=dict(zip(references.uids.tolist(), references.labels.tolist(), strict=True)),
            held_out=frozenset(held_out.uids.tolist()),
            spec=self._spec(classes=context.classes if reads_labels else 0),
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
                    save_held_out(stage, self._held_out_images(held_out))
                run_training(job, context.home, progress)

        context.once(stage, stage.is_done, len(shards), compute)

    def _held_out_images(self, held_out: References) -> HeldOut:
        images = self.context.read_images(held_out.uids, pixels=True)
        return HeldOut(np.stack([images[uid] for uid in held_out.uids.tolist()]), held_out.labels)


def decision_counts(context: Context, stage: Stage) -> Counter[str]:
    """Decisions of all samples."""
    counts: Counter[str] = Counter()
    for shard in context.shards:
        counts.update(stage.read_shard(shard.shard_id, ["decision"])["decision"].to_pylist())
    return counts
