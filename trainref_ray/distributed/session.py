"""Connecting to Ray, waiting for resources where a cluster can grow, and how the stages share what there is."""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import ray
from ray.autoscaler.sdk import request_resources
from ray.data import DataContext

from trainref_ray.config import ResourceSettings
from trainref_ray.errors import ResourceError, first_line

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Cluster:
    """Resources of the Ray in use, and how the stages share them.

    Workers and actors that live as long as their stage read their shards through tasks that need a CPU too, so
    together they never reserve the last one (one a trial).

    Attributes:
        cpus: CPUs of all nodes.
        gpus: GPUs of all nodes, 0 where they are not to be used.
        train_cpus: CPUs a training worker reserves.
        train_gpus: GPUs a training worker reserves; below 1 where trials share one.
        train_threads: threads a training worker computes with, of the largest node that it can be on.
        embed_workers: actors that embed.
        embed_cpus: CPUs each of them reserves.
        embed_gpus: GPUs each of them reserves; below 1 where several share one.
        embed_threads: threads each of them computes with.
        bf16: whether models compute in bfloat16; None = where the worker's processor or GPU has it in hardware.
        trials: curations that share this Ray at once.
    """

    cpus: float
    gpus: float
    train_cpus: float
    train_gpus: float
    train_threads: int
    embed_workers: int
    embed_cpus: float
    embed_gpus: float
    embed_threads: int
    bf16: bool | None
    trials: int = 1

    @property
    def device(self) -> str:
        """`cuda` or `cpu`."""
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connect(
    settings: ResourceSettings, say: Callable[[str], object] | None = None, *, trials: int = 1
) -> Iterator[Cluster]:
    """Use the Ray of this job or process if there is one, else start a local one for as long as the context lasts.

    A cluster that was there before and has too little is asked to grow, and waited for.

    Args:
        settings: what is needed.
        say: is told of the waiting; by default a line on standard error.
        trials: curations that share this Ray at once.

    Raises:
        ResourceError: Ray cannot be reached or started, GPUs are asked for and there is none, or fewer than the
            training workers need; from a cluster after `settings.timeout` seconds.
    """
    started = not ray.is_initialized()
    if started:
        _start(settings.address)
    try:
        if not is_own_ray():
            _wait_for_resources(settings, trials, say or _print_line)
        set_up_process()
        yield plan_cluster(settings, ray.cluster_resources(), trials, node_resources())
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
        raise ResourceError(
            f"Ray cannot be {'reached at ' + address if address else 'started'}: {first_line(error)}"
        ) from error


def is_own_ray() -> bool:
    """Whether the connected Ray was started by this process: its node is then a child, and nothing makes it grow."""
    return any(child.name() == "raylet" for child in psutil.Process().children())


def node_resources() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def is_mixed(nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether there are nodes with GPUs, and others with CPUs alone."""
    with_gpu = [node.get("GPU", 0.0) > 0 for node in nodes if node.get("CPU", 0.0) > 0]
    return any(with_gpu) and not all(with_gpu)


def _prefer_cpu_nodes() -> None:
    """Let Ray Data's tasks go to nodes with GPUs only when the others are full. Its own SPREAD does not tell nodes
    apart: of 16 tasks on a node with GPUs and one without, both of 4 CPUs, 7 ran on the first; of 4 tasks 2, now
    none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # to be managed by Ray Data after January 2027
        DataContext.get_current().scheduling_strategy = "DEFAULT"


def _print_line(line: str) -> None:
    print(line, file=sys.stderr)


def _wait_for_resources(settings: ResourceSettings, trials: int, say: Callable[[str], object]) -> None:
    """Ask the autoscaler for what is missing and wait until it is there; the request is withdrawn in any case.

    Raises:
        ResourceError: it is not there after `settings.timeout` seconds.
    """
    missing = missing_resources(settings, ray.cluster_resources(), trials)
    if not missing:
        return
    say(f"waiting for {missing}, giving up after {settings.timeout:g} s (resources.timeout)")
    deadline = time.monotonic() + settings.timeout
    request_resources(bundles=wanted_bundles(settings, trials))
    try:
        while missing := missing_resources(settings, ray.cluster_resources(), trials):
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"waited {settings.timeout:g} s (resources.timeout) for {missing} and the cluster did not grow; "
                    "see whether its node types have them and are at their largest number, or ask for less"
                )
            time.sleep(min(POLL_SECONDS, settings.timeout))
    finally:
        request_resources(bundles=[])  # an open request would keep nodes alive that nobody uses


