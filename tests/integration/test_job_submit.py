"""`ray job submit` of every job on a running Ray with its dashboard and token authentication: exits, logs, stop."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT
from heads import PORTS, free_ports

from trainref_ray import load_run
from trainref_ray.results import load_sweep

pytestmark = pytest.mark.ray

BIN = Path(sys.executable).parent
START_SECONDS = 300
"""In which a head must answer; ten on an idle machine of 2 cores."""
JOB_SECONDS = 900
LOOK_SECONDS = 10
"""Between two questions whether a job has failed; each takes a second or two of the machine."""
TOKEN = secrets.token_hex(32)
"""Of this module's own Ray: without it every request is refused."""
OPTIONS = (
    "--image-size=8",
    "--rounds=1",
    "--no-final-curation",
    "--pretrain.no-flip",
    "--model.no-mirror",
    "--limit=500",
    "--probe.learning-rate=0.05",
    "--vote.k=10",
    "--vote.near-duplicate=0.9999",
    "--finetune.epochs=1",
    "--evaluate.bootstrap=20",
    "--report.gallery=6",
    "--tracking.no-enabled",
)
"""The demo in seconds."""


@dataclass(frozen=True)
class Head:
    """A Ray with a dashboard, and the environment in which its commands find it and are let in."""

    address: str
    environment: dict[str, str]

    def command(self, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...` from the repository's folder; standard output and error together."""
        return subprocess.run(
            [str(BIN / "ray"), "job", *parts],
            cwd=ROOT,
            env=self.environment | {"RAY_ADDRESS": self.address} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_SECONDS,
        )

    def submit(self, job: str, *options: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of a script in `jobs/`."""
        return self.command("submit", "--working-dir", ".", *before, "--", "python", f"jobs/{job}", *options)


def wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{url} does not answer\n{log.read_text()}"
        try:
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head in a process group of its own, which alone is ended: `ray stop` would end every Ray of the machine."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    environment |= {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is this one
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1",
    }
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # for paths of sockets
        log = home / "head.log"
        command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={short}"]
        hosts = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *hosts, *(f"--{name}={port}" for name, port in ports.items())],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until_it_answers(process, f"{address}/api/version", log)
            # jobs are started by the node's agent, which comes up later than the dashboard
            wait_until_it_answers(process, f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}/api/healthz", log)
            yield Head(address, environment)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def shards(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as shards, written by a submitted `prepare_shards.py`."""
    folder = tmp_path_factory.mktemp("shards") / "digits"
    done = head.submit("prepare_shards.py", "digits", "--out", str(folder))
    assert done.returncode == 0, done.stdout
    assert "succeeded" in done.stdout
    assert (folder / "classes.json").exists()
    return folder


def curation(shards: Path, out: Path, *, epochs: int) -> tuple[str, ...]:
    data = ("--data", f"{shards}/train-*.tar", "--test-data", f"{shards}/test-*.tar", "--reference-per-class=3")
    return (*data, *OPTIONS, f"--pretrain.epochs={epochs}", f"--out={out}")


def wait_for(pattern: str, folder: Path, job: str, head: Head) -> None:
    deadline, next_look = time.monotonic() + JOB_SECONDS, time.monotonic() + LOOK_SECONDS
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, head.command("logs", job).stdout
        if time.monotonic() > next_look:
            assert f"'{job}' failed" not in head.command("status", job).stdout, head.command("logs", job).stdout
            next_look = time.monotonic() + LOOK_SECONDS
        time.sleep(0.1)


def test_a_stopped_job_is_submitted_again_and_goes_on(head: Head, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    environment = '{"env_vars": {"TRAINREF_SHARED_DATA": "/nowhere"}}'
    options = ("--no-wait", "--runtime-env-json", environment)
    begun = head.submit("curate_cifar.py", *curation(shards, out, epochs=40), before=options)
    assert begun.returncode == 0, begun.stdout
    found = re.search("raysubmit_\\w+", begun.stdout)
    assert found, begun.stdout
    wait_for("round-0/pretrain-*/states/latest.json", out, found[0], head)
    stopped = head.command("stop", found[0])
    assert stopped.returncode == 0, stopped.stdout
    assert "was stopped" in stopped.stdout
    assert "pretrain" not in [path.name.split("-")[0] for path in out.glob("round-0/*/done.json")]
    done = head.submit("curate_cifar.py", *curation(shards, out, epochs=40))
    assert done.returncode == 0, done.stdout
    assert re.search(r"resuming: pretrain: \d+ of 40 epochs done", done.stdout), done.stdout
    run = load_run(str(out))
    assert run.summary["counts"]["samples"] == 500
    table = [line for line in done.stdout.splitlines() if line.startswith("│ trainref ")]
    assert len(table) == 1, done.stdout
    assert f"{run.summary['metrics']['noise_auroc']:.4f}" in table[0]
    assert f"report: {out}/report/index.html" in done.stdout


@pytest.mark.slow
def test_a_submitted_sweep_ranks_its_trials(head: Head, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("vote.k: {grid: [5, 10]}")
    out = tmp_path / "sweep"
    space = ("--space", str(tmp_path / "space.yaml"))
    done = head.submit("sweep.py", *space, *curation(shards, out, epochs=1))
    assert done.returncode == 0, done.stdout
    assert {row["status"] for row in load_sweep(str(out)).summary["trials"]} == {"complete"}
    assert f"report: {out}/report/sweep.html" in done.stdout


def test_a_submitted_comparison_has_a_row_for_each_method(head: Head, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    methods = ("--methods=trainref,knn", "--seeds=0")
    done = head.submit("compare.py", *methods, *curation(shards, out, epochs=1))
    assert done.returncode == 0, done.stdout
    rows = json.loads((out / "compare.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["trainref", "knn"]


def test_without_the_token_nothing_is_submitted(head: Head, tmp_path: Path) -> None:
    done = head.command("list", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode != 0
    assert "raysubmit_" not in done.stdout


def test_a_wrong_option_ends_the_job_with_its_one_line(head: Head, tmp_path: Path) -> None:
    wrong = ("--data", str(tmp_path / "none-*.tar"), "--reference-per-class=1", f"--out={tmp_path / 'run'}")
    done = head.submit("curate_webvision.py", *wrong)
    assert done.returncode == 1, done.stdout
    assert "failed" in done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(set(errors)) == 1, done.stdout
    assert "none-*.tar" in errors[0]
    assert "Traceback" not in done.stdout
