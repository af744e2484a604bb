"""Figures of merit (METHOD 7), in numpy alone.

A figure that its input does not define, such as an AUROC with one class only, is None, never NaN; the functions that
return several by name leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FLOOR = 1e-7
"""Least probability under a logarithm: sharpened distributions hold exact zeros. About the step of float32 at 1."""


@dataclass(frozen=True)
class ReliabilityBins:
    """What a reliability diagram shows, one entry a bin that holds samples.

    Attributes:
        confidence: float64 [B], mean of the largest probability.
        accuracy: float64 [B], share of right predictions.
        count: int64 [B], samples.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def _cumulative(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives with a score of at least each distinct score, largest score first."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    hits = np.asarray(positive, dtype=bool)[order]
    return np.cumsum(hits)[last_of_tie], np.cumsum(~hits)[last_of_tie]


def _one_sided(positive: np.ndarray) -> bool:
    return not 0 < np.count_nonzero(positive) < len(positive)


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive scores higher than a negative, ties counted half; None with one class only.

    Args:
        score: float [N], higher = more likely positive.
        positive: bool [N].
    """
    if _one_sided(positive):
        return None
    hits, misses = _cumulative(score, positive)
    steps = np.diff(np.concatenate([[0], misses]))
    heights = np.concatenate([[0], hits[:-1]]) + hits
    return float((steps * heights).sum() / (2.0 * hits[-1] * misses[-1]))


def average_precision(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Σ (recall step)·precision over falling thresholds; None with one class only. Arguments as for `auroc`."""
    if _one_sided(positive):
        return None
    hits, misses = _cumulative(score, positive)
    return float((np.diff(np.concatenate([[0], hits])) * hits / (hits + misses)).sum() / hits[-1])


def fpr_at_tpr(score: np.ndarray, positive: np.ndarray, tpr: float = 0.95) -> float | None:
    """Share of negatives at or above the highest threshold that finds `tpr` of the positives; None with one class only.

    Arguments as for `auroc`.
    """
    if _one_sided(positive):
        return None
    hits, misses = _cumulative(score, positive)
    return float(misses[np.searchsorted(hits, tpr * hits[-1] - 1e-9)] / misses[-1])


def f1(predicted: np.ndarray, positive: np.ndarray) -> float | None:
    """Harmonic mean of precision and recall of bool [N] against bool [N]; None if nothing is positive in either."""
    size = np.count_nonzero(predicted) + np.count_nonzero(positive)
    return float(2.0 * np.count_nonzero(np.asarray(predicted, bool) & positive) / size) if size else None


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of rows of [N, C] whose largest entry is at the label int [N]; None without rows."""
    return float((probabilities.argmax(axis=1) == labels).mean()) if len(labels) else None


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean −ln p[label], natural logarithm, p at least `FLOOR`; None without rows."""
    if not len(labels):
        return None
    return float(-np.log(np.maximum(_of_label(probabilities, labels), FLOOR)).mean())


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean over rows of Σ_c (p_c − onehot_c)², 0 to 2; None without rows."""
    if not len(labels):
        return None
    values = probabilities.astype(np.float64)
    return float(((values**2).sum(axis=1) - 2.0 * _of_label(values, labels) + 1.0).mean())


def _of_label(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return probabilities[np.arange(len(labels)), labels].astype(np.float64)


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> ReliabilityBins:
    """Equal-width bins of confidence, each open below and closed above (Guo et al. 2017); empty ones are left out.

    Args:
        probabilities: float [N, C].
        labels: int [N].
        bins: number of bins between 0 and 1.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    return _binned(confidence, probabilities.argmax(axis=1) == labels, _equal_width(confidence, bins))


def _equal_width(confidence: np.ndarray, bins: int) -> np.ndarray:
    """The bin int64 [N] of each confidence, open below and closed above; 0 is in the first."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _binned(confidence: np.ndarray, right: np.ndarray, number: np.ndarray) -> ReliabilityBins:
    count = np.bincount(number)
    used = count > 0
    sums = [np.bincount(number, weights=values)[used] for values in (confidence, right)]
    return ReliabilityBins(sums[0] / count[used], sums[1] / count[used], count[used])


def _gap(found: ReliabilityBins) -> float:
    return float((found.count * np.abs(found.accuracy - found.confidence)).sum() / found.count.sum())


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float | None:
    """Expected calibration error over equal-width bins, 0 to 1; None without rows. Arguments as `reliability_bins`."""
    return _gap(reliability_bins(probabilities, labels, bins)) if len(labels) else None


def ece_mass(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float | None:
    """Expected calibration error over bins of equal numbers of samples (as equal as N allows); None without rows.

    Samples of one confidence that fall into two bins each count as right as often as all of them are, so that the rows'
    order does not matter.
    """
    if not len(labels):
        return None
    confidence = probabilities.max(axis=1).astype(np.float64)
    number = np.empty(len(labels), np.int64)
    number[np.argsort(confidence, kind="stable")] = np.arange(len(labels)) * bins // len(labels)
    _, tied = np.unique(confidence, return_inverse=True)
    right = np.bincount(tied, weights=probabilities.argmax(axis=1) == labels) / np.bincount(tied)
    return _gap(_binned(confidence, right[tied], number))


def quality_ece(label_quality: np.ndarray, right: np.ndarray, bins: int = 15) -> float | None:
    """Expected calibration error of label quality as the probability that the given label is right; None without rows.

    Args:
        label_quality: float [N], 0 to 1.
        right: bool [N], whether the label is right.
        bins: of equal width, as of `ece`.
    """
    quality = label_quality.astype(np.float64)
    return _gap(_binned(quality, right, _equal_width(quality, bins))) if len(quality) else None


def soft_cross_entropy(distribution: np.ndarray, target: np.ndarray) -> np.ndarray:
    """−Σ t ln q of each row, in nats: its mean is `soft_nll`, and that less the target's own `soft_kl`.

    Args:
        distribution: float [N, C], q; taken as at least `FLOOR`.
        target: float [N, C], t, such as the shares of people's votes.

    Returns:
        float [N].
    """
    return -(target * np.log(np.maximum(distribution, FLOOR))).sum(axis=1)


def bootstrap_interval(
    function: Callable[..., float | None],
    arrays: Sequence[np.ndarray],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of a figure over resampled rows.

    Args:
        function: takes the arrays, resampled alike, and gives the figure or None.
        arrays: each [N, ...], row by row the same samples.
        resamples: how often rows are drawn with replacement; 0 = no interval.
        seed: of the draws.
        level: share of the resampled figures inside.

    Returns:
        (low, high), or None without rows or resamples, or when fewer than half of the resamples define the figure.
    """
    count = len(arrays[0])
    if not count or not resamples:
        return None
    generator = np.random.default_rng(seed)
    figures = []
    for _ in range(resamples):
        rows = generator.integers(0, count, count)
        figures.append(function(*(values[rows] for values in arrays)))
    defined = [figure for figure in figures if figure is not None]
    if 2 * len(defined) < resamples:
        return None
    low, high = np.quantile(defined, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def _defined(**figures: float | None) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def noise_metrics(
    label_quality: np.ndarray,
    given: np.ndarray,
    truth: np.ndarray,
    is_reference: np.ndarray,
    flagged_wrong: np.ndarray,
) -> dict[str, float]:
    """Detection of wrong labels: `noise_auroc`, `noise_ap`, `noise_f1`, and `quality_ece`, how far the label quality is
    from the share of labels that are right; references and truth −1 are left out.

    Args:
        label_quality: float [N], 0 to 1, higher = more likely right; positives are wrong labels, so it is ranked
            reversed.
        given: int [N].
        truth: int [N], −1 = of no class.
        is_reference: bool [N].
        flagged_wrong: bool [N], what is held for wrong without looking at the truth: label quality below the least at
            which a label is kept. That an image is out of distribution says nothing of its label.
    """
    counted = ~is_reference & (truth >= 0)
    wrong = (given != truth)[counted]
    suspicion = -label_quality[counted]
    return _defined(
        noise_auroc=auroc(suspicion, wrong),
        noise_ap=average_precision(suspicion, wrong),
        noise_f1=f1(flagged_wrong[counted], wrong),
        quality_ece=quality_ece(label_quality[counted], ~wrong),
    )


def relabel_accuracy(best_class: np.ndarray, truth: np.ndarray, is_reference: np.ndarray) -> float | None:
    """Share of in-distribution non-reference samples whose curated class is the true one; None without any.

    Args:
        best_class: int [N], argmax of the curated distribution, of those called `ood` too.
        truth: int [N], −1 = of no class.
        is_reference: bool [N].
    """
    counted = ~is_reference & (truth >= 0)
    return float((best_class == truth)[counted].mean()) if counted.any() else None


def ood_metrics(
    raw_score: np.ndarray, given: np.ndarray, truth: np.ndarray, is_reference: np.ndarray, flagged: np.ndarray
) -> dict[str, float]:
    """Detection of images of no class: `ood_auroc`, `ood_ap`, `ood_fpr95` and the rates of flags; without references.

    `ood_flag_rate` is that of all samples; `ood_flag_rate_in_distribution` of those of some class,
    `ood_flag_rate_mislabelled` of those among them with a wrong label, `ood_flag_rate_foreign` of those of no class.

    Args:
        raw_score: float [N], higher = stranger.
        given: int [N].
        truth: int [N], −1 = of no class.
        is_reference: bool [N].
        flagged: bool [N], above the cut.
    """
    counted = ~is_reference
    score, foreign, flags = raw_score[counted], (truth == -1)[counted], np.asarray(flagged, dtype=bool)[counted]
    mislabelled = ~foreign & (given != truth)[counted]

    def rate(rows: np.ndarray) -> float | None:
        return float(flags[rows].mean()) if rows.any() else None

    return _defined(
        ood_auroc=auroc(score, foreign),
        ood_ap=average_precision(score, foreign),
        ood_fpr95=fpr_at_tpr(score, foreign),
        ood_flag_rate=rate(np.ones(len(flags), dtype=bool)),
        ood_flag_rate_in_distribution=rate(~foreign),
        ood_flag_rate_mislabelled=rate(mislabelled),
        ood_flag_rate_foreign=rate(foreign),
    )


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """float [N, C] logits to float64 [N, C] probabilities, logits divided by the temperature first."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def confidence_metrics(logits: np.ndarray, labels: np.ndarray, temperature: float | None = None) -> dict[str, float]:
    """`accuracy`, `nll`, `brier`, `ece`, `ece_mass`, and each with `_ts` after temperature scaling.

    Args:
        logits: float [N, C].
        labels: int [N], true labels.
        temperature: fitted on references that the model was not trained on; None leaves the `_ts` figures out.
    """
    figures: dict[str, float] = {}
    for suffix, value in (("", 1.0), ("_ts", temperature)):
        if value is not None:
            probabilities = softmax(logits, value)
            for metric in (accuracy, nll, brier, ece, ece_mass):
                figures |= _defined(**{f"{metric.__name__}{suffix}": metric(probabilities, labels)})
    return figures
