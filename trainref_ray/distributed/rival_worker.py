"""What a worker does for a comparison: one method of one seed, from the run's tables to a saved result and figures.

Truth is read by the piece of that name alone, and handed to no method.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from trainref_ray.arrays import curate_arrays
from trainref_ray.baselines import methods
from trainref_ray.baselines.disc import (
    DiscState,
    load_disc_state,
    neither_clean_nor_hard,
    save_disc_state,
    train_disc,
)
from trainref_ray.baselines.features import FeatureData, out_of_fold_probabilities
from trainref_ray.baselines.results import RivalResult, from_probabilities, from_tensors, to_tensors
from trainref_ray.baselines.settings import finetune_views, is_asymmetric, rival_settings
from trainref_ray.baselines.training import AUGMENTED, rival_plan, train_rival
from trainref_ray.config import Config, TrainSettings, make_config
from trainref_ray.distributed.context import model_spec
from trainref_ray.distributed.embedding import CPU_BATCH
from trainref_ray.distributed.rival_data import (
    Split,
    digests_of,
    embeddings_of,
    pixel_blocks,
    probabilities_of,
    read_pixels,
    read_split,
    read_truth,
    training_history,
)
from trainref_ray.distributed.states import latest_state, write_state
from trainref_ray.errors import ConfigError
from trainref_ray.models.backbones import Classifier, build, load_model, predict
from trainref_ray.models.precision import use_bf16
from trainref_ray.report.scores import METRICS, Truth, score
from trainref_ray.report.summary import usable_decisions
from trainref_ray.results import CurationRun, load_run, model_temperature
from trainref_ray.run import Stage
from trainref_ray.schemas import dense_soft_labels, to_matrix
from trainref_ray.training.calibrate import softmax
from trainref_ray.training.loop import EpochReport, TrainPlan, TrainState, load_state, save_state

RESULT = "result.safetensors"
SCORES = "scores.json"
PIECE = "piece.safetensors"


class RivalStage(Stage):
    """A stage of a comparison: its folder bears the method's name, in the folder of its seed."""

    @property
    def folder(self) -> str:
        """Path inside the comparison's folder; `round` is the seed."""
        return f"seed-{self.round}/{self.name.replace('/', '-')}-{self.fingerprint}"


@dataclass(frozen=True)
class RivalJob:
    """One method of one seed; small, and sent to a worker.

    Attributes:
        method: one of `baselines.methods.METHODS`, or a piece that others need: truth, pretrained, out_of_fold.
        stage: where the result goes.
        run: where the seed's curation is.
        config: its settings.
        pieces: stages of the pieces, by name.
        budget: forward-backward passes of a training.
        noise_rate: at which labels are expected to have been drawn from all classes, see `disc_plan`.
        human_field: field with people's votes, or None.
        device: of models.
        threads: to compute with.
    """

    method: str
    stage: RivalStage
    run: str
    config: Config
    pieces: dict[str, RivalStage]
    budget: int
    noise_rate: float
    human_field: str | None
    device: str
    threads: int


TRUTH, PRETRAINED_PIECE, OUT_OF_FOLD = "truth", "pretrained", "out_of_fold"


def run_piece(job: RivalJob) -> str | None:
    """Make and save what several methods need; returns why there is none, if it could not be fitted to these data."""
    torch.set_num_threads(job.threads)
    started = time.perf_counter()
    run = load_run(job.run)
    makers = {TRUTH: _truth, PRETRAINED_PIECE: _pretrained, OUT_OF_FOLD: _out_of_fold}
    try:
        tensors = makers[job.method](job, run, read_split(run))
    except ValueError as error:
        if job.method != OUT_OF_FOLD:
            raise
        return _reason(error)
    job.stage.storage.write_tensors(job.stage.path(PIECE), tensors)
    job.stage.finish({"seconds": round(time.perf_counter() - started, 3)})
    return None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def run_method(job: RivalJob) -> str | None:
    """Run a method and save what it says; returns why it says nothing, if it could not be fitted to these data."""
    torch.set_num_threads(job.threads)
    started = time.perf_counter()
    run = load_run(job.run)
    try:
        result, facts = _judge(job, run, read_split(run))
    except (ConfigError, FloatingPointError, ValueError) as error:
        return _reason(error)
    job.stage.storage.write_tensors(job.stage.path(RESULT), to_tensors(result))
    job.stage.finish({"seconds": round(time.perf_counter() - started, 3)} | facts)
    return None


