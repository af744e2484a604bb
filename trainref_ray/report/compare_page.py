"""The pages of a comparison, in the look of the curation report: the whole table, and two models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trainref_ray.report.comparison import GROUPS, ComparisonTable, charts, number, spread_words
from trainref_ray.report.confidence import Confidence
from trainref_ray.report.figures import thumbnail
from trainref_ray.report.page import MISSING, TEMPLATES, flat_settings, page_environment, policy_hash
from trainref_ray.report.scores import METRICS


def render_comparison(
    table: ComparisonTable, title: str, notes: Sequence[str], settings: Mapping[str, Any], *, has_confidence: bool
) -> str:
    """`compare.html`: headline figures as charts, then every figure of every method.

    Args:
        table: the figures.
        title: of the page.
        notes: sentences a reader should know.
        settings: nested settings, shown folded.
        has_confidence: whether `confidence.html` lies beside the page.
    """
    return (
        page_environment()
        .get_template("compare.html.j2")
        .render(
            **_style(),
            title=title,
            table=table,
            groups=[(name, columns) for name, names in GROUPS.items() if (columns := table.columns(names))],
            charts=charts(table),
            spread=spread_words(table),
            better=METRICS,
            notes=notes,
            number=number,
            settings=list(flat_settings(settings)),
            has_confidence=has_confidence,
            missing=MISSING,
        )
    )


def render_confidence(content: Confidence) -> str:
    """`confidence.html`: the same test images with the largest classes of two models."""
    return (
        page_environment().get_template("confidence.html.j2").render(**_style(), content=content, thumbnail=thumbnail)
    )


def _style() -> dict[str, Markup | str]:
    """The report's style sheet and the comparison's, and their hash for the page's policy. They are the package's own
    and hold no data, so they alone are not escaped."""
    style = Markup("\n").join(
        Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "compare.css")
    )
    return {"style": style, "style_hash": policy_hash(style)}
