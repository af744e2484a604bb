"""The table of a comparison by hand: mean and standard deviation, intervals, what is best, what is missing."""

from __future__ import annotations

import pytest

from trainref_ray.report.comparison import Row, charts, markdown, spread_words, tabulate
from trainref_ray.report.scores import METRICS

TWO_SEEDS = [
    Row("trainref", 0, {"accuracy": 0.70, "nll_ts": 0.90}, {}, 100.0, 1000),
    Row("trainref", 1, {"accuracy": 0.74, "nll_ts": 0.80}, {}, 110.0, 1000),
    Row("disc", 0, {"accuracy": 0.71, "nll_ts": 1.00}, {}, 50.0, 1010),
    Row("disc", 1, error="FloatingPointError: the loss is nan"),
    Row("knn", 0, {"noise_auroc": 0.8}, {}, 1.0),
    Row("knn", 1, {"noise_auroc": 0.9}, {}, 2.0),
]
ONE_SEED = [
    Row("trainref", 3, {"accuracy": 0.70}, {"accuracy": (0.68, 0.73)}),
    Row("disc", 3, {"accuracy": 0.60}, {"accuracy": (0.58, 0.62)}),
    Row("knn", 3, {"accuracy": 0.5}),
]


def test_mean_and_sample_standard_deviation_by_hand() -> None:
    cell = tabulate(TWO_SEEDS).cells["trainref"]["accuracy"]
    # 0.70 and 0.74: mean 0.72, deviation √(2 · 0.02²/1) = 0.0283
    assert cell.mean == pytest.approx(0.72)
    assert cell.high == pytest.approx(0.72 + 0.02828, abs=1e-5)
    assert cell.text == "0.720 ± 0.028"


def test_one_seed_has_its_interval() -> None:
    table = tabulate(ONE_SEED)
    assert table.cells["trainref"]["accuracy"].text == "0.700 (0.680–0.730)"
    assert table.cells["knn"]["accuracy"].text == "0.500"


def test_a_seed_without_figures_is_told_and_does_not_count_as_zero() -> None:
    table = tabulate(TWO_SEEDS)
    assert table.cells["disc"]["accuracy"].mean == 0.71
    assert table.cells["disc"]["accuracy"].text == "0.710, 1 of 2 seeds"
    assert table.errors == [("disc", 1, "FloatingPointError: the loss is nan")]
    assert "noise_auroc" not in table.cells["disc"]


def test_the_best_mean_of_each_column_in_its_own_direction() -> None:
    other = [Row("mixup", seed, {"accuracy": 0.7, "nll_ts": 0.8}) for seed in (0, 1)]
    # noise_auroc has one method alone, which is the best of nobody
    assert tabulate(TWO_SEEDS + other).best == {("trainref", "accuracy"), ("mixup", "nll_ts")}
    worse = tabulate([Row("a", 0, {"nll": 2.0, "accuracy": 0.5}), Row("b", 0, {"nll": 1.0, "accuracy": 0.5001})])
    assert worse.best == {("b", "nll"), ("a", "accuracy"), ("b", "accuracy")}  # equal as they are shown


INCOMPLETE = [
    Row("trainref", 0, {"accuracy": 0.70}),
    Row("trainref", 1, {"accuracy": 0.72}),
    Row("disc", 0, {"accuracy": 0.60}, {"accuracy": (0.50, 0.70)}),
    Row("disc", 1, error="x"),
    Row("knn", 0, {"accuracy": 0.90}),
    Row("knn", 1, error="x"),
    Row("mixup", 0, {"accuracy": 0.60}),
    Row("mixup", 1, {"accuracy": 0.62}),
]
"""The best mean is of a method that lacks a seed."""


