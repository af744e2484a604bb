"""Shards, run folders and locks on an S3 server on loopback that checks signatures."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow as pa
import pytest
from s3_server import BUCKET

from trainref_ray import run as run_module
from trainref_ray.data.prepare import prepare_digits
from trainref_ray.data.reference import read_reference_csv
from trainref_ray.data.shards import check_end, count_samples, open_shard, resolve_shards, resolve_split
from trainref_ray.errors import ResumeError, ShardError
from trainref_ray.run import RunLock, Stage, Storage, open_run, remove_results
from trainref_ray.stores import _open_store, locate

TABLE = pa.table({"uid": [1, 2]})


@pytest.fixture
def storage(s3: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(run_module, "OBJECT_STORE_SETTLE_SECONDS", 0.1)
    return open_run(f"{s3}/runs/{request.node.name}")


@pytest.fixture(scope="module")
def shards(s3: str) -> str:
    """The embedded sample, written straight to S3."""
    folder = f"{s3}/sets/digits"
    prepare_digits(folder, seed=0)
    return folder


def test_prepared_shards_equal_those_on_a_disk(shards: str, digits: Path) -> None:
    local = sorted(digits.glob("*.tar"))
    files = resolve_shards([shards])
    assert [file.url for file in files] == [f"{shards}/{path.name}" for path in local]
    assert [file.bytes for file in files] == [path.stat().st_size for path in local]
    for file, path in zip(files, local, strict=True):
        with open_shard(file.url) as stream:
            assert stream.read() == path.read_bytes()
    assert Storage(shards).read_json("classes.json") == Storage(str(digits)).read_json("classes.json")
    assert not any(result.written for result in prepare_digits(shards, seed=0).splits)


def test_every_kind_of_pattern(s3: str, shards: str) -> None:
    files = resolve_shards([shards])
    train = files[1:]
    assert [file.url.rsplit("/", 1)[1] for file in files] == [
        "test-00000.tar",
        *(f"train-0000{n}.tar" for n in range(4)),
    ]
    assert resolve_shards([f"{shards}/train-*.tar"]) == train
    assert resolve_shards([f"{shards}/train-{{00000..00003}}.tar"]) == train
    assert resolve_shards([f"{s3}/*/d*/train-0000[12].tar"]) == train[1:3]
    assert resolve_shards([f"{shards}/", f"{shards}/train-00000.tar"]) == files
    with pytest.raises(ShardError, match="several splits"):
        resolve_split([shards])
    assert [check_end(file.url, file.bytes) for file in files] == [None] * 5
    assert count_samples(train[0].url) == 400
    assert count_samples(train[0].url, stop_after=7) == 7


def test_what_is_not_there_is_named(s3: str, shards: str) -> None:
    with pytest.raises(ShardError, match=r"first missing: .*train-00004\.tar"):
        resolve_shards([f"{shards}/train-{{00000..00005}}.tar"])
    with pytest.raises(ShardError, match=r"no shard matches .*val-\*\.tar"):
        resolve_shards([f"{shards}/val-*.tar"])
    with pytest.raises(ShardError, match="no shard matches"):
        resolve_shards(["s3://no-such-bucket/train-*.tar"])
    with pytest.raises(FileNotFoundError):
        open_shard(f"{shards}/none.tar")
    with pytest.raises(ResumeError, match=r"cannot be written to.*bucket does not exist"):
        RunLock(open_run("s3://no-such-bucket/run")).__enter__()


def test_a_replaced_shard_has_another_etag(s3: str) -> None:
    store = Storage(f"{s3}/sets/replaced")
    store.write_bytes("a.tar", b"1" * 1024)
    (before,) = resolve_shards([store.location()])
    assert resolve_shards([store.location()]) == [before]
    time.sleep(1.1)  # S3 tells whole seconds
    store.write_bytes("a.tar", b"2" * 1024)
    (after,) = resolve_shards([store.location()])
    assert after.bytes == before.bytes
    assert after.etag != before.etag


def test_names_with_blanks_and_signs_are_found_and_read(s3: str) -> None:
    store = Storage(f"{s3}/sets/odd names")
    store.write_bytes("a b%20c#é.tar", bytes(1024))
    (file,) = resolve_shards([f"{s3}/sets/odd names/*.tar"])
    assert file.url == f"{s3}/sets/odd names/a b%20c#é.tar"
    assert check_end(file.url, file.bytes) is None


def test_the_address_may_stand_in_the_url(s3: str, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query = f"?region=us-east-1&endpoint_override={os.environ['AWS_ENDPOINT_URL']}"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    files = resolve_shards([f"{shards}/train-*.tar{query}"])
    assert [file.url for file in files] == [f"{shards}/train-0000{number}.tar{query}" for number in range(4)]
    assert count_samples(files[0].url, stop_after=3) == 3
    storage = open_run(f"{s3}/runs/addressed{query}")
    Stage(storage, "embeddings", 1, "aaaaaaaa").write_shard(0, "etag", TABLE, ok=2, quarantined=0)
    assert Stage(storage, "embeddings", 1, "aaaaaaaa").read_shard(0).equals(TABLE)
    assert storage.location("report/index.html") == f"{s3}/runs/addressed/report/index.html{query}"
    assert Storage(storage.location("round-1")).names("") == ["embeddings-aaaaaaaa"]


def test_credentials_come_from_the_usual_chain(
    s3: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = (os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text(
        f"[curation]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        "[stranger]\naws_access_key_id = other\naws_secret_access_key = wrong\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    try:
        monkeypatch.setenv("AWS_PROFILE", "curation")
        _open_store.cache_clear()
        assert len(resolve_shards([shards])) == 5
        monkeypatch.setenv("AWS_PROFILE", "stranger")
        _open_store.cache_clear()
        with pytest.raises(ShardError, match=r"cannot be listed.*(ACCESS_DENIED|INVALID_ACCESS_KEY)"):
            resolve_shards([shards])
        with pytest.raises(ResumeError, match=r"cannot be read.*(ACCESS_DENIED|INVALID_ACCESS_KEY)"):
            open_run(f"{s3}/runs/refused")
    finally:
        _open_store.cache_clear()


def test_files_are_written_and_read_back(storage: Storage, tmp_path: Path) -> None:
    storage.write_json("a/b.json", {"x": 1})
    storage.write_table("a/t.parquet", TABLE)
    storage.write_bytes("a/empty", b"")
    assert storage.read_json("a/b.json") == {"x": 1}
    assert storage.read_table("a/t.parquet", ["uid"]).equals(TABLE)
    assert storage.read_bytes("a/empty") == b""
    assert storage.names("a") == ["b.json", "empty", "t.parquet"]
    assert storage.names("nothing") == []
    assert storage.exists("a")
    assert not storage.exists("b")
    local = storage.download("a", tmp_path / "a")
    assert sorted(path.name for path in local.iterdir()) == ["b.json", "empty", "t.parquet"]
    storage.upload(local, "c")
    assert storage.names("c") == storage.names("a")
    storage.remove("a/empty")
    assert storage.names("a") == ["b.json", "t.parquet"]
    storage.remove("a")
    storage.remove("nothing")
    assert storage.names("") == ["c"]


def test_references_are_read(s3: str) -> None:
    Storage(f"{s3}/sets").write_bytes("refs.csv", b"key,label\nx,1\n")
    assert read_reference_csv(f"{s3}/sets/refs.csv", None) == [("x", 1)]


def test_a_stage_and_its_markers(storage: Storage) -> None:
    stage = Stage(storage, "embeddings", 1, "aaaaaaaa")
    assert stage.done_shards() == {}
    assert not stage.is_done()
    stage.write_shard(3, "etag", TABLE, ok=2, quarantined=0)
    stage.finish({"members": 2})
    assert list(stage.done_shards()) == [3]
    assert stage.is_done()
    assert stage.facts()["members"] == 2


def test_a_folder_with_other_things_is_refused_and_no_resume_keeps_what_is_not_a_result(storage: Storage) -> None:
    storage.write_bytes("thesis.txt", b"mine")
    with pytest.raises(ResumeError, match=r"something else than a run.*thesis\.txt"):
        open_run(storage.root)
    storage.write_bytes("run.yaml", b"")
    storage.write_bytes("round-1/x", b"")
    remove_results(storage)
    assert storage.names("") == ["run.yaml", "thesis.txt"]


def test_one_job_owns_a_run_folder(storage: Storage) -> None:
    with RunLock(storage) as lock:
        assert storage.read_json("lock.json")["token"] == lock.token
        with pytest.raises(ResumeError, match=f"process {os.getpid()}"), RunLock(storage):
            pass
    assert not storage.exists("lock.json")
    open_run(storage.root)  # what a removed lock leaves behind is no foreign file


def test_of_two_jobs_that_start_together_the_last_to_write_owns(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = RunLock(storage), RunLock(storage)

    def settle(seconds: float) -> None:
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        second._create()

    monkeypatch.setattr(time, "sleep", settle)
    assert not first._create()
    assert storage.read_json("lock.json")["token"] == second.token


@pytest.mark.parametrize(("age", "alive"), [(5.0, True), (run_module.STALE_SECONDS + 5, False)])
def test_the_lock_of_another_machine_lives_by_its_heartbeat(storage: Storage, age: float, alive: bool) -> None:
    owner = {"token": "0" * 32, "host": "elsewhere", "pid": 1, "process_started": 0.0, "heartbeat": time.time() - age}
    storage.write_json("lock.json", owner)
    lock = RunLock(storage, lambda sentence: storage.write_json("lock.json", owner | {"heartbeat": time.time()}))
    if alive:
        with pytest.raises(ResumeError, match="elsewhere"):
            lock.__enter__()
    else:
        with lock:
            assert storage.read_json("lock.json")["host"] == socket.gethostname()


def test_the_heartbeat_outlives_a_store_that_fails_for_a_while(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "HEARTBEAT_SECONDS", 0.05)
    with RunLock(storage) as lock:
        failed = []

        def fail(self: Storage, path: str) -> bytes:
            failed.append(path)
            raise OSError("network")

        with monkeypatch.context() as outage:
            outage.setattr(Storage, "read_bytes", fail)
            outage.setattr(Storage, "exists", lambda self, path: True)
            _wait(lambda: len(failed) > 2)
        before = storage.read_json("lock.json")["heartbeat"]
        _wait(lambda: storage.read_json("lock.json")["heartbeat"] > before)
        lock.check()
        storage.write_json("lock.json", {**lock._content(), "token": "other", "pid": psutil.Process().pid})
        _wait(lambda: lock._lost)
        with pytest.raises(ResumeError, match="took this run folder over"):
            lock.check()


def test_a_file_that_is_replaced_while_it_is_opened_is_read_whole(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes("state", b"old")
    filesystem, full = storage.resolved("state")

    def open_and_replace(path: str) -> pa.NativeFile:
        stream = filesystem.open_input_stream(path)
        monkeypatch.undo()
        storage.write_bytes("state", b"longer than the old one")
        return stream

    opening = SimpleNamespace(open_input_stream=open_and_replace)
    monkeypatch.setattr(Storage, "resolved", lambda self, path: (opening, full))
    assert storage.read_bytes("state") == b"longer than the old one"


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.time() + 10
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def test_the_bucket_itself_may_be_the_root(s3: str) -> None:
    filesystem, path = locate(f"{s3}/")
    assert path == BUCKET
    assert filesystem.get_file_info(path).type.name == "Directory"
