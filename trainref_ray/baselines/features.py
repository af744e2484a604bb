"""The rivals that see embeddings alone (METHOD 7): linear probe, neighbours, and cleanlab on held-out probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from trainref_ray.baselines.results import RivalResult, from_probabilities
from trainref_ray.errors import ConfigError

FLOOR = 1e-12
"""Least probability under a logarithm: a class that the training labels lack has none at all."""
ITERATIONS = 500
"""Most steps of the solver; 100, its default, is too few for 100 classes."""
BLOCK = 2048
"""Rows whose similarities to all others are held at once."""


@dataclass(frozen=True)
class FeatureData:
    """What every rival here is given.

    Attributes:
        embeddings: float [N, D], unit norm.
        labels: int [N] in 0..C-1, given labels.
        references: float [R, D], unit norm; the fold that fits the temperature is not among them.
        reference_labels: int [R], trusted labels.
        test: float [T, D], unit norm; T may be 0.
        classes: C.
        seed: of the folds.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    references: np.ndarray
    reference_labels: np.ndarray
    test: np.ndarray
    classes: int
    seed: int = 0

    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """Samples, then references: float32 [N + R, D], and their labels int64 [N + R]."""
        embeddings = np.concatenate([self.embeddings, self.references]).astype(np.float32)
        return embeddings, np.concatenate([self.labels, self.reference_labels]).astype(np.int64)


def logistic_regression(data: FeatureData, *, strength: float = 10.0) -> RivalResult:
    """Noise-ignorant logistic regression on all samples and references, asked of the same samples again.

    Args:
        data: what to fit and to judge.
        strength: scikit-learn's C, the inverse of the L2 penalty.
    """
    embeddings, labels = data.pool()
    model = _fit(embeddings, labels, strength)
    test_logits = _log_probabilities(model, data.test, data.classes)
    return from_probabilities(_probabilities(model, data.embeddings, data.classes), data.labels, test_logits)


def out_of_fold_probabilities(data: FeatureData, *, folds: int = 5, strength: float = 10.0) -> np.ndarray:
    """Each sample's class probabilities by a logistic regression that did not see it: float64 [N, C].

    The folds are stratified by given label; the references are in the training set of each.

    Args:
        data: what to fit and to judge.
        folds: 2 or more, not more than samples of the largest class.
        strength: scikit-learn's C.
    """
    found = np.zeros((len(data.labels), data.classes))
    splits = StratifiedKFold(folds, shuffle=True, random_state=data.seed).split(data.embeddings, data.labels)
    for kept, held_out in splits:
        model = _fit(
            np.concatenate([data.embeddings[kept], data.references]),
            np.concatenate([data.labels[kept], data.reference_labels]),
            strength,
        )
        found[held_out] = _probabilities(model, data.embeddings[held_out], data.classes)
    return found


def _fit(embeddings: np.ndarray, labels: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=ITERATIONS).fit(embeddings.astype(np.float32), labels)


def _probabilities(model: LogisticRegression, embeddings: np.ndarray, classes: int) -> np.ndarray:
    """float64 [n, C], 0 for classes that the model does not know."""
    found = np.zeros((len(embeddings), classes))
    if len(embeddings):
        found[:, model.classes_] = model.predict_proba(embeddings.astype(np.float32))
    return found


def _log_probabilities(model: LogisticRegression, embeddings: np.ndarray, classes: int) -> np.ndarray:
    """float64 [n, C]: logits up to a constant a row, which softmax at any temperature does not see."""
    return np.log(np.maximum(_probabilities(model, embeddings, classes), FLOOR))


