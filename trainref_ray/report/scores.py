"""From what a method says to its figures (METHOD 7), each with a 95 % bootstrap interval.

One list of recipes gives the figure and its interval, so that both are of the same samples. What a method does not say,
or the data do not define, has no entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from trainref_ray.baselines.results import RivalResult
from trainref_ray.evaluate import metrics
from trainref_ray.method.vote import sharpen
from trainref_ray.report.summary import UNKNOWN
from trainref_ray.training.calibrate import fit_temperature

METRICS: dict[str, str] = {
    "noise_auroc": "higher",
    "noise_ap": "higher",
    "noise_f1": "higher",
    "quality_ece": "lower",
    "relabel_accuracy": "higher",
    "soft_nll": "lower",
    "soft_kl": "lower",
    "noise_auroc_ts": "higher",
    "noise_ap_ts": "higher",
    "quality_ece_ts": "lower",
    "soft_nll_ts": "lower",
    "soft_kl_ts": "lower",
    "ood_auroc": "higher",
    "ood_ap": "higher",
    "ood_fpr95": "lower",
    "accuracy": "higher",
    "nll": "lower",
    "brier": "lower",
    "ece": "lower",
    "ece_mass": "lower",
    "test_soft_nll": "lower",
    "test_soft_kl": "lower",
    "accuracy_ts": "higher",
    "nll_ts": "lower",
    "brier_ts": "lower",
    "ece_ts": "lower",
    "ece_mass_ts": "lower",
    "test_soft_nll_ts": "lower",
    "test_soft_kl_ts": "lower",
}
"""Every figure of a comparison and which direction is better. `soft_*` compare the samples' distributions with
people's, `test_soft_*` those of the test images; both only where the data carry people's votes. `_ts`: with the model
at the temperature that fits the held-out references."""

Recipe = tuple[Callable[..., float | None], list[np.ndarray]]
"""A figure as a function of arrays whose rows are the same samples."""


@dataclass(frozen=True)
class Truth:
    """What figures are computed against; no method sees it.

    Attributes:
        given: int64 [N], given labels of the samples that are no references.
        truth: int64 [N], true labels, −1 = of no class, `UNKNOWN` where there is none.
        votes: float64 [N, C], people's distributions, rows of NaN where there is none; None without any.
        test_labels: int64 [T], −1 where unknown.
        test_votes: float64 [T, C], as `votes`.
        held_out_labels: int64 [H], trusted, of the references that fit the temperature.
    """

    given: np.ndarray
    truth: np.ndarray
    votes: np.ndarray | None
    test_labels: np.ndarray
    test_votes: np.ndarray | None
    held_out_labels: np.ndarray


@dataclass(frozen=True)
class Scores:
    """A method's figures by name, their 95 % intervals, and the temperature that was fitted on references."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    temperature: float | None


def score(result: RivalResult, truth: Truth, *, resamples: int, seed: int) -> Scores:
    """All figures that the result and the truth define.

    Args:
        result: of N samples, T test images and H held-out references.
        truth: of the same.
        resamples: of the bootstrap; 0 = no intervals.
        seed: of the draws.
    """
    temperature = _temperature(result, truth)
    recipes = {**_label_recipes(result, truth), **_ood_recipes(result, truth), **_test_recipes(result, truth)}
    if temperature is not None:
        scaled = _at_temperature(result, truth.given, temperature)
        changed = {**_label_recipes(scaled, truth), **_test_recipes(scaled, truth)}
        recipes |= {f"{name}_ts": recipe for name, recipe in changed.items()}
    figures, intervals = {}, {}
    for name in METRICS:
        if name not in recipes:
            continue
        function, arrays = recipes[name]
        value = function(*arrays) if len(arrays[0]) else None
        if value is None:
            continue
        figures[name] = value
        interval = metrics.bootstrap_interval(function, arrays, resamples=resamples, seed=seed)
        if interval is not None:
            intervals[name] = interval
    return Scores(figures, intervals, temperature)


def _temperature(result: RivalResult, truth: Truth) -> float | None:
    if result.temperature is not None:
        return float(result.temperature.item())
    if result.held_out_logits is None or not len(truth.held_out_labels):
        return None
    return fit_temperature(result.held_out_logits, truth.held_out_labels)


