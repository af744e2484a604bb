"""What one node says about itself before a run: versions, disk, GPUs, and whether it reaches the data.

Runs on every node, in a worker or in the driver, so it imports little and never fails: what is wrong is an answer.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from trainref_ray.data.shards import open_shard
from trainref_ray.run import Storage
from trainref_ray.stores import locate

PACKAGES = {
    "ray": ("ray",),
    "torch": ("torch",),
    "numpy": ("numpy",),
    "pyarrow": ("pyarrow",),
    "faiss": ("faiss-gpu", "faiss-cpu"),
}
"""What must be equal on all nodes, and the distributions that provide it."""
HEADER_BYTES = 512
"""Read of a shard: its first tar header."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node found.

    Attributes:
        versions: by name; `missing` where there is none.
        memory: bytes of the machine, or of the container if that has less.
        disk_free: free bytes where the run folder is; None for an object store.
        gpu_memory: bytes of each GPU, as the driver program lists them.
        problems: (place, reason) of what cannot be read or written.
    """

    versions: dict[str, str]
    memory: int
    disk_free: int | None
    gpu_memory: tuple[int, ...]
    problems: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Visit:
    """What a node is to try.

    Attributes:
        storage: of the run.
        probe: file that the driver has written into the run folder; the node answers beside it.
        content: of that file.
        shards: url and bytes of shards to open.
    """

    storage: Storage
    probe: str
    content: bytes
    shards: tuple[tuple[str, int], ...] = ()

    def answer(self, node: str) -> str:
        """The file that a node writes."""
        return f"{self.probe}-{node}"


def look_around(visit: Visit, node: str) -> NodeFacts:
    """All facts of this node, called `node` in the answer's file name."""
    problems = [(url, reason) for url, size in visit.shards if (reason := shard_problem(url, size)) is not None]
    folder_problem = run_folder_problem(visit, node)
    if folder_problem is not None:
        problems.append((visit.storage.location(), folder_problem))
    return NodeFacts(versions(), memory_bytes(), disk_free(visit.storage), gpu_memory(), tuple(problems))


def versions() -> dict[str, str]:
    """Python to the minor version, packages without the build (`2.9.0+cpu` and `2.9.0+cu128` are one release), and
    this package by a digest of its source, since a node may have an old copy of the same version."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name, distributions in PACKAGES.items():
        found[name] = next(filter(None, map(_version, distributions)), "missing")
    found["trainref-ray"] = f"source {source_digest(Path(__file__).parents[1])}"
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution).partition("+")[0]
    except PackageNotFoundError:
        return None


def source_digest(folder: Path) -> str:
    """Eight hexadecimal digits over names and content of a folder's Python files."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def memory_bytes() -> int:
    """Of the machine; of the container where a control group gives less."""
    total = psutil.virtual_memory().total
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(path).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def disk_free(storage: Storage) -> int | None:
    """Free bytes of the disk that the run folder is on, or will be."""
    if not storage.is_local:
        return None
    folder = Path(storage.location())
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def gpu_memory() -> tuple[int, ...]:
    """Bytes of each GPU; empty where there is none or its driver does not say. Not from torch: a task without a GPU
    sees none there."""
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(int(line) * 2**20 for line in done.stdout.split() if line.isdigit()) if done.returncode == 0 else ()


def shard_problem(url: str, size: int) -> str | None:
    """Why a shard cannot be read here as the driver saw it, or None."""
    try:
        filesystem, path = locate(url)
        here = filesystem.get_file_info(path).size
        if here is None:
            return "there is no such file"
        if here != size:
            return f"it has {here:,} bytes there and {size:,} for the driver: not the same file"
        with open_shard(url) as stream:
            stream.read(HEADER_BYTES)
    except Exception as error:  # stores raise errors of many libraries; each is the answer
        return _line(error)
    return None


def run_folder_problem(visit: Visit, node: str) -> str | None:
    """Why the driver's run folder is not reached from here, or None; leaves this node's answer in it."""
    storage = visit.storage
    try:
        if not storage.exists(visit.probe):
            return "the file that the driver has just written is not there: another folder of the same name"
        if storage.read_bytes(visit.probe) != visit.content:
            return "the file that the driver has just written has another content there"
        storage.write_bytes(visit.answer(node), visit.content)
        if storage.read_bytes(visit.answer(node)) != visit.content:
            return "a file that was written there is read back with another content"
    except Exception as error:  # as above
        return _line(error)
    return None


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
