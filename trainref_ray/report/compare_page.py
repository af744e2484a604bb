"""The pages of a comparison, in the look of the curation report: the whole table, and two models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainref_ray.report.comparison import GROUPS, ComparisonTable, charts, number, spread_words
from trainref_ray.report.confidence import Confidence
from trainref_ray.report.figures import thumbnail
from trainref_ray.report.page import MISSING, flat_settings, make_environment, page_style
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
        make_environment()
        .get_template("compare.html.j2")
        .render(
            **page_style("page.css", "compare.css"),
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
        make_environment()
        .get_template("confidence.html.j2")
        .render(**page_style("page.css", "compare.css"), content=content, thumbnail=thumbnail)
    )
