"""The whole job on three nodes, data and run folder on S3, against one node and a disk: the same tables.

Most of its minutes are processes that start: `-m "not multinode"` leaves it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from conftest import TINY

from trainref_ray import curate, load_run, make_config
from trainref_ray.data.prepare import prepare_digits
from trainref_ray.results import CurationRun

pytestmark = [pytest.mark.ray, pytest.mark.multinode, pytest.mark.timeout(900)]

THREE_NODES = [{"num_cpus": 0}, {"num_cpus": 2}, {"num_cpus": 1, "resources": {"large_memory": 1}}]
"""A head for the driver alone, as in a cluster, and the larger of the others with as many CPUs as the one node of the
other tests has: the threads of a training follow from that node, and its rounding from the threads."""


def settings(data: str, out: str) -> dict[str, Any]:
    return {**TINY, "data": [f"{data}/train-*.tar"], "test_data": [f"{data}/test-*.tar"], "out": out}


@pytest.fixture(scope="module")
def on_one_node(local_ray: None, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> CurationRun:
    return curate(make_config(settings(str(digits), str(tmp_path_factory.mktemp("runs") / "one"))))


@pytest.fixture(scope="module")
def on_three_nodes(s3: str) -> CurationRun:
    prepare_digits(f"{s3}/digits", seed=0)
    out = f"{s3}/runs/three"
    with TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # a socket's path may have 107 characters
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ADDRESS", None)
        script = Path(__file__).with_name("curate_on_nodes.py")
        done = subprocess.run(
            [sys.executable, str(script), json.dumps(THREE_NODES), json.dumps(settings(f"{s3}/digits", out))],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= 2, "every actor ran on one node"
    return load_run(out)


def tables(run: CurationRun) -> dict[str, pa.Table | None]:
    names = ("embeddings", "evidence", "supporters", "decisions")
    return {name: run.table(name) for name in names} | {
        "samples": run.samples(),
        "truth": run.truth(),
        "references": run.references(),
        "predictions of the pre-trained model": run.predictions(0),
        "predictions of the released model": run.predictions(1),
    }


def test_tables_model_and_figures_are_equal(on_one_node: CurationRun, on_three_nodes: CurationRun) -> None:
    expected, found = tables(on_one_node), tables(on_three_nodes)
    assert expected["decisions"].num_rows == 500
    assert [name for name in expected if not found[name].equals(expected[name])] == []
    one, three = on_one_node.storage, on_three_nodes.storage
    assert one.read_bytes("references.csv") == three.read_bytes("references.csv")
    assert one.read_bytes("model/model.safetensors") == three.read_bytes("model/model.safetensors")
    assert on_one_node.summary["metrics"] == on_three_nodes.summary["metrics"]
    assert on_one_node.summary["counts"] == on_three_nodes.summary["counts"]
    assert len(three.read_bytes("report/index.html")) > 10_000
