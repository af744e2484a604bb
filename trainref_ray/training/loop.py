"""The training loop: deterministic, and resumable after any epoch with bitwise the same result on a CPU.

Every random choice is drawn from (seed, epoch, step, rank), never from what came before, so a resumed training repeats
exactly what an undisturbed one does. The model may be wrapped for data-parallel training; nothing here knows how.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainref_ray.models.backbones import Classifier, predict
from trainref_ray.training.calibrate import fit_temperature
from trainref_ray.training.objectives import nt_xent, soft_cross_entropy
from trainref_ray.training.randaugment import randaugment
from trainref_ray.training.state import (
    EpochReport,
    TrainState,
    load_state,
    next_state,
    restore_optimizer,
    save_state,
)
from trainref_ray.training.transforms import (
    colour_jitter,
    mixup,
    random_crop,
    random_flip,
    random_resized_crop,
    to_device,
)

__all__ = [
    "ArrayBatches",
    "Batch",
    "EpochReport",
    "TrainPlan",
    "TrainState",
    "add_projection",
    "learning_rate_share",
    "load_state",
    "save_state",
    "steps_per_epoch",
    "train",
    "validate",
]

Batch = tuple[Tensor, Tensor]
"""pixels uint8 [b, S', S', 3] and targets float32 [b, C]."""
MOMENTUM = 0.9
"""SGD's, Nesterov."""


@dataclass(frozen=True)
class TrainPlan:
    """One training. `learning_rate` is the largest, reached after the share `warmup` of the steps; `randaugment` is a
    magnitude (0 = off), `mixup` Beta's parameter (0 = off); `rank` and `world_size` are this worker's.

    Of `objective` contrastive, which needs a model with a projection and reads no target, are the three
    `contrastive_...`: NT-Xent's temperature, the least area of a resized crop (1 = random crops as of the supervised
    one), and the strength of the colour changes (0 = none). Of the supervised one are `mixup`, `label_smoothing` and
    `keep_best`. Without `crop` and `flip` neither moves an image."""

    epochs: int
    steps_per_epoch: int
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    warmup: float = 0.1
    objective: Literal["supervised", "contrastive"] = "supervised"
    mixup: float = 0.0
    label_smoothing: float = 0.0
    contrastive_temperature: float = 0.5
    contrastive_area: float = 0.2
    contrastive_jitter: float = 0.5
    crop: bool = True
    flip: bool = True
    randaugment: int = 0
    keep_best: bool = False
    freeze_backbone: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    bf16: bool = False
    device: str = "cpu"


