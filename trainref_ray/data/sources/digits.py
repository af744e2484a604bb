"""The embedded sample: scikit-learn's 1,797 handwritten digits, and patches of its photographs as foreign images."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from trainref_ray.data.sources import Source, SourceSample

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 8
TEST_SAMPLES = 400
PATCHES = 150
PATCH_SIDES = (8, 64)
"""Smallest and largest square cut from a photograph, pixels; then scaled to 8 x 8."""
FOREIGN = -1


def digits_source(split: str, seed: int = 0) -> Source:
    """The split `train` (1,397 digits and 150 foreign patches, mixed) or `test` (400 digits), 8 x 8 grey PNG.

    The split is stratified by class and drawn with `seed`, as are the patches and the order.
    """
    from sklearn.datasets import load_digits  # here: the import takes a second, and `curate` seldom needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    rows = np.arange(len(digits.target))
    train, test = train_test_split(rows, test_size=TEST_SAMPLES, stratify=digits.target, random_state=seed)
    chosen = np.sort(train if split == "train" else test)
    grey = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    keys = [f"digit-{row:04d}" for row in chosen]
    labels = digits.target[chosen].astype(np.int64)
    if split == "train":
        grey = np.concatenate([grey, photograph_patches(PATCHES, seed)])
        keys += [f"patch-{number:03d}" for number in range(PATCHES)]
        labels = np.concatenate([labels, np.full(PATCHES, FOREIGN, np.int64)])
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))

    def samples() -> Iterator[SourceSample]:
        for row in order:
            yield SourceSample(keys[row], to_png(grey[row]), "png", int(labels[row]))

    return Source("digits", CLASS_NAMES, labels[order], samples)


def photograph_patches(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 8, 8]: squares at random places and of random sizes of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(image).convert("L") for image in load_sample_images().images]
    rng = np.random.default_rng([seed, count, SIDE])
    patches = np.empty((count, SIDE, SIDE), np.uint8)
    for row in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(PATCH_SIDES[0], PATCH_SIDES[1] + 1))
        left = int(rng.integers(photograph.width - side + 1))
        top = int(rng.integers(photograph.height - side + 1))
        box = (left, top, left + side, top + side)
        patches[row] = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
    return patches


def to_png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels [H, W] or [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
