"""What is checked on the Ray in use before anything runs: nodes, data, room and memory."""

from __future__ import annotations

import contextlib
import io
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainref_ray.config import Config
from trainref_ray.data.shards import open_shard
from trainref_ray.data.tar_reader import iter_raw_samples
from trainref_ray.distributed.context import Inputs
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.needs import (
    ERROR,
    OK,
    TYPICAL_CLASSES,
    WARNING,
    Check,
    Data,
    Node,
    check_all,
    disk_check,
    driver_check,
    estimate_models,
)
from trainref_ray.distributed.node_facts import NodeFacts, Visit, look_around
from trainref_ray.distributed.session import Cluster, is_own_ray
from trainref_ray.errors import ResourceError, ResumeError, ShardError
from trainref_ray.models.precision import use_bf16
from trainref_ray.progress import Reporter
from trainref_ray.run import Storage

LOOK_SAMPLES = 64
"""Samples of the first shard from whose size their number in all shards is estimated."""
SAME_EVERYWHERE = "every node needs it: a shared file system at the same path, or an object-store URL"
SAME_VERSIONS = "use one image or one environment (requirements.lock) on every node"


def preflight(
    config: Config, storage: Storage, cluster: Cluster, inputs: Inputs, *, data_exists: bool = True
) -> list[Check]:
    """Every check, on the Ray that is connected.

    Args:
        config: all settings.
        storage: of the run; a small file is written into it and removed.
        cluster: the plan for this Ray.
        inputs: shards, class names and references as the driver found them.
        data_exists: whether the shards lie where the workers will read them; not for the embedded sample before a run.

    Raises:
        ResumeError: the run folder cannot be written to.
        ShardError: the first shard cannot be read.
    """
    ends = _ends(inputs.shards) + _ends(inputs.test_shards) if data_exists else ()
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = node_names(alive)
    with run_folder_probe(storage, ends) as visit:
        here = look_around(visit, "driver")
        # Of one node that this process has started there is nothing to ask: it is this machine.
        answers = {} if is_own_ray() and len(alive) == 1 else ask_nodes(visit, names, config.resources.timeout)
        answers = {node: _with_answer_seen(visit, node, answer) for node, answer in answers.items()}
    facts = {node: answer for node, answer in answers.items() if isinstance(answer, NodeFacts)}
    checks = [*_silent(answers, names), version_check(here, facts, names), *place_checks(here, facts, names, storage)]
    nodes = [_node(node, names[node["NodeID"]], facts.get(node["NodeID"], here)) for node in alive]
    return [*checks, *estimates(config, cluster, nodes, about(inputs, config.limit), here)]


def estimates(config: Config, cluster: Cluster, nodes: list[Node], data: Data, here: NodeFacts) -> list[Check]:
    """Needs of the stages, counted, against the nodes and the driver's machine."""
    try:
        bf16 = use_bf16(cluster.bf16, cluster.device)
        models = estimate_models(config, data.classes, bf16=bf16)
    except ValueError as error:
        return [Check("model", config.backbone, str(error), ERROR, "choose another backbone or image_size")]
    checks = check_all(config, cluster, nodes, data, models)
    checks.append(driver_check(config, data, models.training.width, here.memory))
    if here.disk_free is not None:
        checks.append(disk_check(config, data, models, here.disk_free))
    return checks


def warm_up() -> None:
    """Begin to import what torch needs before it counts memory, 3 s on two cores, while Ray is being started."""
    Thread(target=import_module, args=("torch._dynamo",), name="preflight", daemon=True).start()


def tell(checks: Sequence[Check], reporter: Reporter) -> None:
    """Say each warning in a line, and stop at the first error; nothing is said when all is well.

    Raises:
        ResourceError: a check failed.
    """
    for check in checks:
        if check.verdict == WARNING:
            reporter.message(f"warning: {check.line}")
    errors = [check for check in checks if check.verdict == ERROR]
    if errors:
        more = f" ({len(errors) - 1} more: trainref doctor shows them)" if len(errors) > 1 else ""
        raise ResourceError(errors[0].line + more)


# Asking the nodes ----------------------------------------------------------------------------------------------------


@contextmanager
def run_folder_probe(storage: Storage, shards: tuple[tuple[str, int], ...]) -> Iterator[Visit]:
    """A file in the run folder for as long as the context lasts, then it and the nodes' answers are removed, and the
    folder too if this made it.

    Raises:
        ResumeError: the run folder cannot be written to.
    """
    name = f"preflight-{uuid.uuid4().hex[:8]}"
    visit = Visit(storage, name, uuid.uuid4().bytes, shards)
    made = _missing_folders(storage)
    try:
        storage.write_bytes(name, visit.content)
    except OSError as error:
        raise ResumeError(f"{storage.location()} cannot be written to: {error}") from None
    try:
        yield visit
    finally:
        for left in storage.names(""):
            if left.startswith(name):
                storage.remove(left)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else has begun to use it
                folder.rmdir()


def _missing_folders(storage: Storage) -> list[Path]:
    """Folders of the path to the run folder that do not exist yet, innermost first."""
    if not storage.is_local:
        return []
    folder = Path(storage.location())
    return [path for path in (folder, *folder.parents) if not path.exists()]


