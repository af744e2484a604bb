"""Memory that a model takes for a batch, counted on tensors without content, and the batch size that is fastest.

The model runs on torch's meta device, where every operation has shapes and no data: a ResNet-50 with 512 images is
counted in a second on any machine.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from trainref_ray.data.images import stored_size
from trainref_ray.models.backbones import NONE, PUBLIC, Classifier, ModelSpec, build, predict

OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}
"""Numbers an optimiser keeps for each parameter: momentum, or two moments."""

PROBE_PASSES = 5
"""Batches that are timed for each size: with the first, untimed one a second or two for all sizes together."""


@dataclass(frozen=True)
class ModelMemory:
    """Bytes that a model takes; what libraries add (CUDA's context, workspaces of convolutions) is not in it.

    Attributes:
        width: D, features before the head.
        parameters: of backbone and head, a count.
        state: weights, buffers and, for training, what the optimiser keeps.
        peak: all of it together with gradients, activations and the batch, at the worst moment.
    """

    width: int
    parameters: int
    state: int
    peak: int


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make: bytes alive now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, result)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


def training_memory(
    spec: ModelSpec, batch: int, *, bf16: bool, optimizer: Literal["sgd", "adamw"], frozen: bool = False
) -> ModelMemory:
    """What a training step takes.

    Args:
        spec: the model; its weights are not read.
        batch: images of this worker's step, at least 2.
        bf16: under autocast to bfloat16.
        optimizer: see `OPTIMIZER_COPIES`.
        frozen: the backbone is not trained.

    Raises:
        ValueError: see `build`.
    """
    model, bytes_float = _without_content(spec, bf16)
    if frozen:
        model.freeze_backbone()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state = _state_bytes(model, bytes_float) + 4 * trained * OPTIMIZER_COPIES[optimizer]
    gradients = 4 * trained
    with _LiveBytes() as live, torch.device("meta"):
        loss = torch.logsumexp(model(_images(model, spec, batch, bytes_float)).float(), dim=1).sum()
        forward = live.peak
        loss.backward()
    # The gradients of the step before are dropped after the forward pass, and new ones grow while activations go.
    peak = state + max(forward + gradients, live.peak) + _cast_weights(model, bf16)
    return ModelMemory(model.width, _count(model), state, peak)


def prediction_memory(spec: ModelSpec, batch: int, *, bf16: bool) -> ModelMemory:
    """What `predict` takes for a batch. Arguments and errors: see `training_memory`."""
    model, bytes_float = _without_content(spec, bf16)
    model.eval()
    state = _state_bytes(model, bytes_float)
    with _LiveBytes() as live, torch.device("meta"), torch.inference_mode():
        features = model.predicted_features(_images(model, spec, batch, bytes_float))
        model.head.float()(features.float())
    return ModelMemory(model.width, _count(model), state, state + live.peak + _cast_weights(model, bf16))


def _without_content(spec: ModelSpec, bf16: bool) -> tuple[Classifier, int]:
    """The model on the meta device, and how many bytes a number has there: autocast is no matter of meta tensors, so
    the whole model is bfloat16 in its place."""
    stem = False if spec.weights == PUBLIC and spec.cifar_stem is None else spec.cifar_stem
    plain = replace(spec, cifar_stem=stem, weights=NONE)
    try:
        with torch.device("meta"):
            model = build(plain)
    except ValueError:
        model = build(plain).to("meta")  # RegNets read a tensor's content while they are built
    return (model.to(torch.bfloat16), 2) if bf16 else (model, 4)


def _count(model: Classifier) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _state_bytes(model: Classifier, bytes_float: int) -> int:
    """Weights and buffers, float32 also where the model here is bfloat16."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * (4 if tensor.element_size() == bytes_float else 8) for tensor in tensors)


def _cast_weights(model: Classifier, bf16: bool) -> int:
    """Autocast keeps a bfloat16 copy of the weights for as long as a pass lasts."""
    return 2 * _count(model) if bf16 else 0


def _images(model: Classifier, spec: ModelSpec, batch: int, bytes_float: int) -> torch.Tensor:
    side = stored_size(spec.image_size)
    pixels = torch.empty(batch, side, side, 3, dtype=torch.uint8)
    images = model.prepare(pixels)
    return images if bytes_float == 4 else images.to(torch.bfloat16)


def prediction_speed(model: Classifier, *, device: str, bf16: bool) -> Callable[[int], float]:
    """A function that measures images a second of `predict` with a batch size, on images without content."""
    side = stored_size(model.image_size)

    def measure(batch: int) -> float:
        pixels = np.zeros((batch, side, side, 3), np.uint8)
        predict(model, pixels, device=device, bf16=bf16, batch=batch)  # libraries choose and compile their kernels
        started = time.perf_counter()
        for _ in range(PROBE_PASSES):
            predict(model, pixels, device=device, bf16=bf16, batch=batch)  # ends when its result is on the CPU
        return PROBE_PASSES * batch / (time.perf_counter() - started)

    return measure


def fastest_batch(measure: Callable[[int], float], *, start: int, largest: int, least_gain: float = 0.05) -> int:
    """The batch size from which on doubling pays no more.

    Args:
        measure: images a second with a batch size; raises `torch.OutOfMemoryError` where it does not fit.
        start: the first one; doubled as long as each step is faster by more than `least_gain` than the best so far.
        largest: none above this is tried.
        least_gain: share; a probe's own noise is a few per cent.

    Raises:
        torch.OutOfMemoryError: not even one image fits.
    """
    batch = min(start, largest)
    while True:
        try:
            best = measure(batch)
            break
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            largest = batch
    while 2 * batch <= largest:
        try:
            speed = measure(2 * batch)
        except torch.OutOfMemoryError:
            break
        if speed <= best * (1 + least_gain):
            break
        batch, best = 2 * batch, speed
    return batch
