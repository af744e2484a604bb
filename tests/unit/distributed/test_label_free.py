"""What the stage of a pre-training without labels depends on: the images and its own settings, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainref_ray.config import make_config
from trainref_ray.distributed.context import Context, Inputs, References
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.pipeline import Pipeline
from trainref_ray.distributed.session import Cluster
from trainref_ray.distributed.trainer import build_model
from trainref_ray.errors import ConfigError
from trainref_ray.models.backbones import ModelSpec, build, load_model, save_model
from trainref_ray.progress import Reporter
from trainref_ray.run import Stage, Storage
from trainref_ray.schemas import INVENTORY, SAMPLES, make_uids

LABELS, DIGESTS = [0, 1, 2], ["aa", "bb", "cc"]


def context(
    folder: Path,
    *changes: dict[str, Any],
    labels: list[int] = LABELS,
    digests: list[str] = DIGESTS,
    status: tuple[str, ...] = ("ok", "ok", "ok"),
    references: tuple[int, ...] = (0,),
    classes: int = 3,
    etag: str = "one",
) -> Context:
    """A context whose inventory holds three images."""
    config = make_config({"backbone": "cnn_small", "image_size": 8}, *changes)
    shard = ShardRead(0, "0.tar", etag, 100, rows=3)
    storage, inputs = Storage(str(folder)), Inputs([shard], [], None, None, INVENTORY.empty_table())
    made = Context(config, storage, storage, cast(Cluster, None), Reporter(), inputs)
    made.inventory = made.labelled = made.stage("inventory", 0, etag, str(labels), str(status), str(digests))
    made.class_names = [str(label) for label in range(classes)]
    uids = make_uids(0, 3)
    columns = {"uid": uids, "key": ["a", "b", "c"], "label": labels, "width": [8] * 3, "height": [8] * 3}
    table = pa.table(columns | {"sha256": digests, "status": list(status), "error": [None] * 3})
    made.inventory.write_shard(0, etag, table.cast(SAMPLES), ok=status.count("ok"), quarantined=status.count("bad"))
    made.usable = {0: status.count("ok")}
    rows = np.array(references, np.int64)
    made.references = References(uids[rows], np.array(labels, np.int64)[rows])
    return made


def pretrain_stage(given: Context, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """The stage that is trained, or taken from weights."""
    stages: list[Stage] = []
    monkeypatch.setattr(Pipeline, "_train", lambda self, stage, *_, **__: stages.append(stage))
    pipeline = Pipeline(given, lambda: None)
    pipeline._pretrain()
    return [*stages, *pipeline.models][0]


CONTRASTIVE = {"pretrain": {"objective": "contrastive"}}
NOT_OF_THE_IMAGES: dict[str, dict[str, Any]] = {
    "labels": {"labels": [2, 2, 1]},
    "references": {"references": (1, 2)},
    "classes": {"classes": 7},
    "a shard written again": {"etag": "two"},
}


@pytest.mark.parametrize("change", NOT_OF_THE_IMAGES.values(), ids=NOT_OF_THE_IMAGES)
def test_contrastive_is_shared_whatever_is_no_image(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pretrain_stage(context(tmp_path / "a", CONTRASTIVE), monkeypatch)
    second = pretrain_stage(context(tmp_path / "b", CONTRASTIVE, **change), monkeypatch)
    assert (first.name, first.folder) == ("pretrain", second.folder)
    supervised = [
        pretrain_stage(context(tmp_path / name, **part), monkeypatch) for name, part in (("c", {}), ("d", change))
    ]
    assert supervised[0].folder != supervised[1].folder
    assert first.folder != supervised[0].folder


@pytest.mark.parametrize("change", [{"digests": ["aa", "bb", "dd"]}, {"status": ("ok", "bad", "ok")}], ids=str)
def test_contrastive_follows_the_usable_images(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pretrain_stage(context(tmp_path / "a", CONTRASTIVE), monkeypatch)
    second = pretrain_stage(context(tmp_path / "b", CONTRASTIVE, **change), monkeypatch)
    assert first.folder != second.folder


def test_calibration_and_reference_settings_do_not_matter_but_its_own_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(change: dict[str, Any]) -> str:
        return pretrain_stage(context(tmp_path, CONTRASTIVE, change), monkeypatch).folder

    base = folder({})
    for change in ({"calibrate": {"per_class": 1}}, {"reference_per_class": 4}, {"vote": {"k": 3}}, {"out": "x"}):
        assert folder(change) == base
    for change in ({"seed": 1}, {"pretrain": {"contrastive_temperature": 0.1}}, {"backbone": "resnet18"}):
        assert folder(change) != base


def saved(folder: Path, seed: int, classes: int = 3) -> Path:
    torch.manual_seed(seed)
    spec = ModelSpec("cnn_small", classes, 8)
    save_model(build(spec), spec, folder)
    return folder


def test_objective_none_takes_the_weights_without_their_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = saved(tmp_path / "earlier", seed=1)
    settings = {"pretrain": {"objective": "none"}, "model": {"weights": str(weights)}}
    given = context(tmp_path / "run", settings)
    stage = pretrain_stage(given, monkeypatch)
    assert stage.is_done()
    model, spec = load_model(given.storage.location(stage.path("model")))
    earlier, _ = load_model(weights)
    assert spec.classes == 0
    assert torch.equal(model.body.stages[0].weight, earlier.body.stages[0].weight)
    assert not any(name.startswith("head") for name in model.state_dict())
    saved(weights, seed=2)
    assert pretrain_stage(context(tmp_path / "run", settings), monkeypatch).folder != stage.folder, "other content"


def test_weights_of_another_model_are_a_setting_to_correct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    for weights, size in ((saved(tmp_path / "small", seed=1), 32), (broken, 8)):
        settings = {"pretrain": {"objective": "none"}, "model": {"weights": str(weights)}, "image_size": size}
        with pytest.raises(ConfigError, match=rf"image_size {size}, model\.weights '.*(another model|[Hh]eader)"):
            pretrain_stage(context(tmp_path / f"run-{size}", settings), monkeypatch)


def test_a_model_that_cannot_be_is_not_blamed_on_the_weights_alone() -> None:
    with pytest.raises(ConfigError, match=r"backbone 'cnn_small', image_size 4, .*needs images of 8 pixels or more"):
        build_model(ModelSpec("cnn_small", 2, 4))
