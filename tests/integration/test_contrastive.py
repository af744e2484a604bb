"""A curation whose pre-training reads no label, on a real local Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from safetensors.numpy import load_file
from shards import rewrite

from trainref_ray import curate, make_config
from trainref_ray.cli import print_results
from trainref_ray.models.backbones import predict
from trainref_ray.results import CurationRun

pytestmark = pytest.mark.ray

CONTRASTIVE = {
    # without bfloat16 relabel_accuracy is 0.60 after 8 epochs, no better than the given labels, and 0.80 after 30
    "pretrain": {"objective": "contrastive", "epochs": 30, "crop": True, "contrastive_area": 0.6},
    "finetune": {"epochs": 15, "learning_rate": 0.1},
    "tracking": {"enabled": True},
}


@pytest.fixture(scope="module")
def shards(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that a test may change."""
    return Path(shutil.copytree(digits, tmp_path_factory.mktemp("data") / "digits"))


def start(folder: Path, shards: Path, *changes: dict[str, Any]) -> CurationRun:
    data = {"data": [str(shards / "train-*.tar")], "test_data": [str(shards / "test-*.tar")]}
    return curate(make_config(TINY, CONTRASTIVE, data, {"out": str(folder)}, *changes))


@pytest.fixture(scope="module")
def run(local_ray: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> CurationRun:
    return start(tmp_path_factory.mktemp("contrastive") / "run", shards)


def test_the_pretrained_model_has_no_head_and_its_loss_fell(run: CurationRun) -> None:
    folder = Path(run.storage.location(run.model_stage(0).path("model")))
    assert json.loads((folder / "model.json").read_text())["spec"]["classes"] == 0
    assert {name.split(".")[0] for name in load_file(folder / "model.safetensors")} == {"body", "mean", "std"}
    history = run.storage.read_json(run.model_stage(0).path("history.json"))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[0]["validation_loss"] is None
    assert not run.storage.exists(run.model_stage(0).path("held_out.safetensors")), "no reference is read"


def test_what_needs_a_trained_head_is_left_out(run: CurationRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.model_logits(1) is None
    assert "cross_entropy" not in run.summary["baselines"]
    assert "model_accuracy" not in run.summary["rounds"][0]
    assert set(run.stages["predictions"]) == {"1"}
    print_results(run)
    table = capsys.readouterr().out
    assert "trainref" in table
    assert "first model" not in table
    page = run.storage.read_bytes("report/index.html").decode()
    assert "there is no cross-entropy on the noisy labels to compare with" in page
    assert "The labels of 30 references were seen by no training" in page


def test_the_curation_and_the_fine_tuned_model_work(run: CurationRun) -> None:
    metrics = run.summary["metrics"]
    assert metrics["noise_auroc"] > 0.8
    assert metrics["relabel_accuracy"] > 0.64  # 0.6 of the given labels are right
    assert metrics["accuracy"] > 0.6  # from a fresh head
    assert 0.05 <= run.summary["temperature"] <= 20
    _, logits = predict(run.model(), np.zeros((1, 8, 8, 3), np.uint8))
    assert logits.shape == (1, 10)


def test_other_labels_and_references_share_it_and_without_fine_tuning_there_is_no_head(
    run: CurationRun, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, tmp_path / "other")
    random = np.random.default_rng(0)

    def relabel(name: str, content: bytes) -> bytes:
        if not name.endswith(".json"):
            return content
        fields = json.loads(content)
        return json.dumps(fields | {"label": (fields["label"] + int(random.random() < 0.3)) % 10}).encode()

    for shard in sorted(shards.glob("train-*.tar")):
        rewrite(shard, shard.with_suffix(".new"), relabel)
        shard.with_suffix(".new").replace(shard)
    other = start(tmp_path / "other", shards, {"reference_per_class": 5, "finetune_model": False})
    assert not other.samples()["label"].equals(run.samples()["label"])
    assert len(other.reference_uids) == 50
    records = {(stage["name"], stage["round"]): stage for stage in other.summary["stages"]}
    assert records["pretrain", 0]["shards_reused"] == records["pretrain", 0]["shards"]
    assert records["embeddings", 1]["items"] == 0 or other.table("embeddings", 1)["embedding"].equals(
        run.table("embeddings", 1)["embedding"]
    )
    assert records["decisions", 1]["shards_reused"] == 0
    assert other.summary["temperature"] is None
    assert other.stages["predictions"] == {}
    assert not {"accuracy", "nll_ts", "ece_ts"} & set(other.summary["metrics"])
    assert json.loads(other.storage.read_bytes("model/calibration.json"))["temperature"] is None
    vectors, logits = predict(other.model(), np.zeros((1, 8, 8, 3), np.uint8))
    assert (vectors.shape, logits.shape) == ((1, 128), (1, 0))
    assert "No head was trained" in other.storage.read_bytes("report/index.html").decode()
    print_results(other)
    assert "noise_auroc" in capsys.readouterr().out


def test_the_backbone_of_an_earlier_run_starts_another(run: CurationRun, digits: Path, tmp_path: Path) -> None:
    changes = {"model": {"weights": f"{run.path}/model"}, "pretrain": {"objective": "none"}, "finetune_model": False}
    other = start(tmp_path / "run", digits, changes, {"tracking": {"enabled": False}})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(predict(other.model(), pixels)[0], predict(run.model(), pixels)[0])
    assert other.summary["temperature"] is None
    assert other.summary["metrics"]["noise_auroc"] > 0.8
