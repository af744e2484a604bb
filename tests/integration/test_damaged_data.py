"""Damaged shards, two training workers and MLflow in one run: bad data is quarantined, what is logged can be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from mlflow import MlflowClient, pyfunc
from shards import rewrite

from trainref_ray import curate, make_config
from trainref_ray.models.backbones import predict
from trainref_ray.results import CurationRun
from trainref_ray.training.calibrate import softmax

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def run(local_ray: None, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> CurationRun:
    folder = tmp_path_factory.mktemp("damaged")
    shards = sorted(digits.glob("train-*.tar"))
    images = labels = 0

    def damage(name: str, content: bytes) -> bytes:
        nonlocal images, labels
        if name.endswith(".png"):
            images += 1
            return content[:40] if images == 7 else content
        labels += 1
        facts = json.loads(content)
        if labels == 9:
            del facts["label"]
        return json.dumps(facts).encode()

    rewrite(shards[0], folder / "train-00000.tar", damage)
    (folder / "train-00001.tar").write_bytes(shards[1].read_bytes()[: 3000 * 100])
    (folder / "classes.json").write_bytes((digits / "classes.json").read_bytes())
    return curate(
        make_config(
            TINY,
            {
                "data": [str(folder / "train-*.tar")],
                "limit": None,
                "read": {"allow_truncated_shards": True},
                "resources": {"train_workers": 2},
                "tracking": {"enabled": True},
                "out": str(folder / "run"),
            },
        )
    )


def test_bad_samples_are_rows_with_a_reason_and_counts_add_up(run: CurationRun) -> None:
    rows = [row for row in run.decisions().to_pylist() if row["decision"] == "quarantined"]
    reasons = "\n".join(row["reason"] for row in rows)
    assert len(rows) == 3
    assert "image .png" in reasons
    assert "no label" in reasons
    assert any("end" in row["reason"] or "cut" in row["reason"] or "trunc" in row["reason"] for row in rows), reasons
    counts = run.summary["counts"]
    assert counts["quarantined"] == 3
    assert counts["samples"] == sum(counts[name] for name in ("quarantined", "keep", "relabel", "soften", "ood"))
    assert counts["samples"] == run.samples().num_rows


def test_two_workers_train_one_model_on_uneven_shards(run: CurationRun) -> None:
    history = run.storage.read_json(run.model_stage(0).path("history.json"))
    usable = run.summary["counts"]["samples"] - 3 - len(run.stages["held_out"])
    batch = run.settings["pretrain"]["batch_size"]
    # both take as many steps, of half a batch each, as one worker takes of whole ones
    assert [epoch["images"] for epoch in history] == [-(-usable // batch) * batch] * 3
    assert run.summary["metrics"]["noise_auroc"] > 0.8


def test_mlflow_has_settings_figures_files_and_a_model_that_predicts(run: CurationRun) -> None:
    folder = Path(run.path)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    logged = client.get_run(json.loads((folder / "mlflow-run.json").read_text())["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["vote.k"] == "10"
    assert logged.data.metrics["noise_auroc"] == pytest.approx(run.summary["metrics"]["noise_auroc"])
    assert logged.data.metrics["stage/pretrain/seconds"] > 0
    assert len(client.get_metric_history(logged.info.run_id, "pretrain/train_loss")) == 3
    names = {entry.path for entry in client.list_artifacts(logged.info.run_id, "report")}
    assert "report/index.html" in names
    [model] = client.search_logged_models([logged.info.experiment_id])
    loaded = pyfunc.load_model(model.artifact_location)
    assert "images" in str(loaded.metadata.signature.inputs)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    logits = predict(run.model(), images)[1]
    expected = softmax(logits, run.summary["temperature"])
    np.testing.assert_allclose(loaded.predict({"images": images}), expected, atol=1e-5)
