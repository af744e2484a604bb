"""What every source gives: samples ready to be written, and the names of their classes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class SourceSample:
    """One image: key, the file's extension and bytes, and its true class (-1 = of none)."""

    key: str
    extension: str
    image: bytes
    true_label: int


@dataclass(frozen=True)
class Source:
    """Images of one split.

    Attributes:
        class_names: names of the classes 0 to C-1.
        true_labels: int64 [N], known without reading any image; -1 = of no class.
        samples: the images in the same order, read one at a time.
        confusion: int64 [C], the class that each class is mistaken for, or None.
    """

    class_names: list[str]
    true_labels: np.ndarray
    samples: Iterator[SourceSample]
    confusion: np.ndarray | None = None


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, 3] as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
