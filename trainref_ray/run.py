"""A run on a disk or in an object store: stage folders, done markers, and the lock that keeps one job in it.

A shard of a stage is done if and only if its marker exists, carries the stage's fingerprint and the shard's etag, and
its rows add up. Data is written first, the marker last, so a kill at any moment loses the unfinished shard and no more.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from trainref_ray.errors import ResumeError
from trainref_ray.stores import locate

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
"""A lock of another machine that has not been renewed for this long is taken over: twelve missed heartbeats."""
CLAIM_POLL_SECONDS = 0.2
"""Between two looks whether a stage that another curation computes is free, or whether a silent owner is alive."""
OBJECT_STORE_SETTLE_SECONDS = 2.0
"""Object stores have no exclusive create: the lock is written, and is ours if it is still ours after this."""


@dataclass(frozen=True)
class Storage:
    """Files below one root, an absolute path or an object-store URL; small enough to be sent to workers."""

    root: str

    @property
    def is_local(self) -> bool:
        """Whether the root is a path of this machine (or of a shared file system)."""
        return "://" not in self.root or self.root.startswith("file://")

    def resolved(self, path: str) -> tuple[pafs.FileSystem, str]:
        """The file system, and the path of `path` in it."""
        if self.is_local:
            return pafs.LocalFileSystem(), str(Path(self.root.removeprefix("file://")) / path)
        filesystem, base = locate(self.root)
        return filesystem, f"{base.rstrip('/')}/{path}".rstrip("/")

    def location(self, path: str = "") -> str:
        """Full path or URL of `path`, for messages and for other libraries."""
        if self.is_local:
            return self.resolved(path)[1]
        base, mark, query = self.root.partition("?")
        return f"{base.rstrip('/')}/{path}".rstrip("/") + mark + query

    def below(self, path: str) -> Storage:
        """The storage of a folder of this one."""
        return Storage(self.location(path))

    def above(self, levels: int) -> Storage:
        """The folder so many levels above the root."""
        base, mark, query = self.root.partition("?") if "://" in self.root else (self.root, "", "")
        return Storage("/".join(base.rstrip("/").split("/")[:-levels]) + mark + query)

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder at `path`."""
        filesystem, full = self.resolved(path)
        return filesystem.get_file_info(full).type != pafs.FileType.NotFound

    def size(self, path: str) -> int | None:
        """Bytes of the file at `path`; None if there is none."""
        filesystem, full = self.resolved(path)
        return filesystem.get_file_info(full).size

    def names(self, path: str) -> list[str]:
        """Sorted names of the files and folders in `path`; empty if there is no such folder."""
        filesystem, full = self.resolved(path)
        entries = filesystem.get_file_info(pafs.FileSelector(full, allow_not_found=True))
        return sorted(entry.base_name for entry in entries)

    def read_bytes(self, path: str) -> bytes:
        """Content of a file."""
        filesystem, full = self.resolved(path)
        while True:
            with filesystem.open_input_stream(full) as stream:
                content = stream.read()
            # a file of an object store that is replaced while it is opened comes cut at the size it had before
            if self.is_local or self.size(path) in (None, len(content)):
                return content

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file whole: a reader sees the old content or the new one, never a part."""
        filesystem, full = self.resolved(path)
        if not self.is_local:
            with filesystem.open_output_stream(full) as stream:
                stream.write(content)
            return
        filesystem.create_dir(str(Path(full).parent), recursive=True)
        aside = f"{full}.{uuid.uuid4().hex[:8]}.part"
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, full)

    def read_json(self, path: str) -> Any:
        """Content of a JSON file."""
        return json.loads(self.read_bytes(path))

    def write_json(self, path: str, content: Any) -> None:
        """Write a JSON file whole."""
        self.write_bytes(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())

    def read_tensors(self, path: str) -> dict[str, np.ndarray]:
        """Content of a safetensors file."""
        return load_safetensors(self.read_bytes(path))

    def write_tensors(self, path: str, tensors: dict[str, np.ndarray]) -> None:
        """Write a safetensors file whole."""
        self.write_bytes(path, save_safetensors(tensors))

    def read_table(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Content of a Parquet file.

        Read into Arrow's own memory, and in this thread: an Arrow thread that lets go of Python's bytes while the
        interpreter ends aborts the process (seen in 4 of 10 commands that ended right after a read).
        """
        filesystem, full = self.resolved(path)
        with filesystem.open_input_stream(full) as stream:
            content = stream.read_buffer()
        table = pq.ParquetFile(pa.BufferReader(content)).read(columns=columns, use_threads=False)
        return table if columns is None else table.select(columns)

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file whole."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(path, sink.getvalue().to_pybytes())

    def upload(self, folder: Path, path: str) -> None:
        """Copy the files of a local folder to `path`."""
        for file in sorted(folder.iterdir()):
            self.write_bytes(f"{path}/{file.name}", file.read_bytes())

    def download(self, path: str, folder: Path) -> Path:
        """Copy the files of `path` to a local folder, and return it; a local `path` is returned as it is."""
        if self.is_local:
            return Path(self.location(path))
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.names(path):
            (folder / name).write_bytes(self.read_bytes(f"{path}/{name}"))
        return folder

    def remove(self, path: str) -> None:
        """Remove a file or folder, if there is one."""
        filesystem, full = self.resolved(path)
        kind = filesystem.get_file_info(full).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(full)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(full)


