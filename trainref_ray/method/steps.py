"""The steps of a curation between its tables: who supports a sample, and what follows (METHOD 3 to 5).

Each takes the rows of one shard or of all samples: the result of a row is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainref_ray.method import decide, influence, ood, vote

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""queries float32 [N, D] and k to similarity float32 [N, k] and uids int64 [N, k], −1 where there are fewer."""

DIVERSITY_ELEMENTS = 2**24
"""Most components of pools gathered at once: 64 MiB of float32."""


WEIGHED_SAMPLES = 20_000
"""So many samples at random tell the mean label quality to 0.003, ten times better than 200 references the share."""


@dataclass(frozen=True)
class Members:
    """The reference set in use, D*_ref: the given references and the samples that joined.

    Attributes:
        uids: int64 [M], ascending.
        labels: int64 [M], trusted of the given references, given of the others.
        embeddings: float32 [M, D], unit norm.
        digests: [M] of the images, None = unknown, or None for all unknown.
    """

    uids: np.ndarray
    labels: np.ndarray
    embeddings: np.ndarray
    digests: np.ndarray | None

    def positions(self, uids: np.ndarray) -> np.ndarray:
        """Rows int64 [...] of members by uid; 0 for uid −1."""
        return np.searchsorted(self.uids, np.maximum(uids, self.uids[0]))


@dataclass(frozen=True)
class Supporters:
    """Supporters of each sample, most similar first; −1, 0.0 and −1 where there are fewer than k.

    Attributes:
        uids: int64 [N, k].
        similarity: float32 [N, k], cosine.
        labels: int64 [N, k].
    """

    uids: np.ndarray
    similarity: np.ndarray
    labels: np.ndarray

    def rows(self, rows: np.ndarray) -> Supporters:
        """Those of some samples, by row number int64 [n]."""
        return Supporters(self.uids[rows], self.similarity[rows], self.labels[rows])


@dataclass(frozen=True)
class OodModel:
    """What the out-of-distribution score needs: a Gaussian, or None where the score is the supporters' distance."""

    gaussian: ood.Gaussian | None
    cut: float


@dataclass(frozen=True)
class Scores:
    """The outcome for each sample.

    Attributes:
        codes: int8 [N] into `method.decide.DECISIONS`.
        soft_label: float32 [N, C], what is trained on; all 0 where the sample is out of distribution.
        best_class: int64 [N], leading class of the curated distribution, also where the sample is out of distribution.
        label_quality: float32 [N], 0 to 1, higher = the given label is more likely right.
        ood_raw: float32 [N], 0 and up, higher = stranger.
        ood_score: float32 [N], 0 to 1, the cut is at 0.5.
        reasons: N sentences.
    """

    codes: np.ndarray
    soft_label: np.ndarray
    best_class: np.ndarray
    label_quality: np.ndarray
    ood_raw: np.ndarray
    ood_score: np.ndarray
    reasons: list[str]


def find_supporters(
    search: Search,
    uids: np.ndarray,
    embeddings: np.ndarray,
    digests: np.ndarray | None,
    members: Members,
    *,
    k: int,
    near_duplicate: float,
    diversity: bool,
) -> Supporters:
    """Supporters of each sample among the members (METHOD 3).

    Copies are dropped after the search, so rows that are left with too few are searched again, further.

    Args:
        search: exact search over the members.
        uids: int64 [N].
        embeddings: float32 [N, D], unit norm.
        digests: [N] of the images, None = unknown, or None.
        members: of the reference set in use.
        k: supporters wanted.
        near_duplicate: largest cosine of a supporter.
        diversity: choose unlike ones from a larger pool.
    """
    total = len(members.uids)
    wanted = vote.diversity_pool(k, total) if diversity else k
    shape = (len(uids), k)
    found = Supporters(np.full(shape, -1, np.int64), np.zeros(shape, np.float32), np.full(shape, -1, np.int64))
    pending, reach = np.arange(len(uids)), min(wanted + 8, total)
    while len(pending):
        similarity, candidates = search(embeddings[pending], reach)
        own = None if digests is None else digests[pending]
        theirs = None if members.digests is None else members.digests[members.positions(candidates)]
        columns, valid, enough = vote.pick_supporters(
            uids[pending], own, candidates, similarity, theirs, k=wanted, near_duplicate=near_duplicate
        )
        enough |= reach == total
        rows = np.flatnonzero(enough)
        columns, valid = columns[rows], valid[rows]
        if diversity:
            pool = members.positions(np.take_along_axis(candidates[rows], columns, axis=1))
            chosen, valid = _diverse(members.embeddings, pool, valid, k)
            columns = np.take_along_axis(columns, chosen, axis=1)
        taken = np.take_along_axis(candidates[rows], columns, axis=1)
        found.uids[pending[rows]] = np.where(valid, taken, -1)
        found.similarity[pending[rows]] = np.where(valid, np.take_along_axis(similarity[rows], columns, axis=1), 0.0)
        found.labels[pending[rows]] = np.where(valid, members.labels[members.positions(taken)], -1)
        pending, reach = pending[~enough], min(4 * reach, total)
    return found


