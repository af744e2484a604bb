"""First of all, every tar is read once: keys, labels, sizes, digests, what is unusable and why, and the references."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from trainref_ray.data.noise import inject
from trainref_ray.data.reference import check_classes, draw_references, match_keys, write_reference_csv
from trainref_ray.data.shards import shard_name
from trainref_ray.data.sources.cifar import confusion_by_names
from trainref_ray.distributed.context import Context, References
from trainref_ray.distributed.curation import display_names
from trainref_ray.distributed.datasource import ReadPlan, ShardDatasource, ShardRead
from trainref_ray.distributed.stages import blocks_of, unfinished
from trainref_ray.errors import ReferenceSetError, ShardError
from trainref_ray.run import Stage
from trainref_ray.schemas import OK, SAMPLES, SHARD_BITS, TRUTH, check

UNLABELLED = -2
"""Stands for "no label" in integer arrays; -1 is METHOD's "belongs to no class"."""


def take_inventory(context: Context) -> None:
    """Read the tars that were not read before, and fill the context with what is in them.

    Raises:
        ShardError: there is no usable sample at all, or there are test shards and none in them.
    """
    context.inventory = context.stage("inventory", 0, ",".join(context.inputs.class_names or ()))
    context.truth = replace(context.inventory, name="truth")
    context.labelled = context.inventory
    inputs = context.inputs
    shards = [*inputs.shards, *inputs.test_shards]
    context.once(
        context.inventory,
        lambda: not _to_read(context, shards),
        len(shards),
        lambda: _read_tars(context, shards),
    )
    markers = context.inventory.done_shards()
    context.usable = {shard.shard_id: markers[shard.shard_id]["ok"] for shard in shards}
    rows = {shard_id: marker["ok"] + marker["quarantined"] for shard_id, marker in markers.items()}
    inputs.shards = [replace(shard, rows=rows[shard.shard_id]) for shard in inputs.shards]
    inputs.test_shards = [replace(shard, rows=rows[shard.shard_id]) for shard in inputs.test_shards]
    _require_usable(context, inputs.shards, "shards")
    if inputs.test_shards:
        _require_usable(context, inputs.test_shards, "test shards (--test-data, which a curation can do without)")
        _tell_foreign_tests(context)
    _name_samples(context)


def _require_usable(context: Context, shards: list[ShardRead], words: str) -> None:
    if not sum(context.usable[shard.shard_id] for shard in shards):
        errors = context.inventory.read_shard(shards[0].shard_id)["error"].drop_null()
        reason = errors[0].as_py() if len(errors) else "the shards are empty"
        raise ShardError(f"no usable sample in {len(shards)} {words}; the first reason: {reason}")


def _tell_foreign_tests(context: Context) -> None:
    """A line, before anything is trained, where no usable test image is of a class: they measure nothing."""
    for shard in context.inputs.test_shards:
        is_ok = pc.equal(context.inventory.read_shard(shard.shard_id, ["status"])["status"], OK)
        truth = context.truth.read_shard(shard.shard_id, ["true_label"])["true_label"]
        if pc.any(pc.and_(is_ok, pc.not_equal(truth.fill_null(UNLABELLED), -1))).as_py():
            return
    context.reporter.message(
        f"warning: no test image is of a class: the field {context.config.truth_field!r} is -1 in all of them, and the "
        "model is measured on none"
    )


def _read_tars(context: Context, shards: list[ShardRead]) -> None:
    missing = _to_read(context, shards)
    plan = ReadPlan(replace(context.format(), image_size=None), truth=True, usable_only=False, whole_shards=True)
    reused = len(shards) - len(missing)
    with context.reporter.stage("inventory", 0, shards=len(shards), reused=reused, items=0) as progress:
        dataset = ray.data.read_datasource(ShardDatasource(missing, plan), override_num_blocks=len(missing))
        waiting = {shard.shard_id: shard for shard in missing}
        for table in blocks_of(dataset):
            _write(context.inventory, context.truth, waiting.pop(table["uid"][0].as_py() >> SHARD_BITS), table)
            progress.advance(table.num_rows, shards=1)
        for shard in waiting.values():
            empty = pa.schema([*SAMPLES, TRUTH.field("true_label")]).empty_table()
            _write(context.inventory, context.truth, shard, empty)


