"""The page: everything is escaped, nothing is fetched, and missing parts are named."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_example import CLASS_NAMES, EXAMPLE, many_classes, sample

from trainref_ray.config import DecideSettings
from trainref_ray.report.content import ReportContent
from trainref_ray.report.page import (
    decision_words,
    flat_settings,
    format_duration,
    format_interval,
    format_percent,
    format_value,
    render,
    render_ood,
)

ATTACK = "<script>alert(1)</script>"
QUOTES = """a"b'c&d onload=x"""
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, text outside of style and script, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute: {names}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_hostile_names_and_keys_stay_text() -> None:
    hostile = sample("relabel", ATTACK, ATTACK)
    hostile = dataclasses.replace(hostile, key=QUOTES, truth=ATTACK, reason=ATTACK)
    content = dataclasses.replace(
        EXAMPLE,
        title=ATTACK,
        class_names=[ATTACK, *CLASS_NAMES[1:]],
        gallery=[hostile],
        ood_gallery=[hostile],
        quarantine=[(QUOTES, ATTACK, ATTACK)],
        quarantine_total=1,
        notes=[ATTACK],
        settings={ATTACK: {"x": QUOTES}},
        versions={ATTACK: ATTACK},
        stages=[{**EXAMPLE.stages[0], "name": ATTACK}],
    )
    html = render(content)
    page = Page(html)
    assert html.count("<script") == 1
    assert ATTACK not in html
    assert page.text.count(ATTACK) > 10
    assert f"Sample {QUOTES}, given label {ATTACK}" in [image["alt"] for image in page.all("img")]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_names_are_set_apart_from_the_text_around_them() -> None:
    """One that reverses the direction of writing would else mirror what follows."""
    card = dataclasses.replace(sample("soften", "\u202eone", "two"), truth="\u202ethree")
    content = dataclasses.replace(EXAMPLE, gallery=[card], ood_gallery=[card], random_ood=[card])
    for html, places in ((render(content), 2), (render_ood(content), 1)):
        assert html.count("<bdi>\u202ethree</bdi>") == places
        assert html.count("<bdi>\u202eone</bdi>") >= places


