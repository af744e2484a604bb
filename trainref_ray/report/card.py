"""The dataset card: what a curated set holds and how it came about, as Markdown that travels with the set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from trainref_ray.report.content import ReportContent, metric_label
from trainref_ray.report.figures import best_rows, class_changes, decision_segments
from trainref_ray.report.page import (
    MISSING,
    decision_words,
    format_count,
    format_interval,
    format_percent,
    format_value,
)

SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
"""Names of sizes in the metadata block of dataset cards, and below which number of samples each holds."""
LARGEST_SIZE = "n>10M"


def dataset_card(content: ReportContent) -> str:
    """The card as Markdown with a metadata block. Texts of the run are escaped: none becomes markup.

    Args:
        content: the same that the page shows.
    """
    return "\n".join([*_head(content), *_decisions(content), *_figures(content), *_classes(content), *_use(content)])


def _head(content: ReportContent) -> Iterator[str]:
    segments = decision_segments(content.counts)
    samples = sum(segment.count for segment in segments)
    yield from ("---", "task_categories:", "- image-classification", "tags:", "- label-noise", "- soft-labels")
    yield from ("size_categories:", f"- {size_category(samples)}", "---", "")
    yield f"# {escape(content.title)}"
    yield ""
    yield (
        f"{samples:,} images of {len(content.class_names):,} classes with noisy labels, compared with a small trusted "
        f"reference set and given curated label distributions. Made on {escape(content.created)} by trainref-ray."
    )
    yield ""
    yield from (f"- {escape(note)}" for note in content.notes)
    if content.notes:
        yield ""


def _decisions(content: ReportContent) -> Iterator[str]:
    yield from ("## What was decided", "")
    segments = decision_segments(content.counts)
    if not segments:
        yield from ("No sample was decided.", "")
        return
    words = decision_words(content.decide)
    rows = [
        [segment.name, format_count(segment.count), format_percent(segment.share), words[segment.name]]
        for segment in segments
    ]
    yield from _table(["Decision", "Samples", "Share", "Meaning"], rows, numbers={1, 2})


def _figures(content: ReportContent) -> Iterator[str]:
    yield from ("## Figures", "")
    for figure in content.headline:
        interval = f", 95 % CI {format_interval(figure.interval, figure.unit)}" if figure.interval else ""
        value = format_value(figure.value, figure.unit)
        yield f"- {escape(figure.label)}: **{escape(value)}**{escape(interval)}: {escape(figure.meaning)}"
    if content.headline:
        yield ""
    if not content.results.rows:
        yield from ("No results: nothing was measured.", "")
        return
    shown = [[format_value(value) for value in values] for _, values in content.results.rows]
    best = best_rows(content.results, shown)
    rows = [
        [escape(name), *(f"**{text}**" if (row, column) in best else text for column, text in enumerate(shown[row]))]
        for row, (name, _) in enumerate(content.results.rows)
    ]
    heads = ["Method", *(escape(metric_label(name)) for name in content.results.columns)]
    yield from _table(heads, rows, numbers=set(range(1, len(heads))))
    yield from (f"The best value is in bold; {MISSING} was not measured.", "")


def _classes(content: ReportContent) -> Iterator[str]:
    yield from ("## Classes", "")
    classes = class_changes(content)
    if not classes.rows:
        yield from ("No class counts were recorded.", "")
        return
    rows = [[escape(row.name), format_count(row.noisy), format_count(row.curated)] for row in classes.rows]
    yield from _table(["Class", "Given labels", "Curated (sum of soft labels)"], rows, numbers={1, 2})
    if classes.hidden:
        yield from (
            f"These {len(rows)} classes changed most; each of the other {classes.hidden:,} changed by at most "
            f"{format_count(classes.hidden_change)}.",
            "",
        )


def _use(content: ReportContent) -> Iterator[str]:
    yield from ("## Use and limits", "")
    yield "- Train on `soft_label` (largest class first, sums to 1); leave out the decisions `ood` and `quarantined`."
    yield "- `label_quality` is 0 to 1, higher = the given label is more likely right; `ood_score` is cut at 0.5."
    yield "- Labels were compared with the reference set: an error or a bias in it is carried over."
    yield "- Test images and true labels were read for the figures above alone. Licence: that of the source images."
    yield ""
    if content.versions:
        versions = ", ".join(f"{escape(str(name))} {escape(str(number))}" for name, number in content.versions.items())
        yield from (f"Versions: {versions}.", "")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join('---:' if column in numbers else '---' for column in range(len(heads)))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def size_category(samples: int) -> str:
    """The name that dataset cards have for a number of samples."""
    return next((name for name, limit in SIZES if samples < limit), LARGEST_SIZE)


def escape(text: str) -> str:
    """Text as Markdown that shows exactly this text, on one line."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]|~#>$])", r"\\\1", line)
