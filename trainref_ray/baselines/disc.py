"""DISC (Li et al., CVPR 2023), complete as in METHOD 8: the plan, the training, and what it says of every image.

Deterministic and resumable after any epoch with equal result on a CPU: every random choice is drawn from (seed, epoch,
step). The facts that the paper leaves open are those of its public code: the stored probabilities are those of the
training passes themselves, the two views share a batch (and its batch-norm statistics), Mixup makes passes of its own,
thresholds move in the warm-up too, and weight decay is on every parameter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from trainref_ray.baselines.objectives import supervised_loss
from trainref_ray.baselines.selection import CLEAN, HARD, LEFT_OUT, select, updated_threshold
from trainref_ray.files import written_aside
from trainref_ray.models.backbones import Classifier
from trainref_ray.training.loop import learning_rate_share, validate
from trainref_ray.training.objectives import soft_cross_entropy
from trainref_ray.training.randaugment import randaugment
from trainref_ray.training.state import (
    EpochReport,
    TrainState,
    load_state,
    next_state,
    read_tensors,
    restore_optimizer,
    save_state,
)
from trainref_ray.training.transforms import mixup, random_crop, random_flip, to_device

DECAY = 0.1
"""What the learning rate is multiplied by at each epoch of `DiscPlan.decay_at`."""
BETA, LATE_BETA = 0.9, 0.1
"""Adam's first beta before and after its rate begins to fall, as in the public code."""
VERY_NOISY, MOSTLY_NOISE = 0.6, 0.6
"""Noise rates from which on (and above which) the published settings change: thresholds and weight; optimiser."""


@dataclass(frozen=True)
class DiscPlan:
    """One training; the defaults are the published ones for CIFAR below 60 % noise.

    Attributes:
        epochs: passes over the images, each with two views, and Mixup of either after the warm-up.
        warmup_epochs: first epochs, with cross-entropy on both views.
        batch_size: images a step.
        optimizer: `sgd` (momentum as below) or `adam`.
        learning_rate: the largest.
        momentum: SGD's; above 0 it is Nesterov's.
        weight_decay: on every parameter.
        schedule: `steps` (a tenth at each of `decay_at`), `linear` (down to 0 from the first of `decay_at` on) or
            `cosine` (a rise over the first tenth, then half a cosine, as in training.loop).
        decay_at: epochs.
        threshold_momentum: λ of the thresholds.
        sigma, ceiling: what a new label needs above the mean threshold, and the most that is asked of it.
        hard_weight: λ_h of the hard images' loss.
        gce_power: q of their generalised cross-entropy.
        mixup: Beta's parameter.
        randaugment: magnitude of the strong view, 0 to 30.
        crop, flip: of both views.
        keep_best: release the epoch with the lowest validation loss.
        image_passes: train until so many forward-backward passes are made, instead of `epochs`, over which the
            schedule is then stretched (see `schedule_epoch`).
        seed: of every draw.
        bf16: autocast to bfloat16.
        device: where to train.
    """

    epochs: int = 200
    warmup_epochs: int = 20
    batch_size: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 1e-3
    schedule: Literal["steps", "linear", "cosine"] = "steps"
    decay_at: tuple[int, ...] = (80, 160)
    threshold_momentum: float = 0.99
    sigma: float = 0.5
    ceiling: float = 0.99
    hard_weight: float = 1.0
    gce_power: float = 0.7
    mixup: float = 5.0
    randaugment: int = 8
    crop: bool = True
    flip: bool = True
    keep_best: bool = False
    image_passes: int | None = None
    seed: int = 0
    bf16: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.schedule == "linear" and not self.decay_at:
            raise ValueError("schedule linear needs an epoch in decay_at, from which on the rate falls")


SHORT = DiscPlan(
    epochs=20,
    warmup_epochs=6,
    batch_size=32,
    learning_rate=0.02,
    momentum=0.9,
    weight_decay=5e-4,
    schedule="cosine",
    decay_at=(),
    threshold_momentum=0.9,
)
"""For budgets of tens of passes an image, for which the published settings take too few steps.

Digits (8 px, 40 % flipped, 30 passes an image, seeds 10 to 12, last epoch): test accuracy 98.3, 97.5 and 96.5 %; the
published settings squeezed into the budget 94.3, 94.8 and 94.0, cross-entropy 91.2, 93.2 and 89.5, Mixup 97.5, 96.5 and
94.8. CIFAR-10 (5,000 images, sym:0.4, `cnn_small`, one seed, settings compared by test accuracy on it): at 60 passes a
rate of 0.01 with a threshold momentum of 0.95 gave 61.8 %, 0.02 with 0.99 60.2, cross-entropy 51.0; at 40 passes 56.0
to 56.2, cross-entropy 56.5. The pair that was best there has not been tried on digits."""


