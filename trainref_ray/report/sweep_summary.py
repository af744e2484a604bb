"""`sweep.json`: every trial of a sweep, its settings from the best to the worst, and how sure that order is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trainref_ray.evaluate.ranking import Judgement, rank
from trainref_ray.search_space import CONDITIONS, Point, choice_of, title
from trainref_ray.trials import TrialResult


def summarise_sweep(results: Sequence[TrialResult], space: dict[str, Any]) -> dict[str, Any]:
    """Everything that `sweep.json` holds about the trials.

    Settings are ranked by agreement with the references left out, over all conditions (noise levels, seeds) that were
    tried; a setting that lacks one of these, because its trial failed or was stopped, is not ranked.

    Args:
        results: of all trials.
        space: name of each varied setting and what it takes, for people.
    """
    judged = [(result, judgement) for result in results if (judgement := _judgement(result)) is not None]
    conditions = _distinct([_condition(result.point) for result, _ in judged])
    return {
        "space": space,
        "trials": [_row(result) for result in results],
        "settings": _ranked(judged, len(conditions)),
        "conditions": [
            {
                "condition": condition,
                "settings": _ranked([pair for pair in judged if _condition(pair[0].point) == condition], 1),
            }
            for condition in conditions
            if condition
        ],
    }


def best_point(summary: dict[str, Any]) -> Point | None:
    """The setting that is ranked first, None if none could be ranked."""
    return summary["settings"][0]["setting"] if summary["settings"] else None


def _judgement(result: TrialResult) -> Judgement | None:
    return result.judgement if result.status == "complete" else None


def _condition(point: Point) -> Point:
    return {name: value for name, value in point.items() if name in CONDITIONS}


def _distinct(points: Sequence[Point]) -> list[Point]:
    found: list[Point] = []
    for point in points:
        if point not in found:
            found.append(point)
    return found


def _ranked(judged: Sequence[tuple[TrialResult, Judgement]], conditions: int) -> list[dict[str, Any]]:
    """The settings that were tried under so many conditions, best first."""
    settings: dict[str, Point] = {}
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for result, judgement in judged:
        name = title(choice_of(result.point))
        settings[name] = choice_of(result.point)
        groups[name].append(judgement)
    standings = rank({name: trials for name, trials in groups.items() if len(trials) == conditions})
    return [
        {"setting": settings[name], "title": name, **asdict(standing), "tied": standing.tied}
        for name, standing in standings.items()
    ]


def _row(result: TrialResult) -> dict[str, Any]:
    judgement = result.judgement
    return {
        "name": result.name,
        "title": title(result.point),
        "point": result.point,
        "status": result.status,
        "error": result.error,
        "agreement": None if judgement is None else judgement.agreement,
        "log_likelihood": None if judgement is None else judgement.log_likelihood,
        "references_left_out": 0 if judgement is None else len(judgement.uids),
        "rounds": result.rounds,
        "metrics": result.metrics,
        "seconds": result.seconds,
        "stages_computed": [record["name"] for record in result.stages if record["items"] or record["seconds"]],
    }
