"""Which methods a comparison knows, and how the rivals on embeddings and on images are set up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from trainref_ray.baselines import features
from trainref_ray.baselines.disc import SHORT, DiscPlan, plan_within, published_plan
from trainref_ray.baselines.features import FeatureData
from trainref_ray.baselines.results import RivalResult
from trainref_ray.baselines.training import RIVALS
from trainref_ray.errors import ConfigError

OURS = "trainref"
FIRST_ROUND = "trainref/round-1"
"""The run's own first curation, on the embeddings that the rivals get."""
TRAINED_ON = "trainref/trained-on"
"""The decisions that the released model was trained on: the run's without its last curation."""
HARD_LABEL = "trainref/hard-label"
"""The last curation's leading class alone: what hard relabelling writes."""
REWEIGHTED: dict[str, dict[str, Any]] = {
    "trainref/influence": {"vote": {"vote_weight": 0.0, "influence_weight": 1.0, "model_weight": 0.0}},
    "trainref/vote": {"vote": {"vote_weight": 1.0, "influence_weight": 0.0, "model_weight": 0.0}},
    "trainref/model": {"vote": {"vote_weight": 0.0, "influence_weight": 0.0, "model_weight": 1.0}},
    "trainref/probe": {"vote": {"model_source": "probe"}},
    "trainref/no-given-label": {"vote": {"given_weight": 0.0, "fit_given_weight": "never"}},
    "trainref/references-only": {"augment": {"per_class": 0}},
}
"""Ablations that need no training: the first round's embeddings once more, with these settings changed."""
RETRAINED: dict[str, dict[str, Any]] = {
    "trainref/hard": {"finetune": {"targets": "hard"}},
    "trainref/reset": {"finetune": {"reset": True}},
}
"""Ablations with fine-tunings of their own, which take minutes to hours: run when they are named."""
ON_FEATURES = ("logistic_regression", "knn")
CLEANLAB = (
    "cleanlab_confident_learning",
    "cleanlab_self_confidence",
    "cleanlab_ood_features",
    "cleanlab_ood_probabilities",
)
ON_PROBABILITIES = tuple(name for name in CLEANLAB if name != "cleanlab_ood_features")
"""Those that need each sample's probabilities by a model that did not see it."""
PRETRAINED = "model_self_confidence"
"""The model before any curation, asked for its probabilities."""
TRAINED = (*RIVALS, "disc")
METHODS = (
    *(OURS, HARD_LABEL, TRAINED_ON, FIRST_ROUND),
    *(*REWEIGHTED, *RETRAINED, *ON_FEATURES, *CLEANLAB, PRETRAINED, *TRAINED),
)
"""All, in the order of the table."""

SHORT_BELOW = 380
"""Image passes an image below which DISC gets the settings for small budgets: half of the 760 that the published ones
make. Measured were 30 to 60 passes (`disc.SHORT`); between those and 760 nothing was."""


def cleanlab_installed() -> bool:
    """Whether cleanlab can be imported; it is looked for, not loaded."""
    return find_spec("cleanlab") is not None


def choose_methods(named: Sequence[str] | None) -> list[str]:
    """The methods of a comparison, in the table's order; trainref is always one, since the others use its run.

    Args:
        named: names of `METHODS`; None = all that are installed and need no further fine-tuning.

    Raises:
        ConfigError: an unknown name, or one of cleanlab's without cleanlab.
    """
    installed = cleanlab_installed()
    if named is None:
        left_out = {*RETRAINED, *(() if installed else CLEANLAB)}
        return [name for name in METHODS if name not in left_out]
    unknown = [name for name in named if name not in METHODS]
    if unknown:
        raise ConfigError(f"method {unknown[0]!r} is unknown; allowed: {', '.join(METHODS)}")
    missing = [name for name in named if name in CLEANLAB and not installed]
    if missing:
        raise ConfigError(
            f"{missing[0]} needs cleanlab, which is not installed; install version 2.9 (in a checkout: make benchmarks)"
        )
    return [name for name in METHODS if name in named or name == OURS]


def judge_features(name: str, data: FeatureData, held_out: np.ndarray, probabilities: np.ndarray | None) -> RivalResult:
    """Run a rival on embeddings.

    Args:
        name: one of `ON_FEATURES` and `CLEANLAB`.
        data: what every rival is given.
        held_out: float [H, D], references that the rival is not fitted on, for its temperature.
        probabilities: float [N, C] of `features.out_of_fold_probabilities`, for cleanlab.
    """
    if name in ON_FEATURES:
        asked = replace(data, test=np.concatenate([data.test, held_out]))
        found = features.logistic_regression(asked) if name == "logistic_regression" else _neighbours(asked)
        assert found.test_logits is not None
        tests = len(data.test)
        return replace(found, test_logits=found.test_logits[:tests], held_out_logits=found.test_logits[tests:])
    if name == "cleanlab_ood_features":
        return features.cleanlab_ood_features(data)
    assert probabilities is not None
    if name == "cleanlab_ood_probabilities":
        return features.cleanlab_ood_probabilities(probabilities, data.labels)
    if name == "cleanlab_confident_learning":
        return features.cleanlab_label_issues(probabilities, data.labels, by="confident_learning")
    return features.cleanlab_label_issues(probabilities, data.labels, by="self_confidence")


def _neighbours(data: FeatureData) -> RivalResult:
    """The usual 50 neighbours, or as many as there are."""
    return features.nearest_neighbours(data, k=min(50, len(data.embeddings) + len(data.references) - 1))


def disc_plan(images: int, budget: int, noise_rate: float, *, asymmetric: bool = False, **common: Any) -> DiscPlan:
    """DISC's settings for a budget: the published ones squeezed into it, or those for small budgets.

    Args:
        images: N.
        budget: forward-backward passes.
        noise_rate: at which labels are drawn from all classes, right ones among them. The published settings depend on
            it, and of those for small budgets the weight of the hard images.
        asymmetric: whether the noise is known to be so.
        common: views, seed, device and precision of every training.
    """
    plan = published_plan(noise_rate, asymmetric=asymmetric)
    if budget < SHORT_BELOW * images:
        plan = replace(SHORT, hard_weight=plan.hard_weight)
    return replace(plan_within(plan, images, budget), **common)
