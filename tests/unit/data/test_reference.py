"""The reference set: files with faults that are named, a draw that depends on nothing but the seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.data.reference import (
    check_classes,
    curate_with,
    draw_references,
    hold_out,
    match_keys,
    read_reference_csv,
    write_reference_csv,
)
from trainref_ray.errors import ReferenceSetError

NAMES = ["ant", "bee", "cat"]


def read(folder: Path, content: str, names: list[str] | None = NAMES) -> list[tuple[str, int]]:
    path = folder / "refs.csv"
    path.write_text(content, encoding="utf-8")
    return read_reference_csv(str(path), names)


def test_numbers_and_names_in_either_order_of_columns(tmp_path: Path) -> None:
    assert read(tmp_path, "key,label\na,0\nb/c,cat\n\n") == [("a", 0), ("b/c", 2)]
    assert read(tmp_path, '\ufefflabel, key\r\nbee,"x,y"\r\n') == [("x,y", 1)]
    assert read(tmp_path, "key,label\na,7\n", None) == [("a", 7)]


def test_what_is_written_is_read_back_where_names_are_numbers_in_another_order(tmp_path: Path) -> None:
    names = ["0", "1", "10", "11", "2"]
    text = write_reference_csv([("a", names[2]), ("b", names[4])])
    assert read(tmp_path, text, names) == [("a", 2), ("b", 4)]


def test_further_columns_are_for_people(tmp_path: Path) -> None:
    assert read(tmp_path, 'given,key,label,curated\ndog,a,cat,"dog 60 %, cat 30 %"\n') == [("a", 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the columns are \\[\\]; key and label must be among them"),
        ("key,label,key\na,0,b\n", "'key', 'label', 'key'.*once"),
        ("key\na\n", "key and label must be among them"),
        ("key,label,given\na,0,\nb,,cat\nc, ,dog\n", "2 lines have no label, the first is line 3, key 'b'; fill"),
        ("key,label\n", "no references"),
        ("key,label\na,0\nb\n", "line 3: 1 values"),
        ("key,label\na,0\n,1\n", "line 3: the key is empty"),
        ("key,label\na,0\nb,1\na,0\n", "line 4: key 'a' comes twice"),
        ("key,label\na,3\n", r"line 2: label '3' is not allowed; allowed: 0 to 2 or a class name \(ant, bee, cat\)"),
        ("key,label\na,-1\n", "label '-1'"),
        ("key,label\na,1.0\n", "label '1.0'"),
        ("key,label\na,dog\n", "label 'dog'"),
        ('key,label\n"a,1\n', "line"),
    ],
)
def test_faults_name_file_line_and_value(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ReferenceSetError, match=message) as caught:
        read(tmp_path, content)
    assert "refs.csv" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ReferenceSetError, match=r"none\.csv cannot be read"):
        read_reference_csv(str(tmp_path / "none.csv"), None)
    (tmp_path / "latin.csv").write_bytes(b"key,label\n\xe9,1\n")
    with pytest.raises(ReferenceSetError, match="not UTF-8"):
        read_reference_csv(str(tmp_path / "latin.csv"), None)


def test_matching() -> None:
    assert match_keys(["b", "a"], ["a", "x", "b"]) == [2, 0]
    with pytest.raises(
        ReferenceSetError, match=r"2 of 3 reference keys .*'img-13', 'q'.*close to 'img-13': .*'img-12'"
    ):
        match_keys(["a", "img-13", "q"], ["a", "img-12", "zzz"])
    with pytest.raises(ReferenceSetError, match="'train/cat-7'"):
        match_keys(["cat-7"], ["train/cat-7", *(f"b{n}" for n in range(300))])
    with pytest.raises(ReferenceSetError, match=r"in several shards.*'a'"):
        match_keys(["a"], ["a", "b", "a"])
    assert match_keys(["b"], ["a", "b", "a"]) == [1]


def test_draw_takes_from_the_truth_and_never_foreign_images() -> None:
    trusted = np.array([0, 0, 0, 1, -1, 2, 2, -1])
    rows = draw_references(np.arange(8), trusted, per_class=2, classes=4, seed=0)
    assert trusted[rows].tolist() == [0, 0, 1, 2, 2]
    assert len(set(rows.tolist())) == 5


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_draw_is_independent_of_row_order_and_grows(seed: int, random: object) -> None:
    uids = np.arange(60) * 7
    trusted = (uids * 13) % 4 - 1
    drawn = uids[draw_references(uids, trusted, per_class=5, classes=3, seed=seed)]
    order = list(range(60))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = uids[order][draw_references(uids[order], trusted[order], per_class=5, classes=3, seed=seed)]
    assert drawn.tolist() == again.tolist()
    fewer = uids[draw_references(uids, trusted, per_class=2, classes=3, seed=seed)]
    assert set(fewer.tolist()) <= set(drawn.tolist())


def test_seeds_differ() -> None:
    uids, trusted = np.arange(1000), np.zeros(1000, np.int64)
    first, second = (draw_references(uids, trusted, per_class=10, classes=1, seed=s).tolist() for s in (0, 1))
    assert first != second


def test_missing_classes_are_named() -> None:
    check_classes(np.array([0, 2, 1]), NAMES, allow_missing=False)
    with pytest.raises(ReferenceSetError, match="1 of 3 classes have no reference: 'bee'"):
        check_classes(np.array([0, 2]), NAMES, allow_missing=False)
    check_classes(np.array([0, 2]), NAMES, allow_missing=True)


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    per_class=st.integers(0, 12),
    seed=st.integers(0, 5),
)
def test_held_out_references_curate_only_where_fewer_than_half_would_be_left(
    labels: list[int], per_class: int, seed: int
) -> None:
    trusted = np.array(labels)
    held_out = hold_out(trusted, per_class, seed)
    curating = curate_with(trusted, held_out)
    assert (curating | held_out).all()
    for label in set(labels):
        own = trusted == label
        assert held_out[own].sum() == min(per_class, own.sum())
        apart = 2 * per_class <= own.sum()
        assert curating[own].sum() == (own.sum() - per_class if apart else own.sum())


def test_others_are_held_out_by_another_seed() -> None:
    first, second = (hold_out(np.zeros(30, np.int64), 10, seed).tolist() for seed in (0, 1))
    assert first != second
