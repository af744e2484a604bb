"""The search space of a sweep: what is read, what is refused, which points are tried."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from trainref_ray.errors import ConfigError
from trainref_ray.search_space import Dimension, choice_of, grid_points, load_space, nested, random_points, title


def space_of(folder: Path, text: str) -> tuple[Dimension, ...]:
    (folder / "space.yaml").write_text(text)
    return load_space(str(folder / "space.yaml"))


def test_every_kind_is_read(tmp_path: Path) -> None:
    text = """
vote.k: {grid: [5, 10]}
noise: {choice: ["sym:0.2", none]}
augment.delta: {uniform: [0.5, 0.9]}
probe.epochs: {loguniform: [1, 100]}
"""
    assert space_of(tmp_path, text) == (
        Dimension("vote.k", "grid", (5, 10), True),
        Dimension("noise", "choice", ("sym:0.2", "none"), False),
        Dimension("augment.delta", "uniform", (0.5, 0.9), False),
        Dimension("probe.epochs", "loguniform", (1, 100), True),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vote.q: {grid: [1]}", "unknown setting 'vote.q'; allowed: vote.k"),
        ("vtoe.k: {grid: [1]}", "unknown setting 'vtoe.k'; allowed: data"),
        ("vote.k.x: {grid: [1]}", "unknown setting 'vote.k.x'; allowed: no part of it"),
        ("vote: {grid: [1]}", "'vote' is a group of settings; allowed: vote.k"),
        ("data: {grid: [[a], [b]]}", "data cannot be varied"),
        ("resources.train_workers: {grid: [1, 2]}", "resources.train_workers cannot be varied"),
        ("vote.k: [1, 2]", "vote.k is [1, 2]; allowed: one of grid, choice, uniform, loguniform"),
        ("vote.k: {gird: [1, 2]}", "allowed: one of grid"),
        ("vote.k: {grid: []}", "a list of values is wanted"),
        ("vote.k: {grid: [3, 3]}", "has a value twice"),
        ("augment.delta: {uniform: [0.9, 0.5]}", "allowed: two numbers, the smaller first"),
        ("augment.delta: {uniform: [0.1, 0.5, 0.9]}", "allowed: two numbers"),
        ("probe.learning_rate: {loguniform: [0, 1]}", "allowed: two numbers above 0"),
        ("", "must map settings to values"),
        ("[1, 2]", "must map settings to values"),
        ("vote.k: {grid: [1", "is not valid YAML"),
    ],
)
def test_a_wrong_space_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"\A[^\n]*\Z") as caught:
        space_of(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml' cannot be read"):
        load_space(str(tmp_path / "nothing.yaml"))


@pytest.mark.parametrize("name", ["k.yaml", "noise_k.yaml"])
def test_the_spaces_that_ship_are_valid(name: str) -> None:
    points = grid_points(load_space(str(ROOT / "jobs" / "sweeps" / name)))
    assert len(points) == {"k.yaml": 8, "noise_k.yaml": 12}[name]


def test_grid_points_are_all_combinations() -> None:
    space = (Dimension("noise", "grid", ("none", "sym:0.5"), False), Dimension("vote.k", "grid", (1, 2), True))
    assert grid_points(space) == [
        {"noise": "none", "vote.k": 1},
        {"noise": "none", "vote.k": 2},
        {"noise": "sym:0.5", "vote.k": 1},
        {"noise": "sym:0.5", "vote.k": 2},
    ]


def test_a_range_has_no_grid() -> None:
    with pytest.raises(ConfigError, match=r"augment\.delta is uniform; a grid search needs lists"):
        grid_points((Dimension("augment.delta", "uniform", (0.1, 0.9), False),))


def test_random_points_cross_the_grids_with_each_draw() -> None:
    space = (Dimension("vote.k", "grid", (1, 2), True), Dimension("augment.delta", "uniform", (0.0, 1.0), False))
    points = random_points(space, samples=3, seed=0)
    assert len(points) == 6
    assert [point["vote.k"] for point in points] == [1, 2] * 3
    deltas = [point["augment.delta"] for point in points]
    assert deltas[0::2] == deltas[1::2]
    assert len(set(deltas)) == 3
    assert points == random_points(space, samples=3, seed=0) != random_points(space, samples=3, seed=1)


def test_a_point_drawn_twice_is_tried_once() -> None:
    assert random_points((Dimension("vote.k", "choice", (7,), True),), samples=5, seed=0) == [{"vote.k": 7}]


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 100), st.booleans())
def test_draws_lie_in_their_range(low: int, more: int, seed: int, logarithmic: bool) -> None:
    kind = "loguniform" if logarithmic else "uniform"
    for whole in (True, False):
        value = Dimension("x", kind, (low, low + more), whole).draw(np.random.default_rng(seed))
        assert low - 1e-6 <= value <= low + more + 1e-6
        assert isinstance(value, int) == whole


def test_loguniform_draws_are_spread_over_the_decades() -> None:
    random = np.random.default_rng(0)
    draws = [Dimension("x", "loguniform", (1e-4, 1.0), False).draw(random) for _ in range(2000)]
    assert np.mean(np.array(draws) < 1e-2) == pytest.approx(0.5, abs=0.05)


def test_dotted_settings_are_nested() -> None:
    assert nested({"vote.k": 1, "vote.temperature": 0.5, "noise": "none"}) == {
        "vote": {"k": 1, "temperature": 0.5},
        "noise": "none",
    }


def test_conditions_are_no_choice() -> None:
    point = {"noise": "sym:0.2", "seed": 1, "vote.k": 5, "augment.delta": 0.123456}
    assert choice_of(point) == {"vote.k": 5, "augment.delta": 0.123456}
    assert title(point) == "noise=sym:0.2, seed=1, vote.k=5, augment.delta=0.1235"


def test_what_a_dimension_allows() -> None:
    listed = Dimension("vote.k", "grid", (5, 10), True)
    ranged = Dimension("augment.delta", "uniform", (0.6, 0.9), False)
    assert [listed.allows(value) for value in (5, 7, "5")] == [True, False, False]
    assert [ranged.allows(value) for value in (0.6, 0.75, 0.9, 0.95)] == [True, True, True, False]
