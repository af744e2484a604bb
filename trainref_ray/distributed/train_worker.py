"""What a training worker does: read its own shards, run the plain loop of `training`, write states and the model.

Imported in the workers alone: torch and Ray Train take seconds to load, which the driver need not spend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from trainref_ray.config import PretrainSettings
from trainref_ray.data.images import stored_size
from trainref_ray.distributed.datasource import ShardDatasource, ShardRead, pixels_of
from trainref_ray.distributed.states import latest_state, write_state
from trainref_ray.distributed.trainer import TrainJob, build_model
from trainref_ray.errors import ResourceError
from trainref_ray.models.backbones import load_model, predict, save_model
from trainref_ray.models.precision import use_bf16
from trainref_ray.results import HELD_OUT, HELD_OUT_SAMPLES
from trainref_ray.run import Stage
from trainref_ray.schemas import dense_soft_labels
from trainref_ray.training.loop import (
    ArrayBatches,
    EpochReport,
    TrainPlan,
    TrainState,
    add_projection,
    load_state,
    save_state,
    steps_per_epoch,
    train,
)

SHUFFLE_ROWS = 8192
"""Rows of the shuffle buffer when images are streamed: shards are permuted each epoch as well."""


def run_worker(job: TrainJob) -> None:
    """One training worker, from reading to the released model.

    Nothing is reported to Ray Train: the controller of a group takes one report of each worker every two seconds, for
    which short epochs would wait (15 epochs of 0.2 s took 31 s), and the states in the stage's folder say all there is
    to know.
    """
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.cluster.train_threads)
    side = stored_size(job.spec.image_size)
    batch_size = max(2, job.settings.batch_size // world)
    source = _source(job, rank, world, side, batch_size)
    plan = _train_plan(job, rank, world, batch_size)
    with TemporaryDirectory() as scratch:
        model = _start_model(job, Path(scratch))
        state = _latest_state(job, Path(scratch))
        held_out = _held_out(job.stage, HELD_OUT)
        if job.settings.freeze_backbone:
            model.freeze_backbone()  # before it is wrapped, which notes the parameters that are trained
        strategy = "ddp" if world > 1 else None
        distributed = ray.train.torch.prepare_model(model, move_to_device=_device(job), parallel_strategy=strategy)

        def on_epoch(report: EpochReport, current: TrainState) -> None:
            if rank == 0:
                write_state(job.stage, report.epoch + 1, lambda folder: save_state(current, folder), Path(scratch))

        final = train(distributed, source, plan, validation=held_out, state=state, on_epoch=on_epoch)
        if rank == 0:
            _release(job, model, final, Path(scratch))


def _device(job: TrainJob) -> torch.device:
    """Not a GPU that is there and is not to be used: alone, Ray Train takes any that it sees."""
    return ray.train.torch.get_device() if job.cluster.gpus else torch.device("cpu")


def _train_plan(job: TrainJob, rank: int, world: int, batch_size: int) -> TrainPlan:
    device = str(_device(job))
    shared = set(TrainPlan.__dataclass_fields__) & set(type(job.settings).model_fields)
    return TrainPlan(
        **{name: getattr(job.settings, name) for name in shared},
        steps_per_epoch=steps_per_epoch(job.rows, batch_size * world),
        seed=job.seed,
        rank=rank,
        world_size=world,
        bf16=use_bf16(job.cluster.bf16, device),
        device=device,
    )


def _start_model(job: TrainJob, scratch: Path) -> Any:
    torch.manual_seed(job.seed)
    if job.start is None:
        model = build_model(job.spec)
    else:
        model, spec = load_model(job.stage.storage.download(job.start, scratch / "start"))
        if not spec.classes:
            model.set_classes(job.spec.classes)
    if isinstance(job.settings, PretrainSettings) and job.contrastive:
        add_projection(model, job.settings.projection_width)
    return model


def _latest_state(job: TrainJob, scratch: Path) -> TrainState | None:
    folder = latest_state(job.stage, scratch)
    return None if folder is None else load_state(folder)


def _held_out(stage: Stage, file: str) -> tuple[np.ndarray, np.ndarray] | None:
    path = stage.path(f"{file}.safetensors")
    if not stage.storage.exists(path):
        return None
    tensors = stage.storage.read_tensors(path)
    return tensors["pixels"], tensors["labels"]


def _release(job: TrainJob, model: Any, state: TrainState, scratch: Path) -> None:
    """Write the model, and its logits for what was held out, which temperature scaling needs."""
    model.load_state_dict(state.final())
    if job.contrastive:
        model.set_classes(0)  # the projection ends here
    save_model(model, job.spec, scratch / "model")
    storage = job.stage.storage
    storage.upload(scratch / "model", job.stage.path("model"))
    storage.write_json(job.stage.path("history.json"), [asdict(report) for report in state.history])
    device = str(_device(job))
    for file in (HELD_OUT, HELD_OUT_SAMPLES):
        held_out = _held_out(job.stage, file)
        if held_out is not None:
            _, logits = predict(model, held_out[0], device=device, bf16=use_bf16(job.cluster.bf16, device))
            tensors = {"logits": logits, "labels": held_out[1]}
            storage.write_tensors(job.stage.path(f"{file}_logits.safetensors"), tensors)
    job.stage.finish({"epochs": len(state.history)})


def _source(job: TrainJob, rank: int, world: int, side: int, batch_size: int) -> Any:
    """This worker's batches: from memory if its images fit, else streamed every epoch."""
    by_rows = len(job.shards) < world
    mine = job.shards if by_rows else _share(job.shards, rank, world)
    rows = sum(shard.rows or 0 for shard in mine)
    if rows * side * side * 3 > job.cache_bytes:
        return StreamedBatches(job, mine, rank, world if by_rows else 1, side, batch_size)
    blocks = sorted(_blocks(job, mine), key=lambda block: block["uid"][0].as_py())
    if not blocks:
        raise _without_images(rank, mine)
    pixels = np.concatenate([pixels_of(block, side) for block in blocks])
    uids = np.concatenate([block["uid"].to_numpy() for block in blocks])
    targets = np.concatenate([_targets(job, block) for block in blocks])
    used = _used(job, uids, rank, world if by_rows else 1)
    if not used.any():
        raise _without_images(rank, mine)
    steps = steps_per_epoch(job.rows, batch_size * world)
    return ArrayBatches(
        pixels[used], targets[used], batch_size=batch_size, steps_per_epoch=steps, seed=job.seed, rank=rank
    )


