"""The pages of a comparison in a real headless Chromium: no complaint, nothing sticks out, bars in place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report_page import CHROMIUM, browse, width_in_a_window_of, with_script

from trainref_ray.report.compare_page import render_comparison, render_confidence
from trainref_ray.report.comparison import Row, tabulate
from trainref_ray.report.confidence import confidence_content

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]
LONG = "a_method_with_a_name_that_is_longer_than_any_column_of_a_phone"
ACCENT = np.array([0x00, 0x72, 0xB2])


def comparison() -> str:
    names = ("noise_auroc", "relabel_accuracy", "accuracy", "nll", "brier", "ece", "ece_mass", "nll_ts", "ece_ts")
    rows = [
        Row(method, seed, dict.fromkeys(names, 0.5 + 0.1 * place + 0.01 * seed), {}, 10.0, 1000)
        for place, method in enumerate(("trainref", "trainref/vote", LONG, "disc"))
        for seed in (0, 1)
    ]
    return render_comparison(tabulate(rows), "Comparison", ["a note"], {"seed": 0}, has_confidence=True)


def confidence() -> str:
    content = confidence_content(
        [np.array([[0.75, 0.25]]), np.array([[0.25, 0.75]])],
        np.array([0]),
        names=("trainref", "DISC"),
        class_names=["cat", "a class with a long name"],
        temperatures=(1.0, 2.0),
        size=4,
        seed=0,
    )
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    return render_confidence(content.with_images(lambda rows: {row: file.getvalue() for row in rows}))


@pytest.mark.parametrize("page", [comparison, confidence])
def test_the_page_loads_without_errors(tmp_path: Path, page: object) -> None:
    dom, console = browse(tmp_path, page(), "--dump-dom")  # type: ignore[operator]
    assert console == []
    assert "<h1>" in dom


@pytest.mark.parametrize("page", [comparison, confidence])
@pytest.mark.parametrize("width", [380, 760, 1280])
def test_nothing_sticks_out_at_any_width(tmp_path: Path, page: object, width: int) -> None:
    assert width_in_a_window_of(tmp_path, page(), width) == width  # type: ignore[operator]


def test_dots_stand_where_their_values_are(tmp_path: Path) -> None:
    """In the chart of noise_auroc, best first: from 3 to 97 % of the line, in equal steps between."""
    script = (
        'const line = document.querySelector(".chart svg").getBoundingClientRect();'
        'const dots = [...document.querySelector(".chart").querySelectorAll(".dot")].map((dot) => {'
        "const box = dot.getBoundingClientRect();"
        "return (100 * (box.left + box.width / 2 - line.left) / line.width).toFixed(1); });"
        "document.title = dots.join();"
    )
    dom, _ = browse(tmp_path, with_script(comparison(), script), "--dump-dom", "--window-size=1280,900")
    title = dom.partition("<title>")[2].partition("</title>")[0]
    places = [float(text) for text in title.split(",")]
    # means 0.805, 0.705, 0.605, 0.505, each ± 0.00707: the axis runs from 0.49793 to 0.81207
    assert places == pytest.approx(
        [3 + 94 * (mean - 0.49793) / 0.31414 for mean in (0.805, 0.705, 0.605, 0.505)], abs=0.3
    )


def test_the_screenshot_shows_both_bars_of_the_true_class(tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    flags = ["--window-size=1280,700", f"--screenshot={picture}", "--blink-settings=preferredColorScheme=1"]
    _, console = browse(tmp_path, confidence(), *flags)
    assert console == []
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    coloured = (np.abs(pixels - ACCENT).max(axis=2) <= 2).sum(axis=1)
    # trainref gives the true class 0.75 in its first line, DISC 0.25 in its second; corners are rounded
    starts = np.flatnonzero(np.diff((coloured > 20).astype(int)) == 1) + 1
    first, second = (coloured[start : start + 12].max() for start in starts)
    assert first / second == pytest.approx(3, abs=0.05)
