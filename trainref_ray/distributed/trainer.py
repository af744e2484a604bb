"""Pre-training and fine-tuning on Ray Train: each worker reads its own shards and runs the plain loop of `training`.

A worker that is alone runs in Ray Train's local mode, in a task of its own. For a group Ray starts five further
processes (its controller, and those that wait for other workers, for placement groups to remove, for nodes about to
leave and for data sets), each of which loads Ray Data. `make demo` on two slow cores: pre-training 73 s in a group of
one and 22 s alone, fine-tuning 77 and 16 s, with the same figures of both models.

Every epoch's state is written to the stage's own folder (safetensors and json), not to Ray's checkpoint store: a run
that is started again after its driver was killed, and a worker group that Ray starts again, find it in the same way.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import numpy as np
import ray
from safetensors import SafetensorError

from trainref_ray.config import PretrainSettings, TrainSettings
from trainref_ray.distributed.datasource import ReadPlan, ShardRead
from trainref_ray.distributed.session import Cluster
from trainref_ray.distributed.states import epochs_written
from trainref_ray.errors import ConfigError, ResourceError, TrainRefError
from trainref_ray.models.backbones import Classifier, ModelSpec, build, save_model
from trainref_ray.progress import StageProgress
from trainref_ray.run import Stage, Storage

MAX_FAILURES = 3
"""Lost or failed workers that are replaced before the stage gives up."""
POLL_SECONDS = 0.5
SCRATCH = "ray_train"
"""Folder that Ray Train wants to have; it holds nothing that is needed later."""


@dataclass(frozen=True)
class TrainJob:
    """Everything a training worker needs; small, and sent to each.

    Attributes:
        stage: where states and the model go.
        shards: what to read.
        rows: images to train on.
        plan: what of each sample is read, with the targets' stage for fine-tuning.
        labels: trusted labels by uid, which replace the given ones in pre-training.
        held_out: uids that are never trained on.
        spec: the model; 0 classes where no label is read.
        start: folder of a model to start from, in the run, or None. If that one has no head, it gets a fresh one.
        settings: optimiser, length, views.
        seed: of every random choice.
        hard_targets: train on the largest class of each distribution alone.
        cluster: threads, device and precision.
        workers: training processes.
        cache_bytes: images are held in memory if they fit.
    """

    stage: Stage
    shards: tuple[ShardRead, ...]
    rows: int
    plan: ReadPlan
    labels: dict[int, int]
    held_out: frozenset[int]
    spec: ModelSpec
    start: str | None
    settings: TrainSettings
    seed: int
    hard_targets: bool
    cluster: Cluster
    workers: int
    cache_bytes: int

    @property
    def contrastive(self) -> bool:
        """Whether no label is read, and the model has a projection in the place of a head while it is trained."""
        return isinstance(self.settings, PretrainSettings) and self.settings.objective == "contrastive"


@dataclass(frozen=True)
class HeldOut:
    """What a training does not see: references, or samples of a curation.

    Attributes:
        pixels: uint8 [n, S, S, 3].
        labels: int64 [n] of references, float32 [n, C] distributions of samples.
    """

    pixels: np.ndarray
    labels: np.ndarray


def save_held_out(stage: Stage, file: str, held_out: HeldOut) -> None:
    """Write what is held out beside the states, where rank 0 finds it.

    Args:
        stage: of the training.
        file: `HELD_OUT` or `HELD_OUT_SAMPLES`.
        held_out: not empty.
    """
    tensors = {"pixels": held_out.pixels, "labels": held_out.labels}
    stage.storage.write_tensors(stage.path(f"{file}.safetensors"), tensors)


def build_model(spec: ModelSpec) -> Classifier:
    """A model as the settings want it.

    Raises:
        ConfigError: there is none of this backbone, image size and stem, or its weights cannot be read or are of
            another model.
    """
    try:
        return build(spec)
    except (ValueError, OSError, SafetensorError) as error:
        raise ConfigError(
            f"no model can be made of backbone {spec.backbone!r}, image_size {spec.image_size}, model.weights "
            f"{spec.weights!r}: {error}"
        ) from error


def write_weights(stage: Stage, spec: ModelSpec) -> None:
    """The model of a stage that trains nothing: `spec.weights` as they are.

    Raises:
        ConfigError: see `build_model`.
    """
    with TemporaryDirectory() as scratch:
        save_model(build_model(spec), spec, scratch)
        stage.storage.upload(Path(scratch), stage.path("model"))
    stage.storage.write_json(stage.path("history.json"), [])
    stage.finish({"epochs": 0})


def run_training(job: TrainJob, home: Storage, progress: StageProgress) -> None:
    """Train until the model lies in the stage's folder.

    Args:
        job: what to train.
        home: of the curation, where Ray Train may put its own files.
        progress: moved by each epoch.

    Raises:
        ResourceError: the training failed more often than workers are replaced.
    """
    seen = epochs_written(job.stage)
    if seen:
        progress.resume(seen, seen * job.rows)
    attempts = MAX_FAILURES + 1 if job.workers == 1 else 1  # a group replaces its own workers
    while True:
        running, stop = _start_alone(job) if job.workers == 1 else (_start_group(job, home), None)
        try:
            seen = _follow(job, running, progress, seen)
        except BaseException:  # interrupted, perhaps in a Ray that was there before and goes on
            if stop is not None:
                with suppress(Exception):  # the interrupt may have ended Ray as well
                    stop()
            raise
        error, attempts = running.exception(), attempts - 1
        if error is None:
            return
        if not attempts or isinstance(_cause(error), TrainRefError):
            raise _explain(job, error) from error


def _start_alone(job: TrainJob) -> tuple[Future[None], Callable[[], None]]:
    """In a task, whose process ends with it: a training sets the number of threads for good. Also gives what ends it
    before its time."""
    resources = worker_resources(job.cluster)
    task = ray.remote(max_calls=1)(_run_locally).options(
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        memory=resources.get("memory"),
        max_retries=0,  # Ray would start one that ran out of memory again without end
        scheduling_strategy="DEFAULT",  # not in a trial's own reservation
    )
    reference = task.remote(job)
    return reference.future(), partial(ray.cancel, reference, force=True)


def _run_locally(job: TrainJob) -> None:
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    local = ScalingConfig(num_workers=0)
    TorchTrainer(_start_worker, train_loop_config={"job": job}, scaling_config=local).fit()


def _start_group(job: TrainJob, home: Storage) -> Future[None]:
    """In a thread that does not keep this process from ending: one that waits for a Ray which was shut down meanwhile,
    because of an interrupt, waits for ever."""
    running: Future[None] = Future()

    def run() -> None:
        try:
            _train_group(job, home)
        except BaseException as error:
            running.set_exception(error)
        else:
            running.set_result(None)

    Thread(target=run, name="train", daemon=True).start()
    return running


def _train_group(job: TrainJob, home: Storage) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    home.remove(SCRATCH)
    filesystem, folder = home.resolved(SCRATCH)
    trainer = TorchTrainer(
        _start_worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if job.cluster.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=bool(job.cluster.gpus),
            resources_per_worker=worker_resources(job.cluster),
        ),
        run_config=RunConfig(
            name=f"{job.stage.name}-{uuid.uuid4().hex[:8]}",  # a name that was used before resumes in silence
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    trainer.fit()
    home.remove(SCRATCH)


def worker_resources(cluster: Cluster) -> dict[str, float]:
    """What a training worker reserves. Ray refuses to reserve nothing at all, so without a CPU or GPU it is a byte."""
    resources = {"CPU": cluster.train_cpus, "GPU": cluster.train_gpus}
    return {name: amount for name, amount in resources.items() if amount} or {"memory": 1}


def _explain(job: TrainJob, error: BaseException) -> TrainRefError:
    """The workers' own error in one line, with its kind if it was raised on purpose."""
    cause = _cause(error)
    if isinstance(cause, TrainRefError):
        return cause
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return ResourceError(f"{job.stage.folder}: training failed: {type(cause).__name__}: {lines[-1]}")


def _cause(error: BaseException) -> BaseException:
    """What a worker raised."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    cause: BaseException = next(iter(failures.values()))
    while (behind := getattr(cause, "_base_exc", None) or getattr(cause, "cause", None)) is not None:
        cause = behind
    return cause


def _start_worker(config: dict[str, Any]) -> None:
    from trainref_ray.distributed.train_worker import run_worker

    run_worker(config["job"])


def _follow(job: TrainJob, running: Future[None], progress: StageProgress, seen: int) -> int:
    """Move the progress by the epochs that are written, since the workers run in other processes, until the training
    has ended. Gives how many are there, of which `seen` had been shown before."""
    while True:
        wait([running], timeout=POLL_SECONDS)
        ended, written = running.done(), epochs_written(job.stage)
        if written > seen:
            progress.advance((written - seen) * job.rows, shards=written - seen)
            seen = written
        if ended:
            return seen