def published_plan(noise_rate: float, *, asymmetric: bool = False) -> DiscPlan:
    """The published CIFAR settings for a rate of noise (METHOD 8)."""
    plan = DiscPlan()
    if asymmetric or noise_rate >= VERY_NOISY:
        plan = replace(plan, threshold_momentum=0.95)
    if noise_rate >= VERY_NOISY:
        plan = replace(plan, hard_weight=0.2)
    if noise_rate > MOSTLY_NOISE:
        plan = replace(plan, optimizer="adam", learning_rate=1e-3, weight_decay=0.0, schedule="linear", decay_at=(120,))
    return plan


def image_passes(plan: DiscPlan, images: int) -> int:
    """Forward-backward passes of a training whose every image is selected: two views, and two more with Mixup."""
    return images * (2 * plan.warmup_epochs + 4 * (plan.epochs - plan.warmup_epochs))


def plan_within(plan: DiscPlan, images: int, budget: int) -> DiscPlan:
    """The plan squeezed into a budget of image passes.

    Warm-up, decay and the memory of the thresholds keep their share of the training: λ to the power of the shrinkage
    leaves as much of the first threshold at the end as the published λ does after the published epochs.
    """
    shrinkage = image_passes(plan, images) / budget
    epochs = max(2, round(plan.epochs / shrinkage))
    return replace(
        plan,
        epochs=epochs,
        warmup_epochs=min(max(1, round(plan.warmup_epochs / shrinkage)), epochs - 1),
        decay_at=tuple(round(epoch / shrinkage) for epoch in plan.decay_at),
        threshold_momentum=plan.threshold_momentum**shrinkage,
        image_passes=budget,
    )


@dataclass(frozen=True)
class Memory:
    """What DISC remembers of each image, on the CPU.

    Attributes:
        weak, strong: float32 [N, C], softmax outputs of the two views in the last epoch, 0 before the first.
        weak_threshold, strong_threshold: float32 [N], τ.
        subset: int64 [N], of `selection`; LEFT_OUT before the first epoch.
        labels: int64 [N], the label to train on.
    """

    weak: Tensor
    strong: Tensor
    weak_threshold: Tensor
    strong_threshold: Tensor
    subset: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DiscState:
    """Where a training stands: the model's part, and the images'."""

    training: TrainState
    memory: Memory

    @property
    def image_passes(self) -> int:
        """Forward-backward passes so far, each view counted."""
        return sum(report.images for report in self.training.history)


def save_disc_state(state: DiscState, folder: str | Path) -> None:
    """Write `memory-<epoch>.safetensors` beside what `save_state` writes, which comes last and names the epoch."""
    folder = Path(folder)
    name = _memory_name(state.training.epoch)
    with written_aside(folder / name) as aside:
        save_file({part.name: getattr(state.memory, part.name) for part in fields(Memory)}, aside)
    save_state(state.training, folder)
    for old in folder.glob("memory-*"):
        if old.name != name:
            old.unlink()


def load_disc_state(folder: str | Path) -> DiscState:
    """Read what `save_disc_state` wrote.

    Raises:
        ValueError: a file is not what it should be.
        FileNotFoundError: a file is missing.
    """
    training = load_state(folder)
    path = Path(folder) / _memory_name(training.epoch)
    content = read_tensors(path)
    wanted = {part.name for part in fields(Memory)}
    if content.keys() != wanted:
        raise ValueError(f"{path} holds {sorted(content)}, not {sorted(wanted)}")
    return DiscState(training, Memory(**content))


def _memory_name(epoch: int) -> str:
    return f"memory-{epoch:04d}.safetensors"


