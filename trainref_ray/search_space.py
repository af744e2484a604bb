"""The search space of a sweep: which settings take which values, and the points that are tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from pydantic import BaseModel

from trainref_ray.config import Config
from trainref_ray.errors import ConfigError

Kind = Literal["grid", "choice", "uniform", "loguniform"]
FIXED = (
    "allow_missing_classes",
    "classes",
    "data",
    "label_field",
    "limit",
    "out",
    "read",
    "reference",
    "report",
    "resources",
    "resume",
    "retry_quarantined",
    "test_data",
    "tracking",
    "truth_field",
)
"""Settings and groups that all trials of a sweep have in common: they read the same samples, in one folder."""
CONDITIONS = ("noise", "seed")
"""Under what a setting is tried, not what is chosen: a sweep's best setting is the best over all of these."""


@dataclass(frozen=True)
class Dimension:
    """One setting of a space.

    Attributes:
        name: dotted, such as `vote.k`.
        kind: grid (every value is tried), choice (drawn from the values), uniform or loguniform (drawn between two).
        values: what is tried or drawn from; both ends, included, of uniform and loguniform.
        whole: whether the setting is a whole number.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]
    whole: bool

    def allows(self, value: Any) -> bool:
        """Whether the value is one of these, or between the two."""
        if self.kind in ("grid", "choice"):
            return value in self.values
        low, high = self.values
        return bool(low <= value <= high)

    def draw(self, random: np.random.Generator) -> Any:
        """A value at random."""
        if self.kind in ("grid", "choice"):
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "loguniform":
            value = math.exp(random.uniform(math.log(low), math.log(high)))
        else:
            value = float(random.uniform(low, high))
        return round(value) if self.whole else value


Point = dict[str, Any]
"""A value for each dotted setting of a space."""


def load_space(path: str) -> tuple[Dimension, ...]:
    """The space in a YAML file: `vote.k: {grid: [5, 10, 20]}`, one setting a line.

    Raises:
        ConfigError: no such file, an unknown setting or one that all trials share, a kind or values not allowed.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"search space {path!r} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"search space {path!r} is not valid YAML: {error}".replace("\n", " ")) from None
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"search space {path!r} must map settings to values, such as vote.k: {{grid: [5, 10, 20]}}")
    return tuple(_dimension(path, str(name), entry) for name, entry in content.items())


def _dimension(path: str, name: str, entry: Any) -> Dimension:
    whole = _is_whole(path, name)
    if not isinstance(entry, Mapping) or len(entry) != 1 or next(iter(entry)) not in get_args(Kind):
        raise ConfigError(f"{path}: {name} is {entry!r}; allowed: one of {', '.join(get_args(Kind))} with a list")
    kind, values = next(iter(entry.items()))
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{path}: {name}: {kind} is {values!r}; a list of values is wanted")
    if kind in ("grid", "choice"):
        shown = [repr(value) for value in values]
        if len(set(shown)) < len(shown):
            raise ConfigError(f"{path}: {name}: {kind} has a value twice: {values!r}")
    else:
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not numbers or len(values) != 2 or not values[0] < values[1] or (kind == "loguniform" and values[0] <= 0):
            above = " above 0" if kind == "loguniform" else ""
            raise ConfigError(f"{path}: {name}: {kind} is {values!r}; allowed: two numbers{above}, the smaller first")
    return Dimension(name, kind, tuple(tuple(v) if isinstance(v, list) else v for v in values), whole)


def _is_whole(path: str, name: str) -> bool:
    """Whether the setting is a whole number; refuses one that does not exist or is not to be varied."""
    if name in FIXED or name.split(".")[0] in FIXED:
        raise ConfigError(f"{path}: {name} cannot be varied: all trials of a sweep share {', '.join(FIXED)}")
    group: Any = Config
    parts = name.split(".")
    for position, part in enumerate(parts):
        fields = group.model_fields if isinstance(group, type) and issubclass(group, BaseModel) else {}
        if part not in fields:
            where = ".".join(parts[:position])
            allowed = ", ".join(f"{where}.{field}" if where else field for field in fields) or "no part of it"
            raise ConfigError(f"{path}: unknown setting {name!r}; allowed: {allowed}")
        group = fields[part].annotation
    if isinstance(group, type) and issubclass(group, BaseModel):
        allowed = ", ".join(f"{name}.{field}" for field in group.model_fields)
        raise ConfigError(f"{path}: {name!r} is a group of settings; allowed: {allowed}")
    return group is int or (int in get_args(group) and float not in get_args(group))


def grid_points(space: tuple[Dimension, ...]) -> list[Point]:
    """Every combination, the last setting changing fastest.

    Raises:
        ConfigError: a setting has no list of values.
    """
    for dimension in space:
        if dimension.kind not in ("grid", "choice"):
            raise ConfigError(f"{dimension.name} is {dimension.kind}; a grid search needs lists: take --search random")
    names = [dimension.name for dimension in space]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(d.values for d in space))]


def random_points(space: tuple[Dimension, ...], samples: int, seed: int) -> list[Point]:
    """`samples` draws, each with every combination of the grids; a point that was drawn before is left out."""
    random = np.random.default_rng(seed)
    grids = grid_points(tuple(dimension for dimension in space if dimension.kind == "grid"))
    drawn = [dimension for dimension in space if dimension.kind != "grid"]
    points: list[Point] = []
    for _ in range(samples):
        values = {dimension.name: dimension.draw(random) for dimension in drawn}
        for grid in grids:
            point = {dimension.name: ({**grid, **values})[dimension.name] for dimension in space}
            if point not in points:
                points.append(point)
    return points


def nested(point: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings as nested dictionaries."""
    content: dict[str, Any] = {}
    for name, value in point.items():
        *groups, last = name.split(".")
        place = content
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return content


def choice_of(point: Mapping[str, Any]) -> Point:
    """The part of a point that is chosen: without `CONDITIONS`."""
    return {name: value for name, value in point.items() if name not in CONDITIONS}


def title(point: Mapping[str, Any]) -> str:
    """A point for people: `vote.k=10, noise=sym:0.4`."""
    return ", ".join(f"{name}={_text(value)}" for name, value in point.items()) or "no setting"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
