"""A sweep is killed, and interrupted; started again it goes on with the trials that were not finished."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from conftest import TINY
from processes import start, stop_at

from trainref_ray.results import load_sweep

pytestmark = pytest.mark.ray


LONG = 600
"""Seconds in which a file must appear: Tune and a trial's own process are started too."""


def job(folder: Path) -> subprocess.Popen[str]:
    """The sweep as a process of its own, leader of its group, on the session's Ray."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "space.yaml").write_text("vote.k: {grid: [5, 8, 10]}")
    address = ray.get_runtime_context().gcs_address
    command = ["jobs/sweep.py", "--preset", str(folder / "tiny.yaml"), "--max-concurrent", "1"]
    options = ["--space", str(folder / "space.yaml"), "--out", str(folder / "sweep"), "--resources.address", address]
    return start(*command, *options)


def complete(folder: Path) -> dict[str, str]:
    """Names of the finished trials and what is written of them."""
    texts = {path.parent.name: path.read_text() for path in (folder / "sweep").glob("trials/*/result.json")}
    return {name: text for name, text in texts.items() if json.loads(text)["status"] == "complete"}


def test_interrupted_then_killed_then_finished(local_ray: None, tmp_path: Path) -> None:
    code, output = stop_at(
        job(tmp_path), tmp_path / "sweep", "round-0/pretrain-*/states/latest.json", signal.SIGINT, within=LONG
    )
    assert code == 130, output
    assert output.strip().splitlines()[-1] == "interrupted; start again with the same --out to go on"
    assert "Traceback" not in output
    assert not (tmp_path / "sweep" / "lock.json").exists()

    code, output = stop_at(job(tmp_path), tmp_path / "sweep", "trials/*/summary.json", signal.SIGKILL, within=LONG)
    assert code == -signal.SIGKILL, output
    before = complete(tmp_path)
    assert len(before) <= 1  # the kill may have come before the trial's last line was written

    process = job(tmp_path)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    if before:
        assert "resuming: 1 of 3 trials done before" in output
    assert before.items() <= complete(tmp_path).items()
    summary = load_sweep(str(tmp_path / "sweep")).summary
    assert [row["status"] for row in summary["trials"]] == ["complete"] * 3
    assert len(list((tmp_path / "sweep" / "round-0").glob("pretrain-*"))) == 1
    assert output.splitlines()[-1].startswith("report: ")
