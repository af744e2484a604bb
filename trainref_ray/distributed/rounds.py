"""One round of curation: probe, evidence, references, supporters, out-of-distribution, decisions (METHOD 1 to 5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from trainref_ray import schemas
from trainref_ray.config import Config
from trainref_ray.distributed import curation
from trainref_ray.distributed.context import Context, References
from trainref_ray.distributed.curation import RoundStages
from trainref_ray.distributed.stages import gather_rows, map_shards, unfinished
from trainref_ray.distributed.supporter_pool import supporter_pool
from trainref_ray.distributed.tasks import Task, run_all
from trainref_ray.errors import ShardError
from trainref_ray.method import augment, influence, ood, steps
from trainref_ray.models.probe import fit_probe
from trainref_ray.retrieval.index import SupporterIndex
from trainref_ray.run import Stage
from trainref_ray.schemas import check, to_matrix


def round_stages(context: Context, model: Stage, round_: int, first: RoundStages | None = None) -> RoundStages:
    """Where the tables of a round are; each stage's fingerprint covers those that it reads.

    Args:
        context: of the curation.
        model: the stage whose model makes the round's embeddings.
        round_: from 1.
        first: the first round's; None in the first round itself.
    """
    embedded = context.stage("embeddings", round_, model.fingerprint, context.inventory.fingerprint)
    probe = context.stage(
        "probe",
        round_,
        embedded.fingerprint,
        context.labelled.fingerprint,
        context.data_digest(),
        context.references.digest,
        context.curating.digest,
        str(context.classes),
    )
    evidence = context.stage("evidence", round_, probe.fingerprint)
    references = context.stage("references", round_, evidence.fingerprint)
    supporters = context.stage("supporters", round_, references.fingerprint)
    distributions = context.stage("distributions", round_, supporters.fingerprint)
    ood_embeddings = embedded if first is None else first.embeddings
    cut = context.stage("ood", round_, supporters.fingerprint, ood_embeddings.fingerprint)
    weighed = "fitted" if context.config.fits_given_weight else "set"
    transition = context.stage("transition", round_, distributions.fingerprint, cut.fingerprint, weighed)
    decisions = context.stage("decisions", round_, transition.fingerprint, cut.fingerprint)
    return RoundStages(
        context.labelled,
        model,
        embedded,
        probe,
        evidence,
        references,
        supporters,
        distributions,
        transition,
        ood_embeddings,
        cut,
        decisions,
    )


def curate_round(context: Context, stages: RoundStages) -> None:
    """Every table of a round whose embeddings are there."""
    config, classes, usable = context.config, context.classes, context.usable
    choose_members(context, stages)
    _per_shard(context, stages.supporters, lambda: _find_supporters(context, stages))
    arguments: dict[str, Any] = {"stages": stages, "classes": classes, "config": config}
    schema = schemas.distributions(classes)
    _map(context, stages.distributions, usable, schema, curation.distributions_table, arguments)
    _whole(context, stages.ood, lambda: _cut_ood(context, stages))
    _whole(context, stages.transition, lambda: _sum_label_mass(context, stages))
    arguments = {"stages": stages, "config": config, "class_names": context.class_names, "names": context.names}
    rows = {shard.shard_id: shard.rows or 0 for shard in context.shards}
    _map(context, stages.decisions, rows, schemas.DECISION, curation.decisions_table, arguments)


def choose_members(context: Context, stages: RoundStages) -> None:
    """The first stages of a round, up to the reference set in use: all that does not depend on the vote's settings."""
    classes = context.classes
    _whole(context, stages.probe, lambda: _fit_probe(context, stages))
    arguments = {"stages": stages, "classes": classes}
    _map(context, stages.evidence, context.usable, schemas.evidence(classes), curation.evidence_table, arguments)
    _whole(context, stages.references, lambda: _augment(context, stages))


def _whole(context: Context, stage: Stage, compute: Callable[[], None]) -> None:
    """A stage that is not split by shards."""
    context.once(stage, stage.is_done, 1, compute)


def _per_shard(context: Context, stage: Stage, compute: Callable[[], None]) -> None:
    context.once(stage, lambda: not unfinished(stage, context.shards), len(context.shards), compute)


def _map(
    context: Context,
    stage: Stage,
    rows: Mapping[int, int],
    schema: pa.Schema,
    function: Callable[..., pa.Table],
    arguments: dict[str, Any],
) -> None:
    """A stage that makes each shard's table, of so many rows, from the shard's tables."""
    shards, reporter = context.shards, context.reporter
    _per_shard(context, stage, lambda: map_shards(stage, shards, rows, schema, function, arguments, reporter))


