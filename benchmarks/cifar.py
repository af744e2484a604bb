"""CIFAR images from files of differences, for the benchmarks that train without shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, 32, 32, 3], true labels int64 [N] and positions in the official order int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def first(self, count: int | None) -> Images:
        """The first so many, all if None."""
        return Images(self.pixels[:count], self.labels[:count], self.index[:count])

    def digest(self) -> str:
        """Equal for equal images and labels."""
        parts = (part.tobytes() for part in (self.pixels, self.labels, self.index))
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def read_images(folder: Path, split: str, label: str | None = None) -> Images:
    """All `SPLIT*.npz` of a folder: `residual` uint8 [n, 3, 32, 32], differences along width and height and of red and
    blue from green, `index`, and labels: `fine_label` if there are such, or `label`, if no other name is given.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(folder.glob(f"{split}*.npz"))
    if not paths:
        raise FileNotFoundError(f"no {split}*.npz in {folder}")
    parts = []
    for path in paths:
        with np.load(path, allow_pickle=False) as content:
            channels = np.cumsum(np.cumsum(content["residual"], axis=3, dtype=np.uint8), axis=2, dtype=np.uint8)
            name = label or ("fine_label" if "fine_label" in content else "label")
            parts.append((channels, content[name].astype(np.int64), content["index"].astype(np.int64)))
    channels, labels, index = (np.concatenate(several) for several in zip(*parts, strict=True))
    channels[:, 0] += channels[:, 1]
    channels[:, 2] += channels[:, 1]
    return Images(np.ascontiguousarray(channels.transpose(0, 2, 3, 1)), labels, index)
