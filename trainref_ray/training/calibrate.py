"""Temperature scaling (Guo et al. 2017), fitted on references that the model was not trained on (METHOD 6)."""

from __future__ import annotations

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


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T in [0.05, 20] with the least negative log-likelihood, under a weak prior.

    Minimises Σ_i −log softmax(logits_i / T)[label_i] + PRIOR_STRENGTH/2 · (log T)².

    Args:
        logits: float [n, C], n >= 1.
        labels: int [n] in 0..C-1.

    Raises:
        ValueError: no sample, lengths that differ, a label out of range, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or len(logits) == 0 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape}: need [n, C] and [n] with n of 1 or more")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}; allowed: 0 to {logits.shape[1] - 1}")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold values that are not finite: the model has diverged")
    margins = logits - logits[np.arange(len(labels)), labels][:, None]

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
    return float(np.clip(np.exp((low + high) / 2), LOWEST, HIGHEST))
