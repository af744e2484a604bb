"""Training, prediction and the probe on a CUDA device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainref_ray.models.backbones import ModelSpec, build, predict
from trainref_ray.models.probe import fit_probe
from trainref_ray.retrieval.exact import build_exact_search
from trainref_ray.training.loop import (
    ArrayBatches,
    TrainPlan,
    TrainState,
    add_projection,
    load_state,
    save_state,
    train,
)
from trainref_ray.training.randaugment import randaugment
from trainref_ray.training.transforms import (
    colour_jitter,
    mixup,
    random_crop,
    random_flip,
    random_resized_crop,
    to_device,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PLAN = TrainPlan(
    epochs=6, steps_per_epoch=8, learning_rate=0.05, randaugment=5, mixup=0.2, keep_best=True, device="cuda"
)


def data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Dark, medium and bright 32 px images."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pixels = labels[:, None, None, None] * 80 + random.integers(0, 60, (count, 32, 32, 3))
    return pixels.astype(np.uint8), labels


def batches() -> ArrayBatches:
    pixels, labels = data(256, 0)
    return ArrayBatches(pixels, np.eye(3, dtype=np.float32)[labels], batch_size=32, steps_per_epoch=8, seed=0)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("backbone", ["cnn_small", "resnet18"])
def test_it_learns_and_predicts_as_on_the_cpu(backbone: str, bf16: bool) -> None:
    torch.manual_seed(0)
    model = build(ModelSpec(backbone, 3, 32))
    pixels, labels = data(60, 1)
    state = train(model, batches(), replace(PLAN, bf16=bf16, randaugment=0), validation=(pixels, labels))
    model.load_state_dict(state.final())
    embeddings, logits = predict(model, pixels, device="cuda", bf16=bf16)
    assert (logits.argmax(1) == labels).mean() > 0.95
    expected, _ = predict(model, pixels, device="cpu")
    assert (embeddings.astype(np.float32) * expected.astype(np.float32)).sum(1).min() > 0.999


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_is_close_to_undisturbed(tmp_path: Path, optimizer: str) -> None:
    plan = replace(PLAN, optimizer=optimizer, learning_rate=0.005, keep_best=False)

    def start() -> torch.nn.Module:
        torch.manual_seed(0)
        return build(ModelSpec("cnn_small", 3, 32))

    def on_epoch(_: object, state: TrainState) -> None:
        if state.epoch == 3:
            save_state(state, tmp_path)

    whole = train(start(), batches(), plan, on_epoch=on_epoch)
    saved = load_state(tmp_path)
    resumed = distance(train(start(), batches(), plan, state=saved), whole)
    forgotten = distance(train(start(), batches(), plan, state=replace(saved, optimizer={})), whole)
    untrained = distance(train(start(), batches(), plan, state=replace(saved, model=start().state_dict())), whole)
    assert resumed < 0.1 * min(forgotten, untrained)


def distance(one: TrainState, other: TrainState) -> float:
    """Between all parameters of two models, as a share of the length of the second's."""
    names = [name for name, value in other.model.items() if value.is_floating_point()]
    first, second = (torch.cat([state.model[name].flatten() for name in names]) for state in (one, other))
    return float((first - second).norm() / second.norm())


def test_contrastive_training_learns_from_the_views_of_the_cpu() -> None:
    pixels = torch.from_numpy(data(64, 3)[0])

    def view(on: str) -> torch.Tensor:
        draws = torch.Generator().manual_seed(4)
        return colour_jitter(random_resized_crop(pixels.to(on), 32, 0.2, draws), 0.5, draws).cpu()

    assert (view("cuda").int() - view("cpu").int()).abs().float().mean() < 0.1
    torch.manual_seed(0)
    model = build(ModelSpec("cnn_small", 0, 32))
    add_projection(model, 16)
    history = train(model, batches(), replace(PLAN, objective="contrastive", keep_best=False, mixup=0.0)).history
    assert history[-1].train_loss < history[0].train_loss


def test_no_step_of_an_epoch_waits_for_the_gpu() -> None:
    """Views and targets are sent without waiting; torch raises an error where something waits."""
    draws = torch.Generator().manual_seed(0)
    pixels, labels = data(32, 4)
    targets = to_device(torch.from_numpy(np.eye(3, dtype=np.float32)[labels]), "cuda")
    randaugment(torch.from_numpy(pixels).cuda(), 9, draws)  # whatever waits once: libraries that are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(torch.from_numpy(pixels), "cuda")
        views = randaugment(random_flip(random_crop(there, 32, draws), draws), 9, draws)
        colour_jitter(random_resized_crop(there, 32, 0.2, draws), 0.5, draws)
        mixup(views.float(), targets, 0.4, draws)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_search_is_that_of_the_cpu() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(500, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(500, dtype=np.int64)
    first, second = (build_exact_search(vectors, ids, device=device)(vectors[:50], 5) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert (first[1] == second[1]).mean() > 0.99


def test_views_are_those_of_the_cpu() -> None:
    pixels = torch.from_numpy(data(64, 2)[0])

    def view(on: str) -> torch.Tensor:
        draws = torch.Generator().manual_seed(4)
        return random_flip(random_crop(pixels.to(on), 32, draws), draws).cpu()

    assert torch.equal(view("cuda"), view("cpu"))
    augmented = randaugment(pixels.cuda(), 9, torch.Generator().manual_seed(4))
    expected = randaugment(pixels, 9, torch.Generator().manual_seed(4))
    assert (augmented.cpu().int() - expected.int()).abs().float().mean() < 1


def test_probe_is_that_of_the_cpu() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    vectors = (np.eye(8)[labels] + 0.2 * random.normal(size=(300, 8))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = (
        fit_probe(
            vectors,
            labels,
            classes=3,
            epochs=5,
            batch_size=64,
            learning_rate=0.05,
            weight_decay=1e-4,
            scale=16.0,
            checkpoints=3,
            bias=True,
            seed=0,
            device=device,
        )
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(first.probabilities(vectors), second.probabilities(vectors, device="cuda"), atol=1e-2)
