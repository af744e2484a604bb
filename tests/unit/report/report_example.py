"""A small report with every part, from real images: scikit-learn's handwritten digits."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from trainref_ray.config import DecideSettings
from trainref_ray.evaluate.metrics import ReliabilityBins
from trainref_ray.report.content import Figure, Reliability, ReportContent, SampleCard, SupporterCard, Table

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS = load_digits()


def digit(row: int) -> bytes:
    """The PNG of an 8 x 8 digit."""
    file = io.BytesIO()
    Image.fromarray((DIGITS.images[row] / 16 * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def sample(decision: str, given: str, leading: str, row: int = 8, quality: float = 0.031) -> SampleCard:
    """A card whose supporters are the next images; `leading` has probability 0.7."""
    supporters = [
        SupporterCard(f"s-{row}-{place}", digit(row + place), leading, 1 - 0.03 * place, place == 1)
        for place in (1, 2, 3, 4)
    ]
    top = [(leading, 0.7), ("three", 0.2), ("nine", 0.1)]
    reason = f"{leading} leads with 0.70"
    return SampleCard(f"digit-{row}", digit(row), given, leading, decision, quality, 0.2, reason, top, supporters)


EXAMPLE = ReportContent(
    title="Digits",
    created="2026-01-02 03:04 UTC",
    headline=[
        Figure("noise_auroc", "Wrong labels found", 0.973, (0.968, 0.978), "", "higher", "how well they are ranked"),
        Figure("references", "References", 50, None, "", None, "given by a person"),
    ],
    results=Table(
        ["noise_auroc", "ece_ts"],
        [("cross-entropy", [None, 0.05]), ("one reference a class", [0.94, None]), ("trainref", [0.973, 0.012])],
        ["higher", "lower"],
    ),
    counts={"samples": 1500, "keep": 900, "relabel": 400, "soften": 100, "ood": 98, "quarantined": 2},
    class_names=CLASS_NAMES,
    noisy_counts=[150] * 10,
    curated_counts=[140.5 + 2 * number for number in range(10)],
    true_counts=[145] * 10,
    gallery=[
        sample("relabel", "six", "eight", 8, 0.031),
        sample("soften", "five", "two", 20, 0.4),
        sample("keep", "one", "one", 30, 0.95),
    ],
    ood_gallery=[
        SampleCard("patch-1", digit(40), "two", "none of the classes", "ood", 0.1, 0.93, "0.930 is above 0.5")
    ],
    random_ood=[SampleCard("patch-2", digit(41), "two", "none of the classes", "ood", 0.1, 0.7, "0.700 is above 0.5")],
    quarantine=[("k-1", "3", "image cannot be decoded"), ("k-2", "3", "no label")],
    quarantine_total=2,
    reliability=[
        Reliability(name, ReliabilityBins(np.array([0.45, 0.97]), np.array([0.3, 0.99]), np.array([40, 60])), ece)
        for name, ece in (("before temperature scaling", 0.143), ("after temperature scaling", 0.021))
    ],
    stages=[
        {
            "name": "embeddings",
            "round": 1,
            "seconds": 65.0,
            "items": 1500,
            "items_per_second": 23.1,
            "shards": 8,
            "shards_reused": 3,
        }
    ],
    decide=DecideSettings(keep_at=0.6),
    settings={"seed": 0, "vote": {"k": 10}, "data": ["a.tar", "b.tar"]},
    versions={"python": "3.11"},
    notes=["50 references were given."],
)


def many_classes(number: int) -> ReportContent:
    """A report with class i changed by i samples."""
    return ReportContent(
        "Many",
        "today",
        class_names=[f"class-{label:04d}" for label in range(number)],
        noisy_counts=[1000.0] * number,
        curated_counts=[1000.0 + label for label in range(number)],
    )
