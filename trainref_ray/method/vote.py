"""Supporters of each sample, their vote, and the curated label distribution (METHOD 3)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

UNKNOWN_DIGEST: Any = None
"""In place of a digest: equal to no other."""
MOST_PRIOR_SAMPLES = 1e6
"""Stands for no difference between the classes at all in `transition`."""
MOST_WEIGHT = 4.0
"""Largest weight that is fitted: where labels count that much, the distribution is hardly more than they."""
WEIGHT_STEP = 1e-3
"""How exactly a weight is fitted: it moves the mean label quality by less than 0.001."""


def pick_supporters(
    uids: np.ndarray,
    sha256: np.ndarray | None,
    candidate_uids: np.ndarray,
    candidate_similarity: np.ndarray,
    candidate_sha256: np.ndarray | None,
    *,
    k: int,
    near_duplicate: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k most similar candidates that may support each sample (METHOD 3).

    A sample never supports itself, and neither does a copy of it: copies that share a wrong label must not confirm
    each other. A copy has the same digest, or a cosine above `near_duplicate`.

    Args:
        uids: int64 [N].
        sha256: [N] digests of the images (any comparable values; None = unknown), or None for all unknown.
        candidate_uids: int64 [N, P], −1 where there are fewer than P.
        candidate_similarity: float32 [N, P] cosines, largest first.
        candidate_sha256: [N, P] digests, or None.
        k: supporters wanted.
        near_duplicate: largest cosine of a supporter.

    Returns:
        columns int64 [N, k] into the candidates (0 where not valid), most similar first; valid bool [N, k]; and
        enough bool [N], whether k were found.
    """
    allowed = (candidate_uids >= 0) & (candidate_uids != uids[:, None]) & (candidate_similarity <= near_duplicate)
    if sha256 is not None and candidate_sha256 is not None:
        own, theirs = np.asarray(sha256, dtype=object)[:, None], np.asarray(candidate_sha256, dtype=object)
        allowed &= ~((own == theirs) & (theirs != UNKNOWN_DIGEST))
    return (*_leading(allowed, k), allowed.sum(axis=1) >= k)


