"""The report as one HTML file that needs nothing else: no server, no network, no library."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trainref_ray.config import DecideSettings
from trainref_ray.report.content import ReportContent, metric_label
from trainref_ray.report.figures import best_rows, class_changes, decision_segments, reliability_bars, thumbnail

TEMPLATES = resources.files("trainref_ray.report") / "templates"
MISSING = "–"
"""Stands for a value that was not measured."""
SIGNS = {"keep": "✓", "soften": "≈", "relabel": "→", "ood": "∅", "quarantined": "×"}
"""Of each decision; the sign stands beside the colour wherever the colour is used."""
QUARANTINE_OPEN = 12
"""Quarantined samples that are shown unfolded."""


def decision_words(decide: DecideSettings) -> dict[str, str]:
    """The meaning of each decision under these settings, in a sentence or two."""
    kept = "the whole distribution is the label" if decide.keep_as == "soft" else "it alone is the label"
    leading = "the whole distribution" if decide.relabel_as == "soft" else "it alone"
    return {
        "keep": f"The curated distribution gives the given label at least {decide.keep_at:g}: {kept}. Trusted "
        "references are here too, with their trusted label.",
        "soften": "No class is sure: the whole distribution is the label.",
        "relabel": f"Another class leads clearly, at an entropy below {decide.relabel_entropy:g} bit: {leading} is the "
        "label.",
        "ood": "Unlike every class: left out of training, kept in the tables.",
        "quarantined": "Cannot be read or decoded: left out, with a reason.",
    }


def page_environment() -> Environment:
    """Templates of the report, with escaping on, an undefined name an error, and the formats of figures as filters."""
    environment = Environment(
        loader=PackageLoader("trainref_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        value=format_value,
        interval=format_interval,
        count=format_count,
        percent=format_percent,
        duration=format_duration,
        metric=metric_label,
    )
    return environment


def render(content: ReportContent) -> str:
    """The page as HTML text.

    Every text of the run is escaped. A content security policy forbids all requests, and every style and script but
    the two of this page.

    Args:
        content: what to show; empty parts are named as missing.
    """
    environment = page_environment()
    # the two files are the package's own and hold no data, so they alone are not escaped
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    shown = [[format_value(value) for value in values] for _, values in content.results.rows]
    return environment.get_template("page.html.j2").render(
        content=content,
        style=style,
        script=script,
        style_hash=policy_hash(style),
        script_hash=policy_hash(script),
        segments=decision_segments(content.counts),
        classes=class_changes(content),
        gallery_classes=sorted({name for card in content.gallery for name in (card.given, card.leading) if name}),
        bars=reliability_bars,
        thumbnail=thumbnail,
        shown=shown,
        best=best_rows(content.results, shown),
        settings=list(flat_settings(content.settings)),
        signs=SIGNS,
        words=decision_words(content.decide),
        quarantine_open=QUARANTINE_OPEN,
        missing=MISSING,
    )


def render_ood(content: ReportContent) -> str:
    """The page of images called out of distribution, drawn at random, as HTML text, escaped and locked as well."""
    style = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return (
        page_environment()
        .get_template("ood.html.j2")
        .render(content=content, style=style, style_hash=policy_hash(style), thumbnail=thumbnail)
    )


def policy_hash(text: str) -> str:
    """What a content security policy calls this very text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def format_value(value: float | int | None, unit: str = "") -> str:
    """A figure as text: integers with separators, other numbers with three decimals; see `content.Figure.unit`."""
    if value is None:
        return MISSING
    if unit == "%":
        return f"{100 * value:.1f} %"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
    return f"{text} {unit}" if unit else text


def format_interval(interval: tuple[float, float], unit: str = "") -> str:
    """Both ends of an interval as text, the unit behind the second."""
    low, high = (format_value(end, unit) for end in interval)
    return f"{low.removesuffix(f' {unit}')} – {high}"


def format_count(value: float) -> str:
    """A number of samples; sums of soft labels are rounded."""
    return f"{value:,.0f}"


def format_percent(share: float) -> str:
    """A share in percent, 0 to 100, as text. What is there but rounds to nothing stays visible."""
    if 0 < share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %"


def format_duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted names and text. Passwords inside addresses are hidden: a report is passed on."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{name}", re.sub(r"(\w://)[^/@\s]+@", r"\1***@", text) or MISSING