def add_noise(context: Context) -> None:
    """The labels that the curation is given: the shards' own, or for an experiment clean ones with known noise.

    Images of no class keep the label they came with. Where the shards have no trusted field, the given labels are taken
    as clean and become the truth that figures are computed from.

    Raises:
        ConfigError: the noise does not fit the classes.
    """
    if context.config.noise == "none":
        return
    stage = context.stage("noisy", 0, context.inventory.fingerprint, context.data_digest(), str(context.classes))
    context.once(
        stage, lambda: not unfinished(stage, context.shards), len(context.shards), lambda: _inject(context, stage)
    )
    context.labelled, context.truth = stage, replace(stage, name="truth")


def _inject(context: Context, stage: Stage) -> None:
    """Write the samples with noisy labels, and beside them the truth that these were made of."""
    with context.reporter.stage(
        stage.name,
        0,
        shards=len(context.shards),
        reused=0,
        items=sum(context.usable[s.shard_id] for s in context.shards),
    ) as progress:
        samples = pa.concat_tables([context.inventory.read_shard(shard.shard_id) for shard in context.shards])
        known = pa.concat_tables([context.truth.read_shard(shard.shard_id) for shard in context.shards])["true_label"]
        clean = pc.coalesce(known, samples["label"]).fill_null(UNLABELLED).to_numpy().astype(np.int64)
        noisy = samples["label"].fill_null(UNLABELLED).to_numpy().astype(np.int64)
        noisy[clean >= 0] = inject(
            clean[clean >= 0],
            context.classes,
            context.config.noise,
            context.config.seed,
            confusion=confusion_by_names(context.class_names),
        )
        labels = pa.array(noisy, pa.int32(), mask=noisy == UNLABELLED)
        samples = samples.set_column(samples.schema.get_field_index("label"), "label", labels)
        truth = pa.table({"true_label": pa.array(clean, pa.int32(), mask=clean == UNLABELLED)})
        written = samples.append_column("true_label", truth["true_label"])
        shard_ids = samples["uid"].to_numpy() >> SHARD_BITS
        for shard in context.shards:
            rows = written.filter(pa.array(shard_ids == shard.shard_id)).combine_chunks()
            _write(stage, replace(stage, name="truth"), shard, rows)
            progress.advance(context.usable[shard.shard_id], shards=1)


def _to_read(context: Context, shards: list[ShardRead]) -> list[ShardRead]:
    missing = unfinished(context.inventory, shards)
    if context.config.retry_quarantined:
        again = {shard_id for shard_id, marker in context.inventory.done_shards().items() if marker["quarantined"]}
        listed = {shard.shard_id for shard in missing}
        missing += [shard for shard in shards if shard.shard_id in again - listed]
    return missing


def _write(inventory: Stage, truth: Stage, shard: ShardRead, table: pa.Table) -> None:
    ok = int(np.sum(np.array(table["status"].to_pylist()) == OK))
    counts = {"ok": ok, "quarantined": table.num_rows - ok}
    true_labels = check(table.select(["uid", "true_label"]), TRUTH, f"truth of {shard.url}")
    samples = check(table.drop_columns(["true_label"]), SAMPLES, f"samples of {shard.url}")
    truth.write_shard(shard.shard_id, shard.etag, true_labels, **counts)
    inventory.write_shard(shard.shard_id, shard.etag, samples, **counts)


def _name_samples(context: Context) -> None:
    """Names for people: keys that are not unique over all shards are written as `shard:key`."""
    counts: Counter[str] = Counter()
    for shard in context.shards:
        counts.update(context.inventory.read_shard(shard.shard_id, ["key"])["key"].to_pylist())
    context.names = {
        "duplicated": {key for key, count in counts.items() if count > 1},
        "shards": {shard.shard_id: shard_name(shard.url) for shard in context.shards},
    }


