"""Origins of images: each module gives a `Source` or a `ListedSource` a split, which is then written as shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainref_ray.data.images import EXTENSIONS


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


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One image file that a list names; whether it is there shows when it is read.

    Attributes:
        key: unique name, without dots after the last slash.
        path: of the file, below the root of the source.
        extension: jpg, png or webp; the name under which it is stored, its content decides how it is decoded.
        label: given label, 0 to C - 1.
        extra: what else is to stand in KEY.json; files of one query share it.
    """

    key: str
    path: str
    extension: str
    label: int
    extra: dict[str, Any]


@dataclass(frozen=True)
class ListedSource:
    """One split of a data set that is too large for one process: a list of files, each of which any worker can read.

    Attributes:
        name: of the data set.
        class_names: C names.
        root: folder that the paths are in.
        files: in the order of the list.
        known_truth: whether the labels may be taken for the truth.
        ignored_files: files that are no images, and were passed over.
    """

    name: str
    class_names: tuple[str, ...]
    root: Path
    files: list[ListedFile]
    known_truth: bool
    ignored_files: int = 0


def split_path(path: str) -> tuple[str, str]:
    """Key and extension (lower case, jpeg as jpg; empty if there is none) of a path with slashes.

    The key is the path without its extension, dots in the file name replaced by underscores: a WebDataset key ends at
    the first dot.
    """
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not dot:
        stem, extension = name, ""
    return folder + slash + (stem.replace(".", "_") or "_"), extension.lower().replace("jpeg", "jpg")


def stored_extension(extension: str) -> str:
    """The extension under which an image of a list is stored.

    Images are decoded by their content, so a strange name is no reason to leave one out: it is stored as jpg, and if it
    is no image after all, the curation quarantines it with the reason.
    """
    return extension if extension in EXTENSIONS else "jpg"


def unique_key(key: str, taken: set[str]) -> str:
    """`key`, or with -2, -3, ... at its end if it is taken; the result is added to `taken`."""
    number, candidate = 1, key
    while candidate in taken:
        number += 1
        candidate = f"{key}-{number}"
    taken.add(candidate)
    return candidate
