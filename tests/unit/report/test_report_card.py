"""The dataset card: figures, escaping, and what is missing."""

from __future__ import annotations

import dataclasses

import pytest
import yaml
from report_example import EXAMPLE, many_classes

from trainref_ray.report.card import dataset_card, escape, size_category
from trainref_ray.report.content import ReportContent


def test_the_card_holds_the_figures() -> None:
    card = dataset_card(EXAMPLE)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["size_categories"] == ["1K<n<10K"]
    for line in (
        "# Digits",
        "1,500 images of 10 classes with noisy labels, compared with a small trusted reference set and given curated "
        "label distributions. Made on 2026-01-02 03:04 UTC by trainref-ray.",
        "| relabel | 400 | 26.7 % | Another class leads clearly, at an entropy below 0.8 bit: the whole distribution "
        "is the label. |",
        "- Wrong labels found: **0.973**, 95 % CI 0.968 – 0.978: how well they are ranked",
        "| trainref | **0.973** | **0.012** |",
        "| one reference a class | 0.940 | – |",
        "| zero | 150 | 140 |",
        "Versions: python 3.11.",
    ):
        assert line in card.splitlines(), line


def test_names_cannot_become_markup_or_new_columns() -> None:
    hostile = "a|b\n# c <script> [x](y) `z`"
    card = dataset_card(dataclasses.replace(EXAMPLE, class_names=[hostile, *EXAMPLE.class_names[1:]], title=hostile))
    assert "<script>" not in card
    assert escape(hostile) == r"a\|b \# c &lt;script\> \[x\](y) \`z\`"
    assert f"| {escape(hostile)} | 150 | 140 |" in card.splitlines()


def test_an_empty_run_and_a_thousand_classes() -> None:
    empty = dataset_card(ReportContent("Empty", "today"))
    for sentence in ("No sample was decided.", "No results: nothing was measured.", "No class counts were recorded."):
        assert sentence in empty
    many = dataset_card(many_classes(1000))
    assert many.count("| class-") == 40
    assert "each of the other 960 changed by at most 959." in many


@pytest.mark.parametrize(
    ("samples", "name"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (2_400_000, "1M<n<10M"), (10**7, "n>10M")]
)
def test_size_names(samples: int, name: str) -> None:
    assert size_category(samples) == name
