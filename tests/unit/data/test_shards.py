"""Finding, checking, counting and writing shards; WebDataset itself reads what is written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.data import shards
from trainref_ray.data.shards import ShardWriter, check_end, count_samples, open_shard, resolve_shards, resolve_split
from trainref_ray.data.tar_reader import iter_raw_samples
from trainref_ray.errors import ShardError


def write(folder: Path, pattern: str = "train-%05d.tar", samples: int = 5, shard_size: int = 2) -> list[Path]:
    with ShardWriter(folder, pattern, shard_size) as writer:
        for number in range(samples):
            writer.write(f"s{number}", {"jpg": b"image%d" % number, "json": b"{}"})
    return [folder / name for name in writer.names]


def found(*patterns: str) -> list[str]:
    return [Path(file.url).name for file in resolve_shards(patterns)]


def test_every_kind_of_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", "test-%05d.tar", samples=1)
    (tmp_path / "one" / "classes.json").write_text("[]")
    (tmp_path / "one" / ".hidden.tar").write_text("")
    train = ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    assert found(f"{tmp_path}/one") == train
    assert found(f"{tmp_path}/one/") == train
    assert found(f"{tmp_path}/one/*.tar") == train
    assert found(f"{tmp_path}/one/train-{{00000..00001}}.tar") == train[:2]
    assert found(f"{tmp_path}/{{one,two}}/*-0000[01].tar") == [*train[:2], "test-00000.tar"]
    assert found(f"{tmp_path}/*/t*-00000.tar") == ["train-00000.tar", "test-00000.tar"]
    assert found(f"file://{tmp_path}/one/train-00002.tar", f"{tmp_path}/one") == train
    monkeypatch.chdir(tmp_path)
    (relative,) = resolve_shards(["one/train-0000?.tar", "./one/*.tar"])[:1]
    assert relative.url == str(tmp_path / "one" / "train-00000.tar")
    assert relative.bytes == 10240
    assert relative.etag == f"10240-{(tmp_path / 'one' / 'train-00000.tar').stat().st_mtime_ns}"


def test_training_and_test_shards_are_not_taken_as_one_split(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "extra-%05d.tar", samples=1)
    assert len(resolve_split([str(tmp_path)])) == 4
    write(tmp_path, "test-%05d.tar", samples=1)
    write(tmp_path, "val-%05d.tar", samples=1)
    assert len(found(str(tmp_path))) == 6, "whoever lists a folder gets all of it"
    for pattern in (f"{tmp_path}/", f"{tmp_path}/*.tar"):
        with pytest.raises(ShardError, match=r"several splits \(train-\*\.tar, test-\*\.tar, val-\*\.tar\); name one"):
            resolve_split([pattern])
    assert len(resolve_split([f"{tmp_path}/train-*.tar"])) == 3
    assert len(resolve_split([f"{tmp_path}/train-*.tar", f"{tmp_path}/val-*.tar"])) == 4
    assert len(resolve_split([f"{tmp_path}/{{train,val}}-*.tar"])) == 4, "what is named is wanted"


def test_what_matches_nothing_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ShardError, match=r"no shard matches .*val-\*\.tar"):
        resolve_shards([f"{tmp_path}/*.tar", f"{tmp_path}/val-*.tar"])
    with pytest.raises(ShardError, match=r"first missing: .*train-00003\.tar"):
        resolve_shards([f"{tmp_path}/train-{{00001..00005}}.tar"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"no shard matches .*empty"):
        resolve_shards([f"{tmp_path}/empty"])
    with pytest.raises(ShardError, match="no shard matches"):
        resolve_shards([f"{tmp_path}/none/x.tar"])
    with pytest.raises(ShardError, match=r"cannot be listed"):
        resolve_shards(["nosuchstore://bucket/x.tar"])
    with pytest.raises(ShardError, match="braces do not match"):
        resolve_shards([f"{tmp_path}/train-{{00.tar"])


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10239))
def test_check_end_finds_a_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (path,) = write(folder, samples=2)
    data = path.read_bytes()
    assert check_end(str(path), len(data)) is None
    path.write_bytes(data[:cut])
    end_of_members = 4 * 1024
    whole = cut % 512 == 0 and cut >= end_of_members + 1024
    assert (check_end(str(path), cut) is None) == whole


def test_count_is_the_rows_read_damage_included(tmp_path: Path) -> None:
    (path,) = write(tmp_path, shard_size=5)
    assert count_samples(str(path)) == 5
    assert count_samples(str(path), stop_after=3) == 3
    path.write_bytes(path.read_bytes()[:-6000])
    with open_shard(str(path)) as stream:
        assert count_samples(str(path)) == len(list(iter_raw_samples(stream, max_bytes=100)))


def test_written_shards_are_the_same_bytes_again_and_leave_nothing_aside(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [p.name for p in first]
    assert first[0].stat().st_mode & 0o777 == 0o644


def test_an_interrupted_shard_does_not_appear(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, "train-%05d.tar", 2) as writer:
            for number in range(3):
                writer.write(f"s{number}", {"jpg": b"x"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["train-00000.tar"]


@pytest.mark.parametrize("key", ["a.b", "", "/a", "../a", "d/", ".x"])
def test_keys_that_would_be_read_as_others_are_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path, "x-%d.tar", 2) as writer, pytest.raises(ValueError, match="cannot be written"):
        writer.write(key, {"jpg": b"x"})


def test_keys_are_written_once(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "x-%d.tar", 1) as writer:
        writer.write("d.e/a", {"jpg": b"x"})
        with pytest.raises(ValueError, match="before"):
            writer.write("d.e/a", {"jpg": b"x"})


KEYS = st.lists(st.from_regex(r"\A(d\.1/)?[a-zA-Z0-9_é-]{1,130}\Z"), unique_by=str.lower, max_size=6)


@settings(max_examples=25, deadline=None)
@given(KEYS, st.binary(max_size=1500))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, keys: list[str], data: bytes) -> None:
    folder = tmp_path_factory.mktemp("round")
    with ShardWriter(folder, "s-%d.tar", 4) as writer:
        for key in keys:
            writer.write(key, {"png": data, "json": b"{}"})
    back = [s for name in writer.names for s in iter_raw_samples((folder / name).open("rb"), max_bytes=10_000)]
    assert [(sample.key, sample.members, sample.error) for sample in back] == [
        (key, {"json": b"{}", "png": data}, None) for key in keys
    ]


def test_webdataset_reads_the_same(tmp_path: Path) -> None:
    import webdataset

    paths = write(tmp_path)
    webdataset.utils.enforce_security = True
    try:
        theirs = list(webdataset.WebDataset([str(p) for p in paths], shardshuffle=False))
    finally:
        webdataset.utils.enforce_security = False
    ours = [sample for path in paths for sample in iter_raw_samples(path.open("rb"), max_bytes=100)]
    assert [(t["__key__"], t["jpg"], t["json"]) for t in theirs] == [
        (o.key, o.members["jpg"], o.members["json"]) for o in ours
    ]
    assert hashlib.sha256(theirs[4]["jpg"]).digest() == hashlib.sha256(b"image4").digest()


def test_object_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a store without local paths: written, listed, opened, checked, counted."""
    store = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())

    def locate(url: str) -> tuple[pafs.FileSystem, str]:
        return store, url.removeprefix("store://").partition("?")[0]

    monkeypatch.setattr(shards, "locate", locate)
    (tmp_path / "bucket").mkdir()
    with ShardWriter("store://bucket", "train-%05d.tar", 2) as writer:
        for number in range(5):
            writer.write(f"s{number}", {"jpg": b"x"})
    assert sorted(path.name for path in (tmp_path / "bucket").iterdir()) == writer.names
    files = resolve_shards(["store://bucket/train-*.tar?region=here", "store://bucket/train-{00000..00002}.tar"])
    assert [file.url for file in files[:2]] == [
        "store://bucket/train-00000.tar",
        "store://bucket/train-00000.tar?region=here",
    ]
    assert len(files) == 6
    assert [check_end(file.url, file.bytes) for file in files] == [None] * 6
    assert [count_samples(file.url) for file in files] == [2, 2, 2, 2, 1, 1]
    assert [file.url for file in resolve_shards(["store://bucket"])] == [file.url for file in files[::2]]
    with pytest.raises(FileNotFoundError):
        open_shard("store://bucket/none.tar")


def test_a_shard_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.tar")
    with pytest.raises(ShardError, match=r"gone\.tar cannot be read"):
        check_end(gone, 1024)
    with pytest.raises(ShardError, match=r"gone\.tar cannot be read"):
        count_samples(gone)