@dataclass(frozen=True)
class Stage:
    """One stage of one round: a folder with a table a shard, or with the files of a model.

    `round` is 0 for what comes before the first curation.
    """

    storage: Storage
    name: str
    round: int
    fingerprint: str

    @property
    def folder(self) -> str:
        """Path of the stage inside the run."""
        place = "inventory" if self.name in ("inventory", "truth") else f"round-{self.round}"
        return f"{place}/{self.name}-{self.fingerprint}"

    def path(self, name: str) -> str:
        """Path of a file of the stage inside the run."""
        return f"{self.folder}/{name}"

    def _marker(self, shard_id: int) -> str:
        return self.path(f"done/{shard_id:06d}.json")

    def _table(self, shard_id: int) -> str:
        return self.path(f"shards/{shard_id:06d}.parquet")

    def read_shard(self, shard_id: int, columns: list[str] | None = None) -> pa.Table:
        """The table of a shard."""
        return self.storage.read_table(self._table(shard_id), columns)

    def write_shard(self, shard_id: int, etag: str, table: pa.Table, *, ok: int, quarantined: int) -> None:
        """Write a shard's table, then its marker."""
        self.storage.write_table(self._table(shard_id), table)
        marker = {"fingerprint": self.fingerprint, "etag": etag, "ok": ok, "quarantined": quarantined}
        self.storage.write_json(self._marker(shard_id), marker)

    def done_shards(self) -> dict[int, dict[str, Any]]:
        """Markers of the finished shards, by shard id. A marker that cannot be read does not count."""
        markers = {}
        for name in self.storage.names(self.path("done")):
            if name.endswith(".json"):
                try:
                    marker = self.storage.read_json(self.path(f"done/{name}"))
                except ValueError:
                    continue
                if marker.get("fingerprint") == self.fingerprint:
                    markers[int(name.removesuffix(".json"))] = marker
        return markers

    def is_done(self) -> bool:
        """Whether a stage that is not split by shards has finished."""
        return self.storage.exists(self.path("done.json"))

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Mark a stage that is not split by shards as finished; `facts` are kept in the marker."""
        self.storage.write_json(self.path("done.json"), {"fingerprint": self.fingerprint, **facts})

    def facts(self) -> dict[str, Any]:
        """What `finish` was given."""
        return self.storage.read_json(self.path("done.json"))


class RunLock:
    """Keeps one job in a folder: a file with the owner and a heartbeat.

    A lock is taken over when its owner is dead: on the same machine when that process is gone, on another one when the
    heartbeat is older than `STALE_SECONDS`. A job that a cluster starts again on another machine may come before that:
    it waits for the owner's next heartbeat.

    Args:
        storage: the folder.
        tell: is called with a sentence before such a wait.
    """

    PATH = "lock.json"

    def __init__(self, storage: Storage, tell: Callable[[str], None] = lambda sentence: None) -> None:
        self.storage = storage
        self.tell = tell
        self.token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            ResumeError: another job that is alive owns the run folder.
        """
        if not self.take() and not self._outlast():
            owner = self._read()
            who = "has just taken" if owner is None else "is working in"
            about = (
                ""
                if owner is None
                else (
                    f" (process {owner['pid']} on {owner['host']}, last sign of life "
                    f"{max(0.0, time.time() - owner['heartbeat']):.0f} s ago)"
                )
            )
            raise ResumeError(
                f"{self.storage.location()}: another job {who} this run folder{about}; wait for it, or choose another "
                "--out"
            )
        return self

    def take(self) -> bool:
        """Take the lock, unless somebody who is alive has it; says whether it is taken now.

        Raises:
            ResumeError: the folder cannot be written to.
        """
        owner = self._read()
        if owner is not None:
            if _is_alive(owner):
                return False
            self._discard(owner)
        else:
            self._discard_leftover()
        if not self._create():
            return False
        self._thread.start()
        return True

    def _outlast(self) -> bool:
        """Wait for a sign of life of an owner on another machine; says whether there was none and the lock is taken."""
        owner = self._read()
        if owner is None or owner["host"] == socket.gethostname():
            return False
        self.tell(
            f"{self.storage.location()} was another job's a moment ago (process {owner['pid']} on {owner['host']}): "
            f"waiting for a sign of life, at most {STALE_SECONDS:g} s"
        )
        deadline = time.monotonic() + STALE_SECONDS
        while self._read() == owner and _is_alive(owner):
            if time.monotonic() >= deadline:
                self._discard(owner)  # its clock is ahead of ours, by which it would be alive for longer
                break
            time.sleep(CLAIM_POLL_SECONDS)
        return self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        owner = self._read()
        if owner is not None and owner["token"] == self.token:
            self.storage.remove(self.PATH)

    def check(self) -> None:
        """Called between stages.

        Raises:
            ResumeError: another job took the run folder over, e.g. after this machine slept.
        """
        if self._lost:
            raise ResumeError(f"{self.storage.location()}: another job took this run folder over; this one stops")

    def _read(self) -> dict[str, Any] | None:
        try:
            return self.storage.read_json(self.PATH) if self.storage.exists(self.PATH) else None
        except (ValueError, FileNotFoundError):
            return None

    def _content(self) -> dict[str, Any]:
        process = psutil.Process()
        return {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": process.pid,
            "process_started": process.create_time(),
            "heartbeat": time.time(),
        }

    def _discard(self, owner: dict[str, Any]) -> None:
        """Remove a dead owner's lock; of several jobs that try, the rename lets one succeed. One that comes late, and
        has taken away the lock of the job that succeeded, puts it back."""
        if not self.storage.is_local:
            self.storage.remove(self.PATH)
            return
        path = Path(self.storage.location(self.PATH))
        aside = path.with_name(f"lock.{owner['token'][:8]}.{self.token[:8]}.dead")
        with suppress(FileNotFoundError):
            os.rename(path, aside)
            if _token(aside) == owner["token"]:
                aside.unlink()
            else:
                os.rename(aside, path)

    def _discard_leftover(self) -> None:
        """Remove a lock that says nothing because its owner was killed while it made the file."""
        if not self.storage.is_local:
            return  # stores have whole files alone
        path = Path(self.storage.location(self.PATH))
        with suppress(OSError):  # `_create` tells what is wrong with the folder
            if time.time() - path.stat().st_mtime > STALE_SECONDS and _token(path) is None:
                path.unlink()

    def _create(self) -> bool:
        content = json.dumps(self._content()).encode()
        if self.storage.is_local:
            path = Path(self.storage.location(self.PATH))
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
            except OSError as error:
                raise ResumeError(f"{self.storage.location()} cannot be written to: {error}") from None
            return True
        try:
            self.storage.write_bytes(self.PATH, content)
        except OSError as error:
            raise ResumeError(f"{self.storage.location()} cannot be written to: {error}") from None
        time.sleep(OBJECT_STORE_SETTLE_SECONDS)
        owner = self._read()
        return owner is not None and owner["token"] == self.token

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                owner = self._read()
                if owner is None or owner["token"] != self.token:
                    self._lost = True
                    return
                self.storage.write_json(self.PATH, self._content())
            except OSError:
                continue  # the next beat tries again; eleven more may be missed