def train_disc(
    model: Classifier,
    pixels: np.ndarray,
    labels: np.ndarray,
    plan: DiscPlan,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    state: DiscState | None = None,
    on_epoch: Callable[[EpochReport, DiscState], None] | None = None,
) -> DiscState:
    """Train until the plan's epochs, or its image passes, are made.

    Args:
        model: left with the last epoch's weights, not the released ones (`state.training.final()`).
        pixels: uint8 [N, S', S', 3].
        labels: int [N] in 0..C-1, given labels; of references the trusted ones.
        plan: how.
        validation: held-out references, uint8 [R, S', S', 3] and int [R]. They choose the epoch if `plan.keep_best`
            (lowest negative log-likelihood, the earlier one of equals) and are never trained on.
        state: go on from here.
        on_epoch: called after each epoch.

    Raises:
        ValueError: no images, another number of labels or a label out of range, or a state of other images.
        FloatingPointError: the loss is not finite any more.
    """
    given = _checked(pixels, labels, model.head.out_features)
    model.to(plan.device)
    optimizer = _optimizer(model, plan)
    if state is None:
        state = DiscState(TrainState(0, {}, {}), _first_memory(given, model.head.out_features))
    else:
        if len(state.memory.labels) != len(given):
            raise ValueError(f"the state remembers {len(state.memory.labels)} images, not {len(given)}")
        model.load_state_dict(state.training.model)
        restore_optimizer(optimizer, state.training.optimizer)
    devices = [plan.device] if torch.device(plan.device).type == "cuda" else []
    while not _finished(state, plan):
        epoch = state.training.epoch
        started = time.perf_counter()
        _set_rate(optimizer, plan, schedule_epoch(plan, len(given), epoch, state.image_passes))
        with torch.random.fork_rng(devices):
            torch.manual_seed(_seed(plan, epoch))  # dropout and stochastic depth inside the model
            loss, images, memory = _run_epoch(model, optimizer, pixels, given, state, plan)
        validation_loss, accuracy = validate(model, validation, device=plan.device, bf16=plan.bf16)
        report = EpochReport(epoch, loss, validation_loss, accuracy, time.perf_counter() - started, images)
        state = DiscState(next_state(state.training, model, optimizer, report, keep_best=plan.keep_best), memory)
        if on_epoch is not None:
            on_epoch(report, state)
    return state


def neither_clean_nor_hard(memory: Memory) -> np.ndarray:
    """Images whose given label DISC does not train on as it is, bool [N]: what it holds for wrong."""
    return ~((memory.subset == CLEAN) | (memory.subset == HARD)).numpy()


def _checked(pixels: np.ndarray, labels: np.ndarray, classes: int) -> Tensor:
    if len(pixels) == 0 or len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} images and {len(labels)} labels; need as many of both, and one at least")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}; allowed: 0 to {classes - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def _first_memory(labels: Tensor, classes: int) -> Memory:
    count = len(labels)
    threshold = torch.full((count,), 1 / count)
    nothing = torch.zeros(count, classes)
    return Memory(nothing, nothing.clone(), threshold, threshold.clone(), torch.full_like(labels, LEFT_OUT), labels)


def _finished(state: DiscState, plan: DiscPlan) -> bool:
    if plan.image_passes is None:
        return state.training.epoch >= plan.epochs
    return state.image_passes >= plan.image_passes


def _seed(plan: DiscPlan, *numbers: int) -> int:
    mixed = np.random.SeedSequence((plan.seed, *numbers)).generate_state(1, np.uint64)[0]
    return int(mixed) >> 1


def _optimizer(model: Classifier, plan: DiscPlan) -> torch.optim.Optimizer:
    if plan.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            plan.learning_rate,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            nesterov=plan.momentum > 0,
        )
    return torch.optim.Adam(model.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)


def schedule_epoch(plan: DiscPlan, images: int, epoch: int, passes: int) -> float:
    """Where the schedule stands at the beginning of an epoch, in epochs of the plan.

    In a budget of passes the plan's epochs are those of a training whose every image is selected. Fewer are, so it
    makes more epochs, and after the warm-up the schedule goes by the share of the budget that is used up: else it would
    have ended early, and the rest been trained at the lowest rate.

    Args:
        plan: how.
        images: N.
        epoch: from 0.
        passes: made before it.
    """
    if plan.image_passes is None or epoch <= plan.warmup_epochs:
        return epoch
    warmup = 2 * images * plan.warmup_epochs
    used = (passes - warmup) / max(1, plan.image_passes - warmup)
    return plan.warmup_epochs + (plan.epochs - plan.warmup_epochs) * used


def rate_share(plan: DiscPlan, epoch: float) -> float:
    """Share of the largest learning rate in an epoch (from 0); beyond the last epoch it stays as it was in it."""
    epoch = min(epoch, plan.epochs - 1)
    if plan.schedule == "steps":
        return DECAY ** sum(epoch >= at for at in plan.decay_at)
    if plan.schedule == "linear":
        start = plan.decay_at[0]
        return 1.0 if epoch < start else (plan.epochs - epoch) / (plan.epochs - start)
    return learning_rate_share(epoch, plan.epochs, warmup=0.1)


