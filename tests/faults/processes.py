"""Jobs as processes of their own that are stopped at a chosen moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

NOTHING_NEW = 400
"""Seconds in which a file must appear, starting Ray's workers included: a training's first epoch may take 60 where
importing torch takes 7 and two processors start six processes."""


def start(*command: str) -> subprocess.Popen[str]:
    """A script of the repository as the leader of a process group."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """As at a terminal: what runs in the background of a script ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop_at(
    process: subprocess.Popen[str],
    folder: Path,
    pattern: str,
    number: signal.Signals,
    *,
    alone: bool = False,
    within: float = NOTHING_NEW,
) -> tuple[int, str]:
    """Send the job's group, or its own process alone, a signal as soon as a file matches that was not there; its exit
    code and output."""
    before = set(folder.glob(pattern))
    deadline = time.monotonic() + within
    while not set(folder.glob(pattern)) - before and process.poll() is None:
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.02)
    send = os.kill if alone else os.killpg
    send(process.pid, number)
    output, _ = process.communicate(timeout=NOTHING_NEW)
    return process.returncode, output
