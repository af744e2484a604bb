"""Stages that several curations want: one computes, the others wait, and a dead one is no obstacle."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

from trainref_ray.run import RunLock, Stage, Storage, claimed


def stage(folder: Path) -> Stage:
    return Stage(Storage(str(folder)), "probe", 1, "abcdef01")


def hold(folder: Path, told: Queue, seconds: float) -> None:
    with claimed([stage(folder)]):
        told.put("held")
        time.sleep(seconds)
        told.put("released")


def test_the_second_waits_until_the_first_is_done(tmp_path: Path) -> None:
    order = []
    inside = threading.Event()

    def first() -> None:
        with claimed([stage(tmp_path)]):
            inside.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with claimed([stage(tmp_path)]):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert not (tmp_path / stage(tmp_path).path("lock.json")).exists()


def test_a_killed_holder_is_taken_over(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told: Queue = context.Queue()
    holder = context.Process(target=hold, args=(tmp_path, told, 600))
    holder.start()
    assert told.get(timeout=60) == "held"
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    started = time.monotonic()
    with claimed([stage(tmp_path)]):
        assert time.monotonic() - started < 5


def test_an_error_releases_the_stage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), claimed([stage(tmp_path)]):
        raise RuntimeError
    with claimed([stage(tmp_path)]):
        pass


def test_another_machine_is_waited_for_while_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / stage(tmp_path).path("lock.json")
    path.parent.mkdir(parents=True)
    owner = {"token": "t", "host": "another", "pid": 1, "process_started": 0.0}
    path.write_text(json.dumps(owner | {"heartbeat": time.time()}))
    assert not RunLock(stage(tmp_path).storage.below(stage(tmp_path).folder)).take()
    path.write_text(json.dumps(owner | {"heartbeat": time.time() - 120}))
    with claimed([stage(tmp_path)]):
        assert json.loads(path.read_text())["token"] != "t"
