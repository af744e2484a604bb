"""Figures of a sweep as numbers: curves of a metric against a setting, and the heat map of two settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainref_ray.evaluate.ranking import share_error

PLOT = (56.0, 16.0, 300.0, 220.0)
"""Left, top, right and bottom of the plotted area in a picture of 420 x 270; names of the lines stand to the right."""
MOST_SERIES = 6
"""Lines that can be told apart."""
STYLES = (
    ("#0072b2", ""),
    ("#cc5500", "6 3"),
    ("#00875f", "2 3"),
    ("#a8497f", "8 3 2 3"),
    ("#8a6d00", "1 2"),
    ("#5d5a54", "10 4"),
)
"""Colour and dashes of each line: both differ, for eyes and prints without colour."""
LABEL_GAP = 13.0
"""Least distance of two names, pixels."""
LEAST_SPAN = 0.01
"""Of the y axis: smaller differences should not fill a picture."""
MOST_CELLS = 12
"""Rows or columns of a heat map that can be read."""


@dataclass(frozen=True)
class Axes:
    """What a sweep's figures show: the setting along the x axis, and the one with a line for each value, or None."""

    x: str
    series: str | None
    others: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One line: name, colour, dashes, points (x, y, half the height of the error bar), and where its name stands."""

    name: str
    colour: str
    dashes: str
    points: list[tuple[float, float, float]]
    label_y: float


@dataclass(frozen=True)
class Chart:
    """A metric against a setting, in pixels of the picture. Ticks are (position, text)."""

    metric: str
    x: str
    series: str | None
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    connected: bool


@dataclass(frozen=True)
class HeatMap:
    """A metric over two settings: `cells[row][column]` is (value or None, strength of the colour from 0 to 1)."""

    metric: str
    x: str
    y: str
    columns: list[str]
    rows: list[str]
    cells: list[list[tuple[float | None, float]]]


def choose_axes(space: Mapping[str, Mapping[str, Sequence[Any]]]) -> Axes | None:
    """What to draw of a space: noise along x where it is varied, else the numbers with most values; None without any.

    Args:
        space: kind and values of each varied setting, as in `sweep.json`.
    """
    varied = [name for name in space if name != "seed"]
    if not varied:
        return None

    def order(name: str) -> tuple[bool, bool, int]:
        numeric = all(isinstance(value, int | float) for value in _values(space, name))
        drawn = next(iter(space[name])) not in ("grid", "choice")
        return name != "noise", not (numeric or drawn), -len(_values(space, name)) - 100 * drawn

    x, *rest = sorted(varied, key=order)
    series = next((name for name in rest if _is_listed(space, name) and len(_values(space, name)) <= MOST_SERIES), None)
    return Axes(x, series, tuple(name for name in rest if name != series))


def _values(space: Mapping[str, Mapping[str, Sequence[Any]]], name: str) -> Sequence[Any]:
    return next(iter(space[name].values()))


def _is_listed(space: Mapping[str, Mapping[str, Sequence[Any]]], name: str) -> bool:
    return next(iter(space[name])) in ("grid", "choice")


def value_of(trial: Mapping[str, Any], metric: str) -> float | None:
    """A trial's figure: the agreement, or one of its metrics."""
    value = trial["agreement"] if metric == "agreement" else trial["metrics"].get(metric)
    return None if value is None else float(value)


