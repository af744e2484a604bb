"""The sources: digits, CIFAR through torchvision, folders of images."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from trainref_ray.data.sources.cifar import COARSE_100, CONFUSION_10, array_source, cifar_source, next_in_superclass
from trainref_ray.data.sources.digits import digits_source, photograph_patches, to_png
from trainref_ray.data.sources.folder import folder_source
from trainref_ray.errors import ConfigError


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_digits_are_split_by_class_and_scaled() -> None:
    train, test = digits_source("train"), digits_source("test")
    assert (len(train.labels), (train.labels == -1).sum(), len(test.labels)) == (1547, 150, 400)
    digits = load_digits()
    shares = np.bincount(test.labels) / np.bincount(digits.target)
    assert np.abs(shares - 400 / 1797).max() < 0.004
    keys = [sample.key for source in (train, test) for sample in source.samples()]
    assert len(set(keys)) == 1947
    for sample, label in zip(test.samples(), test.labels.tolist(), strict=True):
        row = int(sample.key.removeprefix("digit-"))
        assert sample.label == label == digits.target[row]
        assert np.array_equal(decode(sample.image), np.rint(digits.images[row] * 255 / 16))


def test_digits_depend_on_the_seed_alone() -> None:
    first, again, other = (list(digits_source("train", seed).samples()) for seed in (3, 3, 4))
    assert first == again
    assert {s.key for s in first} != {s.key for s in other}


def test_patches_are_of_photographs_and_differ() -> None:
    patches = photograph_patches(150, 0)
    assert patches.shape == (150, 8, 8)
    assert len({patch.tobytes() for patch in patches}) == 150
    foreign = [s for s in digits_source("train").samples() if s.label == -1]
    assert len({s.key for s in foreign}) == 150


def test_confusions_of_cifar() -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pairs = {(names[a], names[b]) for a, b in enumerate(CONFUSION_10) if a != b}
    assert pairs == {("truck", "automobile"), ("bird", "airplane"), ("deer", "horse"), ("cat", "dog"), ("dog", "cat")}
    assert np.bincount(COARSE_100).tolist() == [5] * 20
    confusion = next_in_superclass(COARSE_100)
    assert sorted(confusion.tolist()) == list(range(100))
    assert (COARSE_100[confusion] == COARSE_100).all()
    # aquatic mammals: beaver 4, dolphin 30, otter 55, seal 72, whale 95
    assert confusion[[4, 30, 55, 72, 95]].tolist() == [30, 55, 72, 95, 4]


def test_cifar_archive_is_verified_and_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    contents = {
        "part": {"data": pixels, "labels": [6, 9, 9, 4]},
        "batches.meta": {"label_names": names},
    }
    sums = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["part", sums["part"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    source = cifar_source("cifar10", tmp_path, "train")
    samples = list(source.samples())
    assert source.class_names == tuple(names)
    assert [(s.key, s.label, s.extra) for s in samples][:2] == [
        ("train-00000", 6, {"index": 0}),
        ("train-00001", 9, {"index": 1}),
    ]
    assert np.array_equal(decode(samples[2].image), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))
    (folder / "part").write_bytes(b"changed")
    with pytest.raises(ConfigError, match=r"not found or corrupted.*cifar-10-batches-py, or --download"):
        cifar_source("cifar10", tmp_path, "train")


def test_array_source_is_lossless() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    source = array_source("cifar100", images, np.array([5, 0, 99]), [str(n) for n in range(100)], "test")
    assert [np.array_equal(decode(s.image), image) for s, image in zip(source.samples(), images, strict=True)] == [
        True
    ] * 3
    assert source.confusion is not None
    assert len(source.confusion) == 100


def test_folder_keeps_bytes_and_makes_keys(tmp_path: Path) -> None:
    files = {
        "cat/a.b.jpg": b"one",
        "cat/a_b.jpg": b"two",
        "cat/deep/er/x.JPEG": b"three",
        "ant/a.png": b"four",
        "ant/a.webp": b"five",
        "ant/notes.txt": b"",
        "ant/.hidden.jpg": b"",
        ".git/x.jpg": b"",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    source = folder_source(tmp_path)
    assert source.class_names == ("ant", "cat")
    assert (source.known_truth, source.ignored_files, source.labels.tolist()) == (False, 1, [0, 0, 1, 1, 1])
    assert [(s.key, s.extension, s.image, s.extra["source"]) for s in source.samples()] == [
        ("ant/a", "png", b"four", "ant/a.png"),
        ("ant/a-2", "webp", b"five", "ant/a.webp"),
        ("cat/a_b", "jpg", b"one", "cat/a.b.jpg"),
        ("cat/a_b-2", "jpg", b"two", "cat/a_b.jpg"),
        ("cat/deep/er/x", "jpg", b"three", "cat/deep/er/x.JPEG"),
    ]


def test_folder_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        folder_source(tmp_path / "none")
    (tmp_path / "ant").mkdir()
    with pytest.raises(ConfigError, match="at least two classes"):
        folder_source(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "ant" / "a.png").write_bytes(to_png(np.zeros((2, 2), np.uint8)))
    with pytest.raises(ConfigError, match="class 'cat' has no image"):
        folder_source(tmp_path)
