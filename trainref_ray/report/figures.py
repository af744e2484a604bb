"""Figures of the report as numbers: where bars and points go, and images as small data URIs.

The templates only place what is computed here, so that one drawing serves the light, the dark and the printed page.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from trainref_ray.data.images import ImageError, decode
from trainref_ray.evaluate.metrics import ReliabilityBins
from trainref_ray.report.content import ReportContent, Table

SMALL_IMAGE = 64
"""Up to this long side, pixels, an image is kept exactly and enlarged by a whole factor; above, it is scaled down."""
LARGEST_SIDE = 256
"""Of an embedded image, pixels: a page with 24 samples and their supporters stays below about 2 MB."""
MAX_PIXELS = 178_956_970
"""Largest image that is decoded for a thumbnail: Pillow's own bound (1 GiB / 3 bytes / 2)."""
JPEG_QUALITY = 82
ALL_CLASSES_UP_TO = 40
"""Rows that fit on a screen or a printed page; beyond, only the classes that changed most are shown."""
BINS = 15
"""Of METHOD 7's calibration error."""
DECISION_ORDER = ("keep", "soften", "relabel", "ood", "quarantined")
"""From the given label untouched to the sample left out; the order of the stacked bar."""


@dataclass(frozen=True)
class Thumbnail:
    """An embedded image: data URI, size on the page in CSS pixels, and whether pixels must stay sharp."""

    uri: str
    width: int
    height: int
    sharp: bool


def thumbnail(data: bytes, box: int) -> Thumbnail | None:
    """An image file as a data URI for a square of `box` CSS pixels; None if it cannot be decoded.

    Args:
        data: bytes of a JPEG, PNG or WebP file.
        box: longest side on the page. The file holds up to twice as many pixels (dense screens), at most
            `LARGEST_SIDE`.
    """
    try:
        image = decode(data, max_pixels=MAX_PIXELS).image
    except ImageError:
        return None
    longest = max(image.size)
    sharp = longest <= SMALL_IMAGE
    if sharp:
        # a whole factor: with any other, some pixels would be wider than their neighbours
        scale: float = max(1, box // longest)
    else:
        scale = min(1.0, box / longest)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if not sharp:
        limit = min(LARGEST_SIDE, 2 * box)
        image.thumbnail((limit, limit))
    return Thumbnail(_data_uri(image, "PNG" if sharp else "JPEG"), width, height, sharp)


def _data_uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, optimize=True, **({"quality": JPEG_QUALITY} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Segment:
    """A part of the stacked bar: decision, samples, and start and share in percent of all samples."""

    name: str
    count: int
    start: float
    share: float


def decision_segments(counts: Mapping[str, int]) -> list[Segment]:
    """All five decisions in `DECISION_ORDER`, also those without a sample; empty if there is no sample at all."""
    total = sum(counts.get(name, 0) for name in DECISION_ORDER)
    if not total:
        return []
    segments = []
    before = 0
    for name in DECISION_ORDER:
        count = counts.get(name, 0)
        segments.append(Segment(name, count, 100 * before / total, 100 * count / total))
        before += count
    return segments


@dataclass(frozen=True)
class ClassChange:
    """A class before and after curation: samples by given label, sum of soft labels, and true samples if known."""

    name: str
    noisy: float
    curated: float
    truth: float | None

    @property
    def change(self) -> float:
        """Curated minus noisy."""
        return self.curated - self.noisy


@dataclass(frozen=True)
class ClassChanges:
    """Classes to show; `hidden` others changed by at most `hidden_change` samples. `largest` is the axis' end."""

    rows: list[ClassChange]
    hidden: int
    hidden_change: float
    largest: float


def class_changes(content: ReportContent, limit: int = ALL_CLASSES_UP_TO) -> ClassChanges:
    """All classes in their own order, or the `limit` that changed most, the largest change first."""
    known: Sequence[float | None] = content.true_counts or [None] * len(content.class_names)
    rows = [
        ClassChange(name, noisy, curated, truth)
        for name, noisy, curated, truth in zip(
            content.class_names, content.noisy_counts, content.curated_counts, known, strict=bool(content.noisy_counts)
        )
    ]
    hidden: list[ClassChange] = []
    if len(rows) > limit:
        rows = sorted(rows, key=lambda row: -abs(row.change))
        rows, hidden = rows[:limit], rows[limit:]
    largest = max((value for row in rows for value in (row.noisy, row.curated, row.truth or 0.0)), default=0.0)
    return ClassChanges(rows, len(hidden), max((abs(row.change) for row in hidden), default=0.0), max(largest, 1e-9))


@dataclass(frozen=True)
class ReliabilityBar:
    """One bin of a reliability diagram.

    Attributes:
        position: left edge, 0 to 1; the width is 1 / `BINS`.
        confidence, accuracy: means of the bin, 0 to 1.
        count: samples.
        height: the count's share of the fullest bin, 0 to 1.
    """

    position: float
    confidence: float
    accuracy: float
    count: int
    height: float

    @property
    def overconfident(self) -> bool:
        """Whether the model promises more than it holds."""
        return self.confidence > self.accuracy


def reliability_bars(bins: ReliabilityBins) -> list[ReliabilityBar]:
    """The bins that hold samples, each at the place of its mean confidence."""
    fullest = max(bins.count.tolist(), default=0)
    return [
        ReliabilityBar(_left_edge(confidence), confidence, accuracy, count, count / fullest)
        for confidence, accuracy, count in zip(
            bins.confidence.tolist(), bins.accuracy.tolist(), bins.count.tolist(), strict=True
        )
        if count
    ]


def _left_edge(confidence: float) -> float:
    # bins are open below and closed above; the small step back undoes the rounding of a mean that lies on the edge
    return min(max(math.ceil(confidence * BINS - 1e-9) - 1, 0), BINS - 1) / BINS


def best_rows(table: Table, shown: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
    """(row, column) of the best value of each column with a direction; values that look equal share the place.

    Args:
        table: the results.
        shown: each value as the page shows it.
    """
    best = set()
    for column, better in enumerate(table.better):
        found = [(values[column], row) for row, (_, values) in enumerate(table.rows)]
        measured = [(value, row) for value, row in found if value is not None]
        if better is None or len(measured) < 2:
            continue
        _, winner = (max if better == "higher" else min)(measured)
        best |= {(row, column) for _, row in measured if shown[row][column] == shown[winner][column]}
    return best
