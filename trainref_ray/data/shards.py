"""WebDataset tar shards: found by patterns, opened, checked, counted, and written."""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
from braceexpand import braceexpand

from trainref_ray.data.tar_reader import BLOCK, iter_raw_samples, split_name
from trainref_ray.errors import ShardError
from trainref_ray.stores import identity, locate

READ_BYTES = 2**20
"""Bytes of a read. On a local disk 64 KiB to 4 MiB are equally fast (22,000 to 27,000 samples a second and core, not
decoded); object stores want few, large requests."""

TEST_SPLITS = frozenset({"test", "val", "valid", "validation", "dev", "imagenet"})
"""First parts of the names of shards that nobody trains on; imagenet is `prepare`'s second test set of WebVision."""

PART_SUFFIX = ".part"
"""End of the names of files that are being written; after a kill they are left over."""


@dataclass(frozen=True)
class ShardFile:
    """A tar that exists: absolute path or URL, its identity (`stores.identity`), size in bytes."""

    url: str
    etag: str
    bytes: int


def resolve_shards(patterns: Sequence[str]) -> list[ShardFile]:
    """Every shard that the patterns name, sorted by url, each once.

    Args:
        patterns: each a file, a folder (its `*.tar`), a glob (`*`, `[...]` and, on disks, `?` in any part of the path),
            a brace pattern (`train-{000..127}.tar`: all of them must exist), or a URL of any of these.

    Raises:
        ShardError: a pattern matches nothing, a member of a brace pattern is missing, or a store cannot be reached.
    """
    found = {file.url: file for pattern in patterns for file in _listed(pattern)}
    return [found[url] for url in sorted(found)]


def resolve_split(patterns: Sequence[str]) -> list[ShardFile]:
    """As `resolve_shards`, for what is trained or tested on: of each pattern the shards of one split.

    `trainref prepare` and others write `SPLIT-000000.tar` of all splits into one folder.

    Raises:
        ShardError: as there; or a pattern, such as a folder, matches training shards and those of a test set that it
            does not name.
    """
    found: dict[str, ShardFile] = {}
    for pattern in patterns:
        files = resolve_shards([pattern])
        splits = {shard_name(file.url).rpartition("-")[0] for file in files}
        named = shard_name(pattern) if ".tar" in pattern else ""  # else it is a folder, whatever that is called
        tests = sorted(split for split in splits & TEST_SPLITS if split not in named)
        if "train" in splits and tests:
            matched = ", ".join(f"{split}-*.tar" for split in ["train", *tests])
            raise ShardError(f"shards {pattern!r} are of several splits ({matched}); name one, e.g. DIR/train-*.tar")
        found.update((file.url, file) for file in files)
    return [found[url] for url in sorted(found)]


def _listed(pattern: str) -> list[ShardFile]:
    try:
        return _resolve(pattern)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(f"shards {pattern!r} cannot be listed: {error}") from None


def _resolve(pattern: str) -> list[ShardFile]:
    try:
        names = list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError:
        raise ShardError(f"shards {pattern!r}: braces do not match; right is e.g. train-{{000..127}}.tar") from None
    files: list[ShardFile] = []
    for name in names:
        base, query = name.split("?", 1) if "://" in name and "?" in name else (name, "")
        matches = _matches(base, query)
        if not matches:
            member = f" (first missing: {name})" if len(names) > 1 else ""
            raise ShardError(f"no shard matches {pattern!r}{member}")
        files += matches
    return files


def _matches(base: str, query: str) -> list[ShardFile]:
    """Files of a path or URL that may hold wildcards, walked folder by folder."""
    parts = base.split("/")
    wild = [position for position, part in enumerate(parts) if any(mark in part for mark in "*?[")]
    first = wild[0] if wild else len(parts)
    fixed = "/".join(parts[:first]) or ("." if first == 0 else "/")
    filesystem, root = locate(f"{fixed}?{query}" if query else fixed)
    # A local file is always written as its absolute path, so that one file has one url and any worker finds it.
    prefix = root if isinstance(filesystem, pafs.LocalFileSystem) else fixed.rstrip("/")
    suffix = f"?{query}" if query else ""
    infos = filesystem.get_file_info([root])
    for part in parts[first:]:
        below = [
            entry
            for info in infos
            if info.type == pafs.FileType.Directory
            for entry in filesystem.get_file_info(pafs.FileSelector(info.path, allow_not_found=True))
        ]
        infos = [
            info
            for info in below
            if fnmatch.fnmatchcase(info.base_name, part) and info.base_name.startswith(".") == part.startswith(".")
        ]
    if not wild and infos[0].type == pafs.FileType.Directory:
        infos = [
            info
            for info in filesystem.get_file_info(pafs.FileSelector(root))
            if info.extension == "tar" and not info.base_name.startswith(".")
        ]
    return [
        ShardFile(prefix + info.path[len(root) :] + suffix, identity(filesystem, info), info.size)
        for info in infos
        if info.type == pafs.FileType.File
    ]


def open_shard(url: str) -> BinaryIO:
    """A buffered binary stream from the start of a shard. Raises OSError if there is none or the store fails."""
    filesystem, path = locate(url)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return open(path, "rb", buffering=READ_BYTES)
    return filesystem.open_input_stream(path, compression=None, buffer_size=READ_BYTES)


