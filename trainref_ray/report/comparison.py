"""Rows of a comparison, one a method and seed, to a table: mean ± standard deviation, or one seed's interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainref_ray.report.content import metric_label
from trainref_ray.report.page import MISSING
from trainref_ray.report.scores import METRICS

GROUPS: dict[str, tuple[str, ...]] = {
    "Wrong labels and curated labels": (
        "noise_auroc",
        "noise_ap",
        "noise_f1",
        "quality_ece",
        "relabel_accuracy",
        "soft_nll",
        "soft_kl",
    ),
    "Wrong labels and curated labels after temperature scaling": (
        "noise_auroc_ts",
        "noise_ap_ts",
        "quality_ece_ts",
        "soft_nll_ts",
        "soft_kl_ts",
    ),
    "Foreign images": ("ood_auroc", "ood_ap", "ood_fpr95"),
    "Test images": ("accuracy", "nll", "brier", "ece", "ece_mass", "test_soft_nll", "test_soft_kl"),
    "Test images after temperature scaling": (
        "accuracy_ts",
        "nll_ts",
        "brier_ts",
        "ece_ts",
        "ece_mass_ts",
        "test_soft_nll_ts",
        "test_soft_kl_ts",
    ),
}
"""The whole table in pieces that fit on a page."""
HEADLINES = ("noise_auroc", "relabel_accuracy", "ood_auroc", "accuracy", "nll_ts", "ece_ts")
"""Figures with a chart of their own."""


@dataclass(frozen=True)
class Row:
    """One method under one seed.

    Attributes:
        method: its name.
        seed: of labels' draws and trainings.
        metrics: figures by name; what the method does not provide is not there.
        intervals: their 95 % bootstrap intervals.
        seconds: what the method cost, without the images' way to its worker.
        image_passes: forward-backward passes of its trainings, None without any.
        error: why there are no figures.
        facts: what else a reader of the figures should know, such as the temperature.
    """

    method: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float | None = None
    image_passes: int | None = None
    error: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `compare.json`, with every metric's name; null where there is no figure."""
        return asdict(self) | {"metrics": {name: self.metrics.get(name) for name in METRICS}}


