"""The training loop, its batches and its states."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from trainref_ray.models.backbones import Classifier, ModelSpec, build, predict
from trainref_ray.training.calibrate import fit_temperature
from trainref_ray.training.loop import (
    ArrayBatches,
    Batch,
    EpochReport,
    TrainPlan,
    TrainState,
    add_projection,
    learning_rate_share,
    load_state,
    save_state,
    steps_per_epoch,
    train,
)

PLAN = TrainPlan(epochs=4, steps_per_epoch=3, learning_rate=0.05)
ALL_VIEWS: dict[str, Any] = {"crop": True, "flip": True, "randaugment": 9, "mixup": 0.4, "label_smoothing": 0.1}


def data(count: int = 48, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Dark, medium and bright 8 px images; uint8 [n, 8, 8, 3] and their classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    pixels = labels[:, None, None, None] * 80 + random.integers(0, 60, (count, 8, 8, 3))
    return pixels.astype(np.uint8), labels


def batches(batch_size: int = 16, steps: int = 3, **options: Any) -> ArrayBatches:
    pixels, labels = data()
    targets = np.eye(3, dtype=np.float32)[labels]
    return ArrayBatches(pixels, targets, batch_size=batch_size, steps_per_epoch=steps, seed=0, **options)


def model(backbone: str = "cnn_small") -> Classifier:
    torch.manual_seed(0)
    return build(ModelSpec(backbone, 3, 8 if backbone == "cnn_small" else 32))


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(("total", "batch", "steps"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (10_000, 128, 79)])
def test_steps_per_epoch_rounds_up(total: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(total, batch) == steps


def test_learning_rate_by_hand() -> None:
    shares = [learning_rate_share(step, 12, 0.25) for step in range(12)]
    np.testing.assert_allclose(shares[:4], [1 / 3, 2 / 3, 1, 1])
    assert shares[6] == pytest.approx(0.75)  # a third of the way down: (1 + cos 60°) / 2
    assert shares[9] == pytest.approx(0.25)
    assert learning_rate_share(12, 12, 0.25) == pytest.approx(0)
    assert learning_rate_share(0, 10, 0.0) == 1


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 17), steps=st.integers(1, 9), epoch=st.integers(0, 3))
def test_every_epoch_has_its_steps_and_uses_images_evenly(count: int, batch_size: int, steps: int, epoch: int) -> None:
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    targets = np.arange(count, dtype=np.float32)[:, None]
    source = ArrayBatches(pixels, targets, batch_size=batch_size, steps_per_epoch=steps, seed=1)
    drawn = list(source(epoch))
    assert len(drawn) == steps
    assert all(len(batch[0]) == batch_size for batch in drawn)
    assert all(torch.equal(batch[0][:, 0, 0, 0].float(), batch[1][:, 0]) for batch in drawn)
    used = Counter(int(value) for batch in drawn for value in batch[1][:, 0])
    times = [used[image] for image in range(count)]
    assert max(times) - min(times) <= 1


def test_order_depends_on_seed_epoch_and_rank_alone() -> None:
    def order(epoch: int, **options: Any) -> list[float]:
        return [float(value) for pixels, _ in batches(**options)(epoch) for value in pixels.float().mean((1, 2, 3))]

    source = batches()
    list(source(0))
    assert [float(v) for pixels, _ in source(1) for v in pixels.float().mean((1, 2, 3))] == order(1)
    assert order(0) != order(1)
    assert order(0) != order(0, rank=1)


@pytest.mark.parametrize("targets", [np.zeros((0, 3), np.float32), np.zeros((5, 3), np.float32)])
def test_batches_need_images_and_as_many_targets(targets: np.ndarray) -> None:
    with pytest.raises(ValueError, match="images"):
        ArrayBatches(data(0 if len(targets) == 0 else 4)[0], targets, batch_size=2, steps_per_epoch=1, seed=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_learns(optimizer: str) -> None:
    rate = 0.05 if optimizer == "sgd" else 0.005
    plan = replace(PLAN, epochs=8, optimizer=optimizer, learning_rate=rate)
    trained = model()
    state = train(trained, batches(), plan, validation=data(30, seed=1))
    assert state.epoch == 8
    assert [report.epoch for report in state.history] == list(range(8))
    assert state.history[-1].train_loss < 0.5 * state.history[0].train_loss
    assert state.history[-1].validation_accuracy == 1.0
    assert {report.images for report in state.history} == {48}
    assert_same(trained.state_dict(), state.final())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("backbone", ["cnn_small", "mobilenet_v3_small"])
@pytest.mark.parametrize("views", [{"crop": False, "flip": False}, ALL_VIEWS], ids=["no views", "all views"])
def test_resumed_equals_undisturbed_bit_by_bit(
    tmp_path: Path, optimizer: str, backbone: str, views: dict[str, Any]
) -> None:
    """Through the disk, after the second epoch; mobilenet has dropout, which draws from torch's global generator."""
    plan = replace(PLAN, epochs=3, optimizer=optimizer, learning_rate=0.01, keep_best=True, **views)
    source = batches() if backbone == "cnn_small" else larger_batches()
    validation = data(12, seed=1) if backbone == "cnn_small" else enlarged(*data(12, seed=1))

    def on_epoch(report: EpochReport, state: TrainState) -> None:
        if report.epoch == 1:
            save_state(state, tmp_path)

    torch.manual_seed(5)
    whole = train(model(backbone), source, plan, validation=validation, on_epoch=on_epoch)
    fresh = build(ModelSpec(backbone, 3, 8 if backbone == "cnn_small" else 32))
    torch.manual_seed(77)
    resumed = train(fresh, source, plan, validation=validation, state=load_state(tmp_path))
    assert_same(whole.model, resumed.model)
    assert_same(whole.optimizer, resumed.optimizer)
    assert_same(whole.final(), resumed.final())
    losses = [(report.epoch, report.train_loss, report.validation_loss) for report in whole.history]
    assert losses == [(report.epoch, report.train_loss, report.validation_loss) for report in resumed.history]