def test_nothing_is_fetched_and_only_the_own_style_and_script_are_allowed() -> None:
    html = render(EXAMPLE)
    assert not re.search(r"""(src|href|srcset|action|data|poster)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"url\(\s*[\"']?(?!#hatch-\d+\))", html)
    assert "@import" not in html
    page = Page(html)
    assert all(link["href"] is not None and link["href"].startswith(("#", "ood.html")) for link in page.all("a"))
    assert all(image["src"] is not None and image["src"].startswith("data:image/") for image in page.all("img"))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not any("style" in attributes for _, attributes in page.elements)


def test_images_have_alternatives_tables_have_heads_and_links_have_targets() -> None:
    page = Page(render(EXAMPLE))
    assert all(image["alt"] for image in page.all("img"))
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    assert len(page.all("table")) == len(page.all("caption"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(link["href"]).removeprefix("#") for link in page.all("a")} <= {*ids, "ood.html"}


def test_the_figures_of_the_run_are_on_the_page() -> None:
    text = " ".join(Page(render(EXAMPLE)).text.split())
    for expected in (
        "0.973",
        "95 % CI 0.968 – 0.978",
        "↑ higher is better",
        "six → eight, truth eight",
        "Label quality 0.031: eight leads with 0.70",
        "The given label, six, is not among them.",
        "cosine 0.97",
        "1 min 05 s",
        "3 of 8",
        "calibration error 0.143",
        "2 samples could not be used",
        "image cannot be decoded",
        "vote.k",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("settings", "keep", "relabel"),
    [
        (DecideSettings(), "at least 0.5: the whole distribution is", "below 0.8 bit: the whole distribution is the"),
        (DecideSettings(keep_at=0.3, keep_as="hard"), "at least 0.3: it alone is the label. Trusted references", "bit"),
        (DecideSettings(relabel_entropy=1.2, relabel_as="hard"), "0.5", "below 1.2 bit: it alone is the label."),
    ],
)
def test_decisions_are_explained_by_their_settings(settings: DecideSettings, keep: str, relabel: str) -> None:
    words = decision_words(settings)
    assert keep in words["keep"]
    assert relabel in words["relabel"]
    text = Page(render(dataclasses.replace(EXAMPLE, decide=settings))).text
    assert all(word in text for word in words.values())


def test_best_values_are_bold() -> None:
    html = render(EXAMPLE)
    assert "<strong>0.973</strong>" in html
    assert "<strong>0.940</strong>" not in html


def test_a_page_without_data_says_so_in_every_section() -> None:
    page = Page(render(ReportContent("Empty", "today")))
    empty = [attributes for tag, attributes in page.elements if tag == "p" and attributes.get("class") == "empty"]
    sections = len(page.all("section"))
    assert sections == 10
    assert len(empty) == sections + 1  # settings and versions are two parts of one section
    assert page.all("img") == []


@pytest.mark.parametrize("field", [entry.name for entry in dataclasses.fields(ReportContent)][2:])
def test_each_part_may_be_missing(field: str) -> None:
    assert getattr(ReportContent("", ""), field) != getattr(EXAMPLE, field)
    without = dataclasses.replace(EXAMPLE, **{field: getattr(ReportContent("", ""), field)})
    if field == "class_names":
        without = dataclasses.replace(without, noisy_counts=(), curated_counts=(), true_counts=None)
    if field == "curated_counts":
        without = dataclasses.replace(without, noisy_counts=())
    Page(render(without))


def test_a_sample_without_picture_distribution_and_supporters() -> None:
    card = dataclasses.replace(EXAMPLE.gallery[0], image=b"", top=(), supporters=(), truth=None)
    page = Page(render(dataclasses.replace(EXAMPLE, gallery=[card], ood_gallery=[])))
    assert "no picture" in page.text
    assert "No distribution was written." in page.text
    assert "No supporters." in page.text


def test_a_thousand_classes_show_the_largest_changes() -> None:
    content = many_classes(1000)
    html = render(content)
    page = Page(html)
    assert page.text.count("class-0") == 40
    assert "class-0999" in page.text  # changes grow with the number in this example
    assert "class-0959" not in page.text
    assert "each of the other 960 changed by at most 959" in page.text
    assert len(html) < 300_000


def test_numbers_as_text() -> None:
    assert format_value(1234567) == "1,234,567"
    assert format_value(0.12345) == "0.123"
    assert format_value(0.5, "%") == "50.0 %"
    assert format_value(12, "images") == "12 images"
    assert format_value(None) == "–"
    assert format_value(np.float64(2.5)) == "2.500"
    assert format_interval((0.94, 0.96), "%") == "94.0 – 96.0 %"
    assert format_percent(0.01) == "< 0.1 %"
    assert format_percent(0) == "0.0 %"
    assert [format_duration(value) for value in (0.04, 59.94, 61, 3599.7, 7384)] == [
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "1 h 00 min",
        "2 h 03 min",
    ]


def test_settings_are_flat_and_passwords_hidden() -> None:
    settings = {"tracking": {"uri": "http://me:secret@host:5000/x"}, "data": ["a", "s3://key:token@bucket"], "none": []}
    assert dict(flat_settings(settings)) == {
        "tracking.uri": "http://***@host:5000/x",
        "data": "a, s3://***@bucket",
        "none": "–",
    }
    assert dict(flat_settings({"mail": "a@b", "url": "https://host/path@2"})) == {
        "mail": "a@b",
        "url": "https://host/path@2",
    }


def test_the_page_of_random_ood_images_shows_each_and_marks_those_of_a_class() -> None:
    foreign = EXAMPLE.ood_gallery[0]
    known = dataclasses.replace(foreign, key="digit-1", truth="three")
    page = Page(render_ood(dataclasses.replace(EXAMPLE, random_ood=[foreign, known])))
    assert "2 of the 98 images" in page.text
    assert "those that do belong to a class are marked with it" in page.text
    assert "truth unknown" not in page.text
    assert page.text.count("is three") == 1
    assert "is none of the classes" not in page.text
    assert len(page.all("img")) == 2
    assert [link["href"] for link in page.all("a")] == ["index.html#ood"]


def test_the_page_of_random_ood_images_marks_those_of_which_nothing_is_known_among_others() -> None:
    known = EXAMPLE.ood_gallery[0]
    unknown = dataclasses.replace(known, truth=None)
    page = Page(render_ood(dataclasses.replace(EXAMPLE, random_ood=[known, unknown, unknown], true_counts=None)))
    assert page.text.count("truth unknown") == 2
    assert "are marked with it" in page.text
    page = Page(render_ood(dataclasses.replace(EXAMPLE, random_ood=[unknown])))
    assert "truth" not in page.text
    assert "are marked" not in page.text


def test_hostile_text_on_the_page_of_random_ood_images_stays_text() -> None:
    hostile = dataclasses.replace(sample("ood", ATTACK, ATTACK), key=QUOTES, truth=ATTACK, reason=ATTACK)
    html = render_ood(dataclasses.replace(EXAMPLE, random_ood=[hostile]))
    assert ATTACK not in html
    assert "<script" not in html
    assert Page(html).text.count(ATTACK) == 2
