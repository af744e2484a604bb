"""Label noise of known kind and rate (METHOD 7), for data whose true labels are known."""

from __future__ import annotations

import codecs
import csv
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from trainref_ray.errors import ConfigError

Kind = Literal["none", "sym", "symflip", "asym", "instance", "human"]
ALLOWED = (
    "none, sym:RATE, symflip:RATE, asym:RATE, instance:RATE, human:FILE.npy, human:FILE.npz:NAME, human:FILE.csv:NAME "
    "or human:FILE.pt:NAME"
)
CLEAN_COLUMN = "clean_label"
"""Column with the true labels in the files of CIFAR-10N and CIFAR-100N."""
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
    - `human:FILE`: labels that people gave, from an npy, npz, csv or pt file, in the order of `labels`; such as
      CIFAR-N's (Wei et al. 2022), `human:CIFAR-10_human.pt:worse_label`.

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
        return read_human_labels(noise, labels, classes)
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


def read_human_labels(noise: NoiseSpec, true_labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels of a file, int64 [N]: an npy array, or a column of an npz, of a csv with a line of names, or of a pt file.

    Where the file has a column `clean_label` (CIFAR-N's have), it must be equal to the true labels: else the file is of
    another data set, or in another order.

    Args:
        noise: the file, and the column's name.
        true_labels: int64 [N].
        classes: C.

    Raises:
        ConfigError: no such file or column, another length or order, or labels that are no class.
    """
    path = Path(noise.file)
    if path.suffix not in READERS:
        raise ConfigError(f"human labels {noise.file!r}: allowed are {', '.join(READERS)} files")
    if not path.is_file():
        raise ConfigError(f"human labels: {path} does not exist")
    name = "" if path.suffix == ".npy" else noise.column
    try:
        columns = READERS[path.suffix](path)
        if name not in columns:
            raise ConfigError(f"human labels: {path} has no column {name!r}; it has {', '.join(columns)}")
        labels = _as_labels(columns[name], path, len(true_labels))
        clean = _as_labels(columns[CLEAN_COLUMN], path, len(true_labels)) if CLEAN_COLUMN in columns else true_labels
    except (ValueError, TypeError, csv.Error, zipfile.BadZipFile) as error:
        raise ConfigError(f"human labels in {path} cannot be read: {error}") from None
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ConfigError(f"human labels in {path} run from {labels.min()} to {labels.max()}, not 0 to {classes - 1}")
    different = clean != true_labels
    if different.any():
        raise ConfigError(
            f"human labels in {path}: its {CLEAN_COLUMN} differs from the true labels in {different.sum():,} of "
            f"{len(different):,} samples, first in number {different.argmax()}; it is of other data or in another order"
        )
    return labels


def _as_labels(values: np.ndarray, path: Path, samples: int) -> np.ndarray:
    if values.shape != (samples,):
        raise ConfigError(f"human labels in {path} have the shape {values.shape}; {samples} are needed, one a sample")
    # A csv has text; all other files must have whole numbers.
    return values.astype(np.int64, casting="unsafe" if path.suffix == ".csv" else "safe")


def _read_npy(path: Path) -> dict[str, np.ndarray]:
    return {"": np.load(path, allow_pickle=False)}


def _read_npz(path: Path) -> Mapping[str, np.ndarray]:
    return np.load(path, allow_pickle=False)  # a mapping that reads a member when it is asked for


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns: dict[str, list[str]] = {name: [] for name in rows.fieldnames or ()}
        for row in rows:
            for name, values in columns.items():
                values.append(row[name])
    return {name: np.array(values) for name, values in columns.items()}


def _read_pt(path: Path) -> dict[str, np.ndarray]:
    """Arrays and tensors of a dictionary saved by torch.

    Loading is restricted to tensors and arrays of whole numbers, so that nothing in the file is run.

    Raises:
        ConfigError: the file holds anything else.
    """
    import torch  # here: its import takes seconds, and other files do not need it

    try:
        with torch.serialization.safe_globals(_array_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged files torch raises any of a dozen kinds
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"human labels: {path} cannot be loaded safely, it is more than a dictionary of labels, or damaged "
            f'({reason}). If you trust it, export it to an npz file: python -c "import numpy, torch; '
            f"numpy.savez('labels.npz', **torch.load('{path.name}', weights_only=False))\""
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"human labels: {path} holds a {type(content).__name__}, not a dictionary of arrays")
    return {str(name): np.asarray(values) for name, values in content.items()}


def _array_globals() -> list[Any]:
    """What a saved array of whole numbers is made of, under the names of numpy 1 and 2."""
    reconstruct = np.zeros(0).__reduce__()[0]
    kinds = [type(np.dtype(code)) for code in np.typecodes["AllInteger"]]
    return [
        *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        np.ndarray,
        np.dtype,
        codecs.encode,
        *kinds,
    ]


READERS: dict[str, Callable[[Path], Mapping[str, np.ndarray]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".pt": _read_pt,
}