def _fit_probe(context: Context, stages: RoundStages) -> None:
    stage, cluster = stages.probe, context.cluster
    samples = context.samples(["uid", "label"])
    with context.reporter.stage(
        "probe", stage.round, shards=1, reused=0, items=samples.num_rows, unit="samples"
    ) as progress:
        options: dict[str, Any] = (
            {"num_gpus": cluster.train_gpus} if cluster.gpus else {"num_cpus": min(1, cluster.cpus)}
        )
        arguments = (
            stages,
            [shard.shard_id for shard in context.shards],
            samples,
            context.references,
            context.curating,
            context.config,
            context.classes,
            cluster.device,
            cluster.train_threads,
        )
        run_all({"probe": Task(fit_probe_task, arguments, options | {"scheduling_strategy": "DEFAULT"})})
        stage.finish({})
        progress.advance(samples.num_rows, shards=1)


def _all_evidence(context: Context, stages: RoundStages) -> pa.Table:
    return pa.concat_tables([stages.evidence.read_shard(shard.shard_id) for shard in context.shards]).combine_chunks()


def _augment(context: Context, stages: RoundStages) -> None:
    """Phase II: who joins the reference set (METHOD 2)."""
    stage, settings = stages.references, context.config.augment
    with context.reporter.stage("references", stage.round, shards=1, reused=0, items=0, unit="references") as progress:
        table = _all_evidence(context, stages)
        uids, labels = table["uid"].to_numpy(), table["label"].to_numpy()
        label_evidence, norms = table["label_evidence"].to_numpy(), table["evidence_norm"].to_numpy()
        min_norm = augment.least_norm(norms, settings.min_norm)
        is_given = np.isin(uids, context.curating.uids)
        others = np.flatnonzero(~np.isin(uids, context.references.uids))
        chosen = others[
            augment.candidates(
                uids[others],
                labels[others],
                label_evidence[others],
                norms[others],
                classes=context.classes,
                delta=settings.delta,
                min_norm=min_norm,
                per_class=settings.per_class,
            )
        ]
        rows = np.concatenate([np.flatnonzero(is_given), chosen])
        rows = rows[np.argsort(uids[rows])]
        members = pa.table(
            {
                "uid": uids[rows],
                "label": labels[rows],
                "given": is_given[rows],
                "evidence": label_evidence[rows],
                "sha256": gather_rows(context.inventory, uids[rows], ["sha256"])["sha256"],
            }
        )
        vectors = _vectors(stages.embeddings, uids[rows])
        context.storage.write_table(stage.path("members.parquet"), check(members, schemas.REFERENCES, stage.folder))
        context.storage.write_tensors(stage.path("vectors.safetensors"), {"vectors": vectors})
        stage.finish(
            {
                "members": len(rows),
                "given": int(is_given.sum()),
                "min_norm": min_norm,
                "classes_left_short": augment.classes_left_short(labels[chosen], context.classes),
            }
        )
        progress.advance(len(rows), shards=1)


def _vectors(embeddings: Stage, uids: np.ndarray) -> np.ndarray:
    """Embeddings float32 [n, D] by uid, unit norm."""
    return influence.unit_rows(to_matrix(gather_rows(embeddings, uids, ["embedding"])["embedding"]))


def _find_supporters(context: Context, stages: RoundStages) -> None:
    stage, settings = stages.supporters, context.config.resources
    with supporter_pool(
        context.storage,
        _index_files(context, stages),
        replicas=settings.index_replicas,
        gpus=context.cluster.gpus,
        trials=context.cluster.trials,
        timeout=settings.timeout,
    ) as pool:
        arguments = {"stages": stages, "config": context.config, "pool": pool}
        schema = schemas.supporters(context.config.vote.k)
        map_shards(
            stage, context.shards, context.usable, schema, curation.supporters_table, arguments, context.reporter
        )


def _index_files(context: Context, stages: RoundStages) -> list[tuple[str, str]]:
    """One FAISS file for each index shard. Their number changes no result, so no fingerprint has it."""
    members = curation.members(stages.references)
    uids, vectors = members.uids, members.embeddings
    count = min(context.config.resources.index_shards, len(uids))
    return [
        SupporterIndex.build(vectors[part::count], uids[part::count]).write(
            context.storage, stages.references.path(f"index-{part}-of-{count}.faiss")
        )
        for part in range(count)
    ]


def _sum_label_mass(context: Context, stages: RoundStages) -> None:
    """Which label each class is given how often, over all shards, and if fitted how much it weighs (METHOD 3)."""
    stage = stages.transition
    total = sum(context.usable[shard.shard_id] for shard in context.shards)
    with context.reporter.stage("transition", stage.round, shards=1, reused=0, items=total, unit="samples") as progress:
        mass = np.zeros((context.classes, context.classes))
        for shard in context.shards:
            mass += curation.label_mass(stages, shard.shard_id, context.config.vote.temperature)
            progress.advance(context.usable[shard.shard_id])
        context.storage.write_tensors(stage.path("transition.safetensors"), {"mass": mass})
        fits = context.config.fits_given_weight
        stage.finish({"given_weight": _fit_given_weight(context, stages, mass)} if fits else {})
        progress.advance(0, shards=1)


