"""True labels are read by the choice of references and by evaluation, and by nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from shards import rewrite

from trainref_ray import curate, make_config
from trainref_ray.config import merge
from trainref_ray.results import CurationRun

pytestmark = pytest.mark.ray


def test_permuted_truth_changes_nothing_but_metrics(tiny_run: CurationRun, digits: Path, tmp_path: Path) -> None:
    references = Path(tiny_run.path) / "references.csv"
    trusted = {row["key"] for row in csv.DictReader(references.open())}
    random = np.random.default_rng(0)

    def permute(name: str, content: bytes) -> bytes:
        key, _, extension = name.rpartition(".")
        if extension != "json" or key in trusted:
            return content
        return json.dumps(json.loads(content) | {"true_label": int(random.integers(-1, 10))}).encode()

    for shard in sorted(digits.glob("train-*.tar")):
        rewrite(shard, tmp_path / shard.name, permute)
    (tmp_path / "classes.json").write_bytes((digits / "classes.json").read_bytes())
    settings = merge({name: value for name, value in TINY.items() if name != "reference_per_class"}, {"test_data": []})
    changes = {"data": [str(tmp_path)], "reference": str(references), "finetune_model": False}
    run = curate(make_config(settings, changes, {"out": str(tmp_path / "run")}))
    for name in ("embeddings", "evidence", "supporters", "distributions", "decisions"):
        assert run.table(name).equals(tiny_run.table(name)), name
    assert not run.truth()["true_label"].equals(tiny_run.truth()["true_label"])
    assert run.summary["metrics"]["noise_auroc"] < 0.6 < tiny_run.summary["metrics"]["noise_auroc"]
