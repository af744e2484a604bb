"""A sweep's page: what is best and how sure, curves, heat map, and every trial; and the figures as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from trainref_ray.report.page import MISSING, TEMPLATES, flat_settings, page_environment, policy_hash
from trainref_ray.report.sweep_figures import chart, choose_axes, heat_map, value_of
from trainref_ray.run import Storage

CURVES = ("agreement", "relabel_accuracy", "noise_auroc", "ood_auroc", "accuracy", "ece_ts")
"""Metrics that are drawn and listed, where they were measured."""
PAGE = "report/sweep.html"
WORDS = {"agreement": "References left out that agree"}
"""Words for what `content.METRIC_LABELS` does not have."""


def write_sweep_page(summary: dict[str, Any], storage: Storage) -> list[str]:
    """Write `report/sweep.html` and `report/*.svg`; returns where the figures are.

    Args:
        summary: content of `sweep.json`.
        storage: of the sweep.
    """
    figures = sweep_figures(summary)
    for name, svg in figures.items():
        storage.write_bytes(f"report/{name}.svg", svg.encode())
    storage.write_bytes(PAGE, render_sweep(summary, figures).encode())
    return [f"report/{name}.svg" for name in figures]


def sweep_figures(summary: Mapping[str, Any]) -> dict[str, str]:
    """SVG texts by name: a curve for each metric that was measured, and the heat map of the agreement."""
    axes = choose_axes(summary["space"])
    if axes is None:
        return {}
    environment = page_environment()
    environment.filters["metric"] = _words(environment.filters["metric"])
    found = {}
    for metric in measured(summary):
        trials = [trial for trial in _complete(summary) if value_of(trial, metric) is not None]
        curve = chart(trials, summary["space"], axes, metric)
        found[f"{metric}_by_{axes.x}"] = environment.get_template("sweep_chart.svg.j2").render(chart=curve)
    cells = heat_map(_complete(summary), summary["space"], axes, "agreement") if found else None
    if cells is not None:
        found["heat_map"] = environment.get_template("sweep_heat_map.svg.j2").render(map=cells)
    return found


def _complete(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [trial for trial in summary["trials"] if trial["status"] == "complete"]


def measured(summary: Mapping[str, Any]) -> list[str]:
    """Which of `CURVES` at least one complete trial has."""
    return [m for m in CURVES if any(value_of(trial, m) is not None for trial in _complete(summary))]


def _words(known: Any) -> Any:
    return lambda name: WORDS.get(name) or known(name)


def render_sweep(summary: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The page as HTML text; all text of the sweep is escaped, and the page may load nothing.

    Args:
        summary: content of `sweep.json`.
        figures: from `sweep_figures`.
    """
    environment = page_environment()
    environment.filters["metric"] = _words(environment.filters["metric"])
    style = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    axes = choose_axes(summary["space"])
    ranked = summary["settings"]
    return environment.get_template("sweep.html.j2").render(
        summary=summary,
        best=ranked[0] if ranked else None,
        ties=[entry for entry in ranked[1:] if entry["tied"]],
        left_out=max((trial["references_left_out"] for trial in summary["trials"]), default=0),
        axes=axes,
        # drawn by this package's own templates, which escape the sweep's texts
        figures={name: Markup(svg) for name, svg in figures.items()},
        metrics=measured(summary),
        value_of=value_of,
        sure=sureness(ranked),
        style=style,
        style_hash=policy_hash(style),
        settings=list(flat_settings({**summary["config"], "sweep": summary["sweep"]})),
        missing=MISSING,
    )


def sureness(ranked: Sequence[Mapping[str, Any]]) -> str:
    """One sentence on how sure the first place is."""
    if not ranked:
        return "No setting could be ranked."
    if len(ranked) == 1:
        return "No other setting was ranked."
    ties = [entry for entry in ranked[1:] if entry["tied"]]
    if not ties:
        second = ranked[1]
        return (
            f"Ahead of the next, {second['title']}, by {second['behind']:.3f} ± {second['behind_error']:.3f} on the "
            "same references: more than two standard errors."
        )
    count = (
        "The only other setting is" if len(ranked) == 2 else f"{len(ties)} of the other {len(ranked) - 1} settings are"
    )
    return f"{count} within two standard errors of it: these references cannot tell them apart."
