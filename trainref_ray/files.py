"""Files on this machine that are never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, in a folder that is made if it does not exist; renamed to `path` at the end,
    unless an error came. A reader finds the old file or the new one, whenever the writer dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.part")
    yield aside
    os.replace(aside, path)
