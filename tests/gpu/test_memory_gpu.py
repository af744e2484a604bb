"""The estimate of a model's memory against CUDA's allocator, and the batch size that a probe finds."""

from __future__ import annotations

import pytest
import torch

from trainref_ray.models.backbones import ModelSpec, build
from trainref_ray.models.memory import fastest_batch, prediction_speed, training_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("backbone", "size", "batch"), [("cnn_small", 32, 512), ("resnet50", 224, 64)])
def test_training_is_estimated_within_a_third(backbone: str, size: int, batch: int, bf16: bool) -> None:
    spec = ModelSpec(backbone, 10, size)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = build(spec).cuda()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(3):
        pixels = torch.zeros(batch, size, size, 3, dtype=torch.uint8, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            logits = model(model.prepare(pixels))
        loss = torch.logsumexp(logits.float(), 1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    measured = torch.cuda.max_memory_allocated() - before
    estimated = training_memory(spec, batch, bf16=bf16, optimizer="sgd").peak
    assert estimated == pytest.approx(measured, rel=1 / 3)


def test_a_probe_finds_a_batch_that_is_not_slower_than_the_first() -> None:
    model = build(ModelSpec("resnet18", 10, 64)).cuda()
    measure = prediction_speed(model, device="cuda", bf16=True)
    batch = fastest_batch(measure, start=32, largest=256)
    assert batch in (32, 64, 128, 256)
    assert measure(batch) > 0.8 * measure(32)
