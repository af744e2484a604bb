"""Before any worker starts: which number a shard has, and what an earlier run in the folder comes to."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray import make_config
from trainref_ray.config import Config
from trainref_ray.data.shards import ShardFile
from trainref_ray.distributed.job import begin, curate, find_inputs, number_shards
from trainref_ray.errors import ResumeError, ShardError
from trainref_ray.results import load_run
from trainref_ray.run import INVENTORY_FILE, RunLock, Storage, open_run


def write_shards(folder: Path, *names: str) -> None:
    for name in names:
        with tarfile.open(folder / name, "w") as tar:
            for ending, content in ((".jpg", b"x"), (".json", b'{"label": 0}')):
                entry = tarfile.TarInfo(name[0] + ending)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def config(tmp_path: Path, **changes: Any) -> Config:
    content = {"data": [str(tmp_path / "*.tar")], "reference_per_class": 1, "out": str(tmp_path / "run")}
    return make_config(content, changes)


@pytest.fixture
def finished(tmp_path: Path) -> Storage:
    """A folder with what a finished run of one shard leaves behind, as far as it matters here."""
    write_shards(tmp_path, "c.tar")
    storage = open_run(str(tmp_path / "run"))
    begin(config(tmp_path), storage, find_inputs(config(tmp_path), storage))
    for name in ("round-1/x", "stages.json", "summary.json"):
        storage.write_bytes(name, b"{}")
    return storage


def everything(storage: Storage) -> dict[str, bytes]:
    root = Path(storage.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_shards_that_are_added_in_front_come_after_those_that_are_known(finished: Storage, tmp_path: Path) -> None:
    """Tables are joined by uid, which begins with the shard's number, so inputs must be in the order of the numbers."""
    write_shards(tmp_path, "a.tar", "b.tar", "d.tar")
    before = everything(finished)
    inputs = find_inputs(config(tmp_path), finished)
    assert [(shard.shard_id, Path(shard.url).name) for shard in inputs.shards] == [
        (0, "c.tar"),
        (1, "a.tar"),
        (2, "b.tar"),
        (3, "d.tar"),
    ]
    assert everything(finished) == before  # it looks, no more
    afresh = find_inputs(config(tmp_path, resume=False), finished)
    assert [Path(shard.url).name for shard in afresh.shards] == ["a.tar", "b.tar", "c.tar", "d.tar"]


def test_test_shards_are_in_the_order_of_their_numbers_too(finished: Storage, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    write_shards(tmp_path / "tests", "z.tar")
    changed = config(tmp_path, test_data=[str(tmp_path / "tests" / "*.tar")])
    finished.write_table(INVENTORY_FILE, find_inputs(changed, finished).inventory)
    write_shards(tmp_path / "tests", "y.tar")
    found = find_inputs(changed, finished).test_shards
    assert [(shard.shard_id, Path(shard.url).name) for shard in found] == [(1, "z.tar"), (2, "y.tar")]


@settings(max_examples=60, deadline=None)
@given(starts=st.lists(st.lists(st.integers(0, 12), unique=True, min_size=1), min_size=1, max_size=5))
def test_a_shard_s_number_is_its_own_for_ever(starts: list[list[int]]) -> None:
    rows: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for shards in starts:
        files = [ShardFile(f"s{number}", f"etag-{number}", 10) for number in shards]
        rows = number_shards(rows, files).to_pylist()
        numbers = {row["url"]: row["shard_id"] for row in rows}
        assert sorted(numbers.values()) == list(range(len(numbers)))
        assert {file.url for file in files} <= numbers.keys()
        assert numbers == numbers | first
        first = numbers


def test_what_is_refused_leaves_a_finished_run_as_it_was(finished: Storage, tmp_path: Path) -> None:
    before = everything(finished)
    with pytest.raises(ShardError, match="typo"):
        curate(config(tmp_path, resume=False, data=[str(tmp_path / "typo-*.tar")]))
    assert everything(finished) == before
    with RunLock(finished), pytest.raises(ResumeError, match="another job is working in"):
        curate(config(tmp_path, resume=False))
    assert everything(finished) == before


def test_a_run_that_begins_again_is_not_finished(finished: Storage, tmp_path: Path) -> None:
    assert load_run(finished.root).stages == {}
    begin(config(tmp_path), finished, find_inputs(config(tmp_path), finished))
    with pytest.raises(ResumeError, match="is not finished; start it again"):
        load_run(finished.root)
    assert finished.exists("round-1/x")
    begin(config(tmp_path, resume=False), finished, find_inputs(config(tmp_path, resume=False), finished))
    assert not finished.exists("round-1")
    assert finished.exists(INVENTORY_FILE)


def test_a_run_without_its_summary_is_not_finished(finished: Storage) -> None:
    finished.remove("summary.json")
    with pytest.raises(ResumeError, match="is not finished"):
        load_run(finished.root)