def _token(path: Path) -> str | None:
    """Whose lock a file is, None if it does not say."""
    try:
        return json.loads(path.read_bytes())["token"]
    except (ValueError, KeyError, TypeError):
        return None


def _is_alive(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return time.time() - owner["heartbeat"] < STALE_SECONDS
    try:
        return abs(psutil.Process(owner["pid"]).create_time() - owner["process_started"]) < 1.0
    except psutil.NoSuchProcess:
        return False


@contextmanager
def claimed(stages: Sequence[Stage]) -> Iterator[None]:
    """Hold stages while they are computed; waits for as long as somebody who is alive holds one of them.

    Everybody names stages in the order of the pipeline, so no two wait for each other.
    """
    with ExitStack() as held:
        for stage in stages:
            lock = RunLock(stage.storage.below(stage.folder))
            while not lock.take():
                time.sleep(CLAIM_POLL_SECONDS)
            held.callback(lock.__exit__, None, None, None)
        yield


INVENTORY_FILE = "inventory/inventory.parquet"
"""Which number each shard has in a run."""
RUN_FILE = "run.yaml"
SWEEP_FILE = "sweep.yaml"
COMPARE_FILE = "compare.yaml"
"""What marks the folder of a run, a sweep and a comparison; written before anything else."""
RESULTS = {
    RUN_FILE: ("round-", "inventory", "model", "report", "stages.json", "summary.json"),
    SWEEP_FILE: ("round-", "inventory", "trials", "report", "sweep.json", "best.yaml"),
    COMPARE_FILE: ("seed-", "report", "compare.json", "compare.md"),
}
"""What `--no-resume` removes from such a folder: these names, and all that begin with one that ends in a dash."""


def open_run(root: str, *, mark: str = RUN_FILE) -> Storage:
    """The storage of a run folder that is new, empty, or holds a run.

    Args:
        root: path or URL.
        mark: the file that such a folder has, a key of `RESULTS`.

    Raises:
        ResumeError: the folder holds something else than a run, or cannot be reached.
    """
    local = "://" not in root
    storage = Storage(str(Path(root).expanduser().absolute()) if local else root)  # workers have other working folders
    if storage.is_local and Path(storage.location()).is_file():
        raise ResumeError(f"{storage.location()} is a file; --out must be a folder")
    try:
        names = [name for name in storage.names("") if not name.startswith("lock.")]
    except OSError as error:
        raise ResumeError(f"{storage.location()} cannot be read: {error}") from None
    kind = mark.removesuffix(".yaml")
    if names and mark not in names:
        shown = ", ".join(names[:3])
        raise ResumeError(
            f"{storage.location()} holds something else than a {kind} ({shown}); --out must be the folder of a "
            f"{kind}, or a new or empty one"
        )
    return storage


def remove_results(storage: Storage, mark: str = RUN_FILE) -> None:
    """Remove `RESULTS` from a folder of which the lock is held."""
    for name in storage.names(""):
        if name in RESULTS[mark] or f"{name.partition('-')[0]}-" in RESULTS[mark]:
            storage.remove(name)
