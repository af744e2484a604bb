"""Strict reading of a WebDataset tar in one pass.

Python's own tar reader stops without a word at a damaged header or where a file is cut off between two members, so
headers are walked here: what cannot be read becomes a row that says where and why.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

BLOCK = tarfile.BLOCKSIZE
SHARD_ERROR_KEY = "<shard>"
"""Key of the one row that stands for what a damaged shard does not give."""
MAX_HEADER_BYTES = 2**20
"""Extended headers hold names and times; a longer one is damage, and would be read into memory whole."""
SKIP_BYTES = 2**20
"""Bytes held at once while a member is passed over."""


@dataclass
class RawSample:
    """The members of one key, undecoded.

    Attributes:
        key: path up to the first dot of the file name, as WebDataset has it.
        members: extension in lower case, without the key and its dot, to content.
        error: why the sample cannot be used, or None.
    """

    key: str
    members: dict[str, bytes] = field(default_factory=dict)
    error: str | None = None


class _DamageError(Exception):
    """The tar cannot be read on from here; the text says where and why."""


@dataclass
class _Header:
    name: str
    size: int
    kind: bytes


class _TarReader:
    """Headers and data of a tar in one pass, with the position of every fault. Raises `_DamageError`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.position = 0

    def headers(self) -> Iterator[_Header]:
        """Members up to the end blocks; each one's data must be taken (`data` or `skip`) before the next."""
        names: dict[str, str] = {}
        while True:
            at = self.position
            block = self._read(BLOCK, "in the header of a member")
            if not any(block):
                self._check_end()
                return
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
            except tarfile.HeaderError as error:
                raise _DamageError(f"has a damaged header at byte {at:,} ({error})") from None
            if info.size < 0 or info.type == tarfile.GNUTYPE_SPARSE:
                raise _DamageError(f"has a member at byte {at:,} that is sparse or of negative size; neither is read")
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                fields = _pax_fields(self._extended(info), at)
                # A global header never names members that follow; nothing else of it concerns us.
                names.update(fields if info.type != tarfile.XGLTYPE else {})
                continue
            if info.type == tarfile.GNUTYPE_LONGNAME:
                names["path"] = self._extended(info).split(b"\0", 1)[0].decode("utf-8", "replace")
                continue
            if info.type == tarfile.GNUTYPE_LONGLINK:
                self._extended(info)
                continue
            has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            size = int(names.get("size", info.size)) if has_data else 0
            yield _Header(names.get("path", info.name), size, info.type)
            names = {}

    def data(self, header: _Header) -> bytes:
        """Content of a member."""
        content = self._read(header.size, f"inside {header.name!r}")
        self._read(-header.size % BLOCK, f"after {header.name!r}")
        return content

    def skip(self, header: _Header) -> None:
        """Pass over a member's data without holding it."""
        left = header.size + -header.size % BLOCK
        while left:
            left -= len(self._read(min(left, SKIP_BYTES), f"inside {header.name!r}"))

    def _extended(self, info: tarfile.TarInfo) -> bytes:
        if info.size > MAX_HEADER_BYTES:
            raise _DamageError(f"has an extended header of {info.size:,} bytes at byte {self.position - BLOCK:,}")
        return self.data(_Header("an extended header", info.size, info.type))

    def _read(self, size: int, where: str) -> bytes:
        pieces = []
        left = size
        while left:
            piece = self._stream.read(left)
            if not piece:
                at = self.position + size - left
                raise _DamageError(f"ends early at byte {at:,}, {where if left < size else 'before its end blocks'}")
            pieces.append(piece)
            left -= len(piece)
        self.position += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_end(self) -> None:
        at = self.position
        if any(self._read(BLOCK, "in its end blocks")):
            raise _DamageError(f"has a single block of zeros before byte {at:,}, and goes on after it")
        while rest := self._stream.read(SKIP_BYTES):
            if any(rest):
                raise _DamageError(f"goes on after its end at byte {at + BLOCK:,}: are two tars joined?")


def _pax_fields(content: bytes, at: int) -> dict[str, str]:
    """`path` and `size` of a pax header: records of the form `LENGTH keyword=value` and a line feed."""
    fields: dict[str, str] = {}
    while content.rstrip(b"\0"):
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content) or b"=" not in rest:
            raise _DamageError(f"has a damaged extended header at byte {at:,}")
        keyword, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if keyword in (b"path", b"size"):
            fields[keyword.decode()] = value.decode("utf-8", "replace")
        content = content[int(length) :]
    if not fields.get("size", "0").isdecimal() or len(fields.get("size", "")) > 20:
        raise _DamageError(f"has a damaged extended header at byte {at:,}: size {fields['size']!r}")
    return fields


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member: the first dot of the file name parts them; None for a name without both."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot and extension else None


def iter_raw_samples(stream: BinaryIO, *, max_bytes: int) -> Iterator[RawSample]:
    """The samples of a tar, in its order: consecutive members with one key are one sample.

    Bad data never raises. A sample has an `error` when its key came before, a member is a link or device, an extension
    comes twice, or its files exceed `max_bytes` together (the member above it is not read into memory). A file whose
    name is no KEY.EXTENSION is a row of its own with an `error`. Where the tar cannot be read on (cut off, a damaged
    header, no end blocks, data after the end), one last row with the key `SHARD_ERROR_KEY` says at which byte and after
    how many rows; the sample begun there belongs to it, since it may be incomplete.

    Raises:
        OSError: the storage failed.
    """
    reader = _TarReader(stream)
    seen: set[str] = set()
    rows = 0
    sample: RawSample | None = None
    held = 0
    try:
        for header in reader.headers():
            if header.kind == tarfile.DIRTYPE:
                continue
            parts = split_name(header.name)
            if parts is None:
                reader.skip(header)
                rows += 1
                yield RawSample(header.name, error=f"{header.name!r} is not named KEY.EXTENSION")
                continue
            key, extension = parts
            if sample is None or key != sample.key:
                if sample is not None:
                    rows += 1
                    yield sample
                sample = RawSample(key, error="duplicate key: this shard has it already" if key in seen else None)
                seen.add(key)
                held = 0
            fault = _fault(header, sample, extension, held, max_bytes)
            if fault is not None:
                reader.skip(header)
                sample.error = sample.error or fault
                continue
            sample.members[extension] = reader.data(header)
            held += header.size
    except _DamageError as damage:
        begun = f"; sample {sample.key!r} may be incomplete and is left out" if sample is not None else ""
        yield RawSample(SHARD_ERROR_KEY, error=f"the shard {damage}, after {rows:,} samples{begun}")
        return
    if sample is not None:
        yield sample


def _fault(header: _Header, sample: RawSample, extension: str, held: int, max_bytes: int) -> str | None:
    """Why a member is not read, or None."""
    if header.kind not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return f"member .{extension} is a link or device, not a file"
    if extension in sample.members:
        return f"two members .{extension}"
    if held + header.size > max_bytes:
        return f"member .{extension} has {header.size:,} bytes; a sample may have {max_bytes:,} (read.max_bytes)"
    return None
