"""A sweep's page and the page of random foreign images in a headless Chromium: no complaint, nothing sticks out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from test_report_page import CHROMIUM, EXAMPLE, browse, width_in_a_window_of, with_script

from trainref_ray.config import Config, SweepSettings
from trainref_ray.report.page import render_ood
from trainref_ray.report.sweep_page import render_sweep, sweep_figures
from trainref_ray.report.sweep_summary import summarise_sweep
from trainref_ray.trials import TrialResult

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]
SPACE: dict[str, Any] = {
    "noise": {"grid": ["sym:0.2", "sym:0.4", "sym:0.6", "sym:0.8"]},
    "vote.k": {"grid": [5, 20, 50]},
}


def sweep_page() -> str:
    results = []
    for level, noise in enumerate(SPACE["noise"]["grid"]):
        for place, k in enumerate(SPACE["vote.k"]["grid"]):
            right = 19 - 3 * level - place
            judged = {"uids": list(range(20)), "right": [row < right for row in range(20)], "probability": [0.5] * 20}
            results.append(
                TrialResult(
                    f"{level}{place}",
                    {"noise": noise, "vote.k": k},
                    status="complete",
                    rounds=[{"agreement": right / 20, "log_likelihood": -0.7}],
                    judged=judged,
                    metrics={"relabel_accuracy": right / 20, "noise_auroc": 0.9 - 0.1 * level},
                    stages=[{"name": "supporters", "round": 1, "seconds": 1.0, "items": 10}],
                    seconds=12.5,
                )
            )
    summary = summarise_sweep(results, SPACE)
    summary |= {"config": Config().model_dump(mode="json"), "sweep": SweepSettings(space="space.yaml").model_dump()}
    return render_sweep(summary, sweep_figures(summary))


def ood_page() -> str:
    return render_ood(dataclasses.replace(EXAMPLE, random_ood=list(EXAMPLE.random_ood) * 30))


@pytest.mark.parametrize("page", [sweep_page, ood_page])
def test_the_page_loads_without_errors(tmp_path: Path, page: Any) -> None:
    dom, console = browse(tmp_path, page(), "--dump-dom")
    assert console == []
    assert "<h1>" in dom


@pytest.mark.parametrize("page", [sweep_page, ood_page])
@pytest.mark.parametrize("width", [380, 1280])
def test_nothing_sticks_out_at_any_width(tmp_path: Path, page: Any, width: int) -> None:
    assert width_in_a_window_of(tmp_path, page(), width) == width


def test_the_lines_are_drawn_from_left_to_right(tmp_path: Path) -> None:
    script = (
        "const boxes = [...document.querySelectorAll('polyline')].map((line) => line.getBoundingClientRect());"
        "document.title = [boxes.length, Math.min(...boxes.map((box) => box.width)) > 200].join();"
    )
    dom, console = browse(tmp_path, with_script(sweep_page(), script), "--dump-dom", "--window-size=1280,2000")
    assert console == []
    assert "<title>9,true</title>" in dom  # three lines for each of three metrics
