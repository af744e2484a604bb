"""What the rivals of a comparison are given, read from a finished run: the same samples, references and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from trainref_ray.config import Config
from trainref_ray.data.images import stored_size
from trainref_ray.data.samples import sample_format
from trainref_ray.data.votes import read_votes
from trainref_ray.distributed.datasource import ReadPlan, ShardRead, pixels_of, read_blocks
from trainref_ray.errors import ShardError
from trainref_ray.report.scores import Truth
from trainref_ray.report.summary import UNKNOWN, true_labels
from trainref_ray.results import CurationRun
from trainref_ray.run import INVENTORY_FILE, Stage
from trainref_ray.schemas import OK, SHARD_BITS, to_matrix


@dataclass(frozen=True)
class Split:
    """Whom a comparison is about: uids int64, ascending, and labels int64 beside them.

    Attributes:
        samples, given: usable training samples that are no references, and their given labels.
        references, trusted: those that every method may train on.
        held_out, held_out_labels: references that choose the epoch and the temperature, and that nobody is trained on.
        tests: usable test images.
    """

    samples: np.ndarray
    given: np.ndarray
    references: np.ndarray
    trusted: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    tests: np.ndarray


def read_split(run: CurationRun) -> Split:
    """Samples, references and test images of a run."""
    usable = np.sort(run.table("embeddings", 1, ["uid"])["uid"].to_numpy())
    inventory = run.samples()
    order = np.argsort(inventory["uid"].to_numpy())
    known = inventory["uid"].to_numpy()[order]
    given = inventory["label"].fill_null(-1).to_numpy().astype(np.int64)[order]
    samples = usable[~np.isin(usable, run.reference_uids)]
    trusted = np.array(run.stages["references"]["labels"], np.int64)
    is_held_out = np.isin(run.reference_uids, np.array(run.stages["held_out"], np.int64))
    return Split(
        samples=samples,
        given=given[np.searchsorted(known, samples)],
        references=run.reference_uids[~is_held_out],
        trusted=trusted[~is_held_out],
        held_out=run.reference_uids[is_held_out],
        held_out_labels=trusted[is_held_out],
        tests=_test_uids(run),
    )


def _test_uids(run: CurationRun) -> np.ndarray:
    """Usable test images, ascending; none if the run has no test shards."""
    if not run.stages["test_shards"]:
        return np.zeros(0, np.int64)
    table = run.samples(test=True)
    return np.sort(table["uid"].to_numpy()[np.array(table["status"].to_pylist()) == OK])


def training_history(run: CurationRun, models: int | None = None) -> list[dict[str, Any]]:
    """Reports of all epochs of the run's first so many trainings, or of all (`training.state.EpochReport`)."""
    stages = [run.model_stage(index) for index in range(len(run.stages["models"]))][:models]
    return [report for stage in stages for report in stage.storage.read_json(stage.path("history.json"))]


def embeddings_of(run: CurationRun, uids: np.ndarray) -> np.ndarray:
    """The first round's embeddings float16 [n, D] by uid."""
    table = run.table("embeddings", 1, ["uid", "embedding"])
    return to_matrix(table["embedding"])[_rows_of(table, uids)]


def probabilities_of(run: CurationRun, uids: np.ndarray) -> np.ndarray | None:
    """What the first round's model says, float32 [n, C] by uid, None if it has no head."""
    found = run.model_probabilities(1)
    return None if found is None else found[_rows_of(run.table("embeddings", 1, ["uid"]), uids)]


def digests_of(run: CurationRun, uids: np.ndarray) -> np.ndarray:
    """sha256 of the images' files by uid, str [n]."""
    table = run.samples()
    return np.array(table["sha256"].take(pa.array(_rows_of(table, uids))).to_pylist(), dtype=str)


def _rows_of(table: pa.Table, uids: np.ndarray) -> np.ndarray:
    """Row numbers int64 [n] of uids in a table that holds them all, in any order."""
    known = table["uid"].to_numpy()
    order = np.argsort(known)
    return order[np.searchsorted(known[order], uids)]


