"""URLs of every kind of store; and, on fsspec's store in memory, all that a run and its shards do."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from trainref_ray import run as run_module
from trainref_ray.data.reference import read_reference_csv
from trainref_ray.data.shards import ShardWriter, check_end, count_samples, resolve_shards
from trainref_ray.errors import ResumeError, ShardError
from trainref_ray.run import RunLock, Stage, Storage, open_run
from trainref_ray.stores import locate


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        ("gs://bucket/a b/c", pafs.GcsFileSystem, "bucket/a b/c"),
        ("gs://bucket", pafs.GcsFileSystem, "bucket"),
        ("s3://bucket/a%20b/?region=eu-west-1", pafs.S3FileSystem, "bucket/a%20b"),
        ("abfs://box@account.dfs.core.windows.net/a/b", pafs.AzureFileSystem, "box/a/b"),
        ("abfss://box@account.dfs.core.windows.net/", pafs.AzureFileSystem, "box"),
        ("memory://box/a", pafs.PyFileSystem, "/box/a"),
        ("file:///tmp/a", pafs.LocalFileSystem, "/tmp/a"),
        ("file:///", pafs.LocalFileSystem, "/"),
        ("/tmp/a?b", pafs.LocalFileSystem, "/tmp/a?b"),
    ],
)
def test_a_url_names_its_store_and_path(url: str, kind: type, path: str) -> None:
    filesystem, found = locate(url)
    assert isinstance(filesystem, kind)
    assert found == path


def test_one_client_serves_a_bucket() -> None:
    first, _ = locate("s3://bucket/a?region=eu-west-1")
    second, _ = locate("s3://bucket/b/c?region=eu-west-1")
    other, _ = locate("s3://bucket/a?region=us-west-2")
    assert first is second
    assert first.region == "eu-west-1"
    assert other.region == "us-west-2"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nosuchstore://bucket/x", "nosuchstore"),
        ("abfs://box/x", "account"),
        ("s3://bucket/x?colour=red", "colour"),
    ],
)
def test_a_store_that_cannot_be_opened_is_named(url: str, reason: str) -> None:
    with pytest.raises(OSError, match=f"{url[:8]}.*{reason}"):
        locate(url)
    with pytest.raises(ShardError, match=reason):
        resolve_shards([url])
    with pytest.raises(ResumeError, match=reason):
        open_run(url)


def test_shards_on_fsspec() -> None:
    folder = "memory://shards/sets"
    with ShardWriter(folder, "train %05d.tar", 2) as writer:
        for number in range(5):
            writer.write(f"s{number}", {"jpg": b"x" * number})
    files = resolve_shards([f"{folder}/"])
    assert [file.url for file in files] == [f"{folder}/{name}" for name in writer.names]
    assert resolve_shards([f"{folder}/train*.tar", f"{folder}/train {{00000..00002}}.tar"]) == files
    assert [check_end(file.url, file.bytes) for file in files] == [None] * 3
    assert [count_samples(file.url) for file in files] == [2, 2, 1]
    Storage(folder).write_bytes("refs.csv", b"key,label\ns1,3\n")
    assert read_reference_csv(f"{folder}/refs.csv", None) == [("s1", 3)]


def test_a_replaced_file_of_equal_size_has_another_identity_on_fsspec() -> None:
    storage = Storage("memory://replaced/sets")
    storage.write_bytes("a.tar", b"1" * 1024)
    (before,) = resolve_shards([storage.location()])
    assert resolve_shards([storage.location()]) == [before]
    storage.write_bytes("a.tar", b"2" * 1024)
    (after,) = resolve_shards([storage.location()])
    assert (after.url, after.bytes) == (before.url, before.bytes)
    assert after.etag != before.etag


def test_a_run_on_fsspec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_module, "OBJECT_STORE_SETTLE_SECONDS", 0.0)
    storage = open_run("memory://runs/first")
    with RunLock(storage), pytest.raises(ResumeError, match="another job"), RunLock(storage):
        pass
    assert not storage.exists("lock.json")
    stage = Stage(storage, "embeddings", 1, "aaaaaaaa")
    table = pa.table({"uid": [1, 2]})
    stage.write_shard(3, "etag", table, ok=2, quarantined=0)
    assert stage.read_shard(3).equals(table)
    assert stage.done_shards()[3]["ok"] == 2
    assert storage.names("round-1") == ["embeddings-aaaaaaaa"]
    assert storage.download(stage.path("done"), tmp_path / "done").joinpath("000003.json").exists()
    storage.remove("round-1")
    assert not storage.exists("round-1")
