"""Backbones: construction, files, prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from trainref_ray.models.backbones import (
    Classifier,
    ModelSpec,
    backbone_names,
    build,
    check_backbone,
    load_model,
    predict,
    save_model,
    stored_side,
)

SMALL = ModelSpec("cnn_small", classes=4, image_size=8)


def images(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_names_are_the_small_network_and_the_classifiers_with_a_linear_head() -> None:
    names = backbone_names()
    assert {"cnn_small", "resnet18", "resnet50", "vit_b_16", "convnext_tiny"} <= set(names)
    assert not any("squeezenet" in name for name in names)


@pytest.mark.parametrize(("name", "close"), [("resnet_18", "resnet18"), ("cnnsmall", "cnn_small"), ("??", "resnet50")])
def test_unknown_name_says_what_is_close(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=close):
        check_backbone(name)
    with pytest.raises(ValueError, match="unknown backbone"):
        build(ModelSpec(name, 4, 32))


@pytest.mark.parametrize(
    ("name", "sizes", "width"),
    [
        ("cnn_small", (8, 11), 128),
        ("cnn_small", (16, 32, 64), 256),
        ("resnet18", (8, 32, 64), 512),
        ("mobilenet_v3_small", (32, 64), 1024),
        ("shufflenet_v2_x0_5", (32, 64), 1024),
        ("mnasnet0_5", (32,), 1280),
        ("efficientnet_b0", (32,), 1280),
        ("densenet121", (32,), 1024),
        ("googlenet", (64,), 1024),
    ],
)
def test_backbones_train_and_predict_at_small_sizes(name: str, sizes: tuple[int, ...], width: int) -> None:
    for size in sizes:
        model = build(ModelSpec(name, 5, size))
        pixels = torch.from_numpy(images(4, size))
        logits = model(model.prepare(pixels))
        assert logits.shape == (4, 5)
        logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert model.features(model.prepare(pixels)).shape == (4, width)
        assert model.width == width


def test_forward_is_the_head_on_the_features() -> None:
    model = build(replace(SMALL, backbone="resnet18")).eval()
    prepared = model.prepare(torch.from_numpy(images(3, 8)))
    expected = model.features(prepared) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(prepared), expected)


def test_resnet_stem_follows_the_image_size_and_the_setting() -> None:
    def stem(size: int, cifar_stem: bool | None) -> tuple[object, bool]:
        body = build(ModelSpec("resnet18", 3, size, cifar_stem)).body
        return body.conv1.stride, isinstance(body.maxpool, nn.Identity)

    assert stem(32, None) == stem(64, True) == ((1, 1), True)
    assert stem(64, None) == stem(32, False) == ((2, 2), False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("cnn_small", 3, 7), "8 pixels or more"),
        (ModelSpec("cnn_small", 3, 32, weights="public"), "no public weights"),
        (ModelSpec("cnn_small", 3, 32, cifar_stem=True), "for ResNets"),
        (ModelSpec("mnasnet0_5", 3, 32, cifar_stem=True), "for ResNets"),
        (ModelSpec("alexnet", 3, 32), "cannot take images of 32 px"),
        (ModelSpec("vit_b_16", 3, 40), "40 px"),
        (ModelSpec("vit_b_16", 3, 32, weights="public"), "need images of 224 px"),
    ],
)
def test_what_a_backbone_cannot_have_is_refused(spec: ModelSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(spec)


def fake_public(monkeypatch: pytest.MonkeyPatch, source: nn.Module) -> list[dict[str, object]]:
    calls: list[dict[str, object]] = []

    def get_state_dict(self: object, **options: object) -> dict[str, torch.Tensor]:
        calls.append(options)
        return source.state_dict()

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", get_state_dict)
    return calls


def test_public_weights_keep_their_stem_and_their_statistics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = torchvision.models.resnet18()
    calls = fake_public(monkeypatch, source)
    spec = ModelSpec("resnet18", 3, 32, weights="public")
    model = build(spec)
    assert torch.equal(model.body.conv1.weight, source.conv1.weight)
    assert calls == [{"progress": False, "check_hash": True, "weights_only": True}]
    assert model.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    with pytest.raises(ValueError, match="leave cifar_stem out"):
        build(replace(spec, cifar_stem=True))
    save_model(model, spec, tmp_path)
    calls.clear()
    loaded, loaded_spec = load_model(tmp_path)
    assert loaded_spec == spec
    assert not calls, "loading a saved model downloads nothing"
    assert torch.equal(loaded.body.conv1.weight, source.conv1.weight)


def test_public_weights_of_googlenet_leave_out_the_auxiliary_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision.models.googlenet(init_weights=False)
    fake_public(monkeypatch, source)
    model = build(ModelSpec("googlenet", 3, 64, weights="public"))
    assert torch.equal(model.body.conv1.conv.weight, source.conv1.conv.weight)
    assert model.body.transform_input


def test_public_weights_of_densenet_under_their_old_names(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision.models.densenet121()
    state = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in name else name: value
        for name, value in source.state_dict().items()
    }
    monkeypatch.setattr(source, "state_dict", lambda: state)
    fake_public(monkeypatch, source)
    model = build(ModelSpec("densenet121", 3, 32, weights="public"))
    layer = model.body.features.denseblock1.denselayer1
    assert torch.equal(layer.conv2.weight, source.features.denseblock1.denselayer1.conv2.weight)


def test_prepare_crops_the_centre_and_normalises() -> None:
    model = build(SMALL)
    pixels = torch.zeros((1, 10, 10, 3), dtype=torch.uint8)
    pixels[0, 1, 1] = torch.tensor([255, 51, 0], dtype=torch.uint8)  # the first pixel after the crop
    prepared = model.prepare(pixels)
    assert prepared.shape == (1, 3, 8, 8)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    expected = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]
    assert prepared[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert pixels[0, 1, 1].tolist() == [255, 51, 0], "the input is left alone"


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 7, 7, 3, dtype=torch.uint8), "smaller than the model"),
        (torch.zeros(1, 8, 8, 3), "not uint8"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "not uint8"),
    ],
)
def test_prepare_refuses_what_is_no_image(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SMALL).prepare(pixels)


@pytest.mark.parametrize(("size", "side"), [(8, 8), (32, 32), (95, 95), (96, 112), (224, 256), (299, 352)])
def test_stored_side_leaves_room_from_96_px_on(size: int, side: int) -> None:
    assert stored_side(size) == side


def test_predict_gives_unit_embeddings_that_do_not_depend_on_the_batch() -> None:
    model = build(SMALL)
    pixels = images(7, 8)
    embeddings, logits = predict(model, pixels, batch=3)
    assert embeddings.dtype == np.float16
    assert embeddings.shape == (7, 128)
    assert logits.dtype == np.float32
    assert logits.shape == (7, 4)
    np.testing.assert_allclose(np.linalg.norm(embeddings.astype(np.float64), axis=1), 1, atol=1e-3)
    with torch.inference_mode():
        expected = model(model.prepare(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not model.training


def test_a_mirrored_model_sees_an_image_and_its_mirror_image_alike() -> None:
    torch.manual_seed(0)
    spec = replace(SMALL, mirror=True)
    model, pixels = build(spec), images(5, 8)
    embeddings, logits = predict(model, pixels)
    for mine, theirs in zip((embeddings, logits), predict(model, pixels[:, :, ::-1]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-3)
    model.mirror = False
    one, other = predict(model, pixels)[1], predict(model, pixels[:, :, ::-1])[1]
    assert np.abs(one - other).max() > 1e-3, "the network itself tells them apart"
    np.testing.assert_allclose(logits, (one + other) / 2, atol=1e-5)
    model.mirror = True
    upside_down = predict(model, pixels[:, ::-1])[1]
    assert np.abs(upside_down - logits).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(embeddings.astype(np.float64), axis=1), 1, atol=1e-3)


def test_predict_with_bfloat16_stays_close() -> None:
    model = build(SMALL)
    exact, _ = predict(model, images(6, 8))
    rounded, logits = predict(model, images(6, 8), bf16=True)
    assert logits.dtype == np.float32
    assert (exact.astype(np.float32) * rounded.astype(np.float32)).sum(1).min() > 0.999


def test_predict_of_no_images() -> None:
    embeddings, logits = predict(build(SMALL), images(0, 8))
    assert embeddings.shape == (0, 128)
    assert logits.shape == (0, 4)


def test_saved_model_comes_back(tmp_path: Path) -> None:
    spec = ModelSpec("resnet18", 4, 8)
    model = build(spec)
    predict(model, images(2, 8))
    save_model(model, spec, tmp_path / "new")
    loaded, loaded_spec = load_model(tmp_path / "new")
    assert loaded_spec == spec
    assert not loaded.training
    for mine, theirs in zip(predict(model, images(5, 8)), predict(loaded, images(5, 8)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _saved(tmp_path: Path) -> tuple[Classifier, Path]:
    model = build(SMALL)
    save_model(model, SMALL, tmp_path)
    return model, tmp_path / "model.safetensors"


def test_a_file_with_other_names_or_shapes_is_refused(tmp_path: Path) -> None:
    _, path = _saved(tmp_path)
    state = load_file(path)
    save_file(state | {"extra": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"unknown tensors.*extra"):
        load_model(tmp_path)
    save_file({name: value for name, value in state.items() if name != "mean"}, path)
    with pytest.raises(ValueError, match=r"missing tensors.*mean"):
        load_model(tmp_path)
    save_file(state | {"head.weight": torch.zeros(5, 128)}, path)
    with pytest.raises(ValueError, match=r"head\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '{"spec": {"backbone": "cnn_small"}, "width": 256}',
        '{"spec": {"backbone": "cnn_small", "classes": 4, "image_size": 8, "new": 1}, "width": 256}',
    ],
)
def test_a_description_that_is_no_spec_is_refused(tmp_path: Path, content: str) -> None:
    _saved(tmp_path)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match="does not describe a model"):
        load_model(tmp_path)


def test_another_width_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 64}))
    with pytest.raises(ValueError, match="width 64"):
        load_model(tmp_path)


def test_weights_from_a_file_with_and_without_its_head(tmp_path: Path) -> None:
    model, path = _saved(tmp_path)
    same = build(replace(SMALL, weights=str(path)))
    assert torch.equal(same.head.weight, model.head.weight)
    other = build(replace(SMALL, classes=6, weights=str(path)))
    assert other.head.weight.shape == (6, 128)
    assert torch.equal(other.body.stages[0].weight, model.body.stages[0].weight)
    with pytest.raises(ValueError, match="of another model"):
        build(ModelSpec("resnet18", 4, 8, weights=str(path)))
    with pytest.raises(FileNotFoundError):
        build(replace(SMALL, weights=str(tmp_path / "missing.safetensors")))


def test_freezing_leaves_the_body_as_it_is() -> None:
    model = build(SMALL)
    model.freeze_backbone()
    model.train()
    before = {name: value.clone() for name, value in model.body.state_dict().items()}
    model(model.prepare(torch.from_numpy(images(4, 8)))).sum().backward()
    assert model.head.weight.grad is not None
    assert all(parameter.grad is None for parameter in model.body.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.body.state_dict().items())


def test_a_model_without_classes_gives_embeddings_alone_and_gets_a_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = replace(SMALL, classes=0)
    model = build(spec)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    vectors, logits = predict(model, pixels)
    assert logits.shape == (3, 0)
    save_model(model, spec, tmp_path)
    loaded, _ = load_model(tmp_path)
    loaded.set_classes(4)
    again, scores = predict(loaded, pixels)
    assert np.array_equal(vectors, again)
    assert scores.shape == (3, 4)


def test_weights_of_a_folder_with_and_without_a_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    headless = build(replace(SMALL, classes=0))
    save_model(headless, replace(SMALL, classes=0), tmp_path / "headless")
    with_head = build(SMALL)
    save_model(with_head, SMALL, tmp_path / "whole")
    started = build(replace(SMALL, weights=str(tmp_path / "headless")))
    assert torch.equal(started.body.stages[0].weight, headless.body.stages[0].weight)
    assert started.head.weight.shape == (SMALL.classes, 128)
    bare = build(replace(SMALL, classes=0, weights=str(tmp_path / "whole")))
    assert torch.equal(bare.body.stages[0].weight, with_head.body.stages[0].weight)
    assert "head.weight" not in bare.state_dict()
    whole = build(replace(SMALL, weights=str(tmp_path / "whole")))
    assert torch.equal(whole.head.weight, with_head.head.weight)
