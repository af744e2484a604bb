"""`ray job submit` on a running Ray with its dashboard: the job's exit, its table and its one-line error."""

from __future__ import annotations

import os
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

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

BIN = Path(sys.executable).parent
START_SECONDS = 150
"""In which a head must answer; ten on an idle machine of 2 cores."""
JOB_SECONDS = 300
OPTIONS = (
    "--image-size=8",
    "--rounds=1",
    "--limit=500",
    "--pretrain.epochs=3",
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
    """A Ray with a dashboard, and the environment in which its commands find it."""

    address: str
    environment: dict[str, str]

    def submit(self, *options: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of the curation from the repository's folder; standard output and error together."""
        submit = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--working-dir", "."]
        return subprocess.run(
            [*submit, "--", "python", "jobs/curate_webvision.py", *options],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=JOB_SECONDS,
        )


def wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{url} does not answer\n{log.read_text()}"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head in a process group of its own, which alone is ended: `ray stop` would end every Ray of the machine."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # the job's `python` is this one
        "RAY_AUTH_MODE": "disabled",
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


def test_a_submitted_job_curates_and_prints_its_table(head: Head, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = head.submit(*OPTIONS, f"--out={out}")
    assert done.returncode == 0, done.stdout
    assert "succeeded" in done.stdout
    run = load_run(str(out))
    assert run.summary["counts"]["samples"] == 500
    table = [line for line in done.stdout.splitlines() if line.startswith("│ trainref ")]
    assert len(table) == 1, done.stdout
    assert f"{run.summary['metrics']['noise_auroc']:.4f}" in table[0]
    assert f"report: {out}/report/index.html" in done.stdout


def test_a_wrong_option_ends_the_job_with_its_one_line(head: Head, tmp_path: Path) -> None:
    done = head.submit("--data", str(tmp_path / "none-*.tar"), "--reference-per-class=1", f"--out={tmp_path / 'run'}")
    assert done.returncode == 1, done.stdout
    assert "failed" in done.stdout
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(set(errors)) == 1, done.stdout
    assert "none-*.tar" in errors[0]
    assert "Traceback" not in done.stdout
