"""One curation of embeddings with its figures, for the benchmarks that compare many."""

from __future__ import annotations

import numpy as np

from trainref_ray import curate_arrays
from trainref_ray.arrays import Curation
from trainref_ray.config import Config
from trainref_ray.evaluate import metrics


def curated(
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    labels: np.ndarray,
    truth: np.ndarray,
    references: np.ndarray,
    config: Config,
    classes: int,
) -> Curation:
    """One curation of the rows that are no references; arguments as of `curation_figures`."""
    others = np.setdiff1d(np.arange(len(truth)), references)
    return curate_arrays(
        embeddings[others],
        labels[others],
        embeddings[references],
        truth[references],
        classes=classes,
        seed=config.seed,
        settings=config,
        model_probabilities=None if probabilities is None else probabilities[others],
    )


def curation_figures(
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    labels: np.ndarray,
    truth: np.ndarray,
    references: np.ndarray,
    config: Config,
    classes: int,
) -> dict[str, float | None]:
    """noise_*, ood_* and relabel_accuracy of one curation, the references left out.

    Args:
        embeddings: float [N, D].
        probabilities: float [N, C] of the model they are of, None if it has no head.
        labels: int [N], given labels.
        truth: int [N], -1 = of no class; curation gets it of the references alone.
        references: int [R], rows.
        config: settings and seed.
        classes: C.
    """
    others = np.setdiff1d(np.arange(len(truth)), references)
    result = curated(embeddings, probabilities, labels, truth, references, config, classes)
    nobody = np.zeros(len(others), bool)
    given, true = labels[others], truth[others]
    return {
        **metrics.noise_metrics(
            result.label_quality, given, true, nobody, result.label_quality < config.decide.keep_at
        ),
        **metrics.ood_metrics(result.ood_raw, given, true, nobody, result.decision == "ood"),
        "relabel_accuracy": metrics.relabel_accuracy(result.best_class, true, nobody),
    }
