"""Choosing images to check: hand-computed gains, copies, and what the greedy choice promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.method import suggest as module
from trainref_ray.method.suggest import suggest

AXES = np.eye(3, dtype=np.float32)
NONE = np.zeros((0, 3), np.float32)


def unit(rows: object) -> np.ndarray:
    values = np.asarray(rows, np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_by_hand() -> None:
    """Four images, a reference on the first axis; cosines to it 1, 0.6, 0, 0.

    Gains w_j · Σ w_i · max(cos_ij − c_i, 0): image 0 adds 0. Image 1: 1 · (1 − 0.6 + 2 · 0.8 + 3 · 0) = 2.0.
    Image 2: 2 · ((0.8 − 0.6) + 2 + 0) = 4.4. Image 3: 3 · 3 = 9. After image 3 the same without it: image 2, then
    image 1 with 1 · (1 − 0.8) = 0.2, then image 0 with 0.
    """
    candidates = np.array([[1, 0, 0], [0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    doubt = np.array([4.0, 1.0, 2.0, 3.0])
    rows, reached = suggest(candidates, doubt, AXES[:1], points=4, count=4)
    assert rows.tolist() == [3, 2, 1, 0]
    # (4·1 + 1·0.6 + 0 + 0) / 10, then + 3/10, then + (0.2 + 2)/10, then + 0.2/10
    assert reached == pytest.approx([0.46, 0.76, 0.98, 1.0, 1.0], abs=1e-6)


def test_a_copy_of_a_chosen_image_comes_last() -> None:
    candidates = unit([[1, 0, 0], [1, 0, 0], [0, 1, 0.2]])
    rows, _ = suggest(candidates, np.array([1.0, 1.0, 0.1]), NONE, points=3, count=3)
    assert rows.tolist() == [0, 2, 1]


def test_an_image_nobody_doubts_is_not_preferred() -> None:
    """Both are as near to the doubtful ones; the one in doubt itself is chosen."""
    candidates = unit([[1, 1, 0], [1, 1, 0.0001], [1, 0, 0], [0, 1, 0]])
    rows, _ = suggest(candidates, np.array([0.01, 0.9, 1.0, 1.0]), NONE, points=4, count=1)
    assert rows.tolist() == [1]


def test_no_more_than_there_are_and_opposed_images_do_not_count() -> None:
    rows, reached = suggest(-AXES[:1], np.ones(1), AXES[:1], points=1, count=5)
    assert rows.tolist() == [0]
    assert reached.tolist() == [0.0, 1.0]
    rows, reached = suggest(NONE, np.zeros(0), AXES, points=5, count=5)
    assert len(rows) == 0
    assert reached.tolist() == [0.0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 3), block=st.sampled_from([1, 3, 1024]))
def test_greedy_is_as_good_as_it_must_be(seed: int, count: int, block: int) -> None:
    """With equal doubts at least 1 − 1/e of what the best choice reaches (Nemhauser, Wolsey and Fisher)."""
    random = np.random.default_rng(seed)
    candidates, references = unit(random.normal(size=(7, 4))), unit(random.normal(size=(1, 4)))
    before, module.BLOCK = module.BLOCK, block
    try:
        rows, reached = suggest(candidates, np.ones(7), references, points=7, count=count)
    finally:
        module.BLOCK = before

    def value(chosen: tuple[int, ...]) -> float:
        near = np.concatenate([references, candidates[list(chosen)]]) @ candidates.T
        return float(np.maximum(near.max(axis=0), 0).mean())

    assert len(set(rows.tolist())) == count
    assert (np.diff(reached) >= -1e-9).all()
    assert reached[-1] == pytest.approx(value(tuple(rows.tolist())), abs=1e-5)
    best = max(value(chosen) for chosen in itertools.combinations(range(7), count))
    assert reached[-1] - reached[0] >= (1 - 1 / np.e) * (best - reached[0]) - 1e-6