def ask_nodes(visit: Visit, names: dict[str, str], timeout: float) -> dict[str, NodeFacts | str]:
    """What each node finds, by its id, or why it did not answer."""
    deadline = time.monotonic() + timeout
    task = ray.remote(look_around)
    asked = {
        node: task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(visit, node)
        for node in names
    }
    return {node: _answer(reference, deadline - time.monotonic()) for node, reference in asked.items()}


def _answer(reference: Any, seconds: float) -> NodeFacts | str:
    try:
        return ray.get(reference, timeout=max(0.0, seconds))
    except ray.exceptions.GetTimeoutError:
        return "no answer in time (resources.timeout)"
    except (ray.exceptions.RayError, ImportError) as error:  # e.g. this package is not there
        lines = str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__]
        return lines[-1]


def _with_answer_seen(visit: Visit, node: str, answer: NodeFacts | str) -> NodeFacts | str:
    """The node's facts, with a problem more if the file it says it has written is not there for the driver."""
    if isinstance(answer, str) or any(place == visit.storage.location() for place, _ in answer.problems):
        return answer
    if visit.storage.exists(visit.answer(node)):
        return answer
    problem = (visit.storage.location(), "a file that was written there is not seen by the driver")
    return replace(answer, problems=(*answer.problems, problem))


def node_names(alive: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Each node's address by its id, with the beginning of the id where several nodes have one address."""
    addresses = [node["NodeManagerAddress"] for node in alive]
    return {
        node["NodeID"]: address if addresses.count(address) == 1 else f"{address} (node {node['NodeID'][:6]})"
        for node, address in zip(alive, addresses, strict=True)
    }


def _node(node: dict[str, Any], name: str, facts: NodeFacts) -> Node:
    resources = node["Resources"]
    return Node(
        address=name,
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=resources.get("memory", float(facts.memory)),
        object_store=resources.get("object_store_memory", 0.0),
        gpu_memory=facts.gpu_memory,
    )


# What the nodes have said --------------------------------------------------------------------------------------------


def _silent(answers: dict[str, NodeFacts | str], names: dict[str, str]) -> list[Check]:
    advice = "see whether it has this package and its dependencies, or take it out of the cluster"
    return [
        Check(f"node {names[node]}", "an answer", answer, ERROR, advice)
        for node, answer in answers.items()
        if isinstance(answer, str)
    ]


def version_check(driver: NodeFacts, facts: dict[str, NodeFacts], names: dict[str, str]) -> Check:
    """Versions of every node against the driver's; the first node and package that differ."""
    for node, found in facts.items():
        for package, wanted in driver.versions.items():
            there = found.versions.get(package, "missing")
            if there != wanted:
                needed = f"{package} {wanted}, the driver's"
                return Check("versions", needed, f"{there} on {names[node]}", ERROR, SAME_VERSIONS)
    shown = ", ".join(f"{name} {number}" for name, number in driver.versions.items())
    return Check("versions", shown, f"the same on {_count(facts)}", OK)


def place_checks(
    driver: NodeFacts, facts: dict[str, NodeFacts], names: dict[str, str], storage: Storage
) -> list[Check]:
    """What a node (or the driver) cannot read or write, each named; else one line that says all can."""
    problems = [("the driver", problem) for problem in driver.problems]
    problems += [(names[node], problem) for node, found in facts.items() for problem in found.problems]
    checks = [
        Check(
            "run folder" if place == storage.location() else "data",
            place,
            f"{who}: {reason}",
            ERROR,
            SAME_EVERYWHERE,
        )
        for who, (place, reason) in problems
    ]
    return checks or [Check("data and run folder", "readable, the folder writable", f"so on {_count(facts)}", OK)]


def _count(facts: dict[str, NodeFacts]) -> str:
    return f"{len(facts)} node{'s' if len(facts) > 1 else ''}" if facts else "this machine"


# How much data -------------------------------------------------------------------------------------------------------


def _ends(shards: Sequence[ShardRead]) -> tuple[tuple[str, int], ...]:
    """First and last shard, url and bytes."""
    return tuple({shard.url: shard.bytes for shard in [*shards[:1], *shards[-1:]]}.items())


def about(inputs: Inputs, limit: int | None) -> Data:
    """How much data there is, from the sizes of the tars and a look at the first.

    Raises:
        ShardError: the first shard cannot be read.
    """
    sample = bytes_per_sample(inputs.shards[0].url)

    def samples(shards: Sequence[ShardRead]) -> int:
        return sum(round(shard.bytes / sample) for shard in shards)

    largest = max(round(shard.bytes / sample) for shard in [*inputs.shards, *inputs.test_shards])
    train = samples(inputs.shards)
    if limit is not None:
        train, largest = min(train, limit), min(largest, limit)
    classes = len(inputs.class_names) if inputs.class_names else TYPICAL_CLASSES
    return Data(max(1, train), samples(inputs.test_shards), max(1, largest), classes)


class _CountingStream(io.RawIOBase):
    """Counts what is read; streams from a store do not know their position."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self.count += len(content)
        return content


def bytes_per_sample(url: str) -> float:
    """Bytes of a tar for each of its first samples, headers and padding included.

    Raises:
        ShardError: it cannot be read.
    """
    try:
        with open_shard(url) as stream:
            counting = _CountingStream(stream)
            seen = sum(1 for _ in islice(iter_raw_samples(cast(BinaryIO, counting), max_bytes=0), LOOK_SAMPLES))
            return counting.count / max(1, seen)
    except OSError as error:
        raise ShardError(f"{url} cannot be read: {error}") from None
