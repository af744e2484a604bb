"""Shards of sources that are lists of files: planned as a whole, written one by one, in any order and by any process.

A shard is finished if and only if its tar and its marker `done/SHARD.json` are there and the marker carries the
settings' fingerprint and the tar's size. The tar is written first, the marker last, both aside and then renamed. What a
shard holds follows from the lists and the settings alone, so an interrupted writing goes on with the missing shards, to
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from trainref_ray.data.prepare import (
    FORMAT_VERSION,
    MARKER,
    MISSING_SHOWN,
    PrepareResult,
    missing_name,
    open_storage,
    write_classes,
    written_before,
)
from trainref_ray.data.shards import PART_SUFFIX, check_key, write_shard
from trainref_ray.data.sources import ListedFile, ListedSource
from trainref_ray.errors import ConfigError, ShardError
from trainref_ray.run import Storage

DONE = "done"
PROBED_FILES = 100
"""Files looked for before anything is written: if none of the first so many is there, in their random order, the root
is wrong."""


@dataclass(frozen=True)
class ListedShard:
    """A shard to be written: small enough to be sent to a worker.

    Attributes:
        out: root of the storage.
        name: of the tar.
        fingerprint: of the settings and the lists.
        root: folder of the files; every worker must see it.
        files: in the shard's order.
        known_truth: whether labels are written as true labels too.
    """

    out: str
    name: str
    fingerprint: str
    root: str
    files: list[ListedFile]
    known_truth: bool


@dataclass(frozen=True)
class ListedJob:
    """A split that is to be written.

    Attributes:
        storage: the folder of the shards.
        split: first part of the shards' names.
        settings: what the shards depend on, as `prepare.json` holds it.
        source: the list.
        shards: all shards of the split.
    """

    storage: Storage
    split: str
    settings: dict[str, Any]
    source: ListedSource
    shards: list[ListedShard]


def begin(source: ListedSource, out: str, *, split: str, seed: int, shard_size: int) -> ListedJob | PrepareResult:
    """Plan the shards of a split and write the settings, or give the result if they are all there.

    The list is shuffled: lists are sorted by class, and training streams shards through a buffer that is smaller than
    some classes.

    Args:
        source: the list.
        out: folder or object-store URL.
        split: first part of the shards' names.
        seed: of the order.
        shard_size: files of a shard.

    Raises:
        ConfigError: other shards of this split, or other classes, are in the folder; a key that no tar can hold; or
            none of a sample of the files is there.
    """
    storage = open_storage(out)
    settings = {
        "version": FORMAT_VERSION,
        "source": source.name,
        "list": _digest(source),
        "samples": len(source.files),
        "seed": seed,
        "shard_size": shard_size,
    }
    markers = storage.read_json(MARKER) if storage.exists(MARKER) else {}
    before = written_before(storage, markers, split, settings)
    if before is not None:
        return before
    job = ListedJob(storage, split, settings, source, _plan(source, storage.root, split, settings))
    _probe(job)
    write_classes(storage, source.class_names)
    # The settings stand there before the first shard, so that an interrupted writing may be started again.
    storage.write_json(MARKER, {**markers, split: {"settings": settings, "result": None}})
    return job


def _digest(source: ListedSource) -> str:
    digest = hashlib.sha256(str(source.known_truth).encode())
    for file in source.files:
        digest.update(f"{file.key}\t{file.path}\t{file.extension}\t{file.label}\t{file.extra}\n".encode())
    return digest.hexdigest()[:16]


def _plan(source: ListedSource, out: str, split: str, settings: Mapping[str, Any]) -> list[ListedShard]:
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    for file in source.files:
        try:
            check_key(file.key)
        except ValueError as error:
            raise ConfigError(f"{source.root / file.path}: {error}") from None
    order = np.random.default_rng([settings["seed"], len(source.files)]).permutation(len(source.files)).tolist()
    size = settings["shard_size"]
    return [
        ListedShard(
            out,
            f"{split}-{number:05d}.tar",
            fingerprint,
            str(source.root),
            [source.files[row] for row in order[start : start + size]],
            source.known_truth,
        )
        for number, start in enumerate(range(0, len(order), size))
    ]


def _probe(job: ListedJob) -> None:
    """Files that are missing are counted, but if all are, it is a mistake that should not cost hours to see."""
    files = list(islice(chain.from_iterable(shard.files for shard in job.shards), PROBED_FILES))
    if not any((job.source.root / file.path).exists() for file in files):
        raise ConfigError(
            f"none of {len(files)} files drawn from the lists is in {job.source.root}, the first being "
            f"{files[0].path}; are the images unpacked there?"
        )


def clear_leftovers(job: ListedJob) -> None:
    """Remove what a killed writing has left half written. No other process may be writing this split."""
    for folder, start in (("", f".{job.split}-"), (f"{DONE}/", f"{job.split}-")):
        for name in job.storage.names(folder):
            if name.startswith(start) and name.endswith(PART_SUFFIX):
                job.storage.remove(f"{folder}{name}")


def finished(job: ListedJob) -> dict[str, dict[str, Any]]:
    """Markers of the finished shards, by the name of the tar."""
    tars = set(job.storage.names(""))
    markers = set(job.storage.names(DONE))
    found = {}
    for shard in job.shards:
        if shard.name in tars and _marker_name(shard.name) in markers:
            marker = _read_marker(job.storage, shard)
            if marker is not None:
                found[shard.name] = marker
    return found


def _marker_name(tar: str) -> str:
    return tar.removesuffix(".tar") + ".json"


def _read_marker(storage: Storage, shard: ListedShard) -> dict[str, Any] | None:
    try:
        marker = storage.read_json(f"{DONE}/{_marker_name(shard.name)}")
    except ValueError:
        return None
    whole = marker.get("fingerprint") == shard.fingerprint and marker.get("bytes") == storage.size(shard.name)
    return marker if whole else None


def write_listed_shard(shard: ListedShard) -> dict[str, Any]:
    """Write a shard and its marker, and return the marker.

    Files that are not there are left out and listed in the marker.

    Raises:
        ShardError: this process does not see the folder of the files.
        OSError: a file that is there cannot be read, or the shard cannot be written.
    """
    if not Path(shard.root).is_dir():
        raise ShardError(f"{shard.root} is not there on {socket.gethostname()}; every worker must see the images")
    storage = Storage(shard.out)
    missing: list[str] = []
    size = write_shard(storage.location(), shard.name, _members(shard, missing))
    marker = {
        "fingerprint": shard.fingerprint,
        "bytes": size,
        "samples": len(shard.files) - len(missing),
        "missing": missing,
    }
    storage.write_json(f"{DONE}/{_marker_name(shard.name)}", marker)
    return marker


def _members(shard: ListedShard, missing: list[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each file that is there; the paths of the others are added to `missing`."""
    for file in shard.files:
        try:
            image = Path(shard.root, file.path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            missing.append(file.path)
            continue
        facts = {"label": file.label, "source": file.path, **file.extra}
        if shard.known_truth:
            facts["true_label"] = file.label
        yield file.key, {file.extension: image, "json": json.dumps(facts, sort_keys=True).encode()}


def finish(job: ListedJob, markers: Mapping[str, Mapping[str, Any]]) -> PrepareResult:
    """Write the list of missing files and the result.

    Args:
        job: the split.
        markers: of all its shards, by the name of the tar.

    Raises:
        ConfigError: not one file was there.
    """
    missing = [(path, shard.name) for shard in job.shards for path in markers[shard.name]["missing"]]
    samples = sum(marker["samples"] for marker in markers.values())
    if not samples:
        raise ConfigError(f"none of the {len(missing):,} files of the lists is in {job.source.root}")
    name = missing_name(job.split)
    job.storage.remove(name)
    if missing:
        job.storage.write_bytes(name, "".join(f"{path}\t{shard}\n" for path, shard in missing).encode())
    result = PrepareResult(
        job.split,
        tuple(shard.name for shard in job.shards),
        samples,
        wrong=0 if job.source.known_truth else None,
        foreign=0,
        ignored_files=job.source.ignored_files,
        missing=len(missing),
        first_missing=tuple(path for path, _ in missing[:MISSING_SHOWN]),
    )
    entries = job.storage.read_json(MARKER)
    entries[job.split] = {"settings": job.settings, "result": asdict(result)}
    job.storage.write_json(MARKER, entries)
    return result
