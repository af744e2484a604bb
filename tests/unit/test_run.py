"""Run folders: markers, locks, and folders that are no runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from trainref_ray import run as run_module
from trainref_ray.errors import ResumeError
from trainref_ray.run import RunLock, Stage, Storage, open_run, remove_results

TABLE = pa.table({"uid": [1, 2]})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_run(str(tmp_path / "run"))


def test_files_are_written_whole_and_read_back(storage: Storage) -> None:
    storage.write_json("a/b.json", {"x": 1})
    storage.write_table("a/t.parquet", TABLE)
    storage.write_tensors("a/n.safetensors", {"n": np.arange(3)})
    assert storage.read_json("a/b.json") == {"x": 1}
    assert storage.read_table("a/t.parquet").equals(TABLE)
    assert storage.read_tensors("a/n.safetensors")["n"].tolist() == [0, 1, 2]
    assert storage.names("a") == ["b.json", "n.safetensors", "t.parquet"]
    assert storage.names("nothing") == []


def test_a_shard_is_done_when_its_marker_is_there(storage: Storage) -> None:
    stage = Stage(storage, "embeddings", 1, "aaaaaaaa")
    stage.write_shard(3, "etag", TABLE, ok=2, quarantined=0)
    assert stage.done_shards()[3]["etag"] == "etag"
    assert stage.read_shard(3).equals(TABLE)
    assert Stage(storage, "embeddings", 1, "bbbbbbbb").done_shards() == {}
    storage.write_bytes(stage.path("done/000003.json"), b'{"finger')
    assert stage.done_shards() == {}


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ResumeError, match=r"something else than a run.*thesis\.txt"):
        open_run(str(tmp_path))
    with pytest.raises(ResumeError, match="is a file"):
        open_run(str(tmp_path / "thesis.txt"))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_no_resume_removes_results_of_a_run_only(storage: Storage) -> None:
    storage.write_bytes("run.yaml", b"")
    storage.write_bytes("round-1/x", b"")
    storage.write_bytes("sample/x", b"")
    remove_results(storage)
    assert storage.names("") == ["run.yaml", "sample"]


def test_a_second_job_is_refused_and_told_who_works_there(storage: Storage) -> None:
    with RunLock(storage), pytest.raises(ResumeError, match=f"process {os.getpid()}"), RunLock(storage):
        pass
    assert not storage.exists("lock.json")
    with RunLock(storage):
        pass


def _lock_of(storage: Storage, **changes: object) -> None:
    process = psutil.Process()
    owner = {
        "token": "0" * 32,
        "host": run_module.socket.gethostname(),
        "pid": process.pid,
        "process_started": process.create_time(),
        "heartbeat": time.time(),
    }
    storage.write_json("lock.json", owner | changes)


def test_the_lock_of_a_killed_process_is_taken_over_at_once(storage: Storage) -> None:
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True, text=True
    )
    _lock_of(storage, pid=int(child.stdout), process_started=time.time())
    with RunLock(storage) as lock:
        assert storage.read_json("lock.json")["token"] == lock.token


def test_a_job_that_comes_late_puts_the_lock_of_a_faster_one_back(storage: Storage) -> None:
    """Both have read a dead owner's lock; the faster one has taken over before the other moves it aside."""
    _lock_of(storage, process_started=1.0)
    late, faster = RunLock(storage), RunLock(storage)
    dead = late._read()
    assert dead is not None
    with faster:
        late._discard(dead)
        assert storage.read_json("lock.json")["token"] == faster.token
        assert storage.names("") == ["lock.json"]
        with pytest.raises(ResumeError, match="is working in"), late:
            pass
    assert storage.names("") == []


def test_a_lock_that_says_nothing_is_taken_over_when_it_is_old(storage: Storage) -> None:
    storage.write_bytes("lock.json", b"")
    with pytest.raises(ResumeError, match="has just taken"), RunLock(storage):
        pass
    long_ago = time.time() - run_module.STALE_SECONDS - 1
    os.utime(storage.location("lock.json"), (long_ago, long_ago))
    with RunLock(storage) as lock:
        assert storage.read_json("lock.json")["token"] == lock.token


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResumeError, match="cannot be written to"), RunLock(Storage(str(tmp_path / "file" / "run"))):
        pass


def test_a_reused_process_number_is_no_owner(storage: Storage) -> None:
    _lock_of(storage, process_started=1.0)
    with RunLock(storage):
        pass


def test_the_lock_of_another_machine_is_taken_over_when_it_is_old(storage: Storage) -> None:
    _lock_of(storage, host="elsewhere", heartbeat=time.time() - run_module.STALE_SECONDS - 5)
    told: list[str] = []
    with RunLock(storage, told.append):
        assert told == []


def test_the_next_heartbeat_of_another_machine_keeps_its_lock(storage: Storage) -> None:
    _lock_of(storage, host="elsewhere", heartbeat=time.time() - 5)
    lock = RunLock(storage, lambda sentence: _lock_of(storage, host="elsewhere", heartbeat=time.time()))
    with pytest.raises(ResumeError, match=r"is working in this run folder .*on elsewhere"), lock:
        pass
    assert storage.read_json("lock.json")["host"] == "elsewhere"


def test_a_job_that_is_started_again_on_another_machine_waits_for_its_dead_predecessor(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "STALE_SECONDS", 1.0)
    _lock_of(storage, host="elsewhere", heartbeat=time.time())
    told: list[str] = []
    with RunLock(storage, told.append) as lock:
        assert storage.read_json("lock.json")["token"] == lock.token
    assert len(told) == 1
    assert "on elsewhere" in told[0]


def test_a_dead_owner_whose_clock_was_ahead_is_not_waited_for_longer(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "STALE_SECONDS", 0.5)
    _lock_of(storage, host="elsewhere", heartbeat=time.time() + 3600)
    with RunLock(storage) as lock:
        assert storage.read_json("lock.json")["token"] == lock.token


def test_a_job_that_lost_its_lock_stops(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "HEARTBEAT_SECONDS", 0.01)
    with RunLock(storage) as lock:
        lock.check()
        deadline = time.time() + 5
        while time.time() < deadline and not lock._lost:
            _lock_of(storage, host="elsewhere")  # again: a beat that had just read its own lock writes over the first
            time.sleep(0.05)
        with pytest.raises(ResumeError, match="took this run folder over"):
            lock.check()
    assert json.loads(storage.read_bytes("lock.json"))["host"] == "elsewhere"