def score_method(job: RivalJob, resamples: int) -> None:
    """Compute and save the figures of a saved result."""
    torch.set_num_threads(job.threads)
    result = load_result(job.stage)
    found = score(result, _load_truth(job.pieces[TRUTH]), resamples=resamples, seed=job.config.seed)
    job.stage.storage.write_json(job.stage.path(SCORES), asdict(found) | {"of": scores_key(job, resamples)})


def scores_key(job: RivalJob, resamples: int) -> list[Any]:
    """What the figures depend on besides the result."""
    return [job.pieces[TRUTH].fingerprint, resamples, job.config.seed, list(METRICS)]


def load_result(stage: Stage) -> RivalResult:
    """What `run_method` saved."""
    return from_tensors(stage.storage.read_tensors(stage.path(RESULT)))


def load_piece(stage: Stage) -> dict[str, np.ndarray]:
    """What `run_piece` saved."""
    return stage.storage.read_tensors(stage.path(PIECE))


def _load_truth(stage: Stage) -> Truth:
    parts = load_piece(stage)
    return Truth(**{name: parts.get(name) for name in Truth.__dataclass_fields__})  # type: ignore[arg-type]


def _truth(job: RivalJob, run: CurationRun, split: Split) -> dict[str, np.ndarray]:
    values = asdict(read_truth(run, job.config, split, job.human_field))
    return {name: value for name, value in values.items() if value is not None}


def _pretrained(job: RivalJob, run: CurationRun, split: Split) -> dict[str, np.ndarray]:
    """What the model before any curation says of the samples, and test images as it sees them."""
    with TemporaryDirectory() as folder:
        stage = run.model_stage(0)
        model, _ = load_model(stage.storage.download(stage.path("model"), Path(folder) / "model"))
    _, logits = _predict_shards(job, run, model, split.samples)
    test_embeddings, test_logits = _predict_shards(job, run, model, split.tests, test=True)
    _, held_out = _predict_shards(job, run, model, split.held_out)
    return {
        "probabilities": softmax(logits) if logits.shape[1] else logits,
        "test_embeddings": test_embeddings,
        "test_logits": test_logits,
        "held_out_logits": held_out,
    }


