"""DISC's plans and its training: budget, warm-up, resuming, early stopping."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainref_ray.baselines import disc
from trainref_ray.baselines.disc import (
    SHORT,
    DiscPlan,
    DiscState,
    Memory,
    image_passes,
    load_disc_state,
    neither_clean_nor_hard,
    plan_within,
    published_plan,
    rate_share,
    save_disc_state,
    schedule_epoch,
    train_disc,
)
from trainref_ray.baselines.selection import CLEAN, HARD, LEFT_OUT, PURIFIED
from trainref_ray.models.backbones import Classifier, ModelSpec, build
from trainref_ray.training.loop import EpochReport

PLAN = DiscPlan(epochs=4, warmup_epochs=2, batch_size=16, learning_rate=0.02, decay_at=(3,), randaugment=5)


def data(count: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dark, medium and bright 8 px images; uint8 [n, 8, 8, 3] and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pixels = labels[:, None, None, None] * 80 + random.integers(0, 60, (count, 8, 8, 3))
    return pixels.astype(np.uint8), labels


def model() -> Classifier:
    torch.manual_seed(0)
    return build(ModelSpec("cnn_small", 3, 8))


def trained(plan: DiscPlan = PLAN, **options: Any) -> DiscState:
    return train_disc(model(), *data(), plan, **options)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_same_state(first: DiscState, second: DiscState) -> None:
    assert_same(first.training.model, second.training.model)
    assert_same(first.training.optimizer, second.training.optimizer)
    assert_same(first.training.final(), second.training.final())
    assert_same(vars(first.memory), vars(second.memory))


def remembered(**parts: Any) -> Memory:
    """Four images of two classes: clean, hard, purified to class 0, left out."""
    values: dict[str, Any] = {
        "weak": torch.tensor([[0.9, 0.1], [0.6, 0.4], [1.0, 0.0], [0.5, 0.5]]),
        "strong": torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1], [0.6, 0.4]]),
        "weak_threshold": torch.zeros(4),
        "strong_threshold": torch.zeros(4),
        "subset": torch.tensor([CLEAN, HARD, PURIFIED, LEFT_OUT]),
        "labels": torch.tensor([0, 1, 0, 1]),
    }
    return Memory(**values | parts)


@pytest.mark.parametrize(
    ("rate", "asymmetric", "momentum", "hard_weight", "optimizer"),
    [
        (0.2, False, 0.99, 1.0, "sgd"),
        (0.4, True, 0.95, 1.0, "sgd"),
        (0.6, False, 0.95, 0.2, "sgd"),
        (0.8, False, 0.95, 0.2, "adam"),
    ],
)
def test_published_settings(rate: float, asymmetric: bool, momentum: float, hard_weight: float, optimizer: str) -> None:
    plan = published_plan(rate, asymmetric=asymmetric)
    assert (plan.threshold_momentum, plan.hard_weight, plan.optimizer) == (momentum, hard_weight, optimizer)
    assert (plan.epochs, plan.warmup_epochs, plan.batch_size, plan.mixup, plan.sigma) == (200, 20, 128, 5.0, 0.5)


def test_published_rates_by_hand() -> None:
    steps = published_plan(0.2)
    assert [rate_share(steps, epoch) for epoch in (0, 79, 80, 159, 160, 199, 300)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01, 0.01]
    )
    linear = published_plan(0.8)
    assert [rate_share(linear, epoch) for epoch in (0, 119, 120, 160, 199, 300)] == pytest.approx(
        [1, 1, 1, 0.5, 1 / 80, 1 / 80]
    )
    cosine = replace(SHORT, epochs=20)
    assert [rate_share(cosine, epoch) for epoch in (0, 1, 11)] == pytest.approx([0.5, 1, 0.5])
    assert rate_share(cosine, 25) == rate_share(cosine, 19) > 0


def test_passes_of_the_published_training_by_hand() -> None:
    """20 epochs of two views and 180 of two views and two mixed ones: 760 passes an image."""
    assert image_passes(DiscPlan(), 50_000) == 760 * 50_000


def test_a_plan_squeezed_to_a_tenth_keeps_its_shares() -> None:
    plan = plan_within(DiscPlan(), images=1000, budget=76_000)
    assert (plan.epochs, plan.warmup_epochs, plan.decay_at, plan.image_passes) == (20, 2, (8, 16), 76_000)
    assert plan.threshold_momentum == pytest.approx(0.99**10)
    assert replace(plan, epochs=200, warmup_epochs=20, decay_at=(80, 160), threshold_momentum=0.99) == replace(
        DiscPlan(), image_passes=76_000
    )


def test_the_schedule_is_stretched_over_the_budget_by_hand() -> None:
    """100 images, 10 epochs of which 2 warm up: planned are 2 * 200 + 8 * 400 passes. At 300 an epoch, as of images of
    which half are selected, epoch 6 begins after 400 + 4 * 300 passes, where 1200 of 3200 are used up."""
    plan = replace(SHORT, epochs=10, warmup_epochs=2, image_passes=3600)
    assert [schedule_epoch(plan, 100, epoch, 200 * epoch) for epoch in (0, 1, 2)] == [0, 1, 2]
    assert schedule_epoch(plan, 100, 6, 400 + 4 * 400) == 6
    assert schedule_epoch(plan, 100, 6, 400 + 4 * 300) == 2 + 8 * 1200 / 3200
    assert schedule_epoch(plan, 100, 12, 3599) < 10
    assert schedule_epoch(replace(plan, image_passes=None), 100, 6, 400) == 6


def test_the_rate_falls_until_the_budget_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With thresholds at the last epoch's probabilities many images are left out, so there are more epochs than the
    plan's; none repeats a rate."""
    rates: list[float] = []

    def watched(optimizer: torch.optim.Optimizer, plan: DiscPlan, epoch: float) -> None:
        set_rate(optimizer, plan, epoch)
        rates.append(optimizer.param_groups[0]["lr"])

    set_rate = disc._set_rate
    monkeypatch.setattr(disc, "_set_rate", watched)
    plan = replace(PLAN, schedule="cosine", epochs=6, warmup_epochs=1, threshold_momentum=0.0, image_passes=22 * 40)
    trained(plan)
    assert len(rates) > plan.epochs
    assert all(later < before for before, later in pairwise(rates))


