"""One curation of embeddings with its figures, for the benchmarks that compare many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from trainref_ray import curate_arrays, load_run, make_config
from trainref_ray.arrays import Curation
from trainref_ray.config import Config
from trainref_ray.evaluate import metrics
from trainref_ray.method.influence import unit_rows
from trainref_ray.report.summary import true_labels, usable_decisions
from trainref_ray.schemas import to_matrix


@dataclass(frozen=True)
class FirstRound:
    """Embeddings float32 [N, D], probabilities of their model [N, C], given and true labels int64 [N]."""

    embeddings: np.ndarray
    probabilities: np.ndarray | None
    given: np.ndarray
    truth: np.ndarray
    config: Config
    classes: int

    @classmethod
    def read(cls, path: str, images: int) -> Self:
        """Some images of a finished run at random, with the embeddings of its first round."""
        run = load_run(path)
        decisions = usable_decisions(run, 1)
        config = make_config(run.settled(1), {"allow_missing_classes": True})
        rows = np.sort(np.random.default_rng(config.seed).permutation(decisions.num_rows)[:images])
        probabilities = run.model_probabilities(1)
        return cls(
            embeddings=unit_rows(to_matrix(run.table("embeddings", 1, ["embedding"])["embedding"])[rows]),
            probabilities=None if probabilities is None else probabilities[rows],
            given=decisions["label"].to_numpy().astype(np.int64)[rows],
            truth=true_labels(run, decisions["uid"].to_numpy())[rows],
            config=config,
            classes=len(run.class_names),
        )

    def others(self, references: np.ndarray) -> np.ndarray:
        """Rows that are no references."""
        return np.setdiff1d(np.arange(len(self.truth)), references)

    def curate(
        self, references: np.ndarray, *, labels: np.ndarray | None = None, config: Config | None = None
    ) -> Curation:
        """The curation of the others.

        Args:
            references: int [R], rows.
            labels: int [R], those the references are trusted to have; by default their true ones.
            config: other settings than the run's.
        """
        trusted = self.truth.copy()
        trusted[references] = self.truth[references] if labels is None else labels
        settings = self.config if config is None else config
        return curated(self.embeddings, self.probabilities, self.given, trusted, references, settings, self.classes)

    def figures(self, found: Curation, references: np.ndarray, judged: np.ndarray) -> dict[str, float | None]:
        """noise_*, quality_ece and relabel_accuracy of a curation with these references on the judged rows."""
        others = self.others(references)
        rows = np.isin(others, judged)
        given, truth, nobody = self.given[others][rows], self.truth[others][rows], np.zeros(rows.sum(), bool)
        quality = found.label_quality[rows]
        return {
            **metrics.noise_metrics(quality, given, truth, nobody, quality < self.config.decide.keep_at),
            "relabel_accuracy": metrics.relabel_accuracy(found.best_class[rows], truth, nobody),
        }


def curated(
    embeddings: np.ndarray,
    probabilities: np.ndarray | None,
    labels: np.ndarray,
    truth: np.ndarray,
    references: np.ndarray,
    config: Config,
    classes: int,
) -> Curation:
    """One curation of the rows that are no references; arguments as of `curation_figures`, but `truth` is that of the
    references alone, and whatever it says is trusted."""
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