def _leading(allowed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns int64 [N, k] of the first k true entries of each row of bool [N, P], and which of them exist."""
    order = np.argsort(~allowed, axis=1, kind="stable")[:, :k]
    valid = np.take_along_axis(allowed, order, axis=1)
    short = k - order.shape[1]
    if short > 0:
        order, valid = np.pad(order, ((0, 0), (0, short))), np.pad(valid, ((0, 0), (0, short)))
    return np.where(valid, order, 0), valid


def diversity_pool(k: int, members: int) -> int:
    """Size of the pool for `diverse_supporters`: the nearest 4k, of those above the 75th percentile of similarity.

    The percentile is over all members: over the 4k alone it would leave exactly k, and nothing to choose.
    """
    return min(4 * k, max(k, math.ceil(members / 4)))


def diverse_supporters(embeddings: np.ndarray, valid: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """From each sample's pool, the most similar first, then always the one least similar to those taken (METHOD 3).

    Args:
        embeddings: float32 [N, P, D] of the pool, unit norm, most similar to the sample first.
        valid: bool [N, P], which entries exist.
        k: supporters wanted.

    Returns:
        columns int64 [N, k] into the pool (0 where not valid), most similar first, and valid bool [N, k].
    """
    rows = np.arange(len(valid))
    taken = np.zeros_like(valid)
    nearest_taken = np.full(valid.shape, -np.inf, dtype=np.float32)
    for step in range(min(k, valid.shape[1])):
        free = valid & ~taken
        pick = free.argmax(axis=1) if step == 0 else np.where(free, nearest_taken, np.inf).argmin(axis=1)
        taken[rows, pick] |= free[rows, pick]
        similarity = np.einsum("npd,nd->np", embeddings, embeddings[rows, pick])
        nearest_taken = np.maximum(nearest_taken, similarity)
    return _leading(taken, k)


def vote(
    supporter_labels: np.ndarray,
    similarity: np.ndarray,
    *,
    classes: int,
    member_counts: np.ndarray,
    balance: float,
) -> np.ndarray:
    """Vote of the supporters, q ∝ Σ_j onehot(y_j)·max(s_ij, 0), corrected for unequal classes (METHOD 3).

    Args:
        supporter_labels: int [N, k], −1 = no supporter.
        similarity: float32 [N, k] cosines.
        classes: C.
        member_counts: [C] members of each class in the reference set in use.
        balance: votes are divided by their class's share of the members to this power; 0 = not at all.

    Returns:
        float32 [N, C], each row sums to 1; uniform where no vote is positive.
    """
    counts = np.asarray(member_counts, dtype=np.float64)
    share = np.maximum(counts, 1.0) / max(counts.sum(), 1.0)
    weight = np.where(supporter_labels >= 0, np.maximum(similarity, 0.0), 0.0).astype(np.float64)
    label = np.maximum(supporter_labels, 0).astype(np.int64)
    flat = np.arange(len(label))[:, None] * classes + label
    weighted = weight / share[label] ** balance
    votes = np.bincount(flat.ravel(), weights=weighted.ravel(), minlength=len(label) * classes).reshape(-1, classes)
    return _normalised(votes)


def sharpen(distribution: np.ndarray, temperature: float) -> np.ndarray:
    """q ∝ q^(1/temperature): float [N, C] to float32 [N, C], each row sums to 1 (METHOD 3); below 1 sharpens."""
    largest = distribution.max(axis=1, keepdims=True)
    # relative to the largest entry, so that a high power cannot take a whole row to 0
    return _normalised((distribution / np.where(largest > 0, largest, 1.0)).astype(np.float64) ** (1.0 / temperature))


def combine(
    votes: np.ndarray, influence: np.ndarray, model: np.ndarray, *, weights: tuple[float, float, float]
) -> np.ndarray:
    """Weighted mean of the three sources of evidence (METHOD 3): float32 [N, C], each row sums to 1.

    Args:
        votes: float [N, C], the supporters' vote.
        influence: float [N, C], distribution of the influence.
        model: float [N, C], the probe's probabilities.
        weights: of the three, not negative, not all 0.
    """
    mixed = sum(
        weight * part.astype(np.float64) for weight, part in zip(weights, (votes, influence, model), strict=True)
    )
    return _normalised(np.asarray(mixed))


def class_label_mass(distribution: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How much of each class lies under each given label: float64 [C, C], class by label. Adds up over shards.

    Args:
        distribution: float [N, C], sharpened.
        labels: int [N], given labels.
    """
    classes = distribution.shape[1]
    order = np.argsort(labels, kind="stable")
    values = distribution[order].astype(np.float64)
    starts = np.searchsorted(labels[order], np.arange(classes))
    mass = np.zeros((classes, classes))
    present = np.flatnonzero(np.bincount(labels, minlength=classes))
    if len(present):
        mass[present] = np.add.reduceat(values, starts[present], axis=0)
    return mass.T


def transition(mass: np.ndarray) -> np.ndarray:
    """How often each class is given each label: [C, C] rows that sum to 1, steadied where there are few samples a cell.

    Each row is drawn towards one table for all classes: a label is right at the overall rate, and wrong ones are spread
    as over all samples. How far is read off the table itself (empirical Bayes, method of moments for a
    Dirichlet-multinomial): if the classes' wrong labels differ no more than counts of this size do by chance, all the
    way; with clear confusions, such as people's, hardly at all. Measured in round 2: CIFAR-10 with human labels, 3,000
    images a class: no figure changes by 0.001. CIFAR-100 with 40 % symmetric noise, 206 images a class: noise_auroc
    0.934 to 0.950, noise_f1 0.822 to 0.849, relabel_accuracy 0.708 to 0.730 (benchmarks/weights.py).

    Args:
        mass: float [C, C], `class_label_mass` of all samples.
    """
    rows = mass.sum(axis=1, keepdims=True)
    if rows.sum() == 0:
        return np.full(mass.shape, 1.0 / len(mass))
    wrong = ~np.eye(len(mass), dtype=bool)
    right_rate = np.trace(mass) / rows.sum()
    spread = np.where(wrong, (mass * wrong).sum(axis=0), 0.0)
    spread = np.where(spread.any(axis=1, keepdims=True), spread, wrong)
    shared = (1 - right_rate) * spread / spread.sum(axis=1, keepdims=True) + right_rate * ~wrong
    own = mass / np.where(rows > 0, rows, 1.0)
    variance = shared * (1 - shared)
    weighted = (rows * variance)[wrong].sum()
    if weighted == 0:
        return shared
    observed = (rows * (own - shared) ** 2)[wrong].sum() / weighted
    by_chance = variance[wrong & (rows > 0)].sum() / weighted
    prior = 1.0 / max(observed - by_chance, 1.0 / MOST_PRIOR_SAMPLES)
    return (mass + prior * shared) / (rows + prior)


def weigh_given_label(distribution: np.ndarray, labels: np.ndarray, mass: np.ndarray, weight: float) -> np.ndarray:
    """Let the given label speak too, by how often each class bears it: q[c] ∝ q[c] · T[c, label]^weight.

    T[c, y], the share of class c that was given label y, is estimated without truth from the distributions themselves
    (`transition`).
    Measured on 10,000 CIFAR-10 images with 40 % human noise: 0.667 to 0.714 of the curated classes are true.

    Args:
        distribution: float [N, C], sharpened.
        labels: int [N], given labels.
        mass: [C, C], `class_label_mass` of all samples.
        weight: 0 = leave the distribution as it is, 1 = Bayes' rule.

    Returns:
        float32 [N, C], each row sums to 1.
    """
    return _normalised(distribution.astype(np.float64) * transition(mass).T[labels] ** weight)


def share_right(right: np.ndarray, labels: np.ndarray, class_shares: np.ndarray) -> tuple[float, float]:
    """Share of the samples whose given label is right, as the references tell it, and its standard error.

    A class counts by its share of the samples: of references it often has as many as any other. The error is that of
    independent draws which are right at the overall rate, with two more right and two more wrong ones (Agresti and
    Coull 1998), so that a few references that are all right are not taken for certainty.

    Args:
        right: bool [R], R >= 1, whether the given label of a reference is the trusted one.
        labels: int [R], trusted labels.
        class_shares: float [C], not negative, of the samples; those of classes without a reference are not read.

    Raises:
        ValueError: no class of a reference has a share.
    """
    counts = np.bincount(labels, minlength=len(class_shares))
    shares = np.where(counts > 0, class_shares, 0.0)
    if not shares.sum() > 0:
        raise ValueError(f"class_shares {class_shares.tolist()}: none of a class with references is above 0")
    weights = (shares / shares.sum() / np.maximum(counts, 1))[labels]
    share = float(weights @ right)
    steadied = (len(right) * share + 2) / (len(right) + 4)
    return share, float(np.sqrt(steadied * (1 - steadied) * (weights**2).sum()))


def fit_given_weight(
    distribution: np.ndarray,
    labels: np.ndarray,
    mass: np.ndarray,
    *,
    share: float,
    standard_error: float,
    set_weight: float,
) -> float:
    """The weight of the given labels, nearest to the one that is set, which the references do not contradict.

    They do where the mean label quality is more than a standard error from the share of right labels that they tell.
    Few references so leave the weight where it is, unless it is far off; on data that it was set for, a fit that always
    moves would follow their chance (docs/measurements.md, "How much the given label weighs"). Where a weight larger by
    1, all that Bayes' rule gives a label, changes the mean quality by less than that error, they cannot tell one weight
    from another: the sources are sure of their classes, and it stays.

    The likelihood of references cannot choose the weight: no training saw these images with their given labels, so to
    the model's opinion of them the label adds more than to that of all other images, which has the label in it already.

    Args:
        distribution: float [N, C], sharpened, of samples that are no references.
        labels: int [N], given labels.
        mass: [C, C], `class_label_mass` of all samples.
        share, standard_error: of `share_right`.
        set_weight: 0 or more.

    Returns:
        The weight set, or one from 0 to MOST_WEIGHT, to WEIGHT_STEP; the end of that range where no weight reaches.
    """
    table = transition(mass).T[labels]
    rows, values = np.arange(len(labels)), distribution.astype(np.float64)

    def mean_quality(weight: float) -> float:
        return float(_normalised(values * table**weight)[rows, labels].mean(dtype=np.float64))

    as_set = mean_quality(set_weight)
    wanted = min(max(as_set, share - standard_error), share + standard_error)
    if wanted == as_set or abs(mean_quality(set_weight + 1) - as_set) < standard_error:
        return set_weight
    low, high = (set_weight, max(MOST_WEIGHT, set_weight)) if wanted > as_set else (0.0, set_weight)
    while high - low > WEIGHT_STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if mean_quality(middle) < wanted else (low, middle)
    return high if wanted > as_set else low


def _normalised(values: np.ndarray) -> np.ndarray:
    """float32 rows that sum to 1 from rows that are not negative; a row without mass becomes uniform."""
    total = values.sum(axis=1, keepdims=True)
    uniform = 1.0 / values.shape[1]
    return np.where(total > 0, values / np.where(total > 0, total, 1.0), uniform).astype(np.float32)