def test_the_smallest_budget_has_a_warm_up_and_an_epoch_after_it() -> None:
    plan = plan_within(DiscPlan(), images=1000, budget=100)
    assert (plan.epochs, plan.warmup_epochs) == (2, 1)


def test_passes_count_every_view_and_stop_at_the_budget() -> None:
    """A warm-up epoch has 2 passes an image; later ones up to 4. The last batch may exceed the budget, no more."""
    whole = trained()
    counts = [report.images for report in whole.training.history]
    assert counts[:2] == [80, 80]
    assert all(80 <= count <= 160 for count in counts[2:])
    assert whole.image_passes == sum(counts)
    within = trained(replace(PLAN, image_passes=sum(counts[:2]) + 10))
    assert within.image_passes - sum(counts[:2]) in range(10, 10 + 4 * 16)
    assert within.training.epoch == 3
    beyond = trained(replace(PLAN, image_passes=sum(counts) + 1))
    assert beyond.training.epoch == 5


def test_passes_after_the_warm_up_are_those_of_the_subsets() -> None:
    """Two for every image, two more for each that is not left out, where a batch has two of them at least."""
    states: list[DiscState] = []
    trained(replace(PLAN, batch_size=40, epochs=5), on_epoch=lambda _, state: states.append(state))
    for before, after in pairwise(states[1:]):
        chosen = int((before.memory.subset != LEFT_OUT).sum())
        assert after.training.history[-1].images == 80 + (2 * chosen if chosen > 1 else 0)


def test_an_image_that_the_end_of_the_budget_left_out_stays_as_it_was() -> None:
    """One batch of the third epoch, after two in which all was otherwise: the others keep what a full epoch changes."""
    pixels, labels = data()
    state = trained(replace(PLAN, epochs=2))
    others = torch.from_numpy((labels + 1) % 3)
    state = replace(state, memory=replace(state.memory, subset=torch.full_like(others, HARD), labels=others))
    before = state.memory
    after = train_disc(model(), pixels, labels, replace(PLAN, image_passes=160 + 10), state=state).memory
    whole = train_disc(model(), pixels, labels, replace(PLAN, epochs=3), state=state).memory
    unseen = (before.weak == after.weak).all(dim=1)
    assert int(unseen.sum()) == 40 - PLAN.batch_size
    for name in ("weak_threshold", "strong_threshold", "subset", "labels"):
        old, new, full = (getattr(memory, name) for memory in (before, after, whole))
        assert torch.equal(old[unseen], new[unseen]), name
        assert not torch.equal(old[~unseen], new[~unseen]), name
        assert not torch.equal(old[unseen], full[unseen]), name


def test_without_any_trusted_image_the_weights_stay() -> None:
    pixels, labels = data()
    state = trained(replace(PLAN, epochs=2))
    nobody = replace(state.memory, subset=torch.full_like(state.memory.subset, LEFT_OUT))
    after = train_disc(model(), pixels, labels, replace(PLAN, epochs=3), state=replace(state, memory=nobody))
    assert torch.equal(after.training.model["head.weight"], state.training.model["head.weight"])
    assert after.training.history[-1].images == 80
    assert not torch.equal(after.memory.weak, state.memory.weak)


