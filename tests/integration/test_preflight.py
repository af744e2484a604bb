"""Checks before a run on real nodes, and waiting for a cluster that grows or does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from conftest import ROOT, TINY
from heads import clean_environment, running_head

from trainref_ray import make_config
from trainref_ray.cli import doctor_command
from trainref_ray.data.prepare import prepare_digits
from trainref_ray.distributed import job
from trainref_ray.distributed.needs import Check
from trainref_ray.distributed.preflight import tell
from trainref_ray.errors import ResourceError
from trainref_ray.progress import Reporter

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent


def run_script(name: str, *arguments: str, environment: dict[str, str]) -> Any:
    done = subprocess.run(
        [sys.executable, str(HERE / name), *arguments], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def on_nodes(name: str, *arguments: str) -> Any:
    """A script that starts nodes of its own."""
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # a socket's path may have 107 characters
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ADDRESS", None)
        return run_script(name, *arguments, environment=environment)


def errors(checks: list[dict[str, str]]) -> list[dict[str, str]]:
    return [check for check in checks if check["verdict"] == "error"]


@pytest.fixture
def other_numpy(tmp_path: Path) -> Path:
    """A folder that makes `importlib.metadata` find another numpy."""
    info = tmp_path / "packages" / "numpy-0.9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.9.9\n")
    return info.parent


def test_a_node_without_access_and_one_with_another_numpy_are_named(s3: str, other_numpy: Path) -> None:
    prepare_digits(f"{s3}/digits", seed=0)
    settings = {**TINY, "data": [f"{s3}/digits/train-*.tar"], "test_data": [], "out": f"{s3}/runs/checked"}
    path = os.pathsep.join([str(other_numpy), str(ROOT), os.environ.get("PYTHONPATH", "")])
    nodes = [
        {"num_cpus": 0},
        {"num_cpus": 1, "env_vars": {"PYTHONPATH": path}},
        {"num_cpus": 1, "env_vars": {"AWS_SECRET_ACCESS_KEY": "wrong"}},
    ]
    found = errors(on_nodes("preflight_on_nodes.py", json.dumps(nodes), json.dumps(settings)))
    versions = [check for check in found if check["name"] == "versions"]
    assert [check["there"].split(" on ")[0] for check in versions] == ["0.9.9"]
    assert versions[0]["needed"].startswith("numpy ")
    data = [check for check in found if check["name"] == "data"]
    assert [check["needed"] for check in data] == [f"{s3}/digits/train-{number:05d}.tar" for number in (0, 1)]
    assert all("(node " in check["there"] and "object-store URL" in check["advice"] for check in data)
    folder = [check for check in found if check["name"] == "run folder"]
    assert [check["needed"] for check in folder] == [f"{s3}/runs/checked"]
    assert len({check["there"].split(":")[0] for check in [*data, *folder]}) == 1, "one node is without access"


def test_tasks_leave_the_node_with_a_gpu_alone_while_there_is_room() -> None:
    assert on_nodes("place_on_nodes.py") == {"cpu": 4}


def test_doctor_prints_a_table_and_leaves_nothing_behind(
    local_ray: None, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "run"
    options = ["--data", str(digits / "train-*.tar"), "--reference-per-class=5", "--image-size=8", f"--out={out}"]
    assert doctor_command(options) == 0
    table = capsys.readouterr().out
    for part in ("versions", "data and run folder", "room for every stage", "memory, probe", "disk, run folder"):
        assert part in table
    assert "warning" not in table
    assert not out.parent.exists()
    assert doctor_command(["--out", str(tmp_path / "demo")]) == 0  # the embedded sample, which is nowhere yet
    assert list(tmp_path.iterdir()) == []


def test_doctor_ends_with_two_where_the_run_folder_cannot_be(
    local_ray: None, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    data = ["--data", str(digits / "train-*.tar"), "--reference-per-class=5", "--image-size=8"]
    assert doctor_command([*data, f"--out={tmp_path / 'file' / 'run'}"]) == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert doctor_command([*data, f"--out={tmp_path / 'run'}", "--backbone=vit_b_16", "--image-size=100"]) == 2
    assert "vit_b_16" in capsys.readouterr().out


def test_a_run_is_refused_in_one_line_before_any_stage(
    local_ray: None, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot be built for the images is known before the inventory."""
    out = tmp_path / "run"
    config = make_config(
        TINY, {"data": [f"{digits}/train-*.tar"], "backbone": "vit_b_16", "image_size": 100, "out": str(out)}
    )
    with pytest.raises(ResourceError, match=r"model: needed vit_b_16, there .*100") as caught:
        job.curate(config)
    assert "\n" not in str(caught.value)
    assert [name for name in os.listdir(out) if name.startswith(("round-", "preflight-"))] == []


def test_warnings_are_a_line_each_and_the_first_error_stops(capsys: pytest.CaptureFixture[str]) -> None:
    few = Check("memory, probe", "about 9 GiB", "4 GiB on a", "warning", "more")
    bad = Check("versions", "ray 2", "1 on b", "error", "same")
    tell([Check("data", "x", "y", "ok")], Reporter())
    assert capsys.readouterr().err == ""
    with pytest.raises(ResourceError, match=r"^versions: needed ray 2, there 1 on b; same \(1 more: trainref doctor"):
        tell([few, bad, bad], Reporter())
    assert capsys.readouterr().err.splitlines() == [f"warning: {few.line}"]


GROWING: dict[str, Any] = {
    "cluster_name": "fake_multinode",
    "max_workers": 2,
    "idle_timeout_minutes": 0.05,
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
        "small": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "docker": {},
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{
        name: []
        for name in (
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        )
    },
}
"""One node of two CPUs at most, none at first; a node without work is ended after three seconds."""


def test_a_cluster_at_zero_grows_and_the_request_is_withdrawn(tmp_path: Path) -> None:
    with running_head(tmp_path, "--num-cpus=0", autoscaling=GROWING) as address:
        answer = run_script("wait_on_head.py", address, "120", environment=clean_environment(tmp_path))
    assert answer["said"] == ["waiting for 1 CPU (there are 0), giving up after 120 s (resources.timeout)"]
    assert answer.get("cpus") == 2, answer
    assert answer["request"] == []


def test_a_cluster_that_cannot_grow_is_given_up_after_the_time_out(tmp_path: Path) -> None:
    with running_head(tmp_path, "--num-cpus=0") as address:
        answer = run_script("wait_on_head.py", address, "3", environment=clean_environment(tmp_path))
    assert answer["said"] == ["waiting for 1 CPU (there are 0), giving up after 3 s (resources.timeout)"]
    assert answer["error"].startswith("waited 3 s (resources.timeout) for 1 CPU (there are 0)")
    assert 3 <= answer["seconds"] < 15
