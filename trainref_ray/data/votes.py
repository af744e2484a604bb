"""People's votes beside an image: a field of KEY.json with a number for each class. For evaluation alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from trainref_ray.data.samples import lookup
from trainref_ray.data.shards import open_shard
from trainref_ray.data.tar_reader import iter_raw_samples
from trainref_ray.errors import ShardError


def read_votes(url: str, field: str, *, classes: int, rows: int, max_bytes: int) -> np.ndarray:
    """Distributions of people's votes for the first samples of a shard.

    Args:
        url: the shard.
        field: of KEY.json, a nested one with dots: a list of C counts or probabilities.
        classes: C.
        rows: samples to read.
        max_bytes: largest size of a sample's files.

    Returns:
        float64 [rows, C], each row sums to 1; NaN where a sample has no such field.

    Raises:
        ShardError: a field is no list of C numbers from 0, or all of them are 0.
    """
    found = np.full((rows, classes), np.nan)
    with open_shard(url) as stream:
        samples = iter_raw_samples(stream, max_bytes=max_bytes)
        for row, sample in zip(range(rows), samples, strict=False):
            values = _field(sample.members.get("json"), field)
            if values is None:
                continue
            if not _are_votes(values, classes):
                raise ShardError(
                    f"{url}: field {field!r} of {sample.key!r} must be a list of {classes} numbers from 0, not all 0"
                )
            found[row] = np.array(values, np.float64) / sum(values)
    return found


def has_votes(urls: Iterable[str], field: str, *, max_bytes: int) -> bool:
    """Whether a sample of these shards has the field; once one has, nothing more is read."""
    for url in urls:
        with open_shard(url) as stream:
            for sample in iter_raw_samples(stream, max_bytes=max_bytes):
                if _field(sample.members.get("json"), field) is not None:
                    return True
    return False


def _field(content: bytes | None, field: str) -> Any:
    try:
        facts = json.loads(content) if content is not None else None
    except ValueError:  # such a sample is quarantined, and its row is asked for by nobody
        return None
    return lookup(facts, field)


def _are_votes(values: Any, classes: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == classes
        and all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values)
        and sum(values) > 0
    )
