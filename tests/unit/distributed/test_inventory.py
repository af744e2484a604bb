"""What the inventory refuses or tells before anything is trained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from test_label_free import context

from trainref_ray.distributed.context import Context
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.inventory import take_inventory
from trainref_ray.errors import ShardError
from trainref_ray.progress import Reporter
from trainref_ray.schemas import SAMPLES, TRUTH, make_uids


def read_before(folder: Path, test_status: Sequence[str], test_truth: Sequence[int | None]) -> Context:
    """A context all of whose tars an earlier start has read: a good training shard, and a test shard."""
    made = context(folder)
    made.reporter = Reporter(Console(file=io.StringIO(), width=300))
    inventory = made.stage("inventory", 0, "")
    contents = {0: (["ok", "ok"], [0, 1]), 1: (test_status, test_truth)}
    for shard, (status, truth) in contents.items():
        uids, ok = make_uids(shard, 2), [entry == "ok" for entry in status]
        columns = {"uid": uids, "key": ["a", "b"], "label": [0 if good else None for good in ok]}
        columns |= {"width": [8, 8], "height": [8, 8], "sha256": ["aa", "bb"], "status": status}
        columns |= {"error": [None if good else "no label" for good in ok]}
        counts = {"ok": sum(ok), "quarantined": 2 - sum(ok)}
        inventory.write_shard(shard, "one", pa.table(columns, SAMPLES), **counts)
        labels = pa.table({"uid": uids, "true_label": truth}, TRUTH)
        replace(inventory, name="truth").write_shard(shard, "one", labels, **counts)
    shards = [ShardRead(shard, f"{shard}.tar", "one", 100) for shard in contents]
    made.inputs = replace(made.inputs, shards=shards[:1], test_shards=shards[1:])
    return made


def told(made: Context) -> str:
    return made.reporter.console.file.getvalue()  # type: ignore[attr-defined]


def test_test_shards_without_a_usable_sample_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no usable sample in 1 test shards \(--test-data, .*first reason: no label"):
        take_inventory(read_before(tmp_path, ["quarantined"] * 2, [None, None]))


@pytest.mark.parametrize(
    ("status", "truth", "warned"),
    [
        (["ok", "ok"], [-1, -1], True),
        (["ok", "quarantined"], [-1, 1], True),
        (["ok", "ok"], [-1, 1], False),
        (["ok", "ok"], [-1, None], False),
    ],
)
def test_test_images_of_no_class_are_told(
    tmp_path: Path, status: list[str], truth: list[int | None], warned: bool
) -> None:
    made = read_before(tmp_path, status, truth)
    take_inventory(made)
    assert ("warning: no test image is of a class: the field 'true_label' is -1 in all of them" in told(made)) == warned
