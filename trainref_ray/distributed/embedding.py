"""Images through a model: embeddings of the training shards, logits of the test shards, by one pool of actors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from trainref_ray.data.images import stored_size
from trainref_ray.distributed.context import Context
from trainref_ray.distributed.datasource import BLOCK_ROWS, ReadPlan, ShardDatasource, ShardRead, pixels_of
from trainref_ray.distributed.stages import blocks_of, collect, unfinished
from trainref_ray.run import Stage, Storage
from trainref_ray.schemas import SHARD_BITS, check, embeddings, predictions

CPU_BATCH = 256
FIRST_BATCH = 32
"""Where the search for the fastest batch on a GPU begins."""


@dataclass(frozen=True)
class Output:
    """A table that a model makes of some shards: `logits` of test images, else embeddings."""

    stage: Stage
    shards: list[ShardRead]
    logits: bool


def apply_model(context: Context, model: Stage, outputs: Iterable[Output]) -> None:
    """Write what is missing of the outputs, one after the other; the same actors serve all, since starting them costs
    more than many images (11 s each on a small machine).

    Args:
        context: of the curation.
        model: the stage whose model the images go through.
        outputs: tables to make, of different shards.
    """
    wanted = [output for output in outputs if not _reused(context, output)]
    if not wanted:
        return
    with context.claim(*(output.stage for output in wanted)):
        missing = [(output, unfinished(output.stage, output.shards, context.usable)) for output in wanted]
        started = [(output, shards) for output, shards in missing if shards]
        if started:
            _apply(context, model, started)


def _reused(context: Context, output: Output) -> bool:
    if unfinished(output.stage, output.shards, context.usable):
        return False
    context.reporter.reused(output.stage.name, output.stage.round, len(output.shards))
    return True


def _apply(context: Context, model: Stage, started: list[tuple[Output, list[ShardRead]]]) -> None:
    """Outputs with their missing shards."""
    described = context.storage.read_json(model.path("model/model.json"))
    embedded = embeddings(described["width"], described["spec"]["classes"])
    full = [shard for _, missing in started for shard in missing if context.usable[shard.shard_id]]
    predicted = frozenset(shard.shard_id for output, missing in started if output.logits for shard in missing)
    blocks = _through_model(context, model, full, predicted) if full else iter(())
    for output, missing in started:
        schema = predictions(context.classes) if output.logits else embedded
        _write(context, output, missing, schema, blocks)


def _write(
    context: Context, output: Output, missing: list[ShardRead], schema: pa.Schema, blocks: Iterator[pa.Table]
) -> None:
    """Take the blocks of an output's missing shards, which come next, and write their tables."""
    stage, usable = output.stage, context.usable
    by_id = {shard.shard_id: shard for shard in missing}

    def finish(shard_id: int, table: pa.Table) -> None:
        shard = by_id[shard_id]
        checked = check(table.select(schema.names), schema, f"{stage.folder} of shard {shard_id}")
        rows = usable[shard_id]
        stage.write_shard(shard_id, shard.etag, checked, ok=rows, quarantined=(shard.rows or 0) - rows)

    expected = {shard_id: usable[shard_id] for shard_id in by_id if usable[shard_id]}
    reused = len(output.shards) - len(missing)
    with context.reporter.stage(
        stage.name, stage.round, shards=len(output.shards), reused=reused, items=sum(expected.values())
    ) as progress:
        for shard_id in by_id.keys() - expected.keys():
            finish(shard_id, schema.empty_table())
            progress.advance(0, shards=1)
        collect(blocks, expected, finish, progress)


def _through_model(
    context: Context, model: Stage, shards: list[ShardRead], predicted: frozenset[int]
) -> Iterator[pa.Table]:
    """Blocks of the shards after the model, in the shards' order."""
    cluster, resources = context.cluster, context.config.resources
    workers = min(cluster.embed_workers, len(shards))
    dataset = ray.data.read_datasource(
        ShardDatasource(shards, ReadPlan(context.format(), pixels=True)), override_num_blocks=len(shards)
    ).map_batches(
        Embedder,
        fn_constructor_args=(
            context.storage.root,
            model.path("model"),
            predicted,
            cluster.device,
            cluster.bf16,
            resources.embed_batch,
            cluster.embed_threads,
        ),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_gpus=cluster.embed_gpus or None,
        num_cpus=cluster.embed_cpus,
    )
    dataset.context.execution_options.preserve_order = True
    return blocks_of(dataset)


class Embedder:
    """An actor that holds the model: decoded blocks in, embeddings (or logits) out; pixels end here."""

    def __init__(
        self,
        root: str,
        model: str,
        predicted: frozenset[int],
        device: str,
        bf16: bool | None,
        batch: int | None,
        threads: int,
    ) -> None:
        import torch

        from trainref_ray.models.backbones import load_model
        from trainref_ray.models.precision import use_bf16

        torch.set_num_threads(threads)
        with TemporaryDirectory() as folder:
            self._model, spec = load_model(Storage(root).download(model, Path(folder) / "model"))
        self._side = stored_size(spec.image_size)
        self._predicted = predicted
        self._device = device
        self._bf16 = use_bf16(bf16, device)
        self._batch = batch or self._choose_batch()

    def _choose_batch(self) -> int:
        """The fastest batch on a GPU; blocks set the limit, since one batch never holds two shards."""
        from trainref_ray.models.memory import fastest_batch, prediction_speed

        if self._device == "cpu":
            return CPU_BATCH
        measure = prediction_speed(self._model, device=self._device, bf16=self._bf16)
        return fastest_batch(measure, start=FIRST_BATCH, largest=BLOCK_ROWS)

    def __call__(self, block: pa.Table) -> pa.Table:
        """One block, all of one shard: `embedding` and `model_logits` (null without a head), or `logits` for the
        shards to predict."""
        from trainref_ray.models.backbones import predict

        pixels = pixels_of(block, self._side)
        vectors, logits = predict(self._model, pixels, device=self._device, bf16=self._bf16, batch=self._batch)
        has_head = logits.shape[1] > 0
        wants_logits = block["uid"][0].as_py() >> SHARD_BITS in self._predicted
        return pa.table(
            {
                "uid": block["uid"],
                "embedding": _rows(vectors, pa.float16(), keep=not wants_logits),
                "model_logits": _rows(logits, pa.float16(), keep=has_head and not wants_logits),
                "logits": _rows(logits, pa.float32(), keep=wants_logits),
            }
        )


def _rows(values: np.ndarray, kind: pa.DataType, *, keep: bool) -> pa.Array:
    """A column of lists of one length, all null and so without content if they are not kept."""
    if not keep:
        return pa.nulls(len(values), pa.list_(kind))
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1), kind))