def _set_rate(optimizer: torch.optim.Optimizer, plan: DiscPlan, epoch: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = plan.learning_rate * rate_share(plan, epoch)
        if plan.optimizer == "adam" and plan.schedule == "linear":
            group["betas"] = (LATE_BETA if epoch >= plan.decay_at[0] else BETA, group["betas"][1])


def _run_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    pixels: np.ndarray,
    given: Tensor,
    state: DiscState,
    plan: DiscPlan,
) -> tuple[float, int, Memory]:
    """Mean loss of the steps, image passes, and the memory after the epoch."""
    model.train()
    epoch, before = state.training.epoch, state.memory
    left = math.inf if plan.image_passes is None else plan.image_passes - state.image_passes
    weak, strong = (part.to(plan.device, copy=True) for part in (before.weak, before.strong))
    total = torch.zeros((), device=plan.device)  # read once an epoch: reading makes a GPU wait
    passes = steps = 0
    seen = torch.zeros(len(given), dtype=torch.bool)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(_seed(plan, epoch)))
    for step, rows in enumerate(order.split(plan.batch_size)):
        if passes >= left:
            break
        generator = torch.Generator().manual_seed(_seed(plan, epoch, step))
        views = _views(model, to_device(torch.from_numpy(pixels[rows.numpy()]), plan.device), plan, generator)
        warming = epoch < plan.warmup_epochs
        subset = torch.full_like(rows, CLEAN) if warming else before.subset[rows]
        with torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=plan.bf16):
            logits = model(torch.cat(views))
        loss = _loss(logits, given[rows], subset, plan)
        passes += 2 * len(rows)
        chosen = (subset != LEFT_OUT).nonzero()[:, 0]
        if not warming and len(chosen) > 1:  # an image alone has nothing to be mixed with
            loss = loss + _mixup_loss(model, views, before.labels[rows], chosen, plan, generator)
            passes += 2 * len(chosen)
        places = to_device(rows, plan.device)
        seen[rows] = True
        weak[places], strong[places] = logits.detach().float().softmax(dim=1).chunk(2)
        if len(chosen):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total += loss.detach()
        steps += 1
    mean = float(total) / steps
    if not math.isfinite(mean):
        raise FloatingPointError(f"epoch {epoch}: the loss is {mean}; lower learning_rate ({plan.learning_rate})")
    return mean, passes, _next_memory(before, weak.cpu(), strong.cpu(), given, seen, plan)


def _views(model: Classifier, pixels: Tensor, plan: DiscPlan, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The weak and the strong view of each image, normalised."""
    views = []
    for magnitude in (0, plan.randaugment):
        view = pixels
        if plan.crop:
            view = random_crop(view, model.image_size, generator)
        if plan.flip:
            view = random_flip(view, generator)
        if magnitude:
            view = randaugment(view, magnitude, generator)
        views.append(model.prepare(view))
    return views[0], views[1]


def _loss(logits: Tensor, labels: Tensor, subset: Tensor, plan: DiscPlan) -> Tensor:
    labels, clean, hard = (to_device(part, plan.device) for part in (labels, subset == CLEAN, subset == HARD))
    of_views = [
        supervised_loss(view, labels, clean, hard, hard_weight=plan.hard_weight, power=plan.gce_power)
        for view in logits.chunk(2)
    ]
    return of_views[0] + of_views[1]


def _mixup_loss(
    model: Classifier,
    views: tuple[Tensor, Tensor],
    labels: Tensor,
    chosen: Tensor,
    plan: DiscPlan,
    generator: torch.Generator,
) -> Tensor:
    """Mixup over the chosen images of the batch, each view by itself."""
    targets = to_device(functional.one_hot(labels[chosen], model.head.out_features).float(), plan.device)
    places = to_device(chosen, plan.device)
    loss = torch.zeros((), device=plan.device)
    for view in views:
        inputs, mixed = mixup(view[places], targets, plan.mixup, generator)
        with torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=plan.bf16):
            logits = model(inputs)
        loss = loss + soft_cross_entropy(logits, mixed)
    return loss


def _next_memory(before: Memory, weak: Tensor, strong: Tensor, given: Tensor, seen: Tensor, plan: DiscPlan) -> Memory:
    """Select by the thresholds of the epochs before, then move them. An image that a budget's end left out of the last
    epoch stays as it was: its probabilities have moved its threshold already."""
    selection = select(
        weak,
        strong,
        given,
        before.weak_threshold,
        before.strong_threshold,
        sigma=plan.sigma,
        ceiling=plan.ceiling,
    )
    weak_threshold = updated_threshold(before.weak_threshold, weak, plan.threshold_momentum)
    strong_threshold = updated_threshold(before.strong_threshold, strong, plan.threshold_momentum)
    return Memory(
        weak,
        strong,
        torch.where(seen, weak_threshold, before.weak_threshold),
        torch.where(seen, strong_threshold, before.strong_threshold),
        torch.where(seen, selection.subset, before.subset),
        torch.where(seen, selection.labels, before.labels),
    )