def _fit_given_weight(context: Context, stages: RoundStages, mass: np.ndarray) -> float:
    """The weight by which about as many given labels are right as of the references."""
    references, settings = context.references, context.config.vote
    rate = steps.WEIGHED_SAMPLES / sum(context.usable[shard.shard_id] for shard in context.shards)
    parts = [
        curation.drawn_sources(stages, shard.shard_id, references.uids, rate, context.config.seed)
        for shard in context.shards
    ]
    given = gather_rows(context.labelled, references.uids, ["label"])["label"].to_numpy()
    return steps.fitted_given_weight(
        np.concatenate([combined for combined, _ in parts]),
        np.concatenate([labels for _, labels in parts]),
        mass,
        given == references.labels,
        references.labels,
        temperature=settings.temperature,
        set_weight=settings.given_weight,
    )


def _cut_ood(context: Context, stages: RoundStages) -> None:
    """Fit the Gaussian, and set the cut on samples that are left out of the fit (METHOD 4)."""
    stage, settings = stages.ood, context.config.ood
    with context.reporter.stage("ood", stage.round, shards=1, reused=0, items=0, unit="samples") as progress:
        table = _all_evidence(context, stages)
        uids, labels = table["uid"].to_numpy(), table["label"].to_numpy().astype(np.int64)
        is_reference = np.isin(uids, context.references.uids)
        passes = augment.passes_bar(
            table["label_evidence"].to_numpy(),
            table["evidence_norm"].to_numpy(),
            classes=context.classes,
            delta=context.config.augment.delta,
            min_norm=stages.references.facts()["min_norm"],
        )
        drawn, others = ood.draw_passing(
            uids,
            passes & ~is_reference,
            calibration=settings.calibration_samples,
            fit=settings.fit_samples,
            seed=context.config.seed,
        )
        given = np.flatnonzero(np.isin(uids, context.curating.uids))
        fitted_on = np.sort(np.concatenate([given, others]))
        calibration = uids[np.sort(drawn)]
        columns = ["supporter_uid", "supporter_similarity", "supporter_label"]
        fitted = steps.fit_ood(
            _vectors(stages.ood_embeddings, uids[fitted_on]),
            labels[fitted_on],
            _vectors(stages.ood_embeddings, calibration),
            curation.read_supporters(gather_rows(stages.supporters, calibration, columns)),
            score=settings.score,
            classes=context.classes,
            shrinkage=settings.shrinkage,
            quantile=settings.quantile,
        )
        nothing = np.zeros((0, 0), np.float32)
        gaussian = fitted.gaussian or ood.Gaussian(nothing, nothing)
        content = {"means": gaussian.means, "precision": gaussian.precision}
        context.storage.write_tensors(stage.path("gaussian.safetensors"), content)
        if math.isinf(fitted.cut):
            context.reporter.message(
                f"round {stage.round} ood: no sample is called ood: the {len(drawn)} samples to set the cut on are too "
                f"few for the quantile {settings.quantile:g}"
            )
        stage.finish({"cut": fitted.cut, "calibration_samples": len(drawn), "fit_samples": len(fitted_on)})
        progress.advance(len(drawn) + len(fitted_on), shards=1)


def fit_probe_task(
    stages: RoundStages,
    shard_ids: list[int],
    samples: pa.Table,
    references: References,
    curating: References,
    config: Config,
    classes: int,
    device: str,
    threads: int,
) -> None:
    """Fit the linear head on all embeddings but those of references that are no part of the curation, and keep the
    references' labels and embeddings beside it; runs in one worker."""
    import torch

    torch.set_num_threads(threads)
    storage, stage = stages.probe.storage, stages.probe
    tables = [stages.embeddings.read_shard(shard_id, ["uid", "embedding"]) for shard_id in shard_ids]
    uids = np.concatenate([table["uid"].to_numpy() for table in tables])
    vectors = influence.unit_rows(np.concatenate([to_matrix(table["embedding"]) for table in tables]))
    labels = samples["label"].to_numpy().astype(np.int64)
    if not np.array_equal(uids, samples["uid"].to_numpy()):
        raise ShardError(f"{stages.embeddings.folder}: rows differ from the inventory's usable samples")
    labels[np.searchsorted(uids, references.uids)] = references.labels
    kept = ~np.isin(uids, np.setdiff1d(references.uids, curating.uids))
    options = config.probe.model_dump()
    probe = fit_probe(vectors[kept], labels[kept], classes=classes, **options, seed=config.seed, device=device)
    content = {"weight": probe.weight} | ({} if probe.bias is None else {"bias": probe.bias})
    storage.write_tensors(stage.path("probe.safetensors"), content)
    trusted = {"uids": references.uids, "labels": references.labels}
    storage.write_tensors(stage.path("trusted.safetensors"), trusted)
    given = {"labels": curating.labels, "embeddings": vectors[np.searchsorted(uids, curating.uids)]}
    storage.write_tensors(stage.path("given.safetensors"), given)
