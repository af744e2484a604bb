"""The actor that embeds, called as Ray calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainref_ray.config import make_config
from trainref_ray.distributed import embedding
from trainref_ray.distributed.context import model_spec
from trainref_ray.distributed.embedding import CPU_BATCH, Embedder
from trainref_ray.models import memory
from trainref_ray.models.backbones import ModelSpec, build, predict, save_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = ModelSpec("cnn_small", 3, 8)
    save_model(build(spec), spec, tmp_path / "model")
    return tmp_path


def embedder(folder: Path, *, device: str, batch: int | None) -> Embedder:
    return Embedder(str(folder), "model", frozenset({7}), device, False, batch, 1)


def test_a_block_becomes_embeddings_or_logits(model: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    column = pa.array([image.tobytes() for image in pixels], pa.large_binary())
    actor = embedder(model, device="cpu", batch=None)
    assert actor._batch == CPU_BATCH
    vectors, logits = predict(actor._model, pixels)
    uids = np.arange(5)
    embedded = actor(pa.table({"uid": uids, "pixels": column}))
    assert np.array_equal(np.array(embedded["embedding"].to_pylist(), np.float16), vectors)
    assert embedded["logits"].null_count == 5
    predicted = actor(pa.table({"uid": uids + (7 << 32), "pixels": column}))
    np.testing.assert_allclose(np.array(predicted["logits"].to_pylist()), logits, rtol=1e-6)


def test_the_settings_mirror_what_the_actor_embeds(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    found = []
    for mirror in (True, False):
        spec = model_spec(make_config({"backbone": "cnn_small", "image_size": 8, "model": {"mirror": mirror}}), 3)
        torch.manual_seed(0)
        save_model(build(spec), spec, tmp_path / "model")
        actor = embedder(tmp_path, device="cpu", batch=None)
        blocks = [pa.array([image.tobytes() for image in images]) for images in (pixels, pixels[:, :, ::-1])]
        vectors = [actor(pa.table({"uid": np.arange(5), "pixels": block}))["embedding"].to_pylist() for block in blocks]
        found.append(np.abs(np.array(vectors[0]) - np.array(vectors[1])).max())
    assert found[0] < 1e-3 < 1e-2 < found[1]


def test_a_given_batch_is_kept_and_a_gpu_is_probed_within_a_block(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}

    def search(measure: object, *, start: int, largest: int) -> int:
        asked.update(start=start, largest=largest)
        return 64

    monkeypatch.setattr(memory, "fastest_batch", search)
    assert embedder(model, device="cuda", batch=None)._batch == 64
    assert asked == {"start": embedding.FIRST_BATCH, "largest": embedding.BLOCK_ROWS}
    assert embedder(model, device="cuda", batch=7)._batch == 7