def _at_temperature(result: RivalResult, given: np.ndarray, temperature: float) -> RivalResult:
    """What a method says with its model at a temperature. One that has a temperature of its own judges the samples at
    that already."""
    scaled = result
    if result.test_logits is not None:
        scaled = replace(scaled, test_logits=result.test_logits / temperature)
    if result.temperature is None and result.soft_label is not None:
        soft_label = sharpen(result.soft_label, temperature)
        scaled = replace(scaled, soft_label=soft_label, label_quality=soft_label[np.arange(len(given)), given])
    return scaled


def _label_recipes(result: RivalResult, truth: Truth) -> dict[str, Recipe]:
    """Wrong labels, curated classes and curated distributions, of samples whose true label is some class."""
    recipes: dict[str, Recipe] = {}
    counted = truth.truth >= 0
    wrong = (truth.given != truth.truth)[counted]
    if result.label_quality is not None:
        suspicion = -result.label_quality[counted]
        recipes["noise_auroc"] = (metrics.auroc, [suspicion, wrong])
        recipes["noise_ap"] = (metrics.average_precision, [suspicion, wrong])
        recipes["quality_ece"] = (metrics.quality_ece, [result.label_quality[counted], ~wrong])
    if result.flagged is not None:
        recipes["noise_f1"] = (metrics.f1, [result.flagged[counted], wrong])
    best = leading_class(result)
    if best is not None:
        recipes["relabel_accuracy"] = (_mean, [(best == truth.truth)[counted]])
    if result.soft_label is not None and truth.votes is not None:
        recipes |= _soft_recipes("soft", result.soft_label, truth.votes)
    return recipes


def leading_class(result: RivalResult) -> np.ndarray | None:
    """int64 [N], the class a method would give each sample, of those it calls foreign too."""
    if result.best_class is not None:
        return result.best_class
    return None if result.soft_label is None else result.soft_label.argmax(axis=1)


def _soft_recipes(name: str, distribution: np.ndarray, votes: np.ndarray) -> dict[str, Recipe]:
    """Cross-entropy and divergence, row by row, from people's votes. A row of zeros, where a method wrote no
    distribution, counts as the uniform one: that it knows nothing."""
    known = ~np.isnan(votes).any(axis=1)
    target, written = votes[known], distribution[known].astype(np.float64)
    if not len(target):
        return {}
    silent = written.sum(axis=1) == 0
    written[silent] = 1 / written.shape[1]
    cross, least = metrics.soft_cross_entropy(written, target), metrics.soft_cross_entropy(target, target)
    return {f"{name}_nll": (_mean, [cross]), f"{name}_kl": (_mean, [cross - least])}


def _ood_recipes(result: RivalResult, truth: Truth) -> dict[str, Recipe]:
    """Foreign images, among all samples whose true label is known."""
    if result.ood is None:
        return {}
    known = truth.truth != UNKNOWN
    arrays = [result.ood[known], (truth.truth == -1)[known]]
    return {
        "ood_auroc": (metrics.auroc, arrays),
        "ood_ap": (metrics.average_precision, arrays),
        "ood_fpr95": (metrics.fpr_at_tpr, arrays),
    }


def _test_recipes(result: RivalResult, truth: Truth) -> dict[str, Recipe]:
    """Predictions of the test images, in values a row: a bootstrap of means is cheap, one of [N, C] is not."""
    if result.test_logits is None or not len(truth.test_labels):
        return {}
    everything = metrics.softmax(result.test_logits)
    known = truth.test_labels >= 0
    probabilities, labels = everything[known], truth.test_labels[known]
    of_label = probabilities[np.arange(len(labels)), labels]
    right = probabilities.argmax(axis=1) == labels
    # calibration asks for nothing but the largest probability and whether it was right: one column says both
    binned = [probabilities.max(axis=1)[:, None], np.where(right, 0, 1)]
    recipes: dict[str, Recipe] = {
        "accuracy": (_mean, [right]),
        "nll": (_mean, [-np.log(np.maximum(of_label, metrics.FLOOR))]),
        "brier": (_mean, [(probabilities**2).sum(axis=1) - 2 * of_label + 1]),
        "ece": (metrics.ece, binned),
        "ece_mass": (metrics.ece_mass, binned),
    }
    if truth.test_votes is not None:
        recipes |= _soft_recipes("test_soft", everything, truth.test_votes)
    return recipes


def _mean(values: np.ndarray) -> float:
    return float(values.mean())