def chart(
    trials: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Sequence[Any]]], axes: Axes, metric: str
) -> Chart:
    """The curve of a metric; trials that differ in other settings are averaged, with their standard deviation.

    The error bar of a single trial's agreement is the standard error of a share.

    Args:
        trials: rows of `sweep.json` that have this metric, at least one.
        space: as in `choose_axes`.
        axes: what is drawn.
        metric: `agreement` or one of the metrics.
    """
    groups: dict[Any, dict[Any, list[Mapping[str, Any]]]] = {}
    for trial in trials:
        name = None if axes.series is None else _hashable(trial["point"][axes.series])
        groups.setdefault(name, {}).setdefault(_hashable(trial["point"][axes.x]), []).append(trial)
    listed = _is_listed(space, axes.x)
    values = [_hashable(value) for value in _values(space, axes.x)]
    logarithmic = next(iter(space[axes.x])) == "loguniform"
    found = {
        (name, x): _mean_and_error(members, metric) for name, points in groups.items() for x, members in points.items()
    }
    y_ticks = _round_ticks([mean - error for mean, error in found.values()], [m + e for m, e in found.values()])
    low, high = y_ticks[0], y_ticks[-1]
    left, top, right, bottom = PLOT

    def x_at(value: Any) -> float:
        if listed:
            return left + (right - left) * (values.index(value) + 0.5) / len(values)
        scale = math.log if logarithmic else float
        return left + (right - left) * (scale(value) - scale(values[0])) / (scale(values[1]) - scale(values[0]))

    def y_at(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    order = [None] if axes.series is None else [_hashable(value) for value in _values(space, axes.series)]
    lines: list[Line] = []
    for name in order:
        if name in groups:
            at = sorted(groups[name], key=x_at)
            points = [(x_at(x), y_at(found[name, x][0]), (bottom - top) * found[name, x][1] / (high - low)) for x in at]
            colour, dashes = STYLES[len(lines)]
            lines.append(Line("" if name is None else str(name), colour, dashes, points, points[-1][1]))
    ticks = [(x_at(value), _text(value)) for value in values]
    return Chart(
        metric=metric,
        x=axes.x,
        series=axes.series,
        x_ticks=ticks,
        y_ticks=[(y_at(value), f"{value:.{_digits(y_ticks[1] - y_ticks[0])}f}") for value in y_ticks],
        lines=_spread(lines),
        connected=listed and len(values) > 1,
    )


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mean_and_error(trials: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    values = [value for trial in trials if (value := value_of(trial, metric)) is not None]
    mean = float(np.mean(values))
    if len(values) > 1:
        return mean, float(np.std(values, ddof=1))
    if metric == "agreement":
        return mean, share_error(mean, trials[0]["references_left_out"])
    return mean, 0.0


def _round_ticks(lows: Sequence[float], highs: Sequence[float]) -> list[float]:
    """Round numbers around all values, three to seven of them, 1, 2 or 5 times a power of ten apart."""
    low, high = min(lows), max(highs)
    span = max(high - low, LEAST_SPAN)
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, max(last, first + 1) + 1)]


def _digits(step: float) -> int:
    return max(1, math.ceil(-math.log10(step) - 1e-9))


def _spread(lines: Sequence[Line]) -> list[Line]:
    """Lines with their names moved apart where they would overlap."""
    placed: dict[int, float] = {}
    at = -math.inf
    for index in sorted(range(len(lines)), key=lambda index: lines[index].label_y):
        at = max(at + LABEL_GAP, lines[index].label_y)
        placed[index] = at
    return [
        Line(line.name, line.colour, line.dashes, line.points, placed[index] + 4) for index, line in enumerate(lines)
    ]


def heat_map(
    trials: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Sequence[Any]]], axes: Axes, metric: str
) -> HeatMap | None:
    """A metric over two listed settings, each cell the mean of its trials; None without two, or if too large."""
    if axes.series is None or not _is_listed(space, axes.x):
        return None
    columns = [_hashable(value) for value in _values(space, axes.x)]
    rows = [_hashable(value) for value in _values(space, axes.series)]
    if len(columns) > MOST_CELLS or len(columns) < 2 or len(rows) < 2:
        return None
    found: dict[tuple[Any, Any], list[float]] = {}
    for trial in trials:
        value = value_of(trial, metric)
        if value is not None:
            place = _hashable(trial["point"][axes.series]), _hashable(trial["point"][axes.x])
            found.setdefault(place, []).append(value)
    if not found:
        return None
    means = {place: float(np.mean(values)) for place, values in found.items()}
    low, high = min(means.values()), max(means.values())

    def cell(place: tuple[Any, Any]) -> tuple[float | None, float]:
        mean = means.get(place)
        return mean, 0.0 if mean is None or high == low else (mean - low) / (high - low)

    return HeatMap(
        metric=metric,
        x=axes.x,
        y=axes.series,
        columns=[_text(value) for value in columns],
        rows=[_text(value) for value in rows],
        cells=[[cell((row, column)) for column in columns] for row in rows],
    )
