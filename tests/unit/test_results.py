"""Finished runs and sweeps are opened by path, and only rounds that are there are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainref_ray.errors import ConfigError
from trainref_ray.results import load_run, load_sweep
from trainref_ray.run import RUN_FILE, SWEEP_FILE, Storage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run of two rounds without tables, and of a sweep."""
    storage = Storage(str(tmp_path))
    for name in (RUN_FILE, SWEEP_FILE):
        storage.write_bytes(name, b"{}")
    for name in ("summary.json", "sweep.json"):
        storage.write_json(name, {})
    storage.write_json("stages.json", {"rounds": [{"decisions": "first"}, {"decisions": "second"}]})
    return tmp_path


def test_runs_and_sweeps_are_opened_by_text_and_by_path(folder: Path) -> None:
    assert load_run(folder).path == load_run(str(folder)).path == str(folder)
    assert load_sweep(folder).path == load_sweep(str(folder)).path == str(folder)


def test_a_stage_is_that_of_its_round_and_of_the_last_by_default(folder: Path) -> None:
    run = load_run(folder)
    assert [run.stage("decisions", round_).fingerprint for round_ in (1, 2, None)] == ["first", "second", "second"]


@pytest.mark.parametrize("round_", [-1, 0, 3])
def test_a_round_that_is_not_there_is_refused(folder: Path, round_: int) -> None:
    with pytest.raises(ConfigError, match=f"{folder} has no round {round_}; allowed: 1 to 2"):
        load_run(folder).decisions(round_)
