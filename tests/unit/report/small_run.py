"""A finished run of eight images and two classes as tables in a folder, made without Ray and without a model."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from trainref_ray import make_config
from trainref_ray.report.summary import summarise
from trainref_ray.results import CurationRun, open_tables
from trainref_ray.run import RUN_FILE, Stage, Storage
from trainref_ray.schemas import (
    DECISION,
    REFERENCES,
    SAMPLES,
    TRUTH,
    embeddings,
    fixed_size_list,
    make_uids,
    predictions,
    soft_label_column,
    supporters,
)

FINGERPRINT = "0a1b2c3d"
CLASS_NAMES = ["cat", "dog"]
KEYS = list("abcdefgh")
GIVEN = [0, 0, 0, 0, 1, 1, 1, 1]
REFERENCES_AT, TRUSTED = [0, 3, 4], [0, 1, 1]
"""Rows of the references and their trusted labels: the given label of d is wrong."""
TRUE = [0, 0, 1, 1, 1, 0, -1, 1]
DECIDED = ["keep", "keep", "relabel", "keep", "keep", "soften", "ood", "quarantined"]
TESTS = 4


def finished_run(
    folder: Path,
    *,
    truth: Sequence[int | None] = TRUE,
    test_truth: Sequence[int | None] = (0, 1, 1, 0),
    left_short: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
) -> CurationRun:
    """One round, in which b joined the references; the model is right on three of the four test images.

    Args:
        folder: where to write.
        truth: true labels of the eight images, None = unknown.
        test_truth: of the test images, whose given labels are 0.
        left_short: classes that no sample joined, as the round's stage says.
        settings: that differ from the defaults.
    """
    storage = Storage(str(folder))
    config = make_config({"rounds": 1, "finetune_model": False, "evaluate": {"bootstrap": 0}}, settings or {})
    storage.write_bytes(RUN_FILE, yaml.safe_dump(config.model_dump(mode="json")).encode())
    storage.write_json("environment.json", {})
    uids = make_uids(0, len(KEYS))
    names = ("embeddings", "supporters", "references", "transition", "ood", "decisions")
    storage.write_json(
        "stages.json",
        {
            "class_names": CLASS_NAMES,
            "inventory": FINGERPRINT,
            "shards": [0],
            "test_shards": [1],
            "rounds": [dict.fromkeys(names, FINGERPRINT)],
            "models": [{"name": "pretrain", "round": 0, "fingerprint": FINGERPRINT}],
            "predictions": {"0": FINGERPRINT},
            "references": {"uids": uids[REFERENCES_AT].tolist(), "labels": TRUSTED},
            "held_out": [],
            "curating": uids[REFERENCES_AT].tolist(),
        },
    )
    _write_samples(storage, 0, KEYS, GIVEN, truth)
    _write_samples(storage, 1, [f"t{row}" for row in range(TESTS)], [0] * TESTS, test_truth)
    _write_round(storage, uids, left_short)
    logits = np.array([[3, 0], [0, 3], [3, 0], [3, 0]], np.float32)
    table = {"uid": make_uids(1, TESTS), "logits": fixed_size_list(logits, pa.float32())}
    _write(Stage(storage, "predictions", 0, FINGERPRINT), 1, pa.table(table, predictions(2)))
    run = open_tables(storage)
    storage.write_json("summary.json", summarise(run, []))
    return run


def pictures(uids: np.ndarray) -> dict[int, bytes]:
    """The same small image for every uid, as `collect` asks for them."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return dict.fromkeys(uids.tolist(), file.getvalue())


def _write(stage: Stage, shard: int, table: pa.Table) -> None:
    stage.write_shard(shard, "one", table, ok=table.num_rows, quarantined=0)


def _write_samples(
    storage: Storage, shard: int, keys: Sequence[str], given: Sequence[int], truth: Sequence[int | None]
) -> None:
    uids = make_uids(shard, len(keys))
    columns = {"uid": uids, "key": keys, "label": given, "width": [8] * len(keys), "height": [8] * len(keys)}
    columns |= {"sha256": keys, "status": ["ok"] * len(keys), "error": [None] * len(keys)}
    _write(Stage(storage, "inventory", 0, FINGERPRINT), shard, pa.table(columns, SAMPLES))
    _write(Stage(storage, "truth", 0, FINGERPRINT), shard, pa.table({"uid": uids, "true_label": truth}, TRUTH))


def _write_round(storage: Storage, uids: np.ndarray, left_short: Sequence[int]) -> None:
    def stage(name: str) -> Stage:
        return Stage(storage, name, 1, FINGERPRINT)

    usable = uids[:-1]
    count = len(usable)
    q = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0, 1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.5, 0.5]])
    has_label = np.array([decision not in ("ood", "quarantined") for decision in DECIDED])
    columns = {
        "uid": uids,
        "key": KEYS,
        "label": GIVEN,
        "decision": pa.array(DECIDED).dictionary_encode(),
        "soft_label": soft_label_column(q, has_label),
        "best_class": pa.array([*q.argmax(axis=1)[:-1].tolist(), None], pa.int32()),
        "label_quality": pa.array([*q[np.arange(len(q)), GIVEN][:-1].tolist(), None], pa.float32()),
        "ood_score": pa.array([0.1] * 6 + [0.9, None], pa.float32()),
        "reason": [f"reason of {key}" for key in KEYS],
    }
    _write(stage("decisions"), 0, pa.table(columns, DECISION))
    vectors = np.eye(2)[np.arange(count) % 2]
    columns = {name: fixed_size_list(vectors, pa.float16()) for name in ("embedding", "model_logits")}
    _write(stage("embeddings"), 0, pa.table({"uid": usable} | columns, embeddings(2, 2)))
    members = {"uid": uids[[0, 1, 3, 4]], "label": [0, 0, 1, 1], "given": [True, False, True, True]}
    members |= {"evidence": [0.5] * 4, "sha256": ["a", "b", "d", "e"]}
    storage.write_table(stage("references").path("members.parquet"), pa.table(members, REFERENCES))
    stage("references").finish({"given": 3, "members": 4, "classes_left_short": list(left_short)})
    mass = np.stack([np.bincount(GIVEN[:count], weights=q[:count, label]) for label in range(2)])
    storage.write_tensors(stage("transition").path("transition.safetensors"), {"mass": mass})
    stage("transition").finish({})
    stage("ood").finish({"cut": 1.0, "calibration_samples": 100})
    near = {"supporter_uid": np.tile(uids[[0, 3]], (count, 1)), "supporter_label": np.tile([0, 1], (count, 1))}
    similarity = fixed_size_list(np.tile([0.9, 0.8], (count, 1)), pa.float32())
    columns = {
        "uid": usable,
        "supporter_uid": fixed_size_list(near["supporter_uid"], pa.int64()),
        "supporter_similarity": similarity,
        "supporter_label": fixed_size_list(near["supporter_label"], pa.int32()),
    }
    _write(stage("supporters"), 0, pa.table(columns, supporters(2)))
