"""What a curation needs, estimated before it runs, against what the nodes have. Plain arithmetic, no Ray and no files.

Estimates of main memory and disks are upper bounds of the arrays that exist at once; they leave out what libraries
add, and only ever warn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from trainref_ray.config import Config, PretrainSettings, TrainSettings
from trainref_ray.data.images import stored_size
from trainref_ray.distributed.context import model_spec
from trainref_ray.distributed.datasource import BLOCK_ROWS
from trainref_ray.distributed.session import Cluster
from trainref_ray.models.memory import ModelMemory, prediction_memory, training_memory

OK: Final = "ok"
WARNING: Final = "warning"
ERROR: Final = "error"
Verdict = Literal["ok", "warning", "error"]
GIB = 2**30
PROCESS_BYTES = 500 * 2**20
"""A worker that has imported torch and Ray: 480 MiB of its own, 860 MiB with what processes share (CUDA build)."""
GPU_PROCESS_BYTES = 600 * 2**20
"""CUDA's context and libraries a process; a round figure, not measured here."""
DRIVER_BYTES = 400
"""Bytes a sample in the driver: keys as strings and counted 165, the samples table about twice over 115 (measured on
200,000 keys of 25 letters)."""
PROBE_BYTES = 8
"""Bytes a component of the embeddings while the probe is fitted: tables and their concatenation in float16, float32."""
STREAM_ROWS = 8192 + 2 * BLOCK_ROWS
"""Rows of a streaming worker's shuffle buffer and of the blocks that come in."""
TYPICAL_CLASSES = 100
"""C where no file names the classes, which the inventory then counts."""
CERTAIN = 1.5
"""An estimate this many times the GPU's memory is an error, below it a warning: fragmentation, workspaces and
measured deviations of the estimate stay within a quarter (tests/unit/models/test_memory.py)."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of what.
        needed: in words.
        there: what was found, in words.
        verdict: ok, warning or error.
        advice: what to do; empty if all is well.
    """

    name: str
    needed: str
    there: str
    verdict: Verdict
    advice: str = ""

    @property
    def line(self) -> str:
        """Everything in one line."""
        return f"{self.name}: needed {self.needed}, there {self.there}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Node:
    """One node: address, logical resources, bytes of main memory and of Ray's object store, bytes of each GPU."""

    address: str
    cpus: float
    gpus: float
    memory: float
    object_store: float
    gpu_memory: tuple[int, ...] = ()

    def resource(self, name: str) -> float:
        """CPUs or GPUs."""
        return {"CPU": self.cpus, "GPU": self.gpus}[name]


@dataclass(frozen=True)
class Data:
    """How much there is, about.

    Attributes:
        samples: N of the training shards.
        test_samples: of the test shards.
        largest_shard: samples of the largest one.
        classes: C.
    """

    samples: int
    test_samples: int
    largest_shard: int
    classes: int


@dataclass(frozen=True)
class Models:
    """Memory of the curation's models for their batches: the larger one of the trainings, and embedding."""

    training: ModelMemory
    embedding: ModelMemory
    train_batch: int
    embed_batch: int


def estimate_models(config: Config, classes: int, *, bf16: bool) -> Models:
    """Count the models' memory (`models.memory`).

    Raises:
        ValueError: the backbone cannot be built for this image size.
    """
    spec = model_spec(config, classes)
    trainings: list[TrainSettings] = [config.pretrain]
    if config.finetune_model:
        trainings.append(config.finetune)
    counted = [
        (worker_images(settings, config.resources.train_workers), settings.optimizer, settings.freeze_backbone)
        for settings in trainings
    ]
    sizes = [
        (training_memory(spec, batch, bf16=bf16, optimizer=optimizer, frozen=frozen), batch)
        for batch, optimizer, frozen in counted
    ]
    training, train_batch = max(sizes, key=lambda size: size[0].peak)
    embed_batch = min(config.resources.embed_batch or BLOCK_ROWS, BLOCK_ROWS)
    return Models(training, prediction_memory(spec, embed_batch, bf16=bf16), train_batch, embed_batch)


