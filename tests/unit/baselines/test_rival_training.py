"""Cross-entropy, label smoothing and Mixup: what each changes, and that all get as many image passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.baselines.training import RIVALS, rival_plan, train_rival
from trainref_ray.models.backbones import Classifier, ModelSpec, build, predict
from trainref_ray.training.loop import ArrayBatches, TrainPlan, TrainState, train

PLAN = TrainPlan(epochs=1, steps_per_epoch=1, learning_rate=0.05, flip=False)


def data(count: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Dark, medium and bright 8 px images; uint8 [n, 8, 8, 3] and their classes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, count)
    pixels = labels[:, None, None, None] * 80 + random.integers(0, 60, (count, 8, 8, 3))
    return pixels.astype(np.uint8), labels


def model() -> Classifier:
    torch.manual_seed(0)
    return build(ModelSpec("cnn_small", 3, 8))


def trained(name: str, budget: int = 144) -> TrainState:
    plan = rival_plan(name, PLAN, images=48, batch_size=16, budget=budget)
    return train_rival(model(), *data(), plan, batch_size=16)


def test_plans_by_hand() -> None:
    """1,000 passes over 300 images in batches of 32: 3 epochs of 10 steps, 960 passes."""
    plans = {name: rival_plan(name, PLAN, images=300, batch_size=32, budget=1000) for name in RIVALS}
    assert {(plan.epochs, plan.steps_per_epoch) for plan in plans.values()} == {(3, 10)}
    changes = {name: (plan.label_smoothing, plan.mixup) for name, plan in plans.items()}
    assert changes == {
        "cross_entropy": (0.0, 0.0),
        "cross_entropy_augmented": (0.0, 0.0),
        "label_smoothing": (0.1, 0.0),
        "mixup": (0.0, 1.0),
    }
    assert {plan.learning_rate for plan in plans.values()} == {0.05}


@settings(max_examples=80, deadline=None)
@given(images=st.integers(1, 5000), batch_size=st.integers(1, 256), epochs=st.floats(0.5, 30))
def test_passes_meet_the_budget_to_within_half_a_batch_an_epoch(images: int, batch_size: int, epochs: float) -> None:
    budget = max(batch_size, round(images * epochs))
    plan = rival_plan("cross_entropy", PLAN, images=images, batch_size=batch_size, budget=budget)
    passes = plan.epochs * plan.steps_per_epoch * batch_size
    if plan.steps_per_epoch > 1:
        assert abs(passes - budget) <= plan.epochs * batch_size / 2


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_makes_its_passes_and_learns(name: str) -> None:
    state = trained(name, budget=20 * 48)
    assert sum(report.images for report in state.history) == 20 * 48
    learned = model()
    learned.load_state_dict(state.final())
    assert (predict(learned, data()[0])[1].argmax(axis=1) == data()[1]).mean() > 0.9


def test_rivals_differ_and_cross_entropy_is_the_usual_loop() -> None:
    states = {name: trained(name).model["head.weight"] for name in RIVALS}
    pixels, labels = data()
    plan = rival_plan("cross_entropy", PLAN, images=48, batch_size=16, budget=144)
    batches = ArrayBatches(pixels, np.eye(3, dtype=np.float32)[labels], batch_size=16, steps_per_epoch=3, seed=0)
    assert torch.equal(states["cross_entropy"], train(model(), batches, plan).model["head.weight"])
    assert not torch.equal(states["cross_entropy"], states["label_smoothing"])
    assert not torch.equal(states["cross_entropy"], states["mixup"])


def test_an_unknown_rival_is_refused() -> None:
    with pytest.raises(KeyError, match="cutmix"):
        rival_plan("cutmix", PLAN, images=48, batch_size=16, budget=144)