def nearest_neighbours(data: FeatureData, *, k: int = 50) -> RivalResult:
    """Vote of the k most similar samples and references, each weighing the same; a sample never votes for itself.

    `ood` is the mean cosine distance to the k. Shares are counted with one vote more, spread evenly over the classes:
    a share of 0 has no logarithm.

    Args:
        data: what to vote with and to judge.
        k: 1 up to N + R − 1.

    Raises:
        ConfigError: k is out of range.
    """
    embeddings, labels = data.pool()
    if not 1 <= k < len(embeddings):
        raise ConfigError(
            f"k is {k}; with {len(embeddings)} samples and references, allowed: 1 to {len(embeddings) - 1}"
        )
    rows, similarity = _neighbours(data.embeddings, embeddings, k, leave_self_out=True)
    test_rows, _ = _neighbours(data.test, embeddings, k, leave_self_out=False)
    test_logits = np.log(_shares(labels[test_rows], data.classes))
    judged = from_probabilities(_shares(labels[rows], data.classes), data.labels, test_logits)
    return replace(judged, ood=1 - similarity.mean(axis=1))


def _neighbours(
    queries: np.ndarray, pool: np.ndarray, k: int, *, leave_self_out: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 [n, k] of the pool, nearest first, and their cosines float32 [n, k]; query i is row i of the pool."""
    rows, cosines = np.zeros((len(queries), k), np.int64), np.zeros((len(queries), k), np.float32)
    everyone = torch.from_numpy(np.ascontiguousarray(pool, np.float32))
    for start in range(0, len(queries), BLOCK):
        block = torch.from_numpy(np.ascontiguousarray(queries[start : start + BLOCK], np.float32))
        similarity = block @ everyone.T
        if leave_self_out:
            own = torch.arange(len(block))
            similarity[own, start + own] = -torch.inf
        nearest = similarity.topk(k, dim=1)
        rows[start : start + BLOCK], cosines[start : start + BLOCK] = nearest.indices.numpy(), nearest.values.numpy()
    return rows, cosines


def _shares(neighbour_labels: np.ndarray, classes: int) -> np.ndarray:
    """Shares float64 [n, C] of the classes among labels int [n, k] and one vote more that is spread evenly."""
    votes = np.full((len(neighbour_labels), classes), 1 / classes)
    np.add.at(votes, (np.arange(len(votes))[:, None], neighbour_labels), 1.0)
    return votes / votes.sum(axis=1, keepdims=True)


def cleanlab_label_issues(
    probabilities: np.ndarray, labels: np.ndarray, *, by: Literal["confident_learning", "self_confidence"]
) -> RivalResult:
    """cleanlab's label issues on held-out probabilities.

    `confident_learning` flags the off-diagonal of the confident joint and scores by the given label's probability
    above its class's threshold; `self_confidence` flags as many of the least self-confident as cleanlab estimates, and
    scores by the probability itself.

    Args:
        probabilities: float [N, C], from `out_of_fold_probabilities`.
        labels: int [N], given labels.
        by: which of the two.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    _require_cleanlab()
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    confident = by == "confident_learning"
    flagged = find_label_issues(
        labels, probabilities, filter_by="confident_learning" if confident else "low_self_confidence", n_jobs=1
    )
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence", adjust_pred_probs=confident)
    return RivalResult(
        label_quality=quality.astype(np.float32),
        flagged=np.asarray(flagged, bool),
        soft_label=probabilities.astype(np.float32),
    )


def cleanlab_ood_features(data: FeatureData) -> RivalResult:
    """cleanlab's out-of-distribution score from the distance to the nearest samples and references.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    _require_cleanlab()
    from cleanlab.outlier import OutOfDistribution

    embeddings, _ = data.pool()
    typical = OutOfDistribution().fit_score(features=embeddings, verbose=False)
    return RivalResult(ood=-typical[: len(data.embeddings)].astype(np.float32))


def cleanlab_ood_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> RivalResult:
    """cleanlab's out-of-distribution score from held-out probabilities: their entropy above the classes' thresholds.

    Args:
        probabilities: float [N, C], from `out_of_fold_probabilities`.
        labels: int [N], given labels; every class is among them.

    Raises:
        ConfigError: cleanlab is not installed.
    """
    _require_cleanlab()
    from cleanlab.outlier import OutOfDistribution

    typical = OutOfDistribution().fit_score(pred_probs=probabilities, labels=labels, verbose=False)
    return RivalResult(ood=-typical.astype(np.float32))


def _require_cleanlab() -> None:
    try:
        import cleanlab  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this rival is cleanlab's, which is not installed; install cleanlab 2.9 (in a checkout: make benchmarks)"
        ) from error