@dataclass(frozen=True)
class Cell:
    """A figure of a method over its seeds.

    Attributes:
        mean: of the seeds.
        low, high: mean ∓ sample standard deviation, or with one seed the ends of its bootstrap interval; None without.
        seeds: that have the figure.
        expected: seeds of the comparison.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    expected: int

    @property
    def complete(self) -> bool:
        """Whether every seed has the figure."""
        return self.seeds == self.expected

    @property
    def mean_text(self) -> str:
        """`0.902`."""
        return f"{self.mean:.3f}"

    @property
    def spread_text(self) -> str:
        """`± 0.004`, or `(0.896–0.908)` of one seed; empty without."""
        if self.low is None or self.high is None:
            return ""
        return f"± {self.high - self.mean:.3f}" if self.seeds > 1 else f"({self.low:.3f}–{self.high:.3f})"

    @property
    def seeds_text(self) -> str:
        """`1 of 2 seeds`; empty where all have the figure."""
        return "" if self.complete else f"{self.seeds} of {self.expected} seeds"

    @property
    def text(self) -> str:
        """All of it in one line: `0.902 (0.896–0.908), 1 of 2 seeds`."""
        shown = f"{self.mean_text} {self.spread_text}".rstrip()
        return shown if self.complete else f"{shown}, {self.seeds_text}"


@dataclass(frozen=True)
class ComparisonTable:
    """The methods in order, and each figure that any of them has.

    Attributes:
        methods: names, in the rows' order.
        cells: of each method by metric.
        best: (method, metric) of the best mean of a column, of methods that have the figure of every seed; means that
            look equal share it.
        seconds: mean of each method, None where none was measured.
        image_passes: mean of each method with a training.
        errors: (method, seed, reason) of rows without figures.
        seeds: of the comparison.
    """

    methods: list[str]
    cells: dict[str, dict[str, Cell]]
    best: set[tuple[str, str]]
    seconds: dict[str, float | None]
    image_passes: dict[str, float | None]
    errors: list[tuple[str, int, str]]
    seeds: list[int]

    @property
    def complete(self) -> bool:
        """Whether every figure is of every seed."""
        return all(cell.complete for row in self.cells.values() for cell in row.values())

    def columns(self, names: Sequence[str]) -> list[str]:
        """Those of the names for which some method has a figure."""
        return [name for name in names if any(name in row for row in self.cells.values())]


def tabulate(rows: Sequence[Row]) -> ComparisonTable:
    """Rows of all methods and seeds as one table."""
    methods = list(dict.fromkeys(row.method for row in rows))
    seeds = sorted({row.seed for row in rows})
    by_method = {method: [row for row in rows if row.method == method] for method in methods}
    cells = {
        method: {name: cell for name in METRICS if (cell := _cell(of_method, name, len(seeds))) is not None}
        for method, of_method in by_method.items()
    }
    return ComparisonTable(
        methods=methods,
        cells=cells,
        best={(method, name) for name in METRICS for method in _best(cells, name)},
        seconds={method: _mean([row.seconds for row in of_method]) for method, of_method in by_method.items()},
        image_passes={
            method: _mean([row.image_passes for row in of_method]) for method, of_method in by_method.items()
        },
        errors=[(row.method, row.seed, row.error) for row in rows if row.error is not None],
        seeds=seeds,
    )


def _cell(rows: Sequence[Row], name: str, expected: int) -> Cell | None:
    having = [row for row in rows if name in row.metrics]
    if not having:
        return None
    values = [row.metrics[name] for row in having]
    mean = statistics.fmean(values)
    low: float | None = None
    high: float | None = None
    if len(values) > 1:
        deviation = statistics.stdev(values)
        low, high = mean - deviation, mean + deviation
    elif name in having[0].intervals:
        low, high = having[0].intervals[name]
    return Cell(mean, low, high, len(values), expected)


def _best(cells: Mapping[str, Mapping[str, Cell]], name: str) -> list[str]:
    """Methods with the best mean of a column that at least two have of every seed: the seeds that one lacks may be the
    hard ones."""
    means = {method: row[name].mean for method, row in cells.items() if name in row and row[name].complete}
    if len(means) < 2:
        return []
    winner = (max if METRICS[name] == "higher" else min)(means.values())
    return [method for method, mean in means.items() if f"{mean:.3f}" == f"{winner:.3f}"]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def spread_words(table: ComparisonTable) -> str:
    """What the number behind each mean is."""
    if len(table.seeds) > 1:
        words = f"Mean ± sample standard deviation of {len(table.seeds)} seeds."
        if table.complete:
            return words
        return (
            f"{words} Where a method lacks some, the number of those that it has stands beside its mean, with one "
            "alone in brackets the 95 % bootstrap interval over the images; such a mean is not called best."
        )
    return (
        "One seed; in brackets 95 % bootstrap intervals over the images. Those of calibration errors lie high: "
        "resampled bins are noisier."
    )


def markdown(table: ComparisonTable, title: str, notes: Sequence[str]) -> str:
    """The whole table, in pieces, as Markdown; best means in bold."""
    lines = [
        f"# {title}",
        "",
        f"{spread_words(table)} The best of each column is in bold; {MISSING}: not provided.",
        "",
    ]
    lines += [f"- {note}" for note in notes]
    lines += [""] if notes else []
    for group, names in GROUPS.items():
        columns = table.columns(names)
        if not columns:
            continue
        arrows = {"higher": "↑", "lower": "↓"}
        header = ["method", *(f"{name} {arrows[METRICS[name]]}" for name in columns)]
        lines += [f"## {group}", "", _line(header), _line(["---", *["---:"] * len(columns)])]
        lines += [
            _line([method, *(_shown(table, method, name) for name in columns)])
            for method in table.methods
            if any(name in table.cells[method] for name in columns)
        ]
        lines.append("")
    lines += ["## Cost", "", _line(["method", "seconds", "image passes"]), _line(["---", "---:", "---:"])]
    lines += [
        _line([method, number(table.seconds[method], "{:,.1f}"), number(table.image_passes[method], "{:,.0f}")])
        for method in table.methods
    ]
    if table.errors:
        lines += ["", "## Without figures", ""]
        lines += [f"- {method}, seed {seed}: {reason}" for method, seed, reason in table.errors]
    return "\n".join(lines) + "\n"


def _shown(table: ComparisonTable, method: str, name: str) -> str:
    cell = table.cells[method].get(name)
    if cell is None:
        return MISSING
    return f"**{cell.text}**" if (method, name) in table.best else cell.text


def number(value: float | None, form: str) -> str:
    """A number as text, or the sign for none."""
    return MISSING if value is None else form.format(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Dot:
    """A method in a chart: positions of mean and interval in percent of the axis, and the value as text."""

    method: str
    at: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Chart:
    """One figure of all methods that have it, best first, those that lack some seeds last; `ticks` are values with
    their positions in percent."""

    metric: str
    label: str
    better: str
    dots: list[Dot]
    ticks: list[tuple[str, float]]


def charts(table: ComparisonTable) -> list[Chart]:
    """A chart for each headline figure that at least two methods have."""
    found = []
    for name in table.columns(HEADLINES):
        having = [(method, table.cells[method][name]) for method in table.methods if name in table.cells[method]]
        if len(having) > 1:
            found.append(_chart(table, name, having))
    return found


def _chart(table: ComparisonTable, name: str, having: list[tuple[str, Cell]]) -> Chart:
    largest = math.inf if name.startswith("nll") else 1.0  # all others are shares
    ends = {method: _ends(cell, largest) for method, cell in having}
    least, most = min(low for low, _ in ends.values()), max(high for _, high in ends.values())
    width = max(most - least, 1e-9)

    def place(value: float) -> float:
        return 3 + 94 * (value - least) / width  # a margin, so that no dot is cut

    sign = -1 if METRICS[name] == "higher" else 1
    ordered = sorted(having, key=lambda entry: (not entry[1].complete, sign * entry[1].mean))
    dots = [
        Dot(method, place(cell.mean), place(ends[method][0]), place(ends[method][1]), cell.text)
        for method, cell in ordered
    ]
    ticks = [(f"{value:.3f}", place(value)) for value in (least, (least + most) / 2, most)]
    return Chart(name, metric_label(name), METRICS[name], dots, ticks)


def _ends(cell: Cell, largest: float) -> tuple[float, float]:
    """The interval as far as the figure can go: mean ± deviation may be below 0 or above a share's 1."""
    if cell.low is None or cell.high is None:
        return cell.mean, cell.mean
    return max(cell.low, 0.0), min(cell.high, largest)