def test_it_learns_and_finds_wrong_labels() -> None:
    pixels, truth = data(90)
    labels = truth.copy()
    labels[:18] = (truth[:18] + 1) % 3
    plan = replace(PLAN, epochs=10, warmup_epochs=4, learning_rate=0.01, momentum=0.9, threshold_momentum=0.8)
    state = train_disc(model(), pixels, labels, plan, validation=data(30, seed=1))
    assert state.training.history[-1].validation_accuracy == 1.0
    assert ((state.memory.weak + state.memory.strong).argmax(dim=1).numpy() == truth).mean() > 0.9
    assert (neither_clean_nor_hard(state.memory) == (labels != truth)).mean() > 0.9


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.9}, {"optimizer": "adam", "schedule": "linear"}])
@pytest.mark.parametrize("epoch", [1, 3])
def test_resumed_equals_undisturbed_bit_by_bit(tmp_path: Path, changes: dict[str, Any], epoch: int) -> None:
    """Through the disk, in the warm-up and after it."""
    plan = replace(PLAN, keep_best=True, **changes)

    def on_epoch(report: EpochReport, state: DiscState) -> None:
        if state.training.epoch == epoch:
            save_disc_state(state, tmp_path)

    torch.manual_seed(5)
    whole = trained(plan, validation=data(12, seed=1), on_epoch=on_epoch)
    torch.manual_seed(6)
    state = load_disc_state(tmp_path)
    assert state.training.epoch == epoch
    resumed = train_disc(build(ModelSpec("cnn_small", 3, 8)), *data(), plan, validation=data(12, seed=1), state=state)
    assert_same_state(resumed, whole)
    assert [report.images for report in resumed.training.history] == [r.images for r in whole.training.history]


def test_equal_seeds_give_equal_trainings_and_other_seeds_others() -> None:
    first, second, other = trained(), trained(), trained(replace(PLAN, seed=1))
    assert_same_state(first, second)
    assert not torch.equal(first.memory.weak, other.memory.weak)


def test_the_best_epoch_is_kept() -> None:
    """Trained further at a rate that destroys what was learned, the earlier epoch is released."""
    good = trained(replace(PLAN, keep_best=True), validation=data(30, seed=1))
    worse = train_disc(
        model(),
        *data(),
        replace(PLAN, keep_best=True, epochs=6, learning_rate=5.0, decay_at=()),
        validation=data(30, seed=1),
        state=good,
    )
    losses = [report.validation_loss for report in worse.training.history]
    assert min(losses[4:]) > min(losses[:4])
    assert_same(worse.training.final(), good.training.final())
    assert trained().training.best is None


def test_states_replace_one_another_on_disk(tmp_path: Path) -> None:
    states: list[DiscState] = []
    trained(on_epoch=lambda _, state: states.append(state))
    for state in states:
        save_disc_state(state, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["memory-0004.safetensors", "state.json", "tensors-0004.safetensors"]
    assert_same_state(load_disc_state(tmp_path), states[-1])


def test_a_writer_that_dies_between_the_files_leaves_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[DiscState] = []
    trained(on_epoch=lambda _, state: states.append(state))
    save_disc_state(states[0], tmp_path)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainref_ray.baselines.disc.save_state", dies)
    with pytest.raises(KeyboardInterrupt):
        save_disc_state(states[1], tmp_path)
    assert_same_state(load_disc_state(tmp_path), states[0])


def test_files_and_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = trained(replace(PLAN, epochs=1))
    with pytest.raises(ValueError, match="remembers 40 images, not 39"):
        train_disc(model(), data()[0][:39], data()[1][:39], PLAN, state=state)
    save_disc_state(state, tmp_path)
    path = tmp_path / "memory-0001.safetensors"
    save_file({**load_file(path), "other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="other"):
        load_disc_state(tmp_path)


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [(0, [], "0 images"), (2, [0], "2 images and 1 labels"), (2, [0, 3], "labels from 0 to 3; allowed: 0 to 2")],
)
def test_images_and_labels_that_do_not_fit_are_refused(count: int, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_disc(model(), np.zeros((count, 8, 8, 3), np.uint8), np.array(labels, np.int64), PLAN)


def test_a_diverged_loss_is_an_error() -> None:
    broken = model()
    with torch.no_grad():
        broken.head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train_disc(broken, *data(), PLAN)


def test_autocast_to_bfloat16_trains_float32_weights() -> None:
    state = trained(replace(PLAN, bf16=True))
    assert state.training.history[-1].train_loss != trained().training.history[-1].train_loss
    assert state.training.model["head.weight"].dtype == torch.float32
    assert state.memory.weak.dtype == torch.float32
    np.testing.assert_allclose(state.memory.weak.sum(dim=1), 1, rtol=1e-5)


def test_what_is_held_for_wrong_by_hand() -> None:
    assert neither_clean_nor_hard(remembered()).tolist() == [False, False, True, True]
