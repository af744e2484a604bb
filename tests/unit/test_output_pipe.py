"""`trainref … | head`: a reader that goes away is no error, any other broken pipe is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trainref_ray.cli import run_command


def broken() -> None:
    print("a line that is lost" * 10_000, flush=True)
    raise BrokenPipeError("raised by print")


def test_output_that_nobody_reads_ends_the_command_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert run_command(broken) == 141
        print("this goes nowhere", flush=True)


def test_a_broken_pipe_to_something_else_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "output").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(BrokenPipeError):
            run_command(broken)