def _without_images(rank: int, shards: tuple[ShardRead, ...]) -> ResourceError:
    return ResourceError(
        f"training worker {rank} has no images to train on: those of its {len(shards)} shards are held out or of no "
        "class; lower resources.train_workers"
    )


def _share(shards: tuple[ShardRead, ...], rank: int, world: int) -> tuple[ShardRead, ...]:
    """The shards of one worker: largest first, each to the worker with the fewest rows so far."""
    loads = [0] * world
    mine = []
    for shard in sorted(shards, key=lambda shard: (-(shard.rows or 0), shard.shard_id)):
        lightest = loads.index(min(loads))
        loads[lightest] += shard.rows or 0
        if lightest == rank:
            mine.append(shard)
    return tuple(mine)


def _blocks(job: TrainJob, shards: tuple[ShardRead, ...]) -> Iterator[Any]:
    """Decoded blocks of the shards, read by Ray Data with the CPUs that training leaves free, in a fixed order."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    dataset = ray.data.read_datasource(ShardDatasource(shards, job.plan), override_num_blocks=len(shards))
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        if block.num_rows:
            yield block


def _targets(job: TrainJob, block: Any) -> np.ndarray:
    """float32 [rows, C] targets of a block; [rows, 0] where no label is read."""
    classes = job.spec.classes
    if job.contrastive:
        return np.zeros((block.num_rows, 0), np.float32)
    if "soft_label" in block.column_names:
        targets = dense_soft_labels(block["soft_label"], classes)
        return np.eye(classes, dtype=np.float32)[targets.argmax(1)] if job.hard_targets else targets
    uids = block["uid"].to_pylist()
    labels = [job.labels.get(uid, label) for uid, label in zip(uids, block["label"].to_pylist(), strict=True)]
    return np.eye(classes, dtype=np.float32)[labels]


def _used(job: TrainJob, uids: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Rows this worker trains on: not held out, and its share where workers share a shard."""
    free = ~np.isin(uids, np.fromiter(job.held_out, np.int64, len(job.held_out)))
    return free & (uids % world == rank % world)


class StreamedBatches:
    """Batches read anew every epoch, for image sets larger than memory: shards permuted, rows in a shuffle buffer."""

    def __init__(
        self, job: TrainJob, shards: tuple[ShardRead, ...], rank: int, row_world: int, side: int, batch_size: int
    ) -> None:
        self._job = job
        self._shards = shards
        self._rank = rank
        self._row_world = row_world
        self._side = side
        self._batch_size = batch_size
        self._steps = steps_per_epoch(job.rows, batch_size * job.workers)

    def __call__(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Exactly the epoch's steps; a worker with fewer rows begins again.

        Raises:
            ResourceError: it has none to begin with.
        """
        random = np.random.default_rng((self._job.seed, epoch, self._rank))
        steps = 0
        while steps < self._steps:
            before = steps
            for pixels, targets in self._pass(random):
                yield torch.from_numpy(pixels), torch.from_numpy(targets)
                steps += 1
                if steps == self._steps:
                    return
            if steps == before:
                raise _without_images(self._rank, self._shards)

    def _pass(self, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        pixels = np.zeros((0, self._side, self._side, 3), np.uint8)
        targets = np.zeros((0, self._job.spec.classes), np.float32)
        order = tuple(self._shards[i] for i in random.permutation(len(self._shards)))
        for block in _blocks(self._job, order):
            used = _used(self._job, block["uid"].to_numpy(), self._rank, self._row_world)
            pixels = np.concatenate([pixels, pixels_of(block, self._side)[used]])
            targets = np.concatenate([targets, _targets(self._job, block)[used]])
            while len(pixels) >= max(SHUFFLE_ROWS, self._batch_size):
                pixels, targets, batch = _draw(pixels, targets, self._batch_size, random)
                yield batch
        while len(pixels) >= 2:
            pixels, targets, batch = _draw(pixels, targets, min(self._batch_size, len(pixels)), random)
            yield batch


def _draw(
    pixels: np.ndarray, targets: np.ndarray, count: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Take `count` random rows out of the buffer."""
    taken = np.zeros(len(pixels), bool)
    taken[random.choice(len(pixels), count, replace=False)] = True
    return pixels[~taken], targets[~taken], (pixels[taken], targets[taken])