def shards_of(run: CurationRun, *, test: bool = False) -> list[ShardRead]:
    """The run's shards that hold a sample, cut where the run cut them."""
    rows = run.storage.read_table(INVENTORY_FILE).to_pylist()
    files = {row["shard_id"]: row for row in rows}
    markers = Stage(run.storage, "inventory", 0, run.stages["inventory"]).done_shards()
    found = []
    for shard_id in run.stages["test_shards" if test else "shards"]:
        file, marker = files[shard_id], markers[shard_id]
        count = marker["ok"] + marker["quarantined"]
        if count:
            found.append(ShardRead(shard_id, file["url"], marker["etag"], file["bytes"], rows=count, limit=count))
    return found


def usable_counts(run: CurationRun) -> list[int]:
    """Usable samples of each shard, training shards first: a sample that was quarantined may be read a second time."""
    markers = Stage(run.storage, "inventory", 0, run.stages["inventory"]).done_shards()
    return [markers[shard]["ok"] for shard in (*run.stages["shards"], *run.stages["test_shards"])]


def pixel_blocks(
    run: CurationRun, config: Config, uids: np.ndarray, *, test: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of decoded images: rows of `uids` (ascending) int64 [b], and pixels uint8 [b, S', S', 3].

    Raises:
        ShardError: an image is not there any more.
    """
    plan, side, found = (
        ReadPlan(sample_format(config, run.class_names, image_size=config.image_size), pixels=True),
        stored_size(config.image_size),
        0,
    )
    for shard in shards_of(run, test=test):
        if not (uids >> SHARD_BITS == shard.shard_id).any():
            continue
        for block in read_blocks(shard, plan):
            wanted = np.isin(block["uid"].to_numpy(), uids)
            found += int(wanted.sum())
            yield np.searchsorted(uids, block["uid"].to_numpy()[wanted]), pixels_of(block, side)[wanted]
    if found < len(uids):
        raise ShardError(f"{found} of {len(uids)} images could be read again: the shards have changed")


def read_pixels(run: CurationRun, config: Config, uids: np.ndarray) -> np.ndarray:
    """Training images uint8 [n, S', S', 3] by uid, in any order of uids."""
    side = stored_size(config.image_size)
    order = np.argsort(uids)
    pixels = np.zeros((len(uids), side, side, 3), np.uint8)
    for rows, block in pixel_blocks(run, config, uids[order]):
        pixels[order[rows]] = block
    return pixels


def read_truth(run: CurationRun, config: Config, split: Split, human_field: str | None) -> Truth:
    """What the figures are computed against. Rows are the split's samples, tests and held-out references."""
    tests, test_labels = split.tests, np.zeros(0, np.int64)
    if len(tests):
        table = run.samples(test=True)
        order = np.argsort(table["uid"].to_numpy())
        given = table["label"].fill_null(-1).to_numpy().astype(np.int64)[order]
        truth = true_labels(run, tests, test=True)
        rows = np.searchsorted(table["uid"].to_numpy()[order], tests)
        test_labels = np.where(truth == UNKNOWN, given[rows], truth)
    return Truth(
        given=split.given,
        truth=true_labels(run, split.samples),
        votes=_votes(run, config, shards_of(run), split.samples, human_field),
        test_labels=test_labels,
        test_votes=_votes(run, config, shards_of(run, test=True), tests, human_field) if len(tests) else None,
        held_out_labels=split.held_out_labels,
    )


def _votes(
    run: CurationRun, config: Config, shards: Sequence[ShardRead], uids: np.ndarray, field: str | None
) -> np.ndarray | None:
    """People's distributions float64 [n, C] by uid, None where no sample has any."""
    if field is None:
        return None
    classes = len(run.class_names)
    votes = np.full((len(uids), classes), np.nan)
    for shard in shards:
        found = read_votes(shard.url, field, classes=classes, rows=shard.rows or 0, max_bytes=config.read.max_bytes)
        own = uids >> SHARD_BITS == shard.shard_id
        votes[own] = found[uids[own] & ((1 << SHARD_BITS) - 1)]
    return None if np.isnan(votes).all() else votes
