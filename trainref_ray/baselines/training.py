"""Cross-entropy, with weak and strong views, label smoothing and Mixup (METHOD 7): the usual loop, with as many image
passes as everyone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from trainref_ray.models.backbones import Classifier
from trainref_ray.training.loop import ArrayBatches, EpochReport, TrainPlan, TrainState, train

AUGMENTED = "cross_entropy_augmented"
"""Cross-entropy with the views and Mixup of trainref's fine-tuning: how much of what trainref gains is theirs."""
RIVALS: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    AUGMENTED: {},
    "label_smoothing": {"label_smoothing": 0.1},
    "mixup": {"mixup": 1.0},
}
"""What each changes in the plan that it is given: the usual share of label smoothing (Szegedy et al. 2016), and Mixup's
Beta on CIFAR (Zhang et al. 2018)."""


def rival_plan(name: str, plan: TrainPlan, *, images: int, batch_size: int, budget: int) -> TrainPlan:
    """The plan of a rival that makes `budget` image passes, to within half a batch an epoch.

    An epoch is about one pass over the images: the number of epochs is rounded, and its length fits the budget.

    Args:
        name: one of `RIVALS`.
        plan: optimiser, rate, views, seed, device and keep_best of every rival; its epochs are replaced.
        images: N.
        batch_size: images a step.
        budget: forward-backward passes.
    """
    epochs = max(1, round(budget / images))
    steps = max(1, round(budget / (epochs * batch_size)))
    return replace(plan, epochs=epochs, steps_per_epoch=steps, **RIVALS[name])


def train_rival(
    model: Classifier,
    pixels: np.ndarray,
    labels: np.ndarray,
    plan: TrainPlan,
    *,
    batch_size: int,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    state: TrainState | None = None,
    on_epoch: Callable[[EpochReport, TrainState], None] | None = None,
) -> TrainState:
    """`training.loop.train` on images in memory with the labels as they are.

    Args:
        model: any classifier.
        pixels: uint8 [N, S', S', 3].
        labels: int [N] in 0..C-1, given labels; of references the trusted ones.
        plan: of `rival_plan`.
        batch_size: images a step.
        validation, state, on_epoch: see `training.loop.train`.
    """
    targets = np.eye(model.head.out_features, dtype=np.float32)[labels]
    batches = ArrayBatches(pixels, targets, batch_size=batch_size, steps_per_epoch=plan.steps_per_epoch, seed=plan.seed)
    return train(model, batches, plan, validation=validation, state=state, on_epoch=on_epoch)
