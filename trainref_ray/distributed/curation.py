"""The tables of one round, shard by shard: each function reads a shard's arrays, calls the method, returns a table.

They run in Ray's workers; what all shards share (probe, references, Gaussian) is read from the run folder once a
process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainref_ray.config import Config, VoteSettings
from trainref_ray.distributed.supporter_pool import SupporterPool
from trainref_ray.method import decide, influence, ood, steps
from trainref_ray.models.probe import Probe
from trainref_ray.results import given_weight_of, label_mass_of, model_temperature
from trainref_ray.run import Stage
from trainref_ray.schemas import OK, QUARANTINED, SHARD_BITS, fixed_size_list, soft_label_column, to_matrix
from trainref_ray.training.calibrate import softmax


@dataclass(frozen=True)
class RoundStages:
    """Where the tables of a round are, and the model that made its embeddings.

    `ood_embeddings` are the first round's in every round: fine-tuning draws each sample to its best class, those that
    belong to none as well, and measured worse at telling them apart (docs/method.md). Distances to supporters are to
    the round's own.
    """

    inventory: Stage
    model: Stage
    embeddings: Stage
    probe: Stage
    evidence: Stage
    references: Stage
    supporters: Stage
    distributions: Stage
    transition: Stage
    ood_embeddings: Stage
    ood: Stage
    decisions: Stage


@lru_cache(maxsize=4)
def tensors(stage: Stage, name: str) -> dict[str, np.ndarray]:
    """A safetensors file of a stage; the fingerprint in its path makes the cache safe."""
    return stage.storage.read_tensors(stage.path(name))


@lru_cache(maxsize=4)
def probe_of(stage: Stage) -> Probe:
    """The linear head of a round."""
    content = tensors(stage, "probe.safetensors")
    return Probe(content["weight"], content.get("bias"))


@lru_cache(maxsize=4)
def members(stage: Stage) -> steps.Members:
    """D*_ref of the round."""
    table = stage.storage.read_table(stage.path("members.parquet"))
    return steps.Members(
        uids=table["uid"].to_numpy(),
        labels=table["label"].to_numpy().astype(np.int64),
        embeddings=tensors(stage, "vectors.safetensors")["vectors"],
        digests=np.array(table["sha256"].to_pylist(), dtype=object),
    )


@lru_cache(maxsize=4)
def _ood_model(stage: Stage) -> steps.OodModel:
    fitted = tensors(stage, "gaussian.safetensors")
    gaussian = ood.Gaussian(fitted["means"], fitted["precision"]) if fitted["means"].size else None
    return steps.OodModel(gaussian, stage.facts()["cut"])


def read_supporters(table: pa.Table) -> steps.Supporters:
    """A supporters table as arrays."""
    return steps.Supporters(
        uids=to_matrix(table["supporter_uid"], fill=-1).astype(np.int64),
        similarity=to_matrix(table["supporter_similarity"], fill=0.0).astype(np.float32),
        labels=to_matrix(table["supporter_label"], fill=-1).astype(np.int64),
    )


def _shard(inventory: Stage, embeddings: Stage, shard_id: int) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """uids int64 [n], embeddings float32 [n, D] and the samples table of the usable samples, row by row the same."""
    table = embeddings.read_shard(shard_id, ["uid", "embedding"])
    uids = table["uid"].to_numpy()
    samples = inventory.read_shard(shard_id)
    usable = samples.filter(pa.array(np.isin(samples["uid"].to_numpy(), uids)))
    return uids, influence.unit_rows(to_matrix(table["embedding"])), usable


def _trusted_labels(stages: RoundStages, uids: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [n] with those of all references replaced by their trusted ones, and which rows these are."""
    trusted = tensors(stages.probe, "trusted.safetensors")
    position = np.searchsorted(trusted["uids"], uids)
    position = np.minimum(position, len(trusted["uids"]) - 1)
    is_reference = trusted["uids"][position] == uids
    return np.where(is_reference, trusted["labels"][position], labels), is_reference


def evidence_of(stages: RoundStages, embeddings: np.ndarray, classes: int) -> tuple[influence.Evidence, np.ndarray]:
    """Evidence of the references that curate, and the probe's probabilities float32 [K, n, C]."""
    given = tensors(stages.probe, "given.safetensors")
    probe = probe_of(stages.probe)
    probabilities = probe.probabilities(embeddings)
    evidence = influence.class_evidence(
        embeddings,
        probabilities,
        given["embeddings"],
        probe.probabilities(given["embeddings"]),
        given["labels"],
        classes=classes,
        bias=probe.bias is not None,
    )
    return evidence, probabilities