def worker_images(settings: TrainSettings, workers: int) -> int:
    """Images that a step of one training worker puts through the model: of a contrastive one, two views of each."""
    views = 2 if isinstance(settings, PretrainSettings) and settings.objective == "contrastive" else 1
    return views * max(2, settings.batch_size // workers)


def check_all(config: Config, cluster: Cluster, nodes: Sequence[Node], data: Data, models: Models) -> list[Check]:
    """Every estimate against the nodes."""
    return [
        room(config, cluster, nodes),
        *gpu_checks(config, cluster, nodes, models),
        *memory_checks(config, cluster, nodes, data, models),
        object_store_check(config, nodes),
    ]


# Where things find a place -------------------------------------------------------------------------------------------


def room(config: Config, cluster: Cluster, nodes: Sequence[Node]) -> Check:
    """Whether what stays for a stage and one task beside it fit on the nodes together."""
    trials, workers = cluster.trials, config.resources.train_workers
    task = {"CPU": 1.0}
    stages: dict[str, list[dict[str, float]]] = {
        "training": [{"CPU": cluster.train_cpus, "GPU": cluster.train_gpus}] * (workers * trials),
        "embedding": [{"CPU": cluster.embed_cpus, "GPU": cluster.embed_gpus}] * (cluster.embed_workers * trials),
    }
    for stage, residents in stages.items():
        if not all_fit(nodes, [*residents, task]):
            shape = " and ".join(f"{amount:g} {name}" for name, amount in residents[0].items() if amount)
            return Check(
                f"room for {stage}",
                f"{len(residents)} x {shape}, and 1 CPU for a task beside them",
                _node_list(nodes),
                ERROR,
                "lower resources.train_workers or resources.embed_workers, or add nodes",
            )
    return Check(
        "room for every stage", f"{workers} training and {cluster.embed_workers} embedding", _node_list(nodes), OK
    )


def all_fit(nodes: Sequence[Node], bundles: Iterable[dict[str, float]]) -> bool:
    """Whether all bundles fit on the nodes at once, each placed on the node with the least left that has it."""
    left = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    for bundle in bundles:
        fitting = [free for free in left if all(free[name] + 1e-9 >= amount for name, amount in bundle.items())]
        if not fitting:
            return False
        # without need of a GPU a bundle goes where there is none
        chosen = min(fitting, key=lambda free: (free["GPU"] if not bundle.get("GPU") else 0.0, free["CPU"]))
        for name, amount in bundle.items():
            chosen[name] -= amount
    return True


def _node_list(nodes: Sequence[Node]) -> str:
    shown = [f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes[:4]]
    more = f" and {len(nodes) - 4} more nodes" if len(nodes) > 4 else ""
    return " | ".join(shown) + more


# GPU memory ----------------------------------------------------------------------------------------------------------


def gpu_checks(config: Config, cluster: Cluster, nodes: Sequence[Node], models: Models) -> list[Check]:
    """Batches against the smallest GPU; nothing where no node says how large its GPUs are."""
    sizes = [size for node in nodes if node.gpus for size in node.gpu_memory]
    if not cluster.gpus or not sizes:
        return []
    largest = 1 if config.resources.embed_batch is None else models.embed_batch  # else the probe finds what fits
    return [
        _gpu_check(
            "GPU memory, training",
            models.training.peak,
            1 / cluster.train_gpus,
            min(sizes),
            f"{models.train_batch} images a worker",
            "lower pretrain.batch_size and finetune.batch_size, or raise resources.train_workers",
        ),
        _gpu_check(
            "GPU memory, embedding",
            models.embedding.peak if largest > 1 else models.embedding.state,
            1 / cluster.embed_gpus,
            min(sizes),
            f"{models.embed_batch} images" if largest > 1 else "model alone, the batch is probed",
            "lower resources.embed_batch or resources.embed_workers",
        ),
    ]


def _gpu_check(name: str, peak: int, users: float, size: int, batch: str, advice: str) -> Check:
    needed = users * (peak + GPU_PROCESS_BYTES)
    verdict: Verdict = OK if needed <= size else WARNING if needed <= CERTAIN * size else ERROR
    sharing = f", {users:.0f} processes" if users > 1 else ""
    return Check(name, f"about {gib(needed)} ({batch}{sharing})", gib(size), verdict, "" if verdict == OK else advice)


# Main memory, disks --------------------------------------------------------------------------------------------------


def memory_checks(config: Config, cluster: Cluster, nodes: Sequence[Node], data: Data, models: Models) -> list[Check]:
    """Each stage's processes on one node against the largest node that they can be on."""
    on_gpu = bool(cluster.gpus)
    largest = max(nodes, key=lambda node: (node.cpus > 0, node.memory))  # a head without CPUs runs no task
    with_gpu = max((node for node in nodes if node.gpus), key=lambda node: node.memory, default=largest)
    trainer_node = with_gpu if on_gpu else largest
    workers = residents_on(trainer_node, config.resources.train_workers, cluster.train_cpus, cluster.train_gpus)
    embedders = residents_on(trainer_node, cluster.embed_workers, cluster.embed_cpus, cluster.embed_gpus)
    width = models.training.width
    return [
        _memory_check(
            "memory, training",
            workers * training_bytes(config, data, models, on_gpu=on_gpu),
            trainer_node,
            f"{workers} workers, about {data.samples:,} images",
            "lower resources.cache_bytes, the batch sizes or resources.train_workers",
        ),
        _memory_check(
            "memory, embedding",
            embedders * embedding_bytes(config, models, on_gpu=on_gpu),
            trainer_node,
            f"{embedders} actors",
            "lower resources.embed_workers or resources.embed_batch",
        ),
        _memory_check(
            "memory, probe",
            data.samples * width * PROBE_BYTES + PROCESS_BYTES,
            trainer_node,
            f"about {data.samples:,} x {width} embeddings",
            "it holds all embeddings: a node with more memory, or a backbone with fewer features",
        ),
        _memory_check(
            "memory, supporter index",
            index_bytes(config, data, width),
            largest,
            f"at most {members(config, data):,} members in {config.resources.index_shards} pieces",
            "lower augment.per_class or resources.index_replicas",
        ),
        _memory_check(
            "memory, tables of a shard",
            max(1, int(largest.cpus)) * shard_task_bytes(config, data, width),
            largest,
            f"{max(1, int(largest.cpus))} at once of {data.largest_shard:,} samples",
            "write smaller shards (trainref prepare --shard-size)",
        ),
    ]


def residents_on(node: Node, workers: int, cpus: float, gpus: float) -> int:
    """Most of `workers` that can be on a node at once, by what each reserves."""
    limits = [float(workers)]
    limits += [node.cpus // cpus] if cpus else []
    limits += [node.gpus // gpus] if gpus else []
    return max(1, int(min(limits)))


def training_bytes(config: Config, data: Data, models: Models, *, on_gpu: bool) -> float:
    """Main memory of one training worker: its images twice while they are put together, and on a CPU the model."""
    side = stored_size(config.image_size)
    rows = math.ceil(data.samples / config.resources.train_workers)
    cached = rows * side * side * 3 <= config.resources.cache_bytes
    held = rows if cached else min(rows, STREAM_ROWS)
    images = 2 * held * (side * side * 3 + 4 * data.classes)
    return PROCESS_BYTES + images + (models.training.state if on_gpu else models.training.peak)


def embedding_bytes(config: Config, models: Models, *, on_gpu: bool) -> float:
    """Main memory of one actor that embeds: a block of pixels in two copies, and on a CPU the model and its batch."""
    pixels = 2 * BLOCK_ROWS * stored_size(config.image_size) ** 2 * 3
    return PROCESS_BYTES + pixels + (models.embedding.state if on_gpu else models.embedding.peak)


def members(config: Config, data: Data) -> int:
    """M at most."""
    given = data.classes * (config.reference_per_class or 1)
    return min(data.samples, given + data.classes * config.augment.per_class)


def index_bytes(config: Config, data: Data, width: int) -> float:
    """All actors of the index on one node: vectors, and their file beside them while it is read."""
    actors = config.resources.index_shards * config.resources.index_replicas
    vectors = members(config, data) * width * 4 * config.resources.index_replicas
    return 2 * vectors + actors * PROCESS_BYTES


def shard_task_bytes(config: Config, data: Data, width: int) -> float:
    """One task over the largest shard: its embeddings in float16, float32 and float64, its distributions for each
    checkpoint of the probe and about nine more (the head's go through float64)."""
    return PROCESS_BYTES + data.largest_shard * (14 * width + 4 * data.classes * (config.probe.checkpoints + 9))


def driver_check(config: Config, data: Data, width: int, memory: int) -> Check:
    """The driver's own process: names and labels of all samples, vectors of the members and of the Gaussian's fit."""
    fitted = min(config.ood.fit_samples, data.samples)
    needed = DRIVER_BYTES * data.samples + 12 * width * (members(config, data) + fitted) + 24 * width**2 + PROCESS_BYTES
    verdict: Verdict = OK if needed <= memory else WARNING
    return Check(
        "memory, driver",
        f"about {gib(needed)} (about {data.samples:,} samples)",
        gib(memory),
        verdict,
        "" if verdict == OK else "start it on a machine with more, or lower augment.per_class and ood.fit_samples",
    )


def _memory_check(name: str, needed: float, node: Node, what: str, advice: str) -> Check:
    verdict: Verdict = OK if needed <= node.memory else WARNING
    there = f"{gib(node.memory)} on {node.address}"
    return Check(name, f"about {gib(needed)} ({what})", there, verdict, "" if verdict == OK else advice)


def object_store_check(config: Config, nodes: Sequence[Node]) -> Check:
    """Two blocks of pixels for each CPU of a node; more than fits is written to its disk, which is slow."""
    block = BLOCK_ROWS * stored_size(config.image_size) ** 2 * 3
    node = min(nodes, key=lambda node: node.object_store / max(1.0, node.cpus))
    needed = 2 * block * max(1.0, node.cpus)
    verdict: Verdict = OK if needed <= node.object_store else WARNING
    return Check(
        "Ray's object store",
        f"about {gib(needed)} (two blocks of {BLOCK_ROWS} images a CPU)",
        f"{gib(node.object_store)} on {node.address}",
        verdict,
        "" if verdict == OK else "start Ray with a larger --object-store-memory and a /dev/shm of that size",
    )


def disk_check(config: Config, data: Data, models: Models, free: int) -> Check:
    """Tables and models of all rounds against the free bytes of the run folder's disk."""
    needed = run_folder_bytes(config, data, models)
    verdict: Verdict = OK if needed <= free else WARNING
    return Check(
        "disk, run folder",
        f"about {gib(needed)} ({config.curations} curations)",
        f"{gib(free)} free",
        verdict,
        "" if verdict == OK else "make room, or choose another --out",
    )


def run_folder_bytes(config: Config, data: Data, models: Models) -> float:
    """Before compression: embeddings, logits, distributions in float16, supporters, soft labels of a dozen classes."""
    width, classes = models.training.width, data.classes
    sample = 2 * width + 4 * classes + 16 * config.vote.k + 200
    model = 4 * models.training.parameters
    state = model + models.training.state
    tests = data.test_samples * 4 * classes
    trainings = 1 + (config.rounds if config.finetune_model else 0)
    return config.curations * data.samples * sample + trainings * (model + state + tests) + data.samples * 150


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
