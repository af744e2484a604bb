"""The strict tar reader: WebDataset's grouping, every kind of damage named, nothing raised, nothing dropped."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.data.tar_reader import SHARD_ERROR_KEY, RawSample, iter_raw_samples, split_name


def tar_bytes(members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read(data: bytes, max_bytes: int = 10_000) -> list[RawSample]:
    return list(iter_raw_samples(io.BytesIO(data), max_bytes=max_bytes))


PAIRS = [
    (f"a/{key}.{extension}", f"{key}{extension}".encode() * 200) for key in "pqrs" for extension in ("jpg", "json")
]
GOOD = tar_bytes(PAIRS)
END_OF_MEMBERS = sum(512 + len(content) + -len(content) % 512 for _, content in PAIRS)


def test_members_are_grouped_by_key() -> None:
    samples = read(GOOD)
    assert [sample.key for sample in samples] == ["a/p", "a/q", "a/r", "a/s"]
    assert samples[1].members == {"jpg": b"qjpg" * 200, "json": b"qjson" * 200}
    assert all(sample.error is None for sample in samples)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("d.e/a.b.JPG", ("d.e/a", "b.jpg")),
        ("./x/a.cls", ("./x/a", "cls")),
        ("README", None),
        (".hidden", None),
        ("d/.jpg", None),
        ("a.", None),
    ],
)
def test_key_ends_at_the_first_dot_of_the_file_name(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_tar_format(kind: int) -> None:
    names = ["long/" + "x" * 90 + "/" + "y" * 90] + ([] if kind == tarfile.USTAR_FORMAT else ["z" * 400, "é" * 120])
    data = tar_bytes([(f"{name}.png", name.encode()) for name in names], kind)
    assert [(sample.key, sample.members) for sample in read(data)] == [(n, {"png": n.encode()}) for n in names]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, END_OF_MEMBERS + 1023))
def test_a_cut_tar_gives_the_samples_before_the_cut_and_one_error_row(cut: int) -> None:
    *before, last = read(GOOD[:cut])
    # a sample is whole once the header of the next one has been read
    starts = [sum(512 + len(c) + -len(c) % 512 for _, c in PAIRS[: 2 * number]) for number in range(5)]
    whole = sum(cut >= start + 512 for start in starts[1:4]) + (cut >= END_OF_MEMBERS + 1024)
    assert before == read(GOOD)[:whole]
    assert last.key == SHARD_ERROR_KEY
    assert last.error is not None
    assert f"at byte {cut:,}, " in last.error
    assert f"after {whole:,} samples" in last.error


def test_cut_in_the_padding_after_the_end_blocks_is_whole() -> None:
    assert read(GOOD[: END_OF_MEMBERS + 1024]) == read(GOOD)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_raise(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(GOOD)
    for position, flip in changes:
        damaged[position] ^= flip
    samples = read(bytes(damaged))
    assert sum(sample.key == SHARD_ERROR_KEY for sample in samples) <= 1
    if any(sample.key == SHARD_ERROR_KEY for sample in samples):
        assert samples[-1].key == SHARD_ERROR_KEY


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_never_raise(data: bytes) -> None:
    read(data)


def test_damaged_header_names_its_byte_and_the_sample_begun() -> None:
    third = sum(512 + len(content) + -len(content) % 512 for _, content in PAIRS[:4])
    damaged = bytearray(GOOD)
    damaged[third + 10] ^= 1
    first, last = read(bytes(damaged))
    assert first == read(GOOD)[0]
    assert last.error == (
        f"the shard has a damaged header at byte {third:,} (bad checksum), after 1 samples; "
        "sample 'a/q' may be incomplete and is left out"
    )


def test_joined_tars_and_single_zero_blocks_are_told() -> None:
    *good, last = read(GOOD + GOOD)
    assert (len(good), last.key) == (3, SHARD_ERROR_KEY)
    assert "goes on after its end" in (last.error or "")
    members = GOOD[:END_OF_MEMBERS]
    assert "single block of zeros" in (read(members + bytes(512) + members)[-1].error or "")


def test_empty_tar_has_no_samples_and_an_empty_file_is_an_error() -> None:
    assert read(tar_bytes([])) == []
    assert "at byte 0" in (read(b"")[0].error or "")


def test_links_devices_and_double_members_quarantine_their_sample() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folder = tarfile.TarInfo("sub")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.CHRTYPE), ("c.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("d.jpg", "d.JPG", "e.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    samples = read(buffer.getvalue())
    assert [sample.key for sample in samples] == ["a", "b", "c", "d", "e"]
    assert ["link or device" in (sample.error or "") for sample in samples] == [True, True, True, False, False]
    assert samples[0].members == {}
    assert samples[3].error == "two members .jpg"
    assert samples[4].error is None


def test_a_key_that_comes_again_is_an_error_row() -> None:
    samples = read(tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.json", b"3")]))
    assert [(sample.key, sample.error is None) for sample in samples] == [("a", True), ("b", True), ("a", False)]
    assert (samples[2].error or "").startswith("duplicate key")


def test_a_file_without_extension_is_a_row_and_parts_no_sample() -> None:
    samples = read(tar_bytes([("a.jpg", b"1"), ("._a.json", b"x"), ("README", b"x"), ("a.json", b"2")]))
    assert [sample.key for sample in samples] == ["._a.json", "README", "a"]
    assert samples[2].members == {"jpg": b"1", "json": b"2"}


def test_a_member_above_the_limit_is_not_read() -> None:
    class Watched(io.BytesIO):
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.largest = max(self.largest, size or 0)
            return super().read(size)

    stream = Watched(tar_bytes([("a.jpg", bytes(3 * 2**20)), ("a.cls", b"1"), ("b.jpg", b"ok")]))
    samples = list(iter_raw_samples(stream, max_bytes=100))
    assert stream.largest <= 2**20
    assert samples[0].members == {"cls": b"1"}
    assert "3,145,728 bytes" in (samples[0].error or "")
    assert samples[1].members == {"jpg": b"ok"}


def test_a_huge_size_in_a_header_is_not_allocated() -> None:
    info = tarfile.TarInfo("a.jpg")
    info.size = 2**60
    (row,) = read(info.tobuf(tarfile.GNU_FORMAT) + b"abc")
    assert row.key == SHARD_ERROR_KEY
    assert "ends early at byte 515" in (row.error or "")


def test_storage_errors_are_not_bad_data() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 2000:
                raise OSError("connection reset")
            return super().read(size)

    with pytest.raises(OSError, match="connection reset"):
        list(iter_raw_samples(Failing(GOOD), max_bytes=10_000))
