"""A sweep's summary, figures and page, on results made by hand."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from trainref_ray.config import Config, SweepSettings
from trainref_ray.report.sweep_figures import Axes, chart, choose_axes, heat_map
from trainref_ray.report.sweep_page import render_sweep, sureness, sweep_figures
from trainref_ray.report.sweep_summary import best_point, summarise_sweep
from trainref_ray.trials import TrialResult

SPACE = {"noise": {"grid": ["sym:0.2", "sym:0.8"]}, "vote.k": {"grid": [5, 20]}}


def result(noise: str, k: int, right: int, status: Any = "complete", of: int = 10) -> TrialResult:
    judged = {"uids": list(range(of)), "right": [True] * right + [False] * (of - right), "probability": [0.5] * of}
    return TrialResult(
        f"{k:08x}",
        {"noise": noise, "vote.k": k},
        status=status,
        rounds=[{"agreement": right / 10, "log_likelihood": -0.7}],
        judged=judged,
        metrics={"relabel_accuracy": right / 10 - 0.05, "ood_auroc": None},
        stages=[{"name": "supporters", "round": 1, "seconds": 1.0, "items": 10}],
        seconds=2.0,
    )


def summary(*results: TrialResult) -> dict[str, Any]:
    found = summarise_sweep(results, SPACE)
    return found | {"config": Config().model_dump(mode="json"), "sweep": SweepSettings(space="s").model_dump()}


@pytest.fixture
def full() -> dict[str, Any]:
    return summary(
        result("sym:0.2", 5, 9), result("sym:0.2", 20, 10), result("sym:0.8", 5, 6), result("sym:0.8", 20, 4)
    )


def test_settings_are_ranked_over_all_conditions(full: dict[str, Any]) -> None:
    assert [(entry["title"], entry["agreement"]) for entry in full["settings"]] == [
        ("vote.k=5", 0.75),
        ("vote.k=20", 0.7),
    ]
    assert best_point(full) == {"vote.k": 5}
    assert [[entry["title"] for entry in part["settings"]] for part in full["conditions"]] == [
        ["vote.k=20", "vote.k=5"],
        ["vote.k=5", "vote.k=20"],
    ]


def test_a_setting_that_lacks_a_condition_is_not_ranked() -> None:
    found = summary(
        result("sym:0.2", 5, 9), result("sym:0.8", 5, 6), result("sym:0.2", 20, 10), result("sym:0.8", 20, 10, "failed")
    )
    assert [entry["title"] for entry in found["settings"]] == ["vote.k=5"]
    assert len(found["trials"]) == 4


def test_one_reference_gives_no_error_and_the_summary_is_json() -> None:
    found = summary(result("sym:0.2", 5, 1, of=1), result("sym:0.2", 20, 0, of=1))
    assert json.loads(json.dumps(found, allow_nan=False))["settings"][1]["behind_error"] is None
    page = render_sweep(found, sweep_figures(found))
    assert '<td class="number">1.000</td>' in page
    assert "cannot be told apart" in page
    assert "cannot tell them apart" in page


def test_nothing_is_best_where_nothing_could_be_judged() -> None:
    trial = result("sym:0.2", 5, 9)
    trial.judged, trial.rounds = None, []
    found = summary(trial)
    assert best_point(found) is None
    assert "No setting could be ranked" in render_sweep(found, sweep_figures(found))


def test_noise_is_drawn_along_x_with_a_line_for_each_k() -> None:
    assert choose_axes(SPACE) == Axes("noise", "vote.k", ())
    assert choose_axes({"seed": {"grid": [0, 1]}}) is None
    assert choose_axes({"vote.diversity": {"grid": [True, False]}, "augment.delta": {"uniform": [0, 1]}}) == Axes(
        "augment.delta", "vote.diversity", ()
    )


def test_points_stand_where_their_values_say(full: dict[str, Any]) -> None:
    drawn = chart(full["trials"], SPACE, Axes("noise", "vote.k", ()), "agreement")
    assert [line.name for line in drawn.lines] == ["5", "20"]
    ticks = {text: y for y, text in drawn.y_ticks}
    (x_low, y_low, error), (x_high, y_high, _) = drawn.lines[0].points
    assert x_low < x_high
    assert [x for x, _ in drawn.x_ticks] == [x_low, x_high]
    assert y_low < y_high  # 0.9 is above 0.6
    scale = (ticks["0.4"] - ticks["1.0"]) / 0.6
    assert y_high - y_low == pytest.approx(0.3 * scale)
    assert error == pytest.approx(np.sqrt(0.9 * 0.1 / 10) * scale)


def test_the_heat_map_has_a_cell_for_each_pair(full: dict[str, Any]) -> None:
    found = heat_map(full["trials"], SPACE, Axes("noise", "vote.k", ()), "agreement")
    assert found is not None
    assert [[value for value, _ in row] for row in found.cells] == [[0.9, 0.6], [1.0, 0.4]]
    assert found.cells[1][0][1] == 1.0
    assert found.cells[1][1][1] == 0.0


def test_the_page_escapes_and_loads_nothing(full: dict[str, Any]) -> None:
    full["trials"][0]["title"] = "<script>alert(1)</script>"
    full["trials"][0]["error"] = "<img src=x>"
    page = render_sweep(full, sweep_figures(full))
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert "default-src 'none'" in page


def test_figures_are_complete_files(full: dict[str, Any]) -> None:
    figures = sweep_figures(full)
    assert list(figures) == ["agreement_by_noise", "relabel_accuracy_by_noise", "heat_map"]
    for svg in figures.values():
        assert svg.startswith("<svg xmlns=")
        assert svg.rstrip().endswith("</svg>")


def test_the_sentence_says_how_sure_it_is(full: dict[str, Any]) -> None:
    assert "cannot tell them apart" in sureness(full["settings"])
    assert sureness(full["settings"][:1]) == "No other setting was ranked."
    clear = [full["settings"][0], full["settings"][1] | {"tied": False, "behind": 0.2, "behind_error": 0.05}]
    assert "by 0.200 ± 0.050" in sureness(clear)
