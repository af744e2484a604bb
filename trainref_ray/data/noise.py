"""Label noise of known kind and rate (METHOD 7), for data whose true labels are known."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from trainref_ray.errors import ConfigError

Kind = Literal["none", "sym", "symflip", "asym", "instance", "human"]
ALLOWED = (
    "none, sym:RATE, symflip:RATE, asym:RATE, instance:RATE, human:FILE.npy, human:FILE.npz:NAME or human:FILE.csv:NAME"
)
INSTANCE_SPREAD = 0.1
"""Standard deviation of the flip rates of instance-dependent noise, as in Xia et al. 2020."""


@dataclass(frozen=True)
class NoiseSpec:
    """A kind of noise with its rate, or the file of human labels."""

    kind: Kind
    rate: float = 0.0
    file: str = ""
    column: str = ""


def parse_noise(text: str) -> NoiseSpec:
    """Noise from its name, such as `sym:0.4` or `human:labels.npz:worse_label`.

    Raises:
        ConfigError: unknown kind, or a rate that is no number from 0 to 1.
    """
    kind, _, value = text.partition(":")
    if kind not in get_args(Kind) or (kind == "none") != (value == ""):
        raise ConfigError(f"noise {text!r} is unknown; allowed: {ALLOWED}")
    if kind == "human":
        file, _, column = value.partition(":")
        return NoiseSpec("human", file=file, column=column)
    if kind == "none":
        return NoiseSpec("none")
    try:
        rate = float(value)
    except ValueError:
        rate = float("nan")
    if not 0 <= rate <= 1:
        raise ConfigError(f"noise {text!r}: the rate {value!r} must be a number from 0 to 1")
    return NoiseSpec(kind, rate)  # type: ignore[arg-type]


def inject(
    labels: np.ndarray,
    classes: int,
    spec: str,
    seed: int,
    *,
    confusion: np.ndarray | None = None,
    features: Callable[[], np.ndarray] | None = None,
) -> np.ndarray:
    """Noisy labels for true ones.

    "With probability r" means a random r N of the samples, rounded, as DivideMix and its successors do: the rate is the
    one asked for, in small sets too.

    - `sym:r`: with probability r a class drawn from all C, so r(C - 1)/C are wrong (DivideMix's convention).
    - `symflip:r`: with probability r one of the other C - 1.
    - `asym:r`: with probability r the class that `confusion` names; a class it leaves as it is gets no noise.
    - `instance:r`: Xia et al. 2020, Algorithm 2: who is flipped, and to what, depends on the features.
    - `human:FILE`: labels that people gave, from an npy, npz or csv file, in the order of `labels`.

    Args:
        labels: int [N], true labels, 0 to C - 1.
        classes: C.
        spec: one of the above, or `none`.
        seed: of every draw.
        confusion: int [C], the class each class is taken for; for `asym` alone.
        features: gives float [N, S]; called for `instance` alone. Algorithm 2 uses their scale: give standardised ones.

    Returns:
        int64 [N].

    Raises:
        ConfigError: an unknown spec, one that this data has no confusion or features for, or a file that does not fit.
    """
    labels = np.asarray(labels, np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ConfigError(f"labels run from {labels.min()} to {labels.max()}; noise needs 0 to {classes - 1}")
    noise = parse_noise(spec)
    rng = np.random.default_rng(seed)
    if noise.kind == "none":
        return labels.copy()
    if noise.kind == "human":
        return read_human_labels(noise, len(labels), classes)
    if noise.kind == "instance":
        if features is None:
            raise ConfigError(f"noise {spec!r} needs features, which this source has not")
        return _instance(labels, classes, noise.rate, features(), rng)
    if noise.kind == "asym":
        if confusion is None:
            raise ConfigError(
                f"noise {spec!r} needs a table of confused classes, which only CIFAR-10 and CIFAR-100 have"
            )
        other = np.asarray(confusion, np.int64)[labels]
    elif noise.kind == "sym":
        other = rng.integers(0, classes, len(labels))
    else:
        other = (labels + rng.integers(1, classes, len(labels))) % classes
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: round(noise.rate * len(labels))]
    noisy[chosen] = other[chosen]
    return noisy


def _instance(
    labels: np.ndarray, classes: int, rate: float, features: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Algorithm 2: flip rate q_i from a normal around `rate` cut to [0, 1]; other class by softmax(x_i · w_y)."""
    if len(features) != len(labels):
        raise ConfigError(f"{len(features)} rows of features for {len(labels)} labels")
    rates = rng.normal(rate, INSTANCE_SPREAD, len(labels))
    while (outside := (rates < 0) | (rates > 1)).any():
        rates[outside] = rng.normal(rate, INSTANCE_SPREAD, int(outside.sum()))
    noisy = labels.copy()
    draws = rng.random(len(labels))
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        weights = rng.standard_normal((features.shape[1], classes), np.float32)
        scores = features[rows].astype(np.float32) @ weights
        scores[:, label] = -np.inf
        chances = np.exp(scores - scores.max(axis=1, keepdims=True)).astype(np.float64)
        chances *= rates[rows, None] / chances.sum(axis=1, keepdims=True)
        chances[:, label] = 1 - rates[rows]
        # float sums may end just below 1: a draw above the last one is the last class with any chance
        reached = np.cumsum(chances, axis=1) > draws[rows, None]
        last = classes - 1 - np.argmax((chances > 0)[:, ::-1], axis=1)
        noisy[rows] = np.where(reached.any(axis=1), np.argmax(reached, axis=1), last)
    return noisy


def read_human_labels(noise: NoiseSpec, samples: int, classes: int) -> np.ndarray:
    """Labels of a file, int64 [samples]: an npy array, a member of an npz, or a column of a csv with a line of names.

    Raises:
        ConfigError: no such file or column, another length, or labels that are no class.
    """
    path = Path(noise.file)
    if path.suffix not in (".npy", ".npz", ".csv"):
        raise ConfigError(f"human labels {noise.file!r}: allowed are .npy, .npz and .csv files")
    if not path.is_file():
        raise ConfigError(f"human labels: {path} does not exist")
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _column(path, noise.column)
        labels = np.asarray(values).astype(np.int64, casting="safe" if path.suffix != ".csv" else "unsafe")
    except (ValueError, TypeError, csv.Error) as error:
        raise ConfigError(f"human labels in {path} cannot be read: {error}") from None
    if labels.shape != (samples,):
        raise ConfigError(f"human labels in {path} have the shape {labels.shape}; {samples} are needed, one a sample")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ConfigError(f"human labels in {path} run from {labels.min()} to {labels.max()}, not 0 to {classes - 1}")
    return labels


def _column(path: Path, name: str) -> np.ndarray:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as members:
            if name not in members.files:
                raise ConfigError(f"human labels: {path} has no {name!r}; it has {', '.join(members.files)}")
            return members[name]
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if name not in (rows.fieldnames or ()):
            raise ConfigError(f"human labels: {path} has no column {name!r}; it has {', '.join(rows.fieldnames or ())}")
        return np.array([int(row[name]) for row in rows], np.int64)
