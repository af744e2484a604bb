"""States of a training: the newest is found, and nothing piles up."""

from __future__ import annotations

from pathlib import Path

from trainref_ray.distributed.states import epochs_written, latest_state, write_state
from trainref_ray.run import Stage, Storage


def test_the_newest_state_alone_is_kept_and_none_in_the_scratch_folder(tmp_path: Path) -> None:
    stage, scratch = Stage(Storage(str(tmp_path / "run")), "pretrain", 0, "0123456789"), tmp_path / "scratch"
    assert latest_state(stage, scratch) is None
    for epochs in (1, 2, 3):

        def save(folder: Path, epochs: int = epochs) -> None:
            folder.mkdir(parents=True)
            (folder / "state.json").write_text(str(epochs))

        write_state(stage, epochs, save, scratch)
        assert epochs_written(stage) == epochs
        assert list(scratch.iterdir()) == []
    folder = latest_state(stage, scratch)
    assert folder is not None
    assert (folder / "state.json").read_text() == "3"
    assert stage.storage.names(stage.path("states")) == ["epoch-0002", "latest.json"]
