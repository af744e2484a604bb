"""What the nodes' answers become, and how much data a look at the first shard promises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trainref_ray.data.shards import ShardWriter
from trainref_ray.distributed.context import Inputs
from trainref_ray.distributed.datasource import ShardRead
from trainref_ray.distributed.node_facts import NodeFacts
from trainref_ray.distributed.preflight import about, node_names, place_checks, run_folder_probe, version_check
from trainref_ray.errors import ResumeError, ShardError
from trainref_ray.run import Storage
from trainref_ray.schemas import INVENTORY

NO_ROWS = INVENTORY.empty_table()
FACTS = NodeFacts({"python": "3.11", "torch": "2.9.0"}, 2**34, None, (), ())


def test_the_first_version_that_differs_is_named() -> None:
    other = replace(FACTS, versions={"python": "3.11", "torch": "2.8.0"})
    same = version_check(FACTS, {"a": FACTS, "b": FACTS}, {"a": "10.0.0.1", "b": "10.0.0.2"})
    assert (same.verdict, same.there) == ("ok", "the same on 2 nodes")
    check = version_check(FACTS, {"a": FACTS, "b": other}, {"a": "10.0.0.1", "b": "10.0.0.2"})
    assert check.verdict == "error"
    assert check.line.startswith("versions: needed torch 2.9.0, the driver's, there 2.8.0 on 10.0.0.2; ")
    absent = replace(FACTS, versions={"python": "3.11"})
    assert version_check(FACTS, {"a": absent}, {"a": "x"}).there == "missing on x"


def test_a_place_that_a_node_does_not_reach_is_named_with_node_and_reason() -> None:
    blind = replace(FACTS, problems=(("/data/train-00000.tar", "there is no such file"), ("/runs/a", "read-only")))
    data, folder = place_checks(FACTS, {"a": FACTS, "b": blind}, {"a": "x", "b": "10.0.0.2"}, Storage("/runs/a"))
    assert data.line == (
        "data: needed /data/train-00000.tar, there 10.0.0.2: there is no such file; every node needs it: a shared file "
        "system at the same path, or an object-store URL"
    )
    assert (folder.name, folder.needed, folder.there) == ("run folder", "/runs/a", "10.0.0.2: read-only")
    assert [check.verdict for check in place_checks(FACTS, {}, {}, Storage("/runs/a"))] == ["ok"]


def test_nodes_of_one_address_are_told_apart() -> None:
    def alive(node: str, address: str) -> dict[str, str]:
        return {"NodeID": node, "NodeManagerAddress": address}

    names = node_names([alive("aaaaaaaa", "1.1.1.1"), alive("bbbbbbbb", "1.1.1.1"), alive("cccccccc", "2.2.2.2")])
    assert list(names.values()) == ["1.1.1.1 (node aaaaaa)", "1.1.1.1 (node bbbbbb)", "2.2.2.2"]


def test_the_probe_of_a_run_folder_leaves_what_was_there(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "new" / "run"))
    with run_folder_probe(storage, ()) as visit:
        assert storage.read_bytes(visit.probe) == visit.content
        storage.write_bytes(visit.answer("n1"), b"")
    assert list(tmp_path.iterdir()) == []
    storage.write_bytes("run.yaml", b"old")
    with run_folder_probe(storage, ()):
        pass
    assert storage.names("") == ["run.yaml"]
    with run_folder_probe(Storage(str(tmp_path / "other" / "run")), ()):
        (tmp_path / "other" / "somebody").write_text("")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["somebody"]
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ResumeError, match="cannot be written to"),
        run_folder_probe(Storage(str(tmp_path / "file/a")), ()),
    ):
        pass


def shards(folder: Path, pattern: str, count: int, size: int) -> list[ShardRead]:
    with ShardWriter(folder, pattern, 200) as writer:
        for number in range(count):
            writer.write(f"k{number:05d}", {"jpg": bytes(size), "cls": b"1"})
    return [
        ShardRead(number, str(folder / name), "", (folder / name).stat().st_size)
        for number, name in enumerate(writer.names)
    ]


@pytest.mark.parametrize("size", [100, 20_000])
def test_samples_are_counted_from_bytes(tmp_path: Path, size: int) -> None:
    train, test = shards(tmp_path, "train-%d.tar", 500, size), shards(tmp_path, "test-%d.tar", 30, size)
    data = about(Inputs(train, test, ["a", "b", "c"], None, NO_ROWS), None)
    assert data.samples == pytest.approx(500, rel=0.15)
    assert data.largest_shard == pytest.approx(200, rel=0.15)
    assert data.test_samples == pytest.approx(30, rel=0.3)
    assert data.classes == 3
    limited = about(Inputs(train, test, None, None, NO_ROWS), 150)
    assert (limited.samples, limited.largest_shard, limited.classes) == (150, 150, 100)


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gone\.tar cannot be read"):
        about(Inputs([ShardRead(0, str(tmp_path / "gone.tar"), "", 1024)], [], None, None, NO_ROWS), None)
