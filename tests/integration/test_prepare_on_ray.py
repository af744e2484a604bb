"""Large sources on a real Ray: both forms of the command, killed in the middle and started again, faults told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, SHARED_DATA
from webvision_tree import WebVisionTree, build_webvision_tree

from trainref_ray.cli import prepare_command
from trainref_ray.data.listed import ListedJob, begin, finish, write_listed_shard
from trainref_ray.data.prepare import PrepareSettings, open_listed
from trainref_ray.data.shards import count_samples

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not (SHARED_DATA / "tinyimagenet").is_dir(), reason=f"no photographs in {SHARED_DATA}"),
]
SHARD_SIZE = 20


@pytest.fixture
def tree(tmp_path: Path) -> WebVisionTree:
    return build_webvision_tree(tmp_path / "tree", SHARED_DATA, classes=12)


def plan(tree: WebVisionTree, out: Path, split: str = "train") -> ListedJob:
    source = open_listed(PrepareSettings("webvision", str(out), str(tree.root)), split)
    job = begin(source, str(out), split=split, seed=0, shard_size=SHARD_SIZE)
    assert isinstance(job, ListedJob)
    return job


def write_here(tree: WebVisionTree, out: Path) -> dict[str, bytes]:
    """The same shards without Ray, in one go."""
    for split in ("train", "val"):
        job = plan(tree, out, split)
        finish(job, {shard.name: write_listed_shard(shard) for shard in job.shards})
    return content(out)


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def options(out: Path) -> list[str]:
    return ["--out", str(out), "--shard-size", str(SHARD_SIZE)]


def test_both_forms_of_the_command_write_what_one_process_writes(
    tree: WebVisionTree, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_here(tree, tmp_path / "one")
    assert prepare_command(["webvision", str(tree.root), *options(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert prepare_command(["--source", "webvision", "--root", str(tree.root), *options(tmp_path / "b")]) == 0
    assert content(tmp_path / "a") == content(tmp_path / "b") == expected
    files = sum(not path.startswith("val") for path in tree.labels) - 2
    assert printed[0].startswith(f"train: {files} images in 10 shards, truth not known, 2 files missing (")
    assert printed[0].count("gone_since.jpg") == 2
    assert printed[1].startswith("val: 47 images in 3 shards, 0.0% of the labels wrong, 1 files missing")
    capsys.readouterr()
    assert prepare_command(["webvision", str(tree.root), *options(tmp_path / "a")]) == 0
    assert all(line.endswith("(there already, nothing written)") for line in capsys.readouterr().out.splitlines())


def test_animal10n_needs_two_words_and_a_folder(local_ray: None, tree: WebVisionTree, tmp_path: Path) -> None:
    for folder, pattern in (("training", "google/*/*.jpg"), ("testing", "val_images_256/*")):
        (tmp_path / "animals" / folder).mkdir(parents=True)
        for number, path in enumerate(sorted(tree.root.glob(pattern))):
            label = tree.labels[path.relative_to(tree.root).as_posix()] % 10
            (tmp_path / "animals" / folder / f"{label}_{number}.jpg").write_bytes(path.read_bytes())
    assert prepare_command(["animal10n", str(tmp_path / "animals"), "--out", str(tmp_path / "out")]) == 0
    for split, folder in (("train", "training"), ("test", "testing")):
        files = len(list((tmp_path / "animals" / folder).iterdir()))
        assert count_samples(str(tmp_path / "out" / f"{split}-00000.tar")) == files > 40


def test_a_file_that_cannot_be_read_ends_with_one_line_and_the_rest_goes_on_later(
    tree: WebVisionTree, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = write_here(tree, tmp_path / "one")
    file = tree.root / plan(tree, tmp_path / "out").shards[1].files[3].path
    image = file.read_bytes()
    file.unlink()
    file.symlink_to(file)
    assert prepare_command(["webvision", str(tree.root), *options(tmp_path / "out")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert file.name in lines[0]
    assert lines[0].endswith("start again to go on")
    assert not (tmp_path / "out" / "train-00001.tar").exists()
    file.unlink()
    file.write_bytes(image)
    assert prepare_command(["webvision", str(tree.root), *options(tmp_path / "out")]) == 0
    assert content(tmp_path / "out") == expected


def test_killed_in_the_middle_and_started_again_it_goes_on_to_the_same_bytes(
    tree: WebVisionTree, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image is a pipe that gives nothing, so the killed command is certain to be in the midst of that shard."""
    expected = write_here(tree, tmp_path / "one")
    out = tmp_path / "out"
    stuck = plan(tree, out).shards[3]
    file = tree.root / stuck.files[5].path
    image = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    home = tmp_path / "home"
    home.mkdir()
    start_and_kill(
        ["prepare", "webvision", str(tree.root), *options(out)],
        home,
        lambda: len(list((out / "done").glob("*.json"))) >= 2 and any(out.glob(f".{stuck.name}.*.part")),
    )
    assert not (out / stuck.name).exists()
    finished = [out / f"{marker.stem}.tar" for marker in (out / "done").glob("*.json")]
    times = {path: path.stat().st_mtime_ns for path in finished}
    assert json.loads((out / "prepare.json").read_text())["train"]["result"] is None
    file.unlink()
    file.write_bytes(image)

    assert prepare_command(["webvision", str(tree.root), *options(out)]) == 0
    assert f"resuming: prepare train: {len(finished)} of 10 shards done" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished} == times
    assert content(out) == expected


def start_and_kill(arguments: list[str], home: Path, when: Callable[[], bool]) -> None:
    """Start `trainref` with a Ray of its own, and end it and all its processes by SIGKILL as soon as `when` holds."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "HOME": str(home), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    with (home / "log").open("w") as log:
        command = [sys.executable, "-m", "trainref_ray.cli", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not when():
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if other.environ().get("HOME") == str(home):  # Ray's own processes of that command
                    other.kill()
                    other.wait(10)
