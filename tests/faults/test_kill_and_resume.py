"""The job is killed again and again, each time at another moment, and ends with the tables of an undisturbed run."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from conftest import TINY
from processes import NOTHING_NEW, start, stop_at

from trainref_ray import curate, load_run, make_config
from trainref_ray.results import CurationRun

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

MOMENTS = (
    "inventory/inventory-*/done/*.json",
    "round-0/pretrain-*/states/latest.json",
    "round-1/embeddings-*/done/*.json",
    "round-1/decisions-*/done/*.json",
    "round-1/finetune-*/states/latest.json",
)
"""Files whose appearance is the moment of the kill."""
MANY_EPOCHS = 500
CONTRASTIVE_EPOCHS = 60
"""So many that a kill after the first comes before the last, a second or so of a worker that outlives its driver."""


def job(
    folder: Path, *, own_ray: bool = False, epochs: int = TINY["pretrain"]["epochs"], objective: str = "supervised"
) -> subprocess.Popen[str]:
    """The curation as a process of its own, leader of its group, on the session's Ray or on one that it starts."""
    settings = TINY | {"pretrain": TINY["pretrain"] | {"epochs": epochs, "objective": objective}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    address = ray.get_runtime_context().gcs_address
    command = ["jobs/curate_webvision.py", "--preset", str(folder / "tiny.yaml")]
    options = ["--out", str(folder / "run"), *([] if own_ray else ["--resources.address", address])]
    return start(*command, *options)


def first_epoch(folder: Path) -> tuple[int, dict[str, Any]]:
    """Epochs that the pre-training has written, and what its first one did, its seconds included."""
    while True:
        [states] = (folder / "run").glob("round-0/pretrain-*/states")
        latest = json.loads((states / "latest.json").read_text())
        try:
            state = json.loads((states / latest["state"] / "state.json").read_text())
        except FileNotFoundError:  # the next epoch has just taken its place
            continue
        return latest["epochs"], state["history"][0]


@pytest.fixture(scope="module")
def killed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder after all kills and a last start, and what the last start printed."""
    folder = tmp_path_factory.mktemp("killed")
    for moment in MOMENTS:
        code, output = stop_at(job(folder), folder / "run", moment, signal.SIGKILL)
        assert code == -signal.SIGKILL, output
    process = job(folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return folder / "run", output


def test_tables_equal_those_of_an_undisturbed_run(killed: tuple[Path, str], tiny_run: CurationRun) -> None:
    run = load_run(str(killed[0]))
    for name in ("embeddings", "evidence", "supporters", "distributions", "decisions"):
        assert run.table(name).equals(tiny_run.table(name)), name
    assert run.references().equals(tiny_run.references())
    assert run.predictions(1).equals(tiny_run.predictions(1))
    assert run.summary["metrics"] == tiny_run.summary["metrics"]
    assert run.summary["counts"] == tiny_run.summary["counts"]


def test_the_last_start_goes_on_from_the_last_epoch(killed: tuple[Path, str]) -> None:
    assert "resuming: pretrain: done before" in killed[1]
    # a worker lives a moment longer than its driver, and may have written one more epoch, or the model
    assert re.search("resuming: round 1 finetune: ([12] of 2 epochs done|done before)", killed[1]), killed[1]


@pytest.mark.slow
def test_a_killed_contrastive_pretraining_goes_on_and_ends_like_an_undisturbed_one(
    local_ray: None, tmp_path: Path
) -> None:
    settings = {"pretrain": {"epochs": CONTRASTIVE_EPOCHS, "objective": "contrastive"}}
    whole = curate(make_config(TINY, settings, {"out": str(tmp_path / "whole")}))
    options: dict[str, Any] = {"epochs": CONTRASTIVE_EPOCHS, "objective": "contrastive"}
    code, output = stop_at(
        job(tmp_path, **options), tmp_path / "run", "round-0/pretrain-*/states/latest.json", signal.SIGKILL
    )
    assert code == -signal.SIGKILL, output
    process = job(tmp_path, **options)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    found = re.search(rf"resuming: pretrain: (\d+) of {CONTRASTIVE_EPOCHS} epochs done", output)
    assert found, output
    assert 1 <= int(found[1]) < CONTRASTIVE_EPOCHS
    run = load_run(str(tmp_path / "run"))
    for name in ("embeddings", "decisions"):
        assert run.table(name).equals(whole.table(name)), name
    assert run.predictions(1).equals(whole.predictions(1))


def test_ctrl_c_ends_with_130_and_one_line_and_resumes(local_ray: None, tmp_path: Path) -> None:
    # so many epochs that none but the interrupt ends them; a terminal sends it to the whole group, Ray's own included
    first = job(tmp_path, own_ray=True, epochs=MANY_EPOCHS)
    code, output = stop_at(first, tmp_path / "run", "round-0/pretrain-*/states/latest.json", signal.SIGINT)
    assert code == 130
    assert output.strip().splitlines()[-1] == "interrupted; start again with the same --out to go on"
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "lock.json").exists()
    process = job(tmp_path, epochs=MANY_EPOCHS)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "epochs done" in line:
            break
    done, epoch = first_epoch(tmp_path)
    deadline = time.monotonic() + NOTHING_NEW
    while first_epoch(tmp_path)[0] == done:
        assert time.monotonic() < deadline, "no further epoch"
        time.sleep(0.02)
    assert first_epoch(tmp_path)[1] == epoch, "it began anew: the first epoch took another time"
    process.kill()
    process.wait(timeout=30)
    found = re.fullmatch(rf"resuming: pretrain: (\d+) of {MANY_EPOCHS} epochs done\n", lines[-1])
    assert found, "".join(lines)
    assert 1 <= int(found[1]) < MANY_EPOCHS


def test_a_second_job_on_the_folder_is_refused(local_ray: None, tmp_path: Path) -> None:
    first = job(tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "lock.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = job(tmp_path)
    output, _ = second.communicate(timeout=60)
    first.kill()
    first.wait(timeout=30)
    assert second.returncode == 2
    assert len(output.strip().splitlines()) == 1
    assert "another job is working in this run folder" in output