class ArrayBatches:
    """Batches of images held in memory. Every epoch has exactly `steps_per_epoch` full batches, however many images
    there are: a worker with fewer begins a new permutation, also inside a batch."""

    def __init__(
        self,
        pixels: np.ndarray,
        targets: np.ndarray,
        *,
        batch_size: int,
        steps_per_epoch: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        """Args: pixels uint8 [n, S', S', 3], targets float32 [n, C], n >= 1; `batch_size` is this worker's.

        Raises:
            ValueError: no images, or another number of targets.
        """
        if len(pixels) == 0 or len(pixels) != len(targets):
            raise ValueError(f"{len(pixels)} images and {len(targets)} targets; need as many of both, and one at least")
        self._pixels = pixels
        self._targets = targets
        self._batch_size = batch_size
        self._steps = steps_per_epoch
        self._seed = seed
        self._rank = rank

    def __call__(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches, in an order drawn from (seed, epoch, rank) alone."""
        random = np.random.default_rng((self._seed, epoch, self._rank))
        waiting = np.zeros(0, np.int64)
        for _ in range(self._steps):
            while len(waiting) < self._batch_size:
                waiting = np.concatenate([waiting, random.permutation(len(self._pixels))])
            rows, waiting = waiting[: self._batch_size], waiting[self._batch_size :]
            yield torch.from_numpy(self._pixels[rows]), torch.from_numpy(self._targets[rows])


def steps_per_epoch(total: int, global_batch: int) -> int:
    """Steps for one pass over `total` images of all workers; the same on each, however uneven their shards are."""
    return -(-total // global_batch)


def learning_rate_share(step: float, steps: int, warmup: float) -> float:
    """Share of the largest learning rate at a step (from 0): linear warm-up, then half a cosine down to 0."""
    rising = warmup * steps
    if step < rising:
        return min(1.0, (step + 1) / rising)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def add_projection(model: Classifier, width: int) -> None:
    """Put SimCLR's projection in the head's place: two linear layers with a ReLU between, thrown away after training.

    The loss loses what the views change (colour, place); behind a projection the features keep it (Chen et al. 2020,
    section 4.2). Fresh weights come from torch's global generator. `model.set_classes` puts a head there again.

    Args:
        model: a classifier; its head is dropped.
        width: outputs of the projection.
    """
    model.head = nn.Sequential(
        nn.Linear(model.width, model.width), nn.ReLU(inplace=True), nn.Linear(model.width, width)
    )


def train(
    model: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    plan: TrainPlan,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    state: TrainState | None = None,
    on_epoch: Callable[[EpochReport, TrainState], None] | None = None,
) -> TrainState:
    """Train until `plan.epochs` epochs are finished.

    Args:
        model: a `Classifier`, or a wrapper (such as DistributedDataParallel) that has one as `.module` and is then
            already on its device. It is left with the last epoch's weights, not the released ones.
        batches: gives the batches of an epoch (from 0); exactly `plan.steps_per_epoch` are taken.
        plan: how.
        validation: held-out references, uint8 [R, S', S', 3] and int [R]. They choose the epoch if `plan.keep_best`
            (lowest negative log-likelihood, the earlier one of equals) and are never trained on. The contrastive
            objective takes none: its last epoch is the released one.
        state: go on from here.
        on_epoch: called after each epoch, on every worker.

    Raises:
        ValueError: a wrapped model is to be frozen but was not before it was wrapped, too few batches came, or
            validation images came with the contrastive objective.
        FloatingPointError: the loss is not finite any more, or what the model says of the validation images.
    """
    core = _unwrap(model)
    if plan.objective == "contrastive" and validation is not None:
        raise ValueError("the contrastive objective has no classes to validate")
    if plan.freeze_backbone and not core.frozen:
        if core is not model:
            raise ValueError("freeze_backbone: call the classifier's freeze_backbone() before wrapping it")
        core.freeze_backbone()
    core.to(plan.device)
    optimizer = _optimizer(core, plan)
    if state is None:
        state = TrainState(0, {}, {})
    else:
        core.load_state_dict(state.model)
        restore_optimizer(optimizer, state.optimizer)
    devices = [plan.device] if torch.device(plan.device).type == "cuda" else []
    for epoch in range(state.epoch, plan.epochs):
        started = time.perf_counter()
        with torch.random.fork_rng(devices):
            torch.manual_seed(_seed(plan, epoch))  # dropout and stochastic depth inside the model
            train_loss, images = _run_epoch(model, core, optimizer, batches(epoch), plan, epoch)
        validation_loss, accuracy = validate(core, validation, device=plan.device, bf16=plan.bf16)
        seconds = time.perf_counter() - started
        report = EpochReport(epoch, train_loss, validation_loss, accuracy, seconds, images * plan.world_size)
        state = next_state(state, core, optimizer, report, keep_best=plan.keep_best)
        if on_epoch is not None:
            on_epoch(report, state)
    return state


def _unwrap(model: nn.Module) -> Classifier:
    core = getattr(model, "module", model)
    assert isinstance(core, Classifier), f"{type(core).__name__} is not a Classifier"
    return core


def _seed(plan: TrainPlan, *numbers: int) -> int:
    """A 63-bit seed from the plan's seed, the rank, and the epoch (and step)."""
    mixed = np.random.SeedSequence((plan.seed, plan.rank, *numbers)).generate_state(1, np.uint64)[0]
    return int(mixed) >> 1


def _optimizer(core: Classifier, plan: TrainPlan) -> torch.optim.Optimizer:
    trained = [parameter for parameter in core.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": plan.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    if plan.optimizer == "sgd":
        return torch.optim.SGD(groups, plan.learning_rate, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, plan.learning_rate)


def _run_epoch(
    model: nn.Module,
    core: Classifier,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    plan: TrainPlan,
    epoch: int,
) -> tuple[float, int]:
    """Mean loss of this worker's steps, and the images it put through the model, each view counted."""
    model.train()
    steps, images = plan.epochs * plan.steps_per_epoch, 0
    total = torch.zeros((), device=plan.device)  # read once an epoch: reading makes a GPU wait
    done = 0
    for step, (pixels, targets) in zip(range(plan.steps_per_epoch), batches, strict=False):
        share = learning_rate_share(epoch * plan.steps_per_epoch + step, steps, plan.warmup)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * share
        generator = torch.Generator().manual_seed(_seed(plan, epoch, step))
        if plan.objective == "contrastive":
            inputs = _two_views(core, pixels, plan, generator)
        else:
            inputs, targets = _views(core, pixels, targets, plan, generator)
        with torch.autocast(torch.device(plan.device).type, torch.bfloat16, enabled=plan.bf16):
            outputs = model(inputs)
        if plan.objective == "contrastive":
            loss = nt_xent(outputs, plan.contrastive_temperature)
        else:
            loss = soft_cross_entropy(outputs, targets, plan.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        images += len(inputs)
        done = step + 1
    if done < plan.steps_per_epoch:
        raise ValueError(f"epoch {epoch}: {done} batches came, not {plan.steps_per_epoch}")
    mean = float(total) / done
    if not math.isfinite(mean):
        raise FloatingPointError(f"epoch {epoch}: the loss is {mean}; lower learning_rate ({plan.learning_rate})")
    return mean, images


def _views(
    core: Classifier, pixels: Tensor, targets: Tensor, plan: TrainPlan, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One random view of each image, normalised, and the targets that go with it."""
    pixels, targets = to_device(pixels, plan.device), to_device(targets, plan.device)
    if plan.crop:
        pixels = random_crop(pixels, core.image_size, generator)
    if plan.flip:
        pixels = random_flip(pixels, generator)
    if plan.randaugment:
        pixels = randaugment(pixels, plan.randaugment, generator)
    images = core.prepare(pixels)
    if plan.mixup:
        return mixup(images, targets, plan.mixup, generator)
    return images, targets


def _two_views(core: Classifier, pixels: Tensor, plan: TrainPlan, generator: torch.Generator) -> Tensor:
    """Two random views of each image, normalised, as one batch of 2b: rows i and i + b are of the same image."""
    pixels = to_device(pixels, plan.device).repeat(2, 1, 1, 1)
    if plan.crop and plan.contrastive_area < 1:
        pixels = random_resized_crop(pixels, core.image_size, plan.contrastive_area, generator)
    elif plan.crop:
        pixels = random_crop(pixels, core.image_size, generator)
    if plan.flip:
        pixels = random_flip(pixels, generator)
    if plan.contrastive_jitter:
        pixels = colour_jitter(pixels, plan.contrastive_jitter, generator)
    if plan.randaugment:
        pixels = randaugment(pixels, plan.randaugment, generator)
    return core.prepare(pixels)


def validate(
    model: Classifier, validation: tuple[np.ndarray, np.ndarray] | None, *, device: str, bf16: bool
) -> tuple[float | None, float | None]:
    """Negative log-likelihood and accuracy on held-out references, None without any.

    The likelihood is that at the temperature which fits these references (`fit_temperature`): a model speaks at its
    temperature wherever it is used, and how sure it is before that says little of an epoch.

    Args:
        model: a classifier; it is moved to `device` and left in evaluation mode.
        validation: uint8 [R, S', S', 3] and int [R].
        device: where to compute.
        bf16: see `predict`.

    Raises:
        FloatingPointError: the model says what is not finite.
    """
    if validation is None or len(validation[0]) == 0:
        return None, None
    pixels, labels = validation
    _, logits = predict(model, pixels, device=device, bf16=bf16)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model's outputs for held-out references are not finite; lower learning_rate")
    scaled = torch.from_numpy(logits / fit_temperature(logits, labels))
    loss = functional.cross_entropy(scaled, torch.from_numpy(labels.astype(np.int64)))
    return float(loss), float((logits.argmax(axis=1) == labels).mean())
