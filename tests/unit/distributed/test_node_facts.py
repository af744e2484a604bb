"""What a node reports of shards and run folders that it does not reach, and of its versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from trainref_ray.distributed import node_facts
from trainref_ray.distributed.node_facts import Visit, look_around, shard_problem, source_digest, versions
from trainref_ray.run import Storage


def visit(folder: Path, shards: tuple[tuple[str, int], ...] = (), content: bytes = b"abc") -> Visit:
    return Visit(Storage(str(folder)), "preflight-1", content, shards)


def test_all_is_reached(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(bytes(1024))
    (tmp_path / "preflight-1").write_bytes(b"abc")
    facts = look_around(visit(tmp_path, ((str(shard), 1024),)), "n1")
    assert facts.problems == ()
    assert (tmp_path / "preflight-1-n1").read_bytes() == b"abc"
    assert facts.memory > 2**20
    assert facts.disk_free is not None
    assert facts.disk_free > 0


def test_a_missing_or_different_shard(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    assert shard_problem(str(shard), 1024) == "there is no such file"
    shard.write_bytes(bytes(2048))
    assert shard_problem(str(shard), 1024) == "it has 2,048 bytes there and 1,024 for the driver: not the same file"
    assert "nothing://" in (shard_problem("nothing://bucket/a.tar", 1) or "")


def test_a_run_folder_that_is_not_the_drivers(tmp_path: Path) -> None:
    """A path that exists on every node but is each one's own disk: the driver's file is not there."""
    elsewhere = tmp_path / "elsewhere"
    assert "is not there" in dict(look_around(visit(elsewhere), "n1").problems)[str(elsewhere)]
    assert not elsewhere.exists(), "a node that does not see the run folder must not make one"
    (tmp_path / "preflight-1").write_bytes(b"other")
    assert "another content" in dict(look_around(visit(tmp_path), "n1").problems)[str(tmp_path)]


def test_versions_ignore_the_build_and_see_a_changed_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions()["ray"] == ray.__version__
    monkeypatch.setattr(node_facts, "version", lambda name: "2.9.0+cpu")
    assert versions()["torch"] == "2.9.0"
    (tmp_path / "a.py").write_text("1")
    before = source_digest(tmp_path)
    (tmp_path / "a.py").write_text("2")
    assert source_digest(tmp_path) != before


def test_memory_of_gpus_is_read_from_the_driver_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '24564\\n81559\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert node_facts.gpu_memory() == (24564 * 2**20, 81559 * 2**20)
    program.write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    assert node_facts.gpu_memory() == ()
