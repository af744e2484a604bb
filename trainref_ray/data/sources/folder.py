"""A folder with one sub-folder of images a class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainref_ray.data.images import EXTENSIONS
from trainref_ray.data.sources import Source, SourceSample
from trainref_ray.errors import ConfigError


def folder_source(root: str | Path) -> Source:
    """Images below `root`: the class is the first sub-folder, classes are sorted by name; bytes are kept as they are.

    Keys are paths relative to `root` without extension, dots in the file name replaced by underscores; where two files
    would get one key, the later one's ends in `-2`. Hidden files are left out, other files without an image's extension
    are counted.

    Raises:
        ConfigError: no such folder, fewer than two classes, or a class without images.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"image folder {root} does not exist")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise ConfigError(f"image folder {root} needs a sub-folder for each of at least two classes; it has {classes}")
    files: list[tuple[str, Path, int]] = []
    keys: set[str] = set()
    ignored = 0
    for label, name in enumerate(classes):
        before = len(files)
        for path in sorted((root / name).rglob("*")):
            if not path.is_file() or any(part.startswith(".") for part in path.relative_to(root).parts):
                continue
            if path.suffix[1:].lower() not in EXTENSIONS:
                ignored += 1
                continue
            key = _unique(path.relative_to(root).with_name(path.stem.replace(".", "_")).as_posix(), keys)
            keys.add(key)
            files.append((key, path, label))
        if len(files) == before:
            raise ConfigError(f"image folder {root}: class {name!r} has no image (.{', .'.join(EXTENSIONS)})")

    def samples() -> Iterator[SourceSample]:
        for key, path, label in files:
            extension = path.suffix[1:].lower().replace("jpeg", "jpg")
            source = path.relative_to(root).as_posix()
            yield SourceSample(key, path.read_bytes(), extension, label, {"source": source})

    labels = np.array([label for _, _, label in files], np.int64)
    return Source(root.name, tuple(classes), labels, samples, known_truth=False, ignored_files=ignored)


def _unique(key: str, taken: set[str]) -> str:
    number, candidate = 1, key
    while candidate in taken:
        number += 1
        candidate = f"{key}-{number}"
    return candidate