def choose_references(context: Context) -> None:
    """Match the reference file's keys, or draw by the trusted field, which is read here and in evaluation only.

    Raises:
        ReferenceSetError: a key is in no shard, a class has no reference, or there is no trusted field to draw by.
    """
    samples = context.samples(["uid", "key", "label"])
    uids = samples["uid"].to_numpy()
    keys = display_names(uids, samples["key"].to_pylist(), context.names)
    if context.inputs.reference_rows is not None:
        rows = np.array(match_keys([key for key, _ in context.inputs.reference_rows], keys), np.int64)
        labels = np.array([label for _, label in context.inputs.reference_rows], np.int64)
        order = np.argsort(uids[rows])
        chosen = References(uids[rows][order], labels[order])
    else:
        chosen = drawn_references(context, context.config.reference_per_class or 1)
    context.class_names = _class_names(context, chosen.labels, samples)
    check_classes(chosen.labels, context.class_names, allow_missing=context.config.allow_missing_classes)
    context.references = chosen
    context.curating = context.curating_references()
    names = [keys[row] for row in np.searchsorted(uids, chosen.uids)]
    classes = [context.class_names[label] for label in chosen.labels]
    listed = write_reference_csv(list(zip(names, classes, strict=True)))
    context.home.write_bytes("references.csv", listed.encode())


def _class_names(context: Context, trusted: np.ndarray, samples: pa.Table) -> list[str]:
    """The names there are, else the numbers 0 to the largest label that is trusted or given.

    Args:
        context: whose inputs may name the classes.
        trusted: int64, trusted labels.
        samples: with the columns key and label.

    Raises:
        ReferenceSetError: nothing names the classes, and a label is not below the number of samples: most classes would
            have none, and a label such as 1,000,000,000 is a mistake.
    """
    if context.inputs.class_names:
        return context.inputs.class_names
    given = samples["label"].to_numpy()
    largest = int(max(trusted.max(), given.max()))
    if largest >= len(given):
        where = (
            f"sample {samples['key'][int(given.argmax())].as_py()!r}" if given.max() == largest else "a trusted sample"
        )
        raise ReferenceSetError(
            f"{where} has the label {largest:,} and there are {len(given):,} samples; allowed: labels below that, or "
            "class names, in classes.json beside the shards or by --classes"
        )
    return [str(label) for label in range(largest + 1)]


def drawn_references(context: Context, per_class: int) -> References:
    """So many samples of each class by the trusted field; fewer a class are a part of more.

    Raises:
        ReferenceSetError: there is no trusted field, or a label is no class.
    """
    samples = context.samples(["uid", "key", "label"])
    uids = samples["uid"].to_numpy()
    trusted = _trusted_field(context, uids)
    classes = len(_class_names(context, trusted, samples))
    rows = np.sort(draw_references(uids, trusted, per_class=per_class, classes=classes, seed=context.config.seed))
    return References(uids[rows], trusted[rows])


def _trusted_field(context: Context, uids: np.ndarray) -> np.ndarray:
    """True labels int64 [N], -1 where there is none. Labels that noise is yet to be put into are the true ones."""
    truth = pa.concat_tables([context.truth.read_shard(shard.shard_id) for shard in context.shards])
    rows = np.searchsorted(truth["uid"].to_numpy(), uids)
    found = truth["true_label"].take(pa.array(rows))
    if found.null_count == len(found) and context.config.noise != "none":
        return context.samples(["label"])["label"].to_numpy().astype(np.int64)
    if found.null_count == len(found):
        raise ReferenceSetError(
            f"no sample has the trusted field {context.config.truth_field!r}, from which references are to be drawn; "
            "give --reference FILE, or --truth-field"
        )
    return found.fill_null(-1).to_numpy().astype(np.int64)
