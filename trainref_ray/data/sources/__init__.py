"""Origins of images: each module gives one `Source` a split, which `trainref_ray.data.prepare` writes as shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SourceSample:
    """One image of a source.

    Attributes:
        key: unique name, without dots after the last slash.
        image: the image file: the original bytes where there are any.
        extension: jpg, png or webp.
        label: true label; -1 = of no class.
        extra: what else is to stand in KEY.json.
    """

    key: str
    image: bytes
    extension: str
    label: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
        name: of the data set.
        class_names: C names.
        labels: int64 [N], true labels in the order of `samples`; -1 = of no class.
        samples: iterates over the N images, reading each when it is its turn.
        known_truth: whether `labels` may be taken for the truth even when no noise is added.
        confusion: int [C], the class each class is taken for by asymmetric noise, or None.
        ignored_files: files that are no images, and were passed over.
    """

    name: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    samples: Callable[[], Iterator[SourceSample]]
    known_truth: bool = True
    confusion: np.ndarray | None = None
    ignored_files: int = 0