def test_a_mean_that_lacks_a_seed_is_never_the_best() -> None:
    table = tabulate(INCOMPLETE)
    assert table.best == {("trainref", "accuracy")}
    assert [dot.method for dot in charts(table)[0].dots] == ["trainref", "mixup", "knn", "disc"]
    assert tabulate(INCOMPLETE[:6]).best == set()  # trainref alone has every seed
    text = markdown(table, "Comparison", [])
    assert "| trainref | **0.710 ± 0.014** |" in text
    assert "| disc | 0.600 (0.500–0.700), 1 of 2 seeds |" in text
    assert "| knn | 0.900, 1 of 2 seeds |" in text


def test_the_lead_explains_missing_seeds_where_there_are_some() -> None:
    assert spread_words(tabulate(INCOMPLETE[:2])) == "Mean ± sample standard deviation of 2 seeds."
    assert "with one alone in brackets the 95 % bootstrap interval" in spread_words(tabulate(INCOMPLETE))


def test_costs_are_means_of_what_was_measured() -> None:
    table = tabulate(TWO_SEEDS)
    assert table.seconds == {"trainref": 105.0, "disc": 50.0, "knn": 1.5}
    assert table.image_passes == {"trainref": 1000.0, "disc": 1010.0, "knn": None}


def test_a_row_names_every_metric_and_what_is_missing_is_null() -> None:
    metrics = TWO_SEEDS[4].as_dict()["metrics"]
    assert list(metrics) == list(METRICS)
    assert metrics["noise_auroc"] == 0.8
    assert metrics["accuracy"] is None


def test_markdown_has_every_method_and_marks_the_best() -> None:
    other = [Row("mixup", seed, {"accuracy": 0.7}) for seed in (0, 1)]
    text = markdown(tabulate(TWO_SEEDS + other), "Comparison", ["a note"])
    assert "| trainref | **0.720 ± 0.028** |" in text
    assert "| disc | 0.710, 1 of 2 seeds |" in text
    assert "| knn | 0.850 ± 0.071 |" in text
    assert "- disc, seed 1: FloatingPointError: the loss is nan" in text
    assert "Foreign images" not in text  # no method has a figure of it
    assert "2 seeds" in text


def test_a_chart_places_values_on_one_axis_best_first() -> None:
    (chart,) = charts(tabulate(ONE_SEED))
    assert chart.metric == "accuracy"
    assert [dot.method for dot in chart.dots] == ["trainref", "disc", "knn"]
    # the axis runs from 0.5 to 0.73 between 3 and 97 %
    best = chart.dots[0]
    assert best.high == pytest.approx(97)
    assert chart.dots[2].at == chart.dots[2].low == pytest.approx(3)
    assert best.at == pytest.approx(3 + 94 * 0.2 / 0.23)
    assert [text for text, _ in chart.ticks] == ["0.500", "0.615", "0.730"]
    lower = charts(tabulate([Row("a", 0, {"nll_ts": 2.0}), Row("b", 0, {"nll_ts": 1.0})]))[0]
    assert [dot.method for dot in lower.dots] == ["b", "a"]


def test_an_axis_ends_where_its_figure_does() -> None:
    """Mean less deviation is below 0 for small errors, mean and deviation above 1 for large shares; a log loss has no
    largest value."""
    figures = {"accuracy": (0.96, 1.0), "ece_ts": (0.001, 0.009), "nll_ts": (0.5, 2.5)}
    rows = [
        Row(method, seed, {name: ends[seed] for name, ends in figures.items()}) for method in "ab" for seed in (0, 1)
    ]
    ticks = {chart.metric: [float(text) for text, _ in chart.ticks] for chart in charts(tabulate(rows))}
    assert ticks["accuracy"][-1] == 1.0
    assert ticks["ece_ts"][0] == 0.0
    assert ticks["nll_ts"] == pytest.approx([1.5 - 2**0.5, 1.5, 1.5 + 2**0.5], abs=1e-3)
    rows = [Row(method, seed, {"nll_ts": 0.01 + seed}) for method in "ab" for seed in (0, 1)]
    assert charts(tabulate(rows))[0].ticks[0][0] == "0.000"
