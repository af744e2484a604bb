"""A training's state in its stage's folder, written after each epoch and found by whoever starts the training again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from trainref_ray.run import Stage

MARKER = "states/latest.json"
"""Names the newest state; `epochs` of them are finished."""


def write_state(stage: Stage, epochs: int, save: Callable[[Path], None], scratch: Path) -> None:
    """State first, then the marker that points to it, then the states before it are removed.

    Args:
        stage: of the training.
        epochs: finished ones.
        save: writes the state's files into a folder.
        scratch: a local folder of this process.
    """
    name = f"epoch-{epochs - 1:04d}"
    local = scratch / name
    save(local)
    stage.storage.upload(local, stage.path(f"states/{name}"))
    shutil.rmtree(local)  # a state of a large model takes hundreds of MB, and there are as many as epochs
    stage.storage.write_json(stage.path(MARKER), {"state": name, "epochs": epochs})
    for old in stage.storage.names(stage.path("states")):
        if old.startswith("epoch-") and old != name:
            stage.storage.remove(stage.path(f"states/{old}"))


def latest_state(stage: Stage, scratch: Path) -> Path | None:
    """A local folder with the newest state, None if no epoch was finished."""
    storage, marker = stage.storage, stage.path(MARKER)
    if not storage.exists(marker):
        return None
    name = storage.read_json(marker)["state"]
    return storage.download(stage.path(f"states/{name}"), scratch / "state")


def epochs_written(stage: Stage) -> int:
    """Epochs that are finished."""
    marker = stage.path(MARKER)
    return int(stage.storage.read_json(marker)["epochs"]) if stage.storage.exists(marker) else 0