def enlarged(pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pixels.repeat(4, axis=1).repeat(4, axis=2), labels


def larger_batches() -> ArrayBatches:
    pixels, labels = enlarged(*data())
    targets = np.eye(3, dtype=np.float32)[labels]
    return ArrayBatches(pixels, targets, batch_size=16, steps_per_epoch=3, seed=0)


def test_a_finished_state_trains_no_more() -> None:
    state = train(model(), batches(), replace(PLAN, epochs=1))
    again = train(model(), batches(), replace(PLAN, epochs=1), state=state)
    assert again is state


def test_the_global_generator_is_left_as_it_was() -> None:
    trained = model()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train(trained, batches(), replace(PLAN, epochs=1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_seed_and_rank_change_the_views() -> None:
    def loss(**change: Any) -> float:
        return train(model(), batches(), replace(PLAN, epochs=1, **change)).history[0].train_loss

    assert loss() == loss()
    assert len({loss(), loss(seed=1), loss(rank=1)}) == 3


def test_best_is_the_epoch_with_the_lowest_validation_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = iter([1.0, 3.0, 2.0, 3.0])  # of the right class: the second epoch is best, the fourth only equal

    def scripted(core: Classifier, pixels: np.ndarray, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((2, 1), np.float16), np.array([[next(margins), 0.0, 0.0]] * 2, np.float32)

    monkeypatch.setattr("trainref_ray.training.loop.predict", scripted)
    states: list[TrainState] = []
    final = train(
        model(),
        batches(),
        replace(PLAN, keep_best=True),
        validation=(data(2)[0], np.zeros(2, int)),
        on_epoch=lambda _, state: states.append(state),
    )
    assert_same(final.final(), states[1].model)
    assert not torch.equal(final.model["head.weight"], states[1].model["head.weight"])
    assert [report.validation_accuracy for report in final.history] == [1.0] * 4


def test_without_keep_best_or_validation_the_last_state_is_released() -> None:
    validation = data(6)
    for options in ({"plan": PLAN, "validation": validation}, {"plan": replace(PLAN, keep_best=True)}):
        state = train(model(), batches(), **options)
        assert state.best is None
        assert_same(state.final(), state.model)


def test_validation_loss_is_the_mean_negative_log_likelihood_at_the_temperature_that_fits() -> None:
    pixels, labels = data(9, seed=2)
    trained = model()
    state = train(trained, batches(), replace(PLAN, epochs=1), validation=(pixels, labels))
    _, logits = predict(trained, pixels)
    scaled = logits / fit_temperature(logits, labels)
    shifted = scaled - scaled.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    assert state.history[0].validation_loss == pytest.approx(-log_p[np.arange(9), labels].mean(), abs=1e-5)


def test_frozen_backbone_keeps_weights_and_statistics() -> None:
    trained = model()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    train(trained, batches(), replace(PLAN, freeze_backbone=True))
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_weight_decay_spares_biases_and_norms() -> None:
    """With a gradient of zero, SGD changes just what decays: by learning rate times decay."""
    trained = model()
    trained.head.weight.data.zero_()
    uniform = np.full((16, 3), 1 / 3, np.float32)  # a head of zeros is right already, so that nothing else moves
    source = ArrayBatches(data(16)[0], uniform, batch_size=16, steps_per_epoch=1, seed=0)
    trained.head.bias.data.fill_(2.0)
    before = {name: value.clone() for name, value in trained.named_parameters()}
    train(trained, source, replace(PLAN, epochs=1, steps_per_epoch=1, warmup=0.0, learning_rate=0.1, weight_decay=0.5))
    for name, value in trained.named_parameters():
        # Nesterov's first step counts the gradient 1 + 0.9 times.
        expected = before[name] * (1 - 0.1 * 0.5 * 1.9) if value.ndim >= 2 else before[name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)


class Wrapper(nn.Module):
    """What a data-parallel wrapper looks like."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.module(images)


def test_a_wrapped_model_is_called_and_its_inner_state_kept() -> None:
    wrapped = Wrapper(model())
    state = train(wrapped, batches(), PLAN, validation=data(6))
    assert wrapped.calls == PLAN.epochs * PLAN.steps_per_epoch
    assert_same(state.model, train(model(), batches(), PLAN).model)
    with pytest.raises(ValueError, match="before wrapping"):
        train(Wrapper(model()), batches(), replace(PLAN, freeze_backbone=True))


def test_distributed_data_parallel_of_one_worker_gives_the_same_model() -> None:
    expected = train(model(), batches(), PLAN).model
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        state = train(nn.parallel.DistributedDataParallel(model()), batches(), PLAN)
        frozen = model()
        frozen.freeze_backbone()
        only_head = train(nn.parallel.DistributedDataParallel(frozen), batches(), replace(PLAN, freeze_backbone=True))
    finally:
        torch.distributed.destroy_process_group()
    for name, value in expected.items():
        torch.testing.assert_close(state.model[name], value, msg=name)
    assert torch.equal(only_head.model["body.stages.0.weight"], model().body.stages[0].weight)


def test_images_are_counted_over_all_workers() -> None:
    state = train(model(), batches(), replace(PLAN, epochs=1, world_size=3))
    assert state.history[0].images == 3 * 48


def test_autocast_to_bfloat16_trains_float32_weights() -> None:
    state = train(model(), batches(), replace(PLAN, bf16=True))
    assert state.history[-1].train_loss < state.history[0].train_loss
    assert state.model["head.weight"].dtype == torch.float32


def test_too_few_batches_and_a_diverged_loss_are_errors() -> None:
    with pytest.raises(ValueError, match="2 batches came, not 3"):
        train(model(), batches(steps=2), PLAN)

    def broken(epoch: int) -> Iterator[Batch]:
        for pixels, targets in batches()(epoch):
            yield pixels, targets * torch.inf

    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(model(), broken, PLAN)


def test_a_step_that_is_too_large_is_told_by_the_held_out_references() -> None:
    plan = replace(PLAN, epochs=1, steps_per_epoch=1, warmup=0.0, learning_rate=1e30)  # the loss was before the step
    with pytest.raises(FloatingPointError, match="held-out references are not finite; lower learning_rate"):
        train(model(), batches(), plan, validation=data(6))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_saved_state_comes_back_and_replaces_the_earlier_one(tmp_path: Path, optimizer: str) -> None:
    plan = replace(PLAN, optimizer=optimizer, learning_rate=0.01, keep_best=True)
    states: list[TrainState] = []
    train(model(), batches(), plan, validation=data(6), on_epoch=lambda _, state: states.append(state))
    for state in (states[0], states[3]):
        save_state(state, tmp_path / "state")
    loaded = load_state(tmp_path / "state")
    assert loaded.epoch == 4
    assert loaded.history == states[3].history
    assert loaded.best is not None
    assert_same(loaded.best, states[3].final())
    assert_same(loaded.model, states[3].model)
    assert_same(loaded.optimizer, states[3].optimizer)
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["state.json", "tensors-0004.safetensors"]


def test_a_writer_that_dies_leaves_the_earlier_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[TrainState] = []
    train(model(), batches(), PLAN, on_epoch=lambda _, state: states.append(state))
    save_state(states[0], tmp_path)

    def dies(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainref_ray.training.state.json.dumps", dies)
    with pytest.raises(KeyboardInterrupt):
        save_state(states[1], tmp_path)
    loaded = load_state(tmp_path)
    assert loaded.epoch == 1
    assert_same(loaded.model, states[0].model)


def test_files_that_are_no_state_are_refused(tmp_path: Path) -> None:
    save_state(train(model(), batches(), replace(PLAN, epochs=1)), tmp_path)
    path = tmp_path / "state.json"
    content = json.loads(path.read_text())
    tensors = tmp_path / content["tensors"]
    save_file(load_file(tensors) | {"other/x": torch.zeros(1)}, tensors)
    with pytest.raises(ValueError, match="other/x"):
        load_state(tmp_path)
    content["history"][0]["unknown"] = 1
    for text in ("{", "{}", json.dumps(content)):
        path.write_text(text)
        with pytest.raises(ValueError, match="does not describe a training state"):
            load_state(tmp_path)
    tensors.unlink()
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "missing")


CONTRASTIVE = replace(PLAN, objective="contrastive", learning_rate=0.05, contrastive_area=0.5)


def without_head(backbone: str = "cnn_small") -> Classifier:
    torch.manual_seed(0)
    built = build(ModelSpec(backbone, 0, 8 if backbone == "cnn_small" else 32))
    add_projection(built, 16)
    return built


def unlabelled(side: int = 8) -> ArrayBatches:
    pixels = data()[0] if side == 8 else enlarged(*data())[0]
    return ArrayBatches(pixels, np.zeros((len(pixels), 0), np.float32), batch_size=16, steps_per_epoch=3, seed=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("backbone", ["cnn_small", "mobilenet_v3_small"])
def test_contrastive_resumed_equals_undisturbed_bit_by_bit(tmp_path: Path, optimizer: str, backbone: str) -> None:
    plan = replace(CONTRASTIVE, epochs=3, optimizer=optimizer, learning_rate=0.01, keep_best=True)
    source = unlabelled(8 if backbone == "cnn_small" else 32)

    def on_epoch(report: EpochReport, state: TrainState) -> None:
        if report.epoch == 1:
            save_state(state, tmp_path)

    whole = train(without_head(backbone), source, plan, on_epoch=on_epoch)
    fresh = build(ModelSpec(backbone, 0, 8 if backbone == "cnn_small" else 32))
    add_projection(fresh, 16)
    torch.manual_seed(77)
    resumed = train(fresh, source, plan, state=load_state(tmp_path))
    assert_same(whole.model, resumed.model)
    assert_same(whole.optimizer, resumed.optimizer)
    assert [report.train_loss for report in whole.history] == [report.train_loss for report in resumed.history]
    assert whole.best is None
    assert whole.model.keys() == resumed.final().keys()


def test_contrastive_training_pulls_views_together_and_reads_no_target() -> None:
    trained = without_head()
    plan = replace(CONTRASTIVE, epochs=20, contrastive_area=1.0, contrastive_jitter=0.0)
    state = train(trained, unlabelled(), plan)
    assert state.history[-1].train_loss < state.history[0].train_loss - 0.2
    assert {report.images for report in state.history} == {2 * 48}, "each view counts"
    assert {(report.validation_loss, report.validation_accuracy) for report in state.history} == {(None, None)}
    labelled = train(without_head(), batches(), plan)
    assert_same(state.model, labelled.model)
    with pytest.raises(ValueError, match="no classes to validate"):
        train(without_head(), unlabelled(), CONTRASTIVE, validation=data(6))


def test_contrastive_views_depend_on_their_settings() -> None:
    def loss(**change: Any) -> float:
        return train(without_head(), unlabelled(), replace(CONTRASTIVE, epochs=1, **change)).history[0].train_loss

    settings: list[dict[str, Any]] = [
        {"contrastive_temperature": 0.1},
        {"contrastive_area": 1.0},
        {"contrastive_jitter": 0.0},
        {"flip": False},
        {"crop": False},
        {"randaugment": 9},
        {"seed": 1},
        {"rank": 1},
    ]
    assert loss() == loss()
    assert len({loss(), *(loss(**change) for change in settings)}) == 1 + len(settings)


def test_the_two_views_of_an_image_are_a_batch_apart() -> None:
    """Without any change they are equal, and the positives are found: the loss is then that of equal pairs."""
    trained = without_head().eval()
    pixels = torch.from_numpy(data(16)[0])
    seen: list[torch.Tensor] = []
    trained.body.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach().clone()))
    source = ArrayBatches(pixels.numpy(), np.zeros((16, 0), np.float32), batch_size=16, steps_per_epoch=1, seed=0)
    plan = replace(CONTRASTIVE, epochs=1, steps_per_epoch=1, crop=False, flip=False, contrastive_jitter=0.0)
    train(trained, source, plan)
    assert torch.equal(seen[0][:16], seen[0][16:])
    changed = replace(plan, crop=True, flip=True, contrastive_jitter=0.5)
    train(trained, source, changed)
    assert not torch.equal(seen[1][:16], seen[1][16:])


def test_a_projection_takes_the_heads_place_and_leaves_nothing(tmp_path: Path) -> None:
    trained = without_head()
    assert trained(trained.prepare(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))).shape == (2, 16)
    trained.set_classes(0)
    assert not [name for name in trained.state_dict() if name.startswith("head")]
    trained.set_classes(4)
    assert trained.head.weight.shape == (4, 128)
