"""The report in a real headless Chromium: it loads without a complaint, filters, fits a phone, and looks as meant."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainref_ray.report.content import ReportContent
from trainref_ray.report.page import render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EXAMPLE: ReportContent = runpy.run_path(
    str(Path(__file__).resolve().parents[1] / "unit" / "report" / "report_example.py")
)["EXAMPLE"]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
KEEP_COLOUR = (0x00, 0x72, 0xB2)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]


def browse(folder: Path, html: str, *flags: str) -> tuple[str, list[str]]:
    """Load a page; give what Chromium prints and the lines that the page's console got."""
    page = folder / "index.html"
    page.write_text(html, encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"),
            *("--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr"),
            f"--user-data-dir={folder / 'profile'}",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def with_script(html: str, script: str) -> str:
    """The page without its policy and with one more script, for asking it questions."""
    assert len(POLICY.findall(html)) == 1
    return POLICY.sub("", html).replace("</body>", f"<script>{script}</script></body>")


def asked_in_a_window_of(folder: Path, html: str, width: int, question: str) -> str:
    """What a page answers to an expression of JavaScript where it is shown in a window of so many pixels."""
    inner = with_script(html, f"parent.postMessage({question}, '*')")
    (folder / "inner.html").write_text(inner, encoding="utf-8")
    outer = (
        "<title>none</title><script>addEventListener('message', (event) => { document.title = event.data; });</script>"
        f'<iframe src="inner.html" width="{width}" height="900" style="border: 0"></iframe>'
    )
    dom, _ = browse(folder, outer, "--dump-dom", "--virtual-time-budget=3000")
    return dom.partition("<title>")[2].partition("</title>")[0]


def width_in_a_window_of(folder: Path, html: str, width: int) -> int:
    """How wide a page is that is shown in a window of so many pixels: more if something sticks out."""
    return int(asked_in_a_window_of(folder, html, width, "document.documentElement.scrollWidth"))


def test_the_page_loads_without_errors_and_its_script_runs(tmp_path: Path) -> None:
    dom, console = browse(tmp_path, render(EXAMPLE), "--dump-dom")
    assert console == []
    assert "<h1>Digits</h1>" in dom
    assert "3 of 3 shown" in dom  # written by the script: the policy's hash fits
    assert re.search(r'<form id="gallery-controls" class="controls">', dom)  # no longer hidden


def test_the_policy_stops_foreign_scripts_and_requests(tmp_path: Path) -> None:
    foreign = '<script>document.title = "taken"</script><img src="https://example.invalid/x.png">'
    dom, console = browse(tmp_path, render(EXAMPLE).replace("</main>", f"{foreign}</main>"), "--dump-dom")
    assert "<title>Digits</title>" in dom
    assert sum("Content Security Policy" in line for line in console) == 2


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("decision", "soften", ["digit-20"]),
        ("label", "one", ["digit-30"]),
        ("label", "eight", ["digit-8"]),
        ("order", "trusted", ["digit-30", "digit-20", "digit-8"]),
        ("order", "doubtful", ["digit-8", "digit-20", "digit-30"]),
    ],
)
def test_the_gallery_filters_and_sorts(tmp_path: Path, name: str, value: str, expected: list[str]) -> None:
    script = (
        f'const chosen = document.getElementById("gallery-controls").elements["{name}"]; chosen.value = "{value}";'
        'chosen.dispatchEvent(new Event("input", {bubbles: true}));'
        'const keys = [...document.querySelectorAll(".sample:not([hidden]) .key")];'
        "document.title = keys.map((key) => key.textContent).join();"
    )
    dom, console = browse(tmp_path, with_script(render(EXAMPLE), script), "--dump-dom")
    assert console == []
    assert f"<title>{','.join(expected)}</title>" in dom


@pytest.mark.parametrize("width", [380, 760, 1280])
def test_nothing_sticks_out_at_any_width(tmp_path: Path, width: int) -> None:
    assert width_in_a_window_of(tmp_path, render(EXAMPLE), width) == width


@pytest.mark.parametrize("width", [380, 1280])
def test_names_that_cannot_be_broken_stay_in_their_column(tmp_path: Path, width: int) -> None:
    name = "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenverordnung_" * 2
    card = dataclasses.replace(EXAMPLE.gallery[0], given=name, truth=name, top=[("three", 1.0)])
    html = render(dataclasses.replace(EXAMPLE, gallery=[card], notes=[f"No sample joined: {name}."]))
    assert width_in_a_window_of(tmp_path, html, width) == width


def test_a_phone_shows_what_a_decision_means_under_its_badge(tmp_path: Path) -> None:
    question = (
        '[...document.querySelectorAll(".decided tbody tr")].every((row) => {'
        'const [badge, what] = [".badge", ".what"].map((part) => row.querySelector(part).getBoundingClientRect());'
        "return what.height > 0 && what.top >= badge.bottom && what.right <= innerWidth; })"
    )
    assert asked_in_a_window_of(tmp_path, render(EXAMPLE), 380, question) == "true"


@pytest.mark.parametrize("dark", [False, True])
def test_the_screenshot_shows_the_decisions_in_their_colours(tmp_path: Path, dark: bool) -> None:
    picture = tmp_path / "page.png"
    flags = ["--window-size=1280,2600", f"--screenshot={picture}"]
    # Blink's number for a preferred colour scheme: 0 = dark, 1 = light
    flags.append(f"--blink-settings=preferredColorScheme={0 if dark else 1}")
    _, console = browse(tmp_path, render(EXAMPLE), *flags)
    assert console == []
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (2600, 1280, 3)
    assert (pixels[5, 5] < 40).all() == dark
    keep = np.array(KEEP_COLOUR) if not dark else np.array([0x4A, 0xA8, 0xE0])
    # the stacked bar is 40 pixels high, and 900 of 1,500 samples are kept: 60 % of its 1,024 pixels
    widest = (np.abs(pixels.astype(int) - keep).max(axis=2) <= 2).sum(axis=1).max()
    assert widest == pytest.approx(0.6 * 1024, abs=6)
