"""Temperature scaling (Guo et al. 2017), fitted to references that no training sees, and to curated samples that the
fine-tunings do not see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures searched."""
PRIOR_STRENGTH = 1.0
"""Precision of the log-normal prior that is centred on 1; it weighs as much as a single sample or so.

Measured on the logits of five CIFAR-10 models, also multiplied by 2 and by 4 (best temperatures 0.55 to 5.0), with 20
draws of the samples each. Mean excess of the test NLL over that of the best temperature, by prior strength:

    samples      0     0.3       1       3      10
          5  0.750   0.214   0.149   0.138   0.182
         10  0.740   0.199   0.157   0.137   0.162
         20  0.064   0.063   0.064   0.067   0.090
        100  0.044   0.044   0.044   0.045   0.047

Without a prior a few samples that are all right drive the temperature to its lower bound (excess up to 55)."""
GRID = 61
"""First points of the search, evenly spaced in log temperature: steps of 10 %."""
REFINEMENTS = 40
"""Golden-section steps between two neighbours of the best point, which narrow it by 0.618 each: to below 1e-8."""


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities float32 [n, C] of logits [n, C] divided by the temperature (above 0; higher = less sure)."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted log temperature, and its variance by the curvature of the cost: at most 1, the prior's own."""

    log_temperature: float
    variance: float

    @property
    def temperature(self) -> float:
        """In [0.05, 20]."""
        return float(np.exp(self.log_temperature))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T in [0.05, 20] with the least negative log-likelihood, under a weak prior.

    Minimises Σ_i −log softmax(logits_i / T)[label_i] + PRIOR_STRENGTH/2 · (log T)².

    Args:
        logits: float [n, C], n >= 1.
        labels: int [n] in 0..C-1.

    Raises:
        ValueError: no sample, lengths that differ, a label out of range, or logits that are not finite.
    """
    return fit_labels(logits, labels).temperature


def fit_labels(logits: np.ndarray, labels: np.ndarray) -> TemperatureFit:
    """As `fit_temperature`, with its variance."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    if labels.shape != logits.shape[:1] or labels.size == 0:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: need [n, C] and [n] with n of 1 or more")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}; allowed: 0 to {logits.shape[1] - 1}")
    return fit_distributions(logits, np.eye(logits.shape[1], dtype=np.float32)[labels])


def fit_distributions(logits: np.ndarray, distributions: np.ndarray) -> TemperatureFit:
    """As `fit_temperature`, to label distributions: the cost of a sample is its mean over the distribution.

    Args:
        logits: float [n, C], n >= 1.
        distributions: float [n, C], rows sum to 1.

    Raises:
        ValueError: no sample, shapes that differ, or logits that are not finite.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or len(logits) == 0 or distributions.shape != logits.shape:
        raise ValueError(
            f"logits {logits.shape} and distributions {distributions.shape}: need [n, C] with n of 1 or more"
        )
    if not np.isfinite(logits).all():
        raise ValueError("logits hold values that are not finite: the model has diverged")
    # less the mean logit of the distribution, so that the cost of a row is its log-sum-exp alone
    margins = logits - (distributions * logits).sum(axis=1, keepdims=True)

    def cost(log_temperature: float) -> float:
        scaled = margins * np.exp(-log_temperature)
        peak = scaled.max(axis=1)
        losses = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
        return float(losses.sum() + PRIOR_STRENGTH / 2 * log_temperature**2)

    grid = np.linspace(np.log(LOWEST), np.log(HIGHEST), GRID)
    best = int(np.argmin([cost(point) for point in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(REFINEMENTS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if cost(left) <= cost(right):
            high = right
        else:
            low = left
    found = float(np.clip((low + high) / 2, np.log(LOWEST), np.log(HIGHEST)))
    return TemperatureFit(found, 1 / max(PRIOR_STRENGTH, PRIOR_STRENGTH + _curvature(margins, found)))


def _curvature(margins: np.ndarray, log_temperature: float) -> float:
    """Second derivative of the samples' cost by the log temperature."""
    scaled = margins * np.exp(-log_temperature)
    probabilities = softmax(scaled).astype(np.float64)
    mean = (probabilities * scaled).sum(axis=1)
    variance = (probabilities * (scaled - mean[:, None]) ** 2).sum(axis=1)
    return float((variance + mean).sum())


def pool_fits(trusted: TemperatureFit, curated: TemperatureFit) -> float:
    """One temperature of a fit to few trusted labels and one to many curated distributions.

    The first is right on average and scatters; the second hardly scatters, but is off by as much as the distributions
    are. Their difference beyond what both scatter estimates the square of that error, and each weighs by the inverse
    of its variance, the second's with that square added (the random-effects estimate of DerSimonian and Laird 1986,
    for two studies of which one is unbiased). So a few references hardly speak where both agree, and the curated
    distributions hardly speak where many references contradict them.

    Args:
        trusted: to references that neither the training nor the curation saw. Of those that curate, as where a class
            has few, the model has learned the labels from the images around them: their fit is too low.
        curated: to the curated distributions of samples that the training did not see.
    """
    difference = trusted.log_temperature - curated.log_temperature
    squared_error = max(0.0, difference**2 - trusted.variance - curated.variance)
    weights = 1 / np.array([trusted.variance, curated.variance + squared_error])
    pooled = weights @ [trusted.log_temperature, curated.log_temperature] / weights.sum()
    return float(np.exp(pooled))


def fit_held_out(trusted: tuple[np.ndarray, np.ndarray] | None, curated: tuple[np.ndarray, np.ndarray] | None) -> float:
    """The temperature by what a model's last training left out; 1 without anything.

    Args:
        trusted: logits float [n, C] of references, and their labels int [n].
        curated: logits float [n, C] of curated samples, and their distributions float [n, C].

    Raises:
        ValueError: see `fit_temperature`.
    """
    fits = []
    if trusted is not None:
        fits.append(fit_labels(*trusted))
    if curated is not None:
        fits.append(fit_distributions(*curated))
    if len(fits) == 2:
        return pool_fits(*fits)
    return fits[0].temperature if fits else 1.0