def _predict_shards(
    job: RivalJob, run: CurationRun, model: Classifier, uids: np.ndarray, *, test: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float16 [n, D] and logits float32 [n, C] of images by uid, read block by block."""
    embeddings = np.zeros((len(uids), model.width), np.float16)
    logits = np.zeros((len(uids), getattr(model.head, "out_features", 0)), np.float32)  # 0 = without a head
    for rows, pixels in pixel_blocks(run, job.config, uids, test=test):
        embeddings[rows], logits[rows] = predict(
            model,
            pixels,
            device=job.device,
            bf16=use_bf16(job.config.resources.bf16, job.device),
            batch=job.config.resources.embed_batch or CPU_BATCH,
        )
    return embeddings, logits


def _features(job: RivalJob, run: CurationRun, split: Split) -> FeatureData:
    return FeatureData(
        embeddings=embeddings_of(run, split.samples),
        labels=split.given,
        references=embeddings_of(run, split.references),
        reference_labels=split.trusted,
        test=load_piece(job.pieces[PRETRAINED_PIECE])["test_embeddings"],
        classes=len(run.class_names),
        seed=job.config.seed,
    )


def _out_of_fold(job: RivalJob, run: CurationRun, split: Split) -> dict[str, np.ndarray]:
    return {"probabilities": out_of_fold_probabilities(_features(job, run, split))}


def _judge(job: RivalJob, run: CurationRun, split: Split) -> tuple[RivalResult, dict[str, Any]]:
    """What a method says, and facts to show beside its figures (`seconds` there replaces the time that was taken)."""
    name = job.method
    if name == methods.OURS or name in methods.RETRAINED:
        return _curated(run, split, run.rounds, model=True), _cost(run)
    if name == methods.HARD_LABEL:
        ours = _curated(run, split, run.rounds, model=False)
        assert ours.best_class is not None
        assert ours.soft_label is not None
        hard = np.eye(len(run.class_names), dtype=np.float32)[ours.best_class]
        hard[ours.soft_label.sum(axis=1) == 0] = 0  # called out of distribution: it has no label
        return RivalResult(soft_label=hard, best_class=ours.best_class), {"seconds": None}
    if name in (methods.FIRST_ROUND, methods.TRAINED_ON):
        round_ = 1 if name == methods.FIRST_ROUND else job.config.rounds
        return _curated(run, split, round_, model=False), {"seconds": None}
    if name in methods.REWEIGHTED:
        return _curated_again(job, run, split), {}
    if name == methods.PRETRAINED:
        found = load_piece(job.pieces[PRETRAINED_PIECE])
        if not found["probabilities"].shape[1]:
            raise ConfigError("the first model was trained without labels and predicts no class")
        result = from_probabilities(found["probabilities"], split.given, found["test_logits"])
        history = training_history(run, models=1)
        seconds = job.pieces[PRETRAINED_PIECE].facts()["seconds"] + sum(report["seconds"] for report in history)
        cost = {"seconds": round(seconds, 3), "image_passes": sum(report["images"] for report in history)}
        return replace(result, held_out_logits=found["held_out_logits"]), cost
    if name in methods.TRAINED:
        return _trained(job, run, split)
    return _on_features(job, run, split)


def _curated(run: CurationRun, split: Split, round_: int, *, model: bool) -> RivalResult:
    """The run's own decisions, and with `model` the released model's predictions."""
    table = usable_decisions(run, round_).sort_by("uid")
    table = table.filter(np.isin(table["uid"].to_numpy(), split.samples))
    quality = table["label_quality"].to_numpy()
    result = RivalResult(
        label_quality=quality,
        flagged=quality < make_config(run.settings).decide.keep_at,
        soft_label=dense_soft_labels(table["soft_label"], len(run.class_names)),
        best_class=table["best_class"].to_numpy().astype(np.int64),
        ood=table["ood_score"].to_numpy(),
    )
    if not model:
        return result
    predictions = run.predictions(run.stages["models"][-1]["round"])
    return replace(
        result,
        test_logits=None if predictions is None else to_matrix(predictions.sort_by("uid")["logits"]),
        temperature=np.array([model_temperature(run.model_stage())]),
    )


def _cost(run: CurationRun) -> dict[str, Any]:
    """Seconds of all epochs, whenever they ran, and of what else the run did; None where an earlier start did a part of
    that, whose seconds are not kept."""
    others = [stage for stage in run.summary["stages"] if stage["name"] not in ("pretrain", "finetune")]
    history = training_history(run)
    seconds = sum(report["seconds"] for report in history) + sum(stage["seconds"] for stage in others)
    return {
        "seconds": None if any(stage["shards_reused"] for stage in others) else round(seconds, 3),
        "image_passes": sum(report["images"] for report in history),
    }


def _curated_again(job: RivalJob, run: CurationRun, split: Split) -> RivalResult:
    """The first round once more with other settings, by the references of the run's own curation."""
    uids, model = run.reference_uids[run.is_curating], probabilities_of(run, split.samples)
    settings = make_config(run.settled(1), methods.REWEIGHTED[job.method])
    found = curate_arrays(
        embeddings_of(run, split.samples),
        split.given,
        embeddings_of(run, uids),
        np.array(run.stages["references"]["labels"], np.int64)[run.is_curating],
        classes=len(run.class_names),
        seed=job.config.seed,
        settings=settings,
        duplicates_of=digests_of(run, split.samples),
        model_probabilities=model,
    )
    return RivalResult(
        label_quality=found.label_quality,
        flagged=found.label_quality < settings.decide.keep_at,
        soft_label=found.soft_label,
        best_class=found.best_class,
        ood=found.ood_raw,
    )


def _on_features(job: RivalJob, run: CurationRun, split: Split) -> tuple[RivalResult, dict[str, Any]]:
    started = time.perf_counter()
    data, held_out = _features(job, run, split), embeddings_of(run, split.held_out)
    probabilities, before = None, 0.0
    if OUT_OF_FOLD in job.pieces:
        probabilities = load_piece(job.pieces[OUT_OF_FOLD])["probabilities"]
        before = job.pieces[OUT_OF_FOLD].facts()["seconds"]
    result = methods.judge_features(job.method, data, held_out, probabilities)
    return result, {"seconds": round(before + time.perf_counter() - started, 3)}


def rival_model(config: Config, classes: int) -> Classifier:
    """What the training of a rival begins with."""
    torch.manual_seed(config.seed)
    model = build(model_spec(config, classes))
    if config.pretrain.objective == "none":
        model.set_classes(classes)  # weights may bring a trained head, which trainref leaves out as well
    return model


def _trained(job: RivalJob, run: CurationRun, split: Split) -> tuple[RivalResult, dict[str, Any]]:
    """Train on all samples and references; every epoch's state is kept, so that a killed training goes on."""
    config = job.config
    pixels = read_pixels(run, config, np.concatenate([split.samples, split.references]))
    labels = np.concatenate([split.given, split.trusted])
    validation = (read_pixels(run, config, split.held_out), split.held_out_labels) if len(split.held_out) else None
    model = rival_model(config, len(run.class_names))
    train = _train_disc if job.method == "disc" else _train_simple
    started = time.perf_counter()
    with TemporaryDirectory() as scratch:
        state, opinion, plan = train(job, model, pixels, labels, validation, Path(scratch))
    model.load_state_dict(state.final())
    _, test_logits = _predict_shards(job, run, model, split.tests, test=True)
    bf16 = use_bf16(config.resources.bf16, job.device)
    held_out = None if validation is None else predict(model, validation[0], device=job.device, bf16=bf16)[1]
    _, logits = predict(model, pixels[: len(split.samples)], device=job.device, bf16=bf16)
    result = from_probabilities(softmax(logits), split.given, test_logits)
    if opinion is not None:
        result = replace(result, flagged=neither_clean_nor_hard(opinion.memory)[: len(split.samples)])
    earlier = sum(report.seconds for report in state.history)
    now = time.perf_counter() - started
    facts = {
        "seconds": round(max(now, earlier), 3),  # a training that was cut in two counts all of its epochs
        "image_passes": sum(report.images for report in state.history),
        "plan": plan,
    }
    return replace(result, held_out_logits=held_out), facts


Trained = tuple[TrainState, DiscState | None, dict[str, Any]]
"""The state, DISC's memory if it is one, and the plan as plain data."""
Validation = tuple[np.ndarray, np.ndarray] | None


def _train_simple(
    job: RivalJob, model: Classifier, pixels: np.ndarray, labels: np.ndarray, validation: Validation, scratch: Path
) -> Trained:
    settings = rival_settings(job.config)
    shared = set(TrainPlan.__dataclass_fields__) & set(TrainSettings.model_fields)
    base = TrainPlan(**{name: getattr(settings, name) for name in shared}, steps_per_epoch=1, **_common(job))
    base = replace(base, mixup=0.0, label_smoothing=0.0)  # each rival's own are laid over it
    if job.method == AUGMENTED:
        base = replace(base, **finetune_views(job.config))
    plan = rival_plan(job.method, base, images=len(pixels), batch_size=settings.batch_size, budget=job.budget)
    folder = latest_state(job.stage, scratch)

    def on_epoch(report: EpochReport, state: TrainState) -> None:
        write_state(job.stage, report.epoch + 1, lambda path: save_state(state, path), scratch)

    state = train_rival(
        model,
        pixels,
        labels,
        plan,
        batch_size=settings.batch_size,
        validation=validation,
        state=None if folder is None else load_state(folder),
        on_epoch=on_epoch,
    )
    return state, None, asdict(plan) | {"batch_size": settings.batch_size}


def _train_disc(
    job: RivalJob, model: Classifier, pixels: np.ndarray, labels: np.ndarray, validation: Validation, scratch: Path
) -> Trained:
    views = {name: getattr(rival_settings(job.config), name) for name in ("crop", "flip")}
    plan = methods.disc_plan(
        len(pixels), job.budget, job.noise_rate, asymmetric=is_asymmetric(job.config), **views, **_common(job)
    )
    folder = latest_state(job.stage, scratch)

    def on_epoch(report: EpochReport, state: DiscState) -> None:
        write_state(job.stage, report.epoch + 1, lambda path: save_disc_state(state, path), scratch)

    state = train_disc(
        model,
        pixels,
        labels,
        plan,
        validation=validation,
        state=None if folder is None else load_disc_state(folder),
        on_epoch=on_epoch,
    )
    return state.training, state, asdict(plan)


def _common(job: RivalJob) -> dict[str, Any]:
    """Seed, device and precision of every training."""
    return {
        "seed": job.config.seed,
        "device": job.device,
        "bf16": use_bf16(job.config.resources.bf16, job.device),
    }
