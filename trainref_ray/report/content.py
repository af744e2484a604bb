"""Everything the report shows, as plain data between the code that fills it from a run and the code that renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainref_ray.config import DecideSettings
from trainref_ray.evaluate.metrics import ReliabilityBins

DIRECTIONS = ("higher", "lower", None)

METRIC_LABELS = {
    "noise_auroc": "Wrong labels, AUROC",
    "noise_ap": "Wrong labels, average precision",
    "noise_f1": "Wrong labels, F1",
    "quality_ece": "Label quality, calibration error",
    "relabel_accuracy": "Curated labels right",
    "soft_nll": "Soft labels, log loss",
    "soft_kl": "Soft labels, KL divergence",
    "ood_auroc": "Foreign images, AUROC",
    "ood_fpr95": "Foreign images, FPR at 95 % TPR",
    "ood_ap": "Foreign images, average precision",
    "accuracy": "Test accuracy",
    "nll": "Log loss",
    "brier": "Brier score",
    "ece": "Calibration error",
    "ece_mass": "Calibration error, equal mass",
}
"""METHOD 7's names in words; the suffix `_ts` means after temperature scaling."""

FEWER_REFERENCES = "references_per_class_"
"""Begins the name of a baseline that is a curation with so many references a class."""


def metric_label(name: str) -> str:
    """The words for a metric of `summary.json`; an unknown name stays as it is."""
    base = name.removesuffix("_ts")
    return METRIC_LABELS.get(base, base) + (", scaled" if name.endswith("_ts") else "")


def baseline_label(name: str) -> str:
    """The words for a baseline of `summary.json`."""
    if name == "cross_entropy":
        return "first model (cross-entropy)"  # of the pre-training alone, which trainref trains on from
    count = name.removeprefix(FEWER_REFERENCES)
    return f"trainref before fine-tuning, {count} {'reference' if count == '1' else 'references'} a class"


@dataclass(frozen=True)
class Figure:
    """One headline figure.

    Attributes:
        name: its name in `summary.json`.
        label: its name in words.
        value: an integer is a count, a float a measurement.
        interval: ends of its 95 % interval, in the value's unit.
        unit: "" = none; "%" = the value is a share, 0 to 1, shown in percent; anything else stands behind the number.
        better: "higher", "lower", or None where neither is.
        meaning: what it says, in one sentence.
    """

    name: str
    label: str
    value: float | int
    interval: tuple[float, float] | None
    unit: str
    better: str | None
    meaning: str

    def __post_init__(self) -> None:
        _check_direction(self.better, f"figure {self.name!r}")


@dataclass(frozen=True)
class Table:
    """Metrics of several methods.

    Attributes:
        columns: names of the metrics, as in `summary.json`.
        rows: name of the method and its values in the columns' order; None = not measured.
        better: "higher", "lower" or None for each column; the best value is shown in bold.
    """

    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[float | int | None]]] = ()
    better: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        if len(self.better) != len(self.columns):
            raise ValueError(f"results: {len(self.columns)} columns, but {len(self.better)} directions in `better`")
        for column, better in zip(self.columns, self.better, strict=True):
            _check_direction(better, f"column {column!r}")
        for name, values in self.rows:
            if len(values) != len(self.columns):
                raise ValueError(f"results: row {name!r} has {len(values)} values for {len(self.columns)} columns")


def _check_direction(better: str | None, where: str) -> None:
    if better not in DIRECTIONS:
        raise ValueError(f"{where}: better is {better!r}; allowed: {', '.join(map(repr, DIRECTIONS))}")


@dataclass(frozen=True)
class SupporterCard:
    """A supporter of a sample in the gallery.

    Attributes:
        key: name of the image.
        image: the image file's bytes.
        label: name of its class.
        similarity: cosine, -1 to 1.
        given: true = from the reference set, false = added by augmentation.
    """

    key: str
    image: bytes
    label: str
    similarity: float
    given: bool


@dataclass(frozen=True)
class SampleCard:
    """A sample in a gallery.

    Attributes:
        key: name of the image.
        image: the image file's bytes.
        given: name of the given label.
        truth: name of the true label, None where it is not known.
        decision: one of `schemas.DECISIONS`.
        label_quality: 0 to 1, higher = the given label is more likely right.
        ood_score: 0 to 1, higher = stranger.
        reason: why this decision.
        top: the largest classes of the curated distribution and their probabilities, largest first.
        supporters: the most similar supporters, most similar first.
    """

    key: str
    image: bytes
    given: str
    truth: str | None
    decision: str
    label_quality: float
    ood_score: float
    reason: str
    top: Sequence[tuple[str, float]] = ()
    supporters: Sequence[SupporterCard] = ()

    @property
    def leading(self) -> str | None:
        """Name of the largest class, None without a distribution."""
        return self.top[0][0] if self.top else None


@dataclass(frozen=True)
class Reliability:
    """One reliability diagram.

    Attributes:
        name: which model, before or after temperature scaling.
        bins: confidence, accuracy and samples of each bin.
        ece: expected calibration error, 0 to 1, None where it is not defined.
    """

    name: str
    bins: ReliabilityBins
    ece: float | None


@dataclass(frozen=True)
class ReportContent:
    """All of the report. What a run does not have stays empty, and the page says so.

    Attributes:
        title: of the page.
        created: date and time, as shown.
        headline: the figures that matter most.
        results: the method beside what it is compared with.
        counts: samples of each of `schemas.DECISIONS`; other keys are ignored.
        class_names: C names.
        noisy_counts: [C] samples of each given label.
        curated_counts: [C] sums of the soft labels.
        true_counts: [C] samples of each true label, None unless it is known of all usable samples.
        gallery: samples with their soft labels.
        ood_gallery: samples called out-of-distribution, the strangest first.
        random_ood: samples called out-of-distribution, drawn at random.
        quarantine: key, shard and reason of the first samples that could not be used.
        quarantine_total: all of them.
        reliability: diagrams, e.g. before and after temperature scaling.
        stages: records with name, round, seconds, items, items_per_second, shards, shards_reused.
        decide: the settings by which it was decided, for the words that explain the decisions.
        settings: nested settings of the run.
        versions: package -> version.
        notes: sentences a reader should know.
    """

    title: str
    created: str
    headline: Sequence[Figure] = ()
    results: Table = field(default_factory=Table)
    counts: Mapping[str, int] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    noisy_counts: Sequence[float] = ()
    curated_counts: Sequence[float] = ()
    true_counts: Sequence[float] | None = None
    gallery: Sequence[SampleCard] = ()
    ood_gallery: Sequence[SampleCard] = ()
    random_ood: Sequence[SampleCard] = ()
    quarantine: Sequence[tuple[str, str, str]] = ()
    quarantine_total: int = 0
    reliability: Sequence[Reliability] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    decide: DecideSettings = field(default_factory=DecideSettings)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
