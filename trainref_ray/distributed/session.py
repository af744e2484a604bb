"""Connecting to Ray, and how much of it there is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.data import DataContext

from trainref_ray.config import ResourceSettings
from trainref_ray.errors import ResourceError


@dataclass(frozen=True)
class Cluster:
    """Resources of the Ray in use, and how the stages share them.

    Attributes:
        cpus: CPUs of all nodes.
        gpus: GPUs of all nodes, 0 where they are not to be used.
        train_cpus: CPUs a training worker reserves. Training workers live as long as their stage and read their shards
            through tasks that need a CPU too, so together they never reserve the last one.
        train_threads: threads a training worker computes with.
        embed_workers: actors that embed.
        bf16: whether models compute in bfloat16; None = where the worker's processor or GPU has it in hardware.
    """

    cpus: float
    gpus: float
    train_cpus: float
    train_threads: int
    embed_workers: int
    bf16: bool | None

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connect(settings: ResourceSettings) -> Iterator[Cluster]:
    """Use the Ray of this job or process if there is one, else start a local one for as long as the context lasts.

    Raises:
        ResourceError: Ray cannot be reached or started, GPUs are asked for and there is none, or fewer than the
            training workers need.
    """
    started = not ray.is_initialized()
    if started:
        _start(settings.address)
    try:
        quiet()
        yield plan_cluster(settings, ray.cluster_resources())
    finally:
        if started:
            ray.shutdown()


def _start(address: str | None) -> None:
    try:
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            include_dashboard=None if address else False,
        )
    except Exception as error:  # Ray has no kind of its own for this: a plain Exception, or a ConnectionError
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ResourceError(
            f"Ray cannot be {'reached at ' + address if address else 'started'}: {reason[0]}"
        ) from error


def plan_cluster(settings: ResourceSettings, available: dict[str, float]) -> Cluster:
    """How the stages share `available` resources.

    Raises:
        ResourceError: the settings ask for more than there is.
    """
    cpus = available.get("CPU", 0.0)
    gpus = available.get("GPU", 0.0)
    if cpus < 1:
        raise ResourceError(f"Ray has {cpus:g} CPUs; at least 1 is needed")
    if settings.gpu and not gpus:
        raise ResourceError("resources.gpu is set and Ray has no GPU; unset it, or add a GPU node")
    use_gpu = bool(gpus) if settings.gpu is None else settings.gpu
    if use_gpu and gpus < settings.train_workers:
        raise ResourceError(f"resources.train_workers is {settings.train_workers} and Ray has {gpus:g} GPUs; lower it")
    train_cpus = min(1.0, (cpus - 1.0) / settings.train_workers) if cpus > 1 else 0.0
    return Cluster(
        cpus=cpus,
        gpus=gpus if use_gpu else 0.0,
        train_cpus=train_cpus,
        train_threads=max(1, int(cpus) // settings.train_workers),
        embed_workers=settings.embed_workers or (int(gpus) if use_gpu else max(1, int(cpus) // 2)),
        bf16=settings.bf16,
    )


def quiet() -> None:
    """One progress display is enough: ours. For each process that starts work on Ray."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