def model_logits(embeddings: pa.Table) -> np.ndarray | None:
    """The head's logits float16 [n, C] in a table of embeddings, None if the model has no head."""
    return to_matrix(embeddings["model_logits"]) if "model_logits" in embeddings.column_names else None


@lru_cache(maxsize=4)
def _temperature(model: Stage) -> float:
    return model_temperature(model)


def model_probabilities(
    stages: RoundStages, logits: np.ndarray | None, probe: np.ndarray, settings: VoteSettings
) -> np.ndarray:
    """What the model says of each sample, float32 [n, C]: its own head, or the probe where that is wanted or alone.

    Args:
        stages: of the round, with its model.
        logits: float [n, C] of the head, None if the model has none.
        probe: float32 [K, n, C], probabilities of its checkpoints.
        settings: whose say is wanted, and whether the head's logits are divided by its temperature.
    """
    if logits is None or settings.model_source == "probe":
        return probe.mean(axis=0)
    return softmax(logits, _temperature(stages.model) if settings.calibrate_model else 1.0)


def evidence_table(shard_id: int, stages: RoundStages, classes: int) -> pa.Table:
    """Evidence of each sample's own label (METHOD 1)."""
    uids, embeddings, samples = _shard(stages.inventory, stages.embeddings, shard_id)
    labels, _ = _trusted_labels(stages, uids, samples["label"].to_numpy())
    evidence, _ = evidence_of(stages, embeddings, classes)
    return pa.table(
        {
            "uid": uids,
            "label": labels,
            "label_evidence": evidence.normalised[np.arange(len(labels)), labels],
            "evidence_norm": evidence.norm,
        }
    )


def supporters_table(shard_id: int, stages: RoundStages, config: Config, pool: SupporterPool) -> pa.Table:
    """Supporters of each sample (METHOD 3)."""
    uids, embeddings, samples = _shard(stages.inventory, stages.embeddings, shard_id)
    found = steps.find_supporters(
        pool.search,
        uids,
        embeddings,
        np.array(samples["sha256"].to_pylist(), dtype=object),
        members(stages.references),
        k=config.vote.k,
        near_duplicate=config.vote.near_duplicate,
        diversity=config.vote.diversity,
    )
    missing = found.uids < 0
    return pa.table(
        {
            "uid": uids,
            "supporter_uid": fixed_size_list(found.uids, pa.int64(), missing),
            "supporter_similarity": fixed_size_list(found.similarity, pa.float32(), missing),
            "supporter_label": fixed_size_list(found.labels, pa.int32(), missing),
        }
    )


def distributions_table(shard_id: int, stages: RoundStages, config: Config, classes: int) -> pa.Table:
    """The mean of supporters' vote, influence and model for each sample (METHOD 3)."""
    embedded = stages.embeddings.read_shard(shard_id)
    uids = embedded["uid"].to_numpy()
    evidence, probe = evidence_of(stages, influence.unit_rows(to_matrix(embedded["embedding"])), classes)
    combined = steps.combine_sources(
        evidence,
        model_probabilities(stages, model_logits(embedded), probe, config.vote),
        read_supporters(stages.supporters.read_shard(shard_id)),
        np.bincount(members(stages.references).labels, minlength=classes),
        weights=(config.vote.vote_weight, config.vote.influence_weight, config.vote.model_weight),
        balance=config.vote.balance,
    )
    return pa.table({"uid": uids, "distribution": fixed_size_list(combined, pa.float16())})


