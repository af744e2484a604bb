"""WebVision-mini from its original layout to a report: prepared, then curated with its preset, in small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from conftest import ROOT, SHARED_DATA
from webvision_tree import build_webvision_tree

from trainref_ray import load_run
from trainref_ray.cli import prepare_command

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not (SHARED_DATA / "tinyimagenet").is_dir(), reason=f"no photographs in {SHARED_DATA}"),
]
SMALL = (
    "--image-size=64",
    "--pretrain.epochs=3",
    "--augment.delta=0.2",  # so young a model has little evidence, and without any there is no cut
    "--ood.quantile=0.5",  # some 17 images pass to set the cut on: too few for 0.95, and half of these lie above it
    "--pretrain.batch-size=64",
    "--finetune.epochs=1",
    "--evaluate.bootstrap=20",
    "--report.gallery=6",
    "--tracking.no-enabled",
)
"""What makes 60 epochs at 224 pixels a test on two cores; everything else is the preset's."""


def test_the_miniature_tree_is_curated_whole(local_ray: None, tmp_path: Path) -> None:
    tree = build_webvision_tree(tmp_path / "tree", SHARED_DATA, classes=52)
    shards, out, references = tmp_path / "shards", tmp_path / "run", tmp_path / "references.csv"
    assert prepare_command(["webvision_mini", str(tree.root), "--out", str(shards), "--shard-size", "200"]) == 0
    tree.write_references(references, per_class=1, classes=50)
    data = ("--data", f"{shards}/train-*.tar", "--test-data", f"{shards}/val-*.tar", "--reference", str(references))
    place = ("--out", str(out), "--resources.address", ray.get_runtime_context().gcs_address)
    done = subprocess.run(
        [sys.executable, "jobs/curate_webvision.py", "--preset", "webvision_mini", *SMALL, *data, *place],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    run = load_run(str(out))
    counts = run.summary["counts"]
    assert len(run.class_names) == 50
    assert counts["samples"] == run.decisions().num_rows > 500
    assert counts["samples"] == sum(counts[name] for name in ("quarantined", "keep", "relabel", "soften", "ood"))
    assert counts["quarantined"] >= 1  # the tree has damaged images
    assert {"accuracy", "ece_ts"} <= set(run.summary["metrics"])
    assert run.rounds == 3  # two, and the curation by the released model
    page = (out / "report" / "ood.html").read_text()
    assert page.count("<li title=") == min(100, counts["ood"]) > 0
