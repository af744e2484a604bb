"""How well a round curates references that it did not compare its samples with.

Held-out references that are no part of the curation are judged as they are; the others by cross-fitting on the round's
own embeddings. For each fold the stages up to the reference set are computed without the fold's references, in the same
run folder, so that trials which differ in later settings share them. The references left out are then curated like any
other sample.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.console import Console

from trainref_ray.config import Config
from trainref_ray.distributed import curation
from trainref_ray.distributed.context import Context, References
from trainref_ray.distributed.curation import RoundStages
from trainref_ray.distributed.rounds import choose_members, round_stages
from trainref_ray.distributed.stages import gather_rows
from trainref_ray.distributed.tasks import Task, run_all
from trainref_ray.evaluate.ranking import Judgement
from trainref_ray.method import influence, steps
from trainref_ray.method.folds import deal_folds
from trainref_ray.progress import Reporter
from trainref_ray.results import given_weight_of, label_mass_of
from trainref_ray.retrieval.index import SupporterIndex
from trainref_ray.run import Stage
from trainref_ray.schemas import to_matrix


def judge_round(
    context: Context, model: Stage, stages: RoundStages, spare: References, *, folds: int
) -> Judgement | None:
    """Curate the references that training did not see, each without itself, and those the curation does not use.

    Args:
        context: of the curation.
        model: the stage whose model made the round's embeddings.
        stages: of the finished round.
        spare: trusted samples that are not among the curation's references.
        folds: the references are left out in so many parts.

    Returns:
        None if there is no such reference: the only one of a class cannot be left out.
    """
    curating, held_out = context.curating, context.held_out()
    apart = held_out.rows(~np.isin(held_out.uids, curating.uids))
    apart = References(np.concatenate([apart.uids, spare.uids]), np.concatenate([apart.labels, spare.labels]))
    dealt = deal_folds(curating.labels, folds, context.config.seed)
    round_ = stages.decisions.round
    trained_on_labels = round_ > 1 or context.config.pretrain.reads_labels
    unseen = np.isin(curating.uids, held_out.uids) | (not trained_on_labels)
    parts = [(stages, apart)] if len(apart.uids) else []
    left_out = [fold for fold in range(folds) if ((dealt == fold) & unseen).any()]
    if not parts and not left_out:
        return None
    count = len(apart.uids) + int(((dealt >= 0) & unseen).sum())
    with context.reporter.stage(
        "left_out", round_, shards=len(left_out), reused=0, items=count, unit="references"
    ) as progress:
        for fold in left_out:
            without = _curating_with(context, curating.rows(dealt != fold))
            fold_stages = round_stages(without, model, round_)
            choose_members(without, fold_stages)
            parts.append((fold_stages, curating.rows((dealt == fold) & unseen)))
            progress.advance(0, shards=1)
        # not in the trial's own reservation, which has no CPU
        options = {"num_cpus": min(1, context.cluster.cpus), "scheduling_strategy": "DEFAULT"}
        tasks = {
            f"left_out, part {number}": Task(
                curate_left_out, (part, stages.transition, judged.uids, context.config), options
            )
            for number, (part, judged) in enumerate(parts, start=1)
        }
        found = list(run_all(tasks).values())
        progress.advance(count)
    uids = np.concatenate([judged.uids for _, judged in parts])
    labels = np.concatenate([judged.labels for _, judged in parts])
    distributions = np.concatenate(found)
    return Judgement(
        uids, distributions.argmax(axis=1) == labels, distributions[np.arange(len(labels)), labels].astype(np.float64)
    )


def _curating_with(context: Context, curating: References) -> Context:
    """The same curation with a part of its references; its stages are no stages of this one, and are not shown."""
    changed = replace(context, curating=curating, reporter=Reporter(Console(quiet=True)))
    changed.inventory, changed.labelled, changed.truth = context.inventory, context.labelled, context.truth
    return changed


def curate_left_out(stages: RoundStages, transition: Stage, uids: np.ndarray, config: Config) -> np.ndarray:
    """Curated distributions float32 [n, C] of samples that these stages compare no sample with; runs in a worker.

    How often each class bears each label, and how much the given one weighs, comes from the whole round (`transition`):
    over all samples a few references do not weigh.

    Args:
        stages: whose probe, evidence and reference set are there.
        transition: of the finished round.
        uids: int64 [n], ascending or not.
        config: settings of the vote.
    """
    embedded = gather_rows(stages.embeddings, uids)
    embeddings = influence.unit_rows(to_matrix(embedded["embedding"]))
    samples = gather_rows(stages.inventory, uids, ["label", "sha256"])
    members = curation.members(stages.references)
    mass = label_mass_of(transition)
    settings = config.vote
    supporters = steps.find_supporters(
        SupporterIndex.build(members.embeddings, members.uids).search,
        uids,
        embeddings,
        np.array(samples["sha256"].to_pylist(), dtype=object),
        members,
        k=settings.k,
        near_duplicate=settings.near_duplicate,
        diversity=settings.diversity,
    )
    evidence, probe = curation.evidence_of(stages, embeddings, len(mass))
    combined = steps.combine_sources(
        evidence,
        curation.model_probabilities(stages, curation.model_logits(embedded), probe, settings),
        supporters,
        np.bincount(members.labels, minlength=len(mass)),
        weights=(settings.vote_weight, settings.influence_weight, settings.model_weight),
        balance=settings.balance,
    )
    return steps.curated_distributions(
        combined,
        samples["label"].to_numpy().astype(np.int64),
        mass,
        temperature=settings.temperature,
        given_weight=given_weight_of(transition, settings),
    )