def _sources(stages: RoundStages, shard_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the usable samples of a shard: uids int64 [n], their three sources together float16 [n, C], given labels."""
    table = stages.distributions.read_shard(shard_id)
    samples = stages.inventory.read_shard(shard_id, ["label", "status"])
    labels = samples.filter(pc.equal(samples["status"], OK))["label"].to_numpy().astype(np.int64)
    return table["uid"].to_numpy(), to_matrix(table["distribution"]), labels


def label_mass(stages: RoundStages, shard_id: int, temperature: float) -> np.ndarray:
    """How much of each class lies under each given label in one shard, float64 [C, C]."""
    _, combined, labels = _sources(stages, shard_id)
    return steps.label_mass(combined, labels, temperature=temperature)


def drawn_sources(
    stages: RoundStages, shard_id: int, references: np.ndarray, rate: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A share of a shard's samples at random, without references and what is flagged as out of distribution: sources
    float16 [n, C] and given labels."""
    uids, combined, labels = _sources(stages, shard_id)
    drawn = np.random.default_rng([seed, shard_id]).random(len(uids)) < rate
    rows = np.flatnonzero(drawn & ~np.isin(uids, references))
    model, supporters = _ood_model(stages.ood), read_supporters(stages.supporters.read_shard(shard_id))
    _, embeddings, _ = _shard(stages.inventory, stages.ood_embeddings, shard_id)
    rows = rows[steps.raw_ood(embeddings[rows], supporters.rows(rows), model.gaussian) <= model.cut]
    return combined[rows], labels[rows]


def decisions_table(
    shard_id: int, stages: RoundStages, config: Config, class_names: list[str], names: dict[str, Any]
) -> pa.Table:
    """Distribution, scores and decision of every sample of the shard, the quarantined included (METHOD 5)."""
    uids, first_embeddings, samples = _shard(stages.inventory, stages.ood_embeddings, shard_id)
    given_labels = samples["label"].to_numpy().astype(np.int64)
    labels, is_reference = _trusted_labels(stages, uids, given_labels)
    distribution = steps.curated_distributions(
        to_matrix(stages.distributions.read_shard(shard_id)["distribution"]),
        given_labels,
        label_mass_of(stages.transition),
        temperature=config.vote.temperature,
        given_weight=given_weight_of(stages.transition, config.vote),
    )
    ood_model = _ood_model(stages.ood)
    supporters = read_supporters(stages.supporters.read_shard(shard_id))
    scores = steps.score_samples(
        distribution,
        given_labels,
        is_reference,
        labels,
        steps.raw_ood(first_embeddings, supporters, ood_model.gaussian),
        cut=ood_model.cut,
        keep_at=config.decide.keep_at,
        relabel_entropy=config.decide.relabel_entropy,
        keep_as=config.decide.keep_as,
        relabel_as=config.decide.relabel_as,
        class_names=class_names,
    )
    decided = pa.table(
        {
            "uid": uids,
            "decision": pa.array(np.array(decide.DECISIONS, dtype=object)[scores.codes], pa.string()),
            "soft_label": soft_label_column(scores.soft_label, scores.codes != decide.OOD),
            "best_class": scores.best_class.astype(np.int32),
            "label_quality": scores.label_quality,
            "ood_score": scores.ood_score,
            "reason": pa.array(scores.reasons, pa.string()),
        }
    )
    return _with_quarantined(stages.inventory.read_shard(shard_id), decided, names)


def display_names(uids: np.ndarray, keys: list[str], names: dict[str, Any]) -> list[str]:
    """Names for people: the key, or `shard:key` where several samples of the data have this key.

    Args:
        uids: int64 [N].
        keys: N keys as they stand in the tars.
        names: `duplicated`, the keys that are not unique, and `shards`, each shard's name by number.
    """
    duplicated, shards = names["duplicated"], names["shards"]
    return [
        f"{shards[uid >> SHARD_BITS]}:{key}" if key in duplicated else key
        for uid, key in zip(uids.tolist(), keys, strict=True)
    ]


def _with_quarantined(samples: pa.Table, decided: pa.Table, names: dict[str, Any]) -> pa.Table:
    """One row a sample of the tar: the decided ones, and the quarantined with their reason."""
    keys = display_names(samples["uid"].to_numpy(), samples["key"].to_pylist(), names)
    facts = pa.table(
        {
            "uid": samples["uid"],
            "key": keys,
            "label": samples["label"],
            "status": samples["status"],
            "error": samples["error"],
        }
    )
    position = {uid: row for row, uid in enumerate(decided["uid"].to_pylist())}
    take = pa.array([position.get(uid) for uid in facts["uid"].to_pylist()], pa.int64())
    joined = {name: decided[name].combine_chunks().take(take) for name in decided.column_names if name != "uid"}
    bad = np.array(facts["status"].to_pylist()) == QUARANTINED
    decision = np.where(bad, QUARANTINED, np.array(joined["decision"].to_pylist(), dtype=object))
    reason = np.where(
        bad, np.array(facts["error"].to_pylist(), dtype=object), np.array(joined["reason"].to_pylist(), dtype=object)
    )
    return pa.table(
        {
            "uid": facts["uid"],
            "key": facts["key"],
            "label": facts["label"],
            **joined,
            "decision": pa.array(decision, pa.string()).dictionary_encode(),
            "reason": pa.array(reason, pa.string()),
        }
    )
