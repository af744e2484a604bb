"""The estimate of a model's memory against what torch's own allocator counts, and the search for a batch size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from trainref_ray.models.backbones import ModelSpec, build, predict
from trainref_ray.models.memory import fastest_batch, prediction_memory, training_memory


def allocated_peak(run: Callable[[], object], folder: Path) -> int:
    """Most bytes that torch's CPU allocator held above the start while `run` ran, by its profiler's trace."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    trace = folder / "trace.json"
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    first = events[0]["args"]
    start = first["Total Allocated"] - first["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - start


def training_steps(spec: ModelSpec, batch: int) -> Callable[[], object]:
    """Two steps from fresh weights: in the second, gradients and momentum of the first are there."""

    def run() -> object:
        model = build(spec)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(2):
            pixels = torch.zeros(batch, spec.image_size, spec.image_size, 3, dtype=torch.uint8)
            loss = torch.logsumexp(model(model.prepare(pixels)), 1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model

    return run


@pytest.mark.parametrize(("backbone", "image_size", "batch"), [("cnn_small", 32, 64), ("resnet18", 64, 8)])
def test_training_is_estimated_within_a_quarter(backbone: str, image_size: int, batch: int, tmp_path: Path) -> None:
    spec = ModelSpec(backbone, 10, image_size)
    measured = allocated_peak(training_steps(spec, batch), tmp_path)
    estimated = training_memory(spec, batch, bf16=False, optimizer="sgd").peak
    assert estimated == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("mirror", [False, True])
def test_prediction_is_estimated_within_a_quarter(mirror: bool, tmp_path: Path) -> None:
    spec = ModelSpec("cnn_small", 10, 32, mirror=mirror)

    def run() -> object:
        model = build(spec)
        predict(model, np.zeros((64, 32, 32, 3), np.uint8))
        return model

    measured = allocated_peak(run, tmp_path)
    assert prediction_memory(spec, 64, bf16=False).peak == pytest.approx(measured, rel=0.25)


def test_parameters_and_optimizer_are_counted_by_hand() -> None:
    # three convolutions 3->32->64->128 of 3x3 without bias, their batch norms, and a head of 128 x 10 + 10
    parameters = 9 * (3 * 32 + 32 * 64 + 64 * 128) + 2 * (32 + 64 + 128) + 128 * 10 + 10
    buffers = 4 * 2 * (32 + 64 + 128) + 3 * 8 + 2 * 3 * 4  # mean, variance; batches as int64; mean, std of images
    sgd = training_memory(ModelSpec("cnn_small", 10, 8), 4, bf16=False, optimizer="sgd")
    adamw = training_memory(ModelSpec("cnn_small", 10, 8), 4, bf16=False, optimizer="adamw")
    assert (sgd.width, sgd.parameters) == (128, parameters)
    assert sgd.state == 4 * parameters + buffers + 4 * parameters
    assert adamw.state - sgd.state == 4 * parameters


def test_it_grows_with_the_batch_and_shrinks_with_bfloat16_and_a_frozen_backbone() -> None:
    spec = ModelSpec("resnet18", 10, 224)

    def peak(batch: int, **options: bool) -> int:
        return training_memory(spec, batch, **{"bf16": False, "optimizer": "sgd", **options}).peak

    assert 1.9 < (peak(64) - peak(32)) / (peak(32) - peak(16)) < 2.1
    assert 0.45 < (peak(64, bf16=True) - peak(32, bf16=True)) / (peak(64) - peak(32)) < 0.6
    assert peak(64, frozen=True) < 0.5 * peak(64)


@pytest.mark.parametrize("backbone", ["regnet_y_400mf", "vit_b_16", "densenet121"])
def test_other_backbones(backbone: str) -> None:
    memory = training_memory(ModelSpec(backbone, 5, 224), 2, bf16=True, optimizer="adamw")
    assert memory.peak > memory.state > 12 * memory.parameters


def test_nothing_is_allocated(tmp_path: Path) -> None:
    spec = ModelSpec("vit_b_16", 1000, 224)
    assert (
        allocated_peak(lambda: nn.Linear(10, 10) and training_memory(spec, 512, bf16=False, optimizer="sgd"), tmp_path)
        < 2**24
    )


class Measured:
    """A measuring function over a table of speeds; None = out of memory."""

    def __init__(self, speeds: dict[int, float | None]) -> None:
        self.speeds = speeds
        self.asked: list[int] = []

    def __call__(self, batch: int) -> float:
        self.asked.append(batch)
        speed = self.speeds[batch]
        if speed is None:
            raise torch.OutOfMemoryError(f"no room for {batch}")
        return speed


@pytest.mark.parametrize(
    ("speeds", "largest", "expected", "asked"),
    [
        ({64: 100, 128: 190, 256: 300, 512: 310}, 4096, 256, [64, 128, 256, 512]),  # 3 % more is not worth it
        ({64: 100, 128: 190, 256: None}, 4096, 128, [64, 128, 256]),
        ({64: 100, 128: 190}, 128, 128, [64, 128]),
        ({64: 100, 128: 90}, 4096, 64, [64, 128]),
        ({64: None, 32: None, 16: 10}, 4096, 16, [64, 32, 16]),  # 32 did not fit and is not tried again
        ({64: None, 32: 10}, 4096, 32, [64, 32]),
        ({16: 5}, 16, 16, [16]),
    ],
)
def test_search_for_the_batch_size(
    speeds: dict[int, float | None], largest: int, expected: int, asked: list[int]
) -> None:
    measure = Measured(speeds)
    assert fastest_batch(measure, start=64, largest=largest) == expected
    assert measure.asked == asked


def test_not_one_image_fits() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        fastest_batch(Measured({2: None, 1: None}), start=2, largest=8)