def check_end(url: str, size: int) -> str | None:
    """What is wrong with the end of a tar of `size` bytes, as a sentence without a subject; None if nothing is.

    It reads the last 1,024 bytes alone: a whole tar is a multiple of 512 bytes long and ends in two blocks of zeros.

    Raises:
        ShardError: they cannot be read.
    """
    if size < 2 * BLOCK or size % BLOCK:
        return f"is cut off or no tar: {size:,} bytes are not a whole number of 512-byte blocks, two at least"
    filesystem, path = locate(url)
    try:
        with filesystem.open_input_file(path) as file:
            file.seek(size - 2 * BLOCK)
            last = file.read(2 * BLOCK)
    except OSError as error:
        raise ShardError(f"{url} cannot be read: {error}") from None
    if any(last):
        return f"is cut off: its last 1,024 of {size:,} bytes are not the zeros that end a tar"
    return None


def count_samples(url: str, *, stop_after: int | None = None) -> int:
    """Rows that `iter_raw_samples` gives of a shard, at most `stop_after`; nothing is held in memory."""
    return sum(1 for _ in sample_keys(url, stop_after=stop_after))


def shard_name(url: str) -> str:
    """The file's name without extension, and without the query that a URL may have."""
    return PurePosixPath(url.partition("?")[0] if "://" in url else url).stem


def sample_keys(url: str, *, stop_after: int | None = None) -> Iterator[str]:
    """Keys of a shard's samples in its order, at most `stop_after`; of the members the headers alone are kept.

    Raises:
        ShardError: the shard cannot be read.
    """
    try:
        with open_shard(url) as stream:
            for raw in islice(iter_raw_samples(stream, max_bytes=0), stop_after):
                yield raw.key
    except OSError as error:
        raise ShardError(f"{url} cannot be read: {error}") from None


class ShardWriter:
    """Writes samples to numbered tars, the same bytes for the same samples; a tar appears whole or not at all.

    Args:
        folder: local folder or object-store URL.
        pattern: name with one number, e.g. `train-%05d.tar`.
        shard_size: samples of a shard; the last one may have fewer.
    """

    def __init__(self, folder: str | Path, pattern: str, shard_size: int) -> None:
        if shard_size < 1:
            raise ValueError(f"shard_size is {shard_size}; at least 1 is needed")
        self._folder_url = str(folder)
        self._pattern = pattern
        self._shard_size = shard_size
        self._keys: set[str] = set()
        self._samples: list[tuple[str, Mapping[str, bytes]]] = []
        self.names: list[str] = []
        """Names of the tars written so far."""

    def __enter__(self) -> ShardWriter:
        filesystem, path = locate(self._folder_url)
        if isinstance(filesystem, pafs.LocalFileSystem):  # stores have no folders
            filesystem.create_dir(path, recursive=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._samples:
            self._flush()

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a sample; the bytes are stored as given.

        Raises:
            ValueError: the key came before, or would be read as another one.
        """
        check_key(key)
        if key in self._keys:
            raise ValueError(f"key {key!r} was written before")
        self._keys.add(key)
        self._samples.append((key, members))
        if len(self._samples) == self._shard_size:
            self._flush()

    def _flush(self) -> None:
        name = self._pattern % len(self.names)
        write_shard(self._folder_url, name, self._samples)
        self.names.append(name)
        self._samples = []


def check_key(key: str) -> None:
    """Raises ValueError for a key that would be read as another one, or leads out of a folder."""
    parts = split_name(f"{key}.x")
    if parts is None or parts[0] != key or key.startswith("/") or ".." in key.split("/"):
        raise ValueError(f"key {key!r} cannot be written: a file name without dots is needed, in a relative folder")


def write_shard(folder: str, name: str, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Write one tar into a folder that exists (or an object store); it appears whole or not at all.

    Args:
        folder: local folder or object-store URL.
        name: of the tar.
        samples: key and members of each sample, written as they come; the keys must be different.

    Returns:
        The tar's size in bytes.
    """
    filesystem, path = locate(folder)
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    target = str(PurePosixPath(path) / name)
    with tempfile.NamedTemporaryFile(
        dir=path if is_local else None, prefix=f".{name}.", suffix=PART_SUFFIX, delete=False
    ) as aside:
        try:
            write_tar(aside, samples)
            aside.flush()
            size = aside.tell()
            if is_local:
                os.chmod(aside.name, 0o644)  # the temporary file is its owner's alone
                os.replace(aside.name, target)
            else:
                aside.seek(0)
                with filesystem.open_output_stream(target, compression=None) as output:
                    shutil.copyfileobj(aside, output, READ_BYTES)
        finally:
            Path(aside.name).unlink(missing_ok=True)
    return size


def write_tar(stream: IO[bytes], samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write (key, members) as one tar, times, owners and modes fixed, so that equal samples give equal bytes."""
    from webdataset.writer import TarWriter  # here: it costs an import of torch

    with TarWriter(stream, encoder=False, compress=False, mtime=0, user="", group="", mode=0o644) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