def _diverse(embeddings: np.ndarray, pool: np.ndarray, valid: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`vote.diverse_supporters` for pools given as rows [N, P] of the members, a block of samples at a time."""
    columns, taken = np.zeros((len(pool), k), np.int64), np.zeros((len(pool), k), dtype=bool)
    step = max(1, DIVERSITY_ELEMENTS // max(1, pool.shape[1] * embeddings.shape[1]))
    for start in range(0, len(pool), step):
        part = slice(start, start + step)
        columns[part], taken[part] = vote.diverse_supporters(embeddings[pool[part]], valid[part], k=k)
    return columns, taken


def raw_ood(embeddings: np.ndarray, supporters: Supporters, gaussian: ood.Gaussian | None) -> np.ndarray:
    """Raw out-of-distribution score float32 [N], 0 and up (METHOD 4): under the Gaussian, else to the supporters."""
    if gaussian is None:
        return ood.knn_distance(supporters.similarity, supporters.uids >= 0)
    return ood.mahalanobis(embeddings, gaussian)


def fit_ood(
    fit_embeddings: np.ndarray,
    fit_labels: np.ndarray,
    calibration_embeddings: np.ndarray,
    calibration_supporters: Supporters,
    *,
    score: Literal["mahalanobis", "mahalanobis_class", "knn"],
    classes: int,
    shrinkage: float,
    quantile: float,
) -> OodModel:
    """Fit to ordinary samples, and set the cut on others (METHOD 4).

    Args:
        fit_embeddings: float32 [F, D], unit norm: samples from `method.ood.draw_passing` and the given references.
        fit_labels: int64 [F].
        calibration_embeddings: float32 [n, D], unit norm, samples that are not among the former.
        calibration_supporters: of these samples.
        score: distance under one Gaussian, under one a class, or to the supporters.
        classes: C.
        shrinkage: of the covariance.
        quantile: share of in-distribution samples below the cut.
    """
    gaussian = None
    if score != "knn":
        labels = fit_labels if score == "mahalanobis_class" else None
        gaussian = ood.fit_gaussian(fit_embeddings, labels, classes=classes, shrinkage=shrinkage)
    raw = raw_ood(calibration_embeddings, calibration_supporters, gaussian)
    return OodModel(gaussian, ood.cut(raw, quantile))


def combine_sources(
    evidence: influence.Evidence,
    model: np.ndarray,
    supporters: Supporters,
    member_counts: np.ndarray,
    *,
    weights: tuple[float, float, float],
    balance: float,
) -> np.ndarray:
    """The mean of the three sources, before sharpening and before the given label speaks (METHOD 3).

    Rounded to float16, as a run on disk keeps it: [N, C].

    Args:
        evidence: of the given references for each sample.
        model: float32 [N, C], probabilities of the model.
        supporters: of each sample.
        member_counts: int [C], members of each class.
        weights: of the supporters' vote, the influence and the model.
        balance: correction of the vote for unequal classes.
    """
    votes = vote.vote(
        supporters.labels,
        supporters.similarity,
        classes=model.shape[1],
        member_counts=member_counts,
        balance=balance,
    )
    by_influence, _ = influence.soft_labels(evidence.normalised)
    return vote.combine(votes, by_influence, model, weights=weights).astype(np.float16)


def curated_distributions(
    combined: np.ndarray, labels: np.ndarray, mass: np.ndarray, *, temperature: float, given_weight: float
) -> np.ndarray:
    """The curated distribution q, float32 [N, C]: sharpened, then weighed by the given label (METHOD 3).

    Sharpened first: where the sources are unsure, their soft distributions would else let the given label win.

    Args:
        combined: float16 [N, C], from `combine_sources`.
        labels: int64 [N], given labels.
        mass: float64 [C, C], sum of `label_mass` over all samples.
        temperature: of the sharpening.
        given_weight: how much the given label weighs, 0 = not at all.
    """
    sharpened = vote.sharpen(combined.astype(np.float32), temperature)
    return vote.weigh_given_label(sharpened, labels, mass, given_weight)


def fitted_given_weight(
    combined: np.ndarray,
    labels: np.ndarray,
    mass: np.ndarray,
    right: np.ndarray,
    trusted: np.ndarray,
    *,
    temperature: float,
    set_weight: float,
) -> float:
    """The weight of the given label, by the references whose given label is right (`vote.fit_given_weight`).

    Args:
        combined: float16 [N, C], of samples that are no references and not flagged as out of distribution, as
            references are not; some at random are enough.
        labels: int64 [N], given labels.
        mass: float64 [C, C], sum of `label_mass` over all samples.
        right: bool [R], whether a reference's given label is the trusted one.
        trusted: int64 [R], trusted labels.
        temperature: of the sharpening.
        set_weight: the weight that is set, which stays where the references do not contradict it.
    """
    if len(labels) == 0:
        return set_weight
    share, error = vote.share_right(right, trusted, mass.sum(axis=1))
    sharpened = vote.sharpen(combined.astype(np.float32), temperature)
    return vote.fit_given_weight(sharpened, labels, mass, share=share, standard_error=error, set_weight=set_weight)


def label_mass(combined: np.ndarray, labels: np.ndarray, *, temperature: float) -> np.ndarray:
    """How much of each class lies under each given label, float64 [C, C]; adds up over shards.

    Args:
        combined: float16 [N, C], from `combine_sources`.
        labels: int64 [N], given labels.
        temperature: of the sharpening.
    """
    return vote.class_label_mass(vote.sharpen(combined.astype(np.float32), temperature), labels)


def score_samples(
    distribution: np.ndarray,
    labels: np.ndarray,
    is_reference: np.ndarray,
    reference_labels: np.ndarray,
    raw: np.ndarray,
    *,
    cut: float,
    keep_at: float,
    relabel_entropy: float,
    keep_as: Literal["soft", "hard"],
    relabel_as: Literal["soft", "hard"],
    class_names: Sequence[str] | None,
) -> Scores:
    """From a distribution and a distance to the decision (METHOD 4 and 5).

    Args:
        distribution: float32 [N, C], from `curated_distributions`.
        labels: int64 [N], given labels.
        is_reference: bool [N], given references.
        reference_labels: int64 [N], trusted labels; read for references alone.
        raw: float32 [N], from `raw_ood`.
        cut: of the raw score.
        keep_at: least probability of the given label to keep it.
        relabel_entropy: largest entropy, bits, to relabel.
        keep_as: how a kept sample is written.
        relabel_as: how a relabelled one is.
        class_names: for the reasons; None = by number.
    """
    score = ood.ood_score(raw, cut)
    codes, reasons = decide.decide(
        distribution,
        labels,
        is_reference,
        reference_labels,
        score,
        keep_at=keep_at,
        relabel_entropy=relabel_entropy,
        class_names=class_names,
    )
    written = decide.written_labels(
        distribution, codes, labels, reference_labels, is_reference, keep_as=keep_as, relabel_as=relabel_as
    )
    best = np.where(is_reference, reference_labels, distribution.argmax(axis=1))
    return Scores(codes, written, best, decide.label_quality(distribution, labels), raw, score, reasons)
