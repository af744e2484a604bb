"""The job is killed again and again, each time at another moment, and ends with the tables of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from conftest import TINY
from processes import NOTHING_NEW, start, stop_at

from trainref_ray import curate, load_run, make_config
from trainref_ray.distributed import trainer
from trainref_ray.distributed.states import epochs_written
from trainref_ray.distributed.trainer import TrainJob
from trainref_ray.results import CurationRun

pytestmark = pytest.mark.ray

FIRST_EPOCH = "round-0/pretrain-*/states/latest.json"
MOMENTS = (
    "inventory/inventory-*/done/*.json",
    FIRST_EPOCH,
    "round-1/embeddings-*/done/*.json",
    "round-1/decisions-*/done/*.json",
    "round-1/finetune-*/states/latest.json",
)
"""Files whose appearance is the moment of the kill."""
TABLES = ("embeddings", "evidence", "supporters", "distributions", "decisions")
MANY_EPOCHS = 500
CONTRASTIVE_EPOCHS = 60
"""So many that a kill after the first comes before the last, a second or so of a worker that outlives its driver."""


def job(
    folder: Path,
    *,
    own_ray: bool = False,
    epochs: int = TINY["pretrain"]["epochs"],
    objective: str = "supervised",
    final_curation: bool = False,
    workers: int = 1,
) -> subprocess.Popen[str]:
    """The curation as a process of its own, leader of its group, on the session's Ray or on one that it starts."""
    settings = TINY | {"pretrain": TINY["pretrain"] | {"epochs": epochs, "objective": objective}}
    settings |= {"final_curation": final_curation, "resources": {"train_workers": workers}}
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


def kill_at_each(moments: tuple[str, ...], folder: Path, **options: Any) -> str:
    """Start the job and kill it, once for each moment, then let it finish; what the last start printed."""
    for moment in moments:
        code, output = stop_at(job(folder, **options), folder / "run", moment, signal.SIGKILL)
        assert code == -signal.SIGKILL, output
    process = job(folder, **options)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def wait_for_another_epoch(folder: Path) -> None:
    """Until the pre-training has written one more, and it must not have begun anew."""
    done, epoch = first_epoch(folder)
    deadline = time.monotonic() + NOTHING_NEW
    while first_epoch(folder)[0] == done:
        assert time.monotonic() < deadline, "no further epoch"
        time.sleep(0.02)
    assert first_epoch(folder)[1] == epoch, "it began anew: the first epoch took another time"


@pytest.fixture(scope="module")
def killed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder after all kills and a last start, and what the last start printed."""
    folder = tmp_path_factory.mktemp("killed")
    return folder / "run", kill_at_each(MOMENTS, folder)


def test_tables_equal_those_of_an_undisturbed_run(killed: tuple[Path, str], tiny_run: CurationRun) -> None:
    run = load_run(str(killed[0]))
    for name in TABLES:
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
    output = kill_at_each((FIRST_EPOCH,), tmp_path, **options)
    found = re.search(rf"resuming: pretrain: (\d+) of {CONTRASTIVE_EPOCHS} epochs done", output)
    assert found, output
    assert 1 <= int(found[1]) < CONTRASTIVE_EPOCHS
    run = load_run(str(tmp_path / "run"))
    for name in ("embeddings", "decisions"):
        assert run.table(name).equals(whole.table(name)), name
    assert run.predictions(1).equals(whole.predictions(1))


@pytest.mark.slow
def test_killed_in_the_last_curation_it_ends_like_an_undisturbed_run(local_ray: None, tmp_path: Path) -> None:
    whole = curate(make_config(TINY, {"final_curation": True, "out": str(tmp_path / "whole")}))
    output = kill_at_each(("round-2/embeddings-*/done/*.json",), tmp_path, final_curation=True)
    assert "resuming: round 1 finetune: done before" in output
    run = load_run(str(tmp_path / "run"))
    assert run.rounds == 2
    for name in TABLES:
        assert run.table(name, 1).equals(whole.table(name, 1)), name
        assert run.table(name).equals(whole.table(name)), name
    assert run.summary["metrics"] == whole.summary["metrics"]
    assert run.summary["temperature"] == whole.summary["temperature"]


def test_ctrl_c_ends_with_130_and_one_line_and_resumes(local_ray: None, tmp_path: Path) -> None:
    # so many epochs that none but the interrupt ends them; a terminal sends it to the whole group, Ray's own included
    first = job(tmp_path, own_ray=True, epochs=MANY_EPOCHS)
    code, output = stop_at(first, tmp_path / "run", FIRST_EPOCH, signal.SIGINT)
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
    wait_for_another_epoch(tmp_path)
    process.kill()
    process.wait(timeout=30)
    found = re.fullmatch(rf"resuming: pretrain: (\d+) of {MANY_EPOCHS} epochs done\n", lines[-1])
    assert found, "".join(lines)
    assert 1 <= int(found[1]) < MANY_EPOCHS


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupt_of_the_job_alone_ends_it(local_ray: None, tmp_path: Path, workers: int) -> None:
    """As a notebook or `kill -INT` sends it: Ray's own processes get none."""
    first = job(tmp_path, own_ray=True, epochs=MANY_EPOCHS, workers=workers)
    code, output = stop_at(first, tmp_path / "run", FIRST_EPOCH, signal.SIGINT, alone=True)
    assert code == 130
    assert output.strip().splitlines()[-1] == "interrupted; start again with the same --out to go on"
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_killed_training_worker_is_replaced_and_goes_on(local_ray: None, tmp_path: Path) -> None:
    process = job(tmp_path, epochs=MANY_EPOCHS)
    try:
        deadline = time.monotonic() + NOTHING_NEW
        while not list((tmp_path / "run").glob(FIRST_EPOCH)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        [worker] = training_workers()
        worker.kill()
        worker.wait(timeout=30)
        wait_for_another_epoch(tmp_path)
        [other] = training_workers()
        assert other.pid != worker.pid
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(timeout=30)
    psutil.wait_procs([other], timeout=30)


def test_an_interrupt_ends_the_training_in_a_ray_that_goes_on(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook that has started Ray itself: a training that went on would hold CPUs and write states."""

    def interrupted(training: TrainJob, *_: Any) -> int:
        while not epochs_written(training.stage):
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_follow", interrupted)
    many = {"out": str(tmp_path / "run"), "pretrain": {"epochs": MANY_EPOCHS}}
    with pytest.raises(KeyboardInterrupt):
        curate(make_config(TINY, many))
    _, left = psutil.wait_procs(training_workers(), timeout=30)
    assert not left


def training_workers() -> list[psutil.Process]:
    """Processes of the session's Ray that train."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == ["ray::_run_locally"]:
                found.append(process)
    return found


def test_a_second_job_on_the_folder_is_refused(local_ray: None, tmp_path: Path) -> None:
    first = job(tmp_path)
    deadline = time.monotonic() + NOTHING_NEW
    while not (tmp_path / "run" / "lock.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = job(tmp_path)
    output, _ = second.communicate(timeout=NOTHING_NEW)
    first.kill()
    first.wait(timeout=30)
    assert second.returncode == 2
    assert len(output.strip().splitlines()) == 1
    assert "another job is working in this run folder" in output