def missing_resources(settings: ResourceSettings, available: Mapping[str, float], trials: int = 1) -> str | None:
    """What there must be more of before anything can start, for people, e.g. `1 CPU (there are 0)`; else None."""
    gpus = _gpus_needed(settings, trials) if settings.gpu else 0
    lacking = [
        f"{needed} {name}{'s' if needed > 1 else ''} (there are {available.get(name, 0.0):g})"
        for name, needed in (("CPU", 1), ("GPU", gpus))
        if available.get(name, 0.0) < needed
    ]
    return " and ".join(lacking) or None


def _gpus_needed(settings: ResourceSettings, trials: int) -> int:
    """One for each training worker; trials of one worker may share."""
    return settings.train_workers * trials if settings.train_workers > 1 else 1


def wanted_bundles(settings: ResourceSettings, trials: int = 1) -> list[dict[str, float]]:
    """What the autoscaler is asked for: a CPU for each training worker and for a task beside them, and their GPUs."""
    workers = settings.train_workers * trials
    return [{"CPU": 1.0}] * (workers + trials) + ([{"GPU": 1.0}] * workers if settings.gpu else [])


def plan_cluster(
    settings: ResourceSettings,
    available: Mapping[str, float],
    trials: int = 1,
    nodes: Sequence[Mapping[str, float]] = (),
) -> Cluster:
    """How the stages share `available` resources.

    Args:
        settings: workers, GPUs, precision.
        available: of all nodes together.
        trials: curations that run at once and share them equally. What the residents of all trials reserve and a task
            of one CPU each never exceed what there is; with less than two CPUs a trial, residents reserve none.
        nodes: resources of each node; by default there is one, which has it all.

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
    workers, share = settings.train_workers, cpus / trials
    train_gpus = _train_gpus(workers, gpus, trials) if use_gpu else 0.0
    train_cpus = min(1.0, (share - 1.0) / workers) if share >= 2 else 0.0
    embed_workers = settings.embed_workers or max(1, int(gpus / trials) if use_gpu else int(share) // 2)
    embed_cpus = 1.0 if not use_gpu and share >= embed_workers + 1 else 0.0
    embed_gpus = gpu_share(gpus, embed_workers * trials) if use_gpu else 0.0
    largest = largest_node(nodes or [available], gpu=use_gpu)
    return Cluster(
        cpus=cpus,
        gpus=gpus if use_gpu else 0.0,
        train_cpus=train_cpus,
        train_gpus=train_gpus,
        train_threads=_threads(largest, workers * trials, train_cpus, train_gpus),
        embed_workers=embed_workers,
        embed_cpus=embed_cpus,
        embed_gpus=embed_gpus,
        embed_threads=_threads(largest, embed_workers * trials, embed_cpus, embed_gpus),
        bf16=settings.bf16,
        trials=trials,
    )


def largest_node(nodes: Sequence[Mapping[str, float]], *, gpu: bool) -> Mapping[str, float]:
    """The node with the most CPUs; of those with a GPU if `gpu`."""
    return max(
        (node for node in nodes if not gpu or node.get("GPU", 0.0) > 0),
        key=lambda node: node.get("CPU", 0.0),
        default={},
    )


def _train_gpus(workers: int, gpus: float, trials: int) -> float:
    """GPUs of one training worker.

    Raises:
        ResourceError: there are too few. Workers of one training cannot share a GPU (NCCL refuses), those of different
            trials can.
    """
    if gpus < workers:
        raise ResourceError(f"resources.train_workers is {workers} and Ray has {gpus:g} GPUs; lower it")
    if gpus < workers * trials and workers > 1:
        raise ResourceError(
            f"{trials} trials with {workers} training workers each need {trials * workers} GPUs and Ray has {gpus:g}; "
            "lower one of them"
        )
    return gpu_share(gpus, workers * trials)


def gpu_share(gpus: float, users: int) -> float:
    """GPUs for each of `users`: one, or such a part of one that all of them find a place. Plain division would not do:
    of three users on two GPUs, each with two thirds, the third waits for ever."""
    return 1.0 if users <= gpus else 1.0 / math.ceil(users / max(1, int(gpus)))


def _threads(node: Mapping[str, float], workers: int, cpus: float, gpus: float) -> int:
    """Threads of a worker when as many of `workers` as can be are on `node`, by what each reserves."""
    there = float(workers)
    if gpus:
        there = min(there, node.get("GPU", 0.0) // gpus)
    if cpus:
        there = min(there, node.get("CPU", 0.0) // cpus)
    return max(1, int(node.get("CPU", 0.0) // max(1.0, there)))


def set_up_process() -> None:
    """For each process that starts work on Ray: who shows progress, what errors say, and where tasks go."""
    _quiet()
    # else Ray Data puts an error of its own in the place of what a function raised, and the cause is lost on the way
    DataContext.get_current().raise_original_map_exception = True
    if is_mixed(node_resources()):
        _prefer_cpu_nodes()


def _quiet() -> None:
    """One progress display is enough: ours."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
