"""Which of several settings is best, and how sure that is: judged by references that a curation was not given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_PROBABILITY = 1e-6
"""Smaller ones count as this: one reference that is ruled out should not decide alone."""


@dataclass(frozen=True)
class Judgement:
    """How one trial's curation did on references that were left out of it.

    Attributes:
        uids: int64 [n], the references.
        right: bool [n], the curated class is the trusted one.
        probability: float64 [n], 0 to 1, what the curated distribution gives the trusted class.
    """

    uids: np.ndarray
    right: np.ndarray
    probability: np.ndarray

    @property
    def agreement(self) -> float:
        """Share that is right, 0 to 1."""
        return float(self.right.mean())

    @property
    def log_likelihood(self) -> float:
        """Mean logarithm of the trusted class's probability, which decides between equal agreements."""
        return float(np.log(np.maximum(self.probability, LEAST_PROBABILITY)).mean())


@dataclass(frozen=True)
class Standing:
    """One setting among those that were compared.

    Attributes:
        trials: how many trials have it.
        agreement: mean over these, 0 to 1.
        standard_error: of that mean, by references.
        log_likelihood: mean over the trials.
        behind: mean difference from the best on the same references, 0 and up; 0 of the best.
        behind_error: standard error of that difference; 0 of the best, None where fewer than two references are shared.
    """

    trials: int
    agreement: float
    standard_error: float
    log_likelihood: float
    behind: float
    behind_error: float | None

    @property
    def tied(self) -> bool:
        """Whether the difference from the best is within two standard errors, or these are unknown: the sweep cannot
        tell them apart."""
        return self.behind_error is None or self.behind <= 2 * self.behind_error


def rank(groups: Mapping[str, Sequence[Judgement]]) -> dict[str, Standing]:
    """Settings from the best to the worst, by agreement, then by log-likelihood.

    A reference that several trials of a setting (noise levels, seeds) judge counts once, with its mean: its outcomes
    are not independent.

    Args:
        groups: the trials of each setting, at least one a setting, each with at least one reference.
    """
    means = {name: _by_reference(trials) for name, trials in groups.items()}
    agreement = {name: _mean([trial.agreement for trial in trials]) for name, trials in groups.items()}
    likelihood = {name: _mean([trial.log_likelihood for trial in trials]) for name, trials in groups.items()}
    order = sorted(groups, key=lambda name: (-agreement[name], -likelihood[name]))
    standings = {}
    for name in order:
        behind, error = _difference(means[order[0]], means[name]) if name != order[0] else (0.0, 0.0)
        values = np.array(list(means[name].values()))
        standings[name] = Standing(
            trials=len(groups[name]),
            agreement=agreement[name],
            standard_error=_standard_error(values) or share_error(agreement[name], len(values)),
            log_likelihood=likelihood[name],
            behind=behind,
            behind_error=error,
        )
    return standings


def _by_reference(trials: Sequence[Judgement]) -> dict[int, float]:
    """Mean outcome of each reference over the trials."""
    outcomes: dict[int, list[bool]] = {}
    for trial in trials:
        for uid, right in zip(trial.uids.tolist(), trial.right.tolist(), strict=True):
            outcomes.setdefault(uid, []).append(right)
    return {uid: _mean(values) for uid, values in outcomes.items()}


def _difference(best: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float | None]:
    """Mean of best minus other over the references both have, and its standard error, None with fewer than two.

    Where all differ alike the error is that with one more difference in either direction, in the way of Laplace's rule:
    two references are not enough to be sure, three are.
    """
    shared = sorted(best.keys() & other.keys())
    values = np.array([best[uid] - other[uid] for uid in shared])
    if not len(values):
        return 0.0, None
    error = _standard_error(values)
    if len(values) > 1 and np.ptp(values) == 0 and values.any():
        error = _standard_error(np.append(values, [1.0, -1.0]))
    return max(0.0, float(values.mean())), error


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` samples. Where all or none are right it is Laplace's, not 0."""
    inside = share if 0 < share < 1 else (share * count + 1) / (count + 2)
    return float(np.sqrt(inside * (1 - inside) / count))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
