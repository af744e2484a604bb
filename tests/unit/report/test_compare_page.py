"""The pages of a comparison: all figures are there, nothing of the data becomes markup, images are drawn by group."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from trainref_ray.report.compare_page import render_comparison, render_confidence
from trainref_ray.report.comparison import Row, tabulate
from trainref_ray.report.confidence import Confidence, confidence_content

CLASSES = ["cat", "dog", "<script>alert(1)</script>"]


def confidence() -> Confidence:
    ours = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.9, 0.05, 0.05]])
    theirs = np.array([[0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([0, 1, 2, 2, -1])
    content = confidence_content(
        [ours, theirs], labels, names=("trainref", "DISC"), class_names=CLASSES, temperatures=(1.5, 2.0), size=8, seed=0
    )
    return content.with_images(lambda rows: {row: picture(row) for row in rows})


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 40 * value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_images_are_grouped_by_who_is_right() -> None:
    groups = confidence().groups
    assert [group.name for group in groups] == [
        "only trainref is right",
        "only DISC is right",
        "both are right",
        "both are wrong",
    ]
    assert [[card.row for card in group.cards] for group in groups] == [[0, 2], [], [1], [3]]
    assert [group.count for group in groups] == [2, 0, 1, 1]
    assert confidence().tests == 4  # the fifth has no known class


def test_the_largest_classes_come_first() -> None:
    first = confidence().groups[0].cards[0]
    assert first.truth == "cat"
    assert first.sides[0].top == [("cat", 0.8), ("dog", 0.1), (CLASSES[2], 0.1)]
    assert first.sides[0].right
    assert first.sides[1].top[0] == ("dog", 0.6)
    assert not first.sides[1].right


def test_no_more_images_than_asked_for_are_drawn_alike_under_a_seed() -> None:
    random = np.random.default_rng(0)
    probabilities = [random.dirichlet(np.ones(3), 400) for _ in range(2)]

    def rows(seed: int, size: int = 8) -> list[list[int]]:
        content = confidence_content(
            probabilities,
            np.zeros(400, np.int64),
            names=("a", "b"),
            class_names=CLASSES,
            temperatures=(1.0, 1.0),
            size=size,
            seed=seed,
        )
        return [[card.row for card in group.cards] for group in content.groups]

    assert [len(group) for group in rows(0)] == [2, 2, 2, 2]
    assert [len(group) for group in rows(0, size=10)] == [2, 2, 3, 3]
    assert [len(group) for group in rows(0, size=1)] == [0, 0, 0, 1]
    assert rows(0) == rows(0) != rows(1)


def test_the_confidence_page_escapes_and_asks_for_nothing() -> None:
    html = render_confidence(confidence())
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r'(?:src|href)="(?!data:|#|compare\.html)', html)
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    assert "Only trainref is right" in html


@pytest.fixture(scope="module")
def page() -> str:
    rows = [
        Row("trainref", 0, {"accuracy": 0.7, "ece_ts": 0.05}, {"accuracy": (0.6, 0.8)}, 12.0, 900),
        Row("<b>disc_1</b>", 0, {"accuracy": 0.6, "ece_ts": 0.04}, {"accuracy": (0.5, 0.7)}, 11.0, 901),
        Row("broken", 0, error="ValueError: <i>bad</i>"),
    ]
    settings = {"out": "runs/x", "tracking": {"uri": "http://me:secret@host/"}}
    return render_comparison(tabulate(rows), "Comparison", ["a <note>"], settings, has_confidence=True)


def test_the_comparison_page_shows_figures_and_escapes(page: str) -> None:
    assert "<strong>0.700</strong><small>(0.600–0.800)</small>" in page
    assert "<strong>0.040</strong>" in page  # a lower calibration error is better
    assert "<strong>0.050</strong>" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;disc_<wbr>1&lt;/b&gt;</th>" in page  # a long name breaks between its words
    assert "<i>bad" not in page
    assert "a &lt;note&gt;" in page
    assert "secret" not in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#|confidence\.html)', page)


def test_mean_spread_and_seeds_stand_apart_where_a_seed_is_missing() -> None:
    rows = [
        Row("trainref", 0, {"accuracy": 0.70}),
        Row("trainref", 1, {"accuracy": 0.72}),
        Row("disc", 0, {"accuracy": 0.6}, {"accuracy": (0.5, 0.7)}),
        Row("disc", 1, error="x"),
        Row("knn", 0, {"accuracy": 0.9}),
        Row("knn", 1, error="x"),
        Row("mixup", 0, {"accuracy": 0.6}),
        Row("mixup", 1, {"accuracy": 0.6}),
    ]
    html = render_comparison(tabulate(rows), "Comparison", [], {}, has_confidence=False)
    assert re.findall(r'<td class="number">(.*?)</td>', html)[:4] == [
        "<strong>0.710</strong><small>± 0.014</small>",
        "0.600<small>(0.500–0.700)</small><small>1 of 2 seeds</small>",
        "0.900<small>1 of 2 seeds</small>",
        "0.600<small>± 0.000</small>",
    ]
    assert "Best first, then those that lack some seeds." in html


def test_a_chart_for_each_headline_figure(page: str) -> None:
    assert page.count("<figure>") == 2
    assert page.count('class="our main"') == 2


def test_without_a_known_class_there_is_nothing_to_set_side_by_side() -> None:
    content = confidence_content(
        [np.full((2, 3), 1 / 3)] * 2,
        np.array([-1, -1]),
        names=("trainref", "DISC"),
        class_names=CLASSES,
        temperatures=(1.0, 1.0),
        size=8,
        seed=0,
    )
    assert content is None
