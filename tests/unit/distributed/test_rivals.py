"""What rivals of a comparison begin with, and what tells that their images have changed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

from trainref_ray.baselines import methods
from trainref_ray.config import make_config
from trainref_ray.distributed.rival_data import usable_counts
from trainref_ray.distributed.rival_jobs import depends_on
from trainref_ray.distributed.rival_worker import rival_model
from trainref_ray.models.backbones import ModelSpec, build, save_model
from trainref_ray.results import CurationRun
from trainref_ray.run import INVENTORY_FILE, RUN_FILE, Stage, Storage
from trainref_ray.schemas import make_uids


@pytest.mark.parametrize(("objective", "keeps_head"), [("supervised", True), ("none", False)])
def test_given_weights_are_taken_without_a_head_where_trainref_leaves_it_out(
    tmp_path: Path, objective: str, keeps_head: bool
) -> None:
    """Its first model has none where nothing is trained before the first round."""
    torch.manual_seed(7)
    spec = ModelSpec("cnn_small", 10, 8)
    given = build(spec)
    save_model(given, spec, tmp_path)
    changes = {"backbone": "cnn_small", "image_size": 8, "pretrain": {"objective": objective}}
    found = rival_model(make_config(changes, {"model": {"weights": str(tmp_path)}}), 10)
    assert torch.equal(found.head.weight, given.head.weight) == keeps_head
    for name, value in given.body.state_dict().items():
        assert torch.equal(found.body.state_dict()[name], value), name


def test_a_sample_that_became_usable_is_counted(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    stages = {"inventory": "00000000", "shards": [0, 2], "test_shards": [1]}
    run: Any = SimpleNamespace(storage=storage, stages=stages)
    stage = Stage(storage, "inventory", 0, "00000000")
    for shard, usable in ((0, 3), (1, 2), (2, 1)):
        stage.write_shard(shard, "etag", pa.table({"uid": make_uids(shard, 3)}), ok=usable, quarantined=3 - usable)
    assert usable_counts(run) == [3, 1, 2]


def test_an_ablation_depends_on_the_weight_of_the_given_label_that_it_is_curated_with(tmp_path: Path) -> None:
    """The same references, drawn or from a file: only those that were drawn change the weight."""

    def content(name: str, reference: dict[str, Any], fitted: float | None) -> dict[str, dict[str, Any]]:
        storage, config = Storage(str(tmp_path / name)), make_config(reference)
        storage.write_bytes(RUN_FILE, yaml.safe_dump(config.model_dump(mode="json")).encode())
        names = ("embeddings", "transition", "decisions")
        known = {"inventory": "0", "shards": [], "test_shards": [], "class_names": ["cat", "dog"]}
        known |= {"references": {}, "held_out": [], "curating": [], "rounds": [dict.fromkeys(names, "0")]}
        storage.write_json("stages.json", known)
        storage.write_table(INVENTORY_FILE, pa.table({"shard_id": pa.array([], pa.int64())}))
        Stage(storage, "transition", 1, "0").finish({} if fitted is None else {"given_weight": fitted})
        run = CurationRun(storage, storage)
        return {method: depends_on(method, run, config, {}) for method in methods.REWEIGHTED}

    of_file = content("file", {"reference": "refs.csv"}, None)
    drawn = content("drawn", {"reference_per_class": 1}, 1.5)
    again = content("again", {"reference_per_class": 1}, 1.5)
    other = content("other", {"reference_per_class": 1}, 1.25)
    for method in methods.REWEIGHTED:
        assert drawn[method] == again[method]
        is_without = method == "trainref/no-given-label"  # its weight is 0, whatever the others' is
        assert (drawn[method] == other[method]) == is_without
        assert (drawn[method] == of_file[method]) == is_without
