"""People's votes from KEY.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainref_ray.data.shards import write_shard
from trainref_ray.data.votes import has_votes, read_votes
from trainref_ray.errors import ShardError


def shard(folder: Path, *facts: object) -> str:
    samples = [(f"image-{row}", {"json": json.dumps(fact).encode()}) for row, fact in enumerate(facts)]
    write_shard(str(folder), "votes.tar", samples)
    return str(folder / "votes.tar")


def read(url: str, rows: int) -> np.ndarray:
    return read_votes(url, "people", classes=3, rows=rows, max_bytes=10_000)


def test_counts_become_distributions_and_what_is_missing_stays_nan(tmp_path: Path) -> None:
    url = shard(tmp_path, {"people": [1, 3, 0]}, {"label": 2}, {"people": [0.0, 0.5, 0.5]}, {"people": [9, 0, 0]})
    found = read(url, 3)
    assert found.shape == (3, 3)
    assert found[0].tolist() == [0.25, 0.75, 0]
    assert np.isnan(found[1]).all()
    assert found[2].tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("value", [[1, 2], [0, 0, 0], [1, -1, 3], "many", [1, "2", 3]])
def test_other_values_are_refused_with_their_place(tmp_path: Path, value: object) -> None:
    url = shard(tmp_path, {"people": value})
    with pytest.raises(ShardError, match=r"votes\.tar: field 'people' of 'image-0' must be a list of 3 numbers"):
        read(url, 1)


def test_a_nested_field_is_named_with_dots(tmp_path: Path) -> None:
    url = shard(tmp_path, {"votes": {"people": [1, 1, 2]}})
    found = read_votes(url, "votes.people", classes=3, rows=1, max_bytes=10_000)
    assert found.tolist() == [[0.25, 0.25, 0.5]]


def test_whether_there_are_votes_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    urls = [shard(tmp_path / "a", {"label": 1}, "no object"), shard(tmp_path / "b", {"label": 1}, {"people": [1, 0]})]
    assert has_votes(urls, "people", max_bytes=10_000)
    assert not has_votes(urls[:1], "people", max_bytes=10_000)
    assert not has_votes(urls, "poeple", max_bytes=10_000)
