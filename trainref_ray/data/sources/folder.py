"""A folder with one sub-folder of images a class, as torchvision's ImageFolder reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainref_ray.data.images import EXTENSIONS
from trainref_ray.data.sources import Source, SourceSample, split_path, unique_key
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
    files: list[tuple[str, str, Path, int]] = []
    keys: set[str] = set()
    ignored = 0
    for label, name in enumerate(classes):
        before = len(files)
        for path in sorted((root / name).rglob("*")):
            if not path.is_file() or any(part.startswith(".") for part in path.relative_to(root).parts):
                continue
            key, extension = split_path(path.relative_to(root).as_posix())
            if extension not in EXTENSIONS:
                ignored += 1
                continue
            files.append((unique_key(key, keys), extension, path, label))
        if len(files) == before:
            raise ConfigError(f"image folder {root}: class {name!r} has no image (.{', .'.join(EXTENSIONS)})")

    def samples() -> Iterator[SourceSample]:
        for key, extension, path, label in files:
            source = path.relative_to(root).as_posix()
            yield SourceSample(key, path.read_bytes(), extension, label, {"source": source})

    labels = np.array([label for *_, label in files], np.int64)
    return Source(root.name, tuple(classes), labels, samples, known_truth=False, ignored_files=ignored)
