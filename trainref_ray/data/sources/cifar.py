"""CIFAR-10 and CIFAR-100, read and verified (MD5) by torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainref_ray.data.sources import Source, SourceSample
from trainref_ray.data.sources.digits import to_png
from trainref_ray.errors import ConfigError

CONFUSION_10 = np.array([0, 1, 0, 5, 7, 3, 6, 7, 8, 1])
"""METHOD 7: truck to automobile, bird to airplane, deer to horse, cat and dog to one another (Patrini et al. 2017)."""

# fmt: off
COARSE_100 = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
])
# fmt: on
"""Superclass of each CIFAR-100 class, which torchvision leaves out; equal to the data set's own `coarse_labels`."""


def next_in_superclass(coarse: np.ndarray) -> np.ndarray:
    """For each class the next one of its superclass, the last one's next being the first: int64 [C]."""
    confusion = np.empty(len(coarse), np.int64)
    for group in np.unique(coarse):
        members = np.flatnonzero(coarse == group)
        confusion[members] = np.roll(members, -1)
    return confusion


def confusion_of(name: str) -> np.ndarray:
    """The class each class is taken for by asymmetric noise, int64 [C], for `cifar10` or `cifar100`."""
    return CONFUSION_10 if name == "cifar10" else next_in_superclass(COARSE_100)


CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def confusion_by_names(class_names: Sequence[str]) -> np.ndarray | None:
    """`confusion_of` the data set that has these classes, None where it is not CIFAR."""
    if tuple(class_names) == CLASSES_10:
        return confusion_of("cifar10")
    names = list(class_names)
    if len(names) == 100 and names == sorted(names) and (names[0], names[-1]) == ("apple", "worm"):
        return confusion_of("cifar100")
    return None


def cifar_source(name: str, root: str | Path, split: str, *, download: bool = False) -> Source:
    """CIFAR from the official Python archive below `root`, in the official order.

    Args:
        name: `cifar10` or `cifar100`.
        root: folder with `cifar-10-batches-py` or `cifar-100-python`.
        split: `train` or `test`.
        download: fetch what is missing.

    Raises:
        ConfigError: the files are missing or damaged.
    """
    from torchvision import datasets  # here: the import takes seconds, and `curate` does not need it

    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    try:
        # torchvision unpickles these batches, after it has compared each with its published MD5.
        dataset = kind(str(root), train=split == "train", download=download)
    except RuntimeError as error:
        raise ConfigError(
            f"{name} in {root}: {error}; give the folder that holds {kind.base_folder}, or --download"
        ) from None
    return array_source(name, dataset.data, np.array(dataset.targets), dataset.classes, split)


def array_source(name: str, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], split: str) -> Source:
    """Images in memory, uint8 [N, H, W, 3], with true labels int [N], as PNG files `SPLIT-ROW`."""

    def samples() -> Iterator[SourceSample]:
        for row in range(len(labels)):
            yield SourceSample(f"{split}-{row:05d}", to_png(images[row]), "png", int(labels[row]), {"index": row})

    return Source(name, tuple(class_names), labels.astype(np.int64), samples, confusion=confusion_of(name))
