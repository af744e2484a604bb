"""The page on which suggested references are labelled, in a real headless Chromium."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from test_report_page import CHROMIUM, browse, width_in_a_window_of, with_script

from trainref_ray.report.suggestions import Suggestion, Suggestions, render_suggestions

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]


def page() -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 80, 20)).save(file, "PNG")
    image = file.getvalue()
    classes = ["cat", 'dog, "small"', "a class with quite a long name"]
    return render_suggestions(
        Suggestions(
            images=[
                Suggestion(1, "folder/one", "cat", [("cat", 0.6), (classes[1], 0.4)], "keep", image, 0.7),
                Suggestion(2, "two,2", "cat", [(classes[2], 0.9)], "soften", image, 0.8),
                Suggestion(3, "three_" + 20 * "long", "cat", [("cat", 0.9)], "soften", image, 0.9),
            ],
            class_names=classes,
            references=[("before", "cat")],
            doubtful=50,
            nearest=0.5,
        )
    )


def title_after(folder: Path, script: str) -> str:
    dom, console = browse(folder, with_script(page(), script), "--dump-dom", "--virtual-time-budget=3000")
    assert console == []
    return dom.partition("<title>")[2].partition("</title>")[0]


def test_the_page_loads_without_errors_and_its_script_runs(tmp_path: Path) -> None:
    dom, console = browse(tmp_path, page(), "--dump-dom")
    assert console == []
    assert "0 of 3 answered" in dom
    assert 'id="save" disabled' in dom


def test_answers_become_a_reference_file(tmp_path: Path) -> None:
    """One by its button, one typed; the third left out. What is saved is caught where the browser would store it."""
    script = (
        "URL.createObjectURL = (blob) => { blob.text().then((text) => { document.title = JSON.stringify(text); });"
        'return "data:,"; };'
        'document.querySelectorAll(".choices button")[1].click();'
        'const input = document.querySelectorAll("input[data-key]")[1]; input.value = "cat";'
        'input.dispatchEvent(new Event("input", { bubbles: true }));'
        'document.getElementById("save").click();'
    )
    saved = title_after(tmp_path, script)
    text = r'"key,label\nbefore,cat\nfolder/one,\"dog, \"\"small\"\"\"\n\"two,2\",cat\n"'
    assert saved.replace("&quot;", '"') == text


def test_a_class_that_is_none_is_refused(tmp_path: Path) -> None:
    script = (
        'URL.createObjectURL = () => { document.title = "saved"; return "data:,"; };'
        'document.querySelector(".choices button").click();'
        'const input = document.querySelectorAll("input[data-key]")[1]; input.value = "horse";'
        'input.dispatchEvent(new Event("input", { bubbles: true }));'
        'document.getElementById("save").click();'
        "if (document.title !== 'saved') document.title = `${document.querySelector('output').value}: "
        "${input.validationMessage}`;"
    )
    assert title_after(tmp_path, script).replace("&quot;", '"') == '1 of 3 answered: "horse" is none of the classes'


def test_enter_leads_to_the_next_image(tmp_path: Path) -> None:
    script = (
        'const [first] = document.querySelectorAll("input[data-key]"); first.focus();'
        'first.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));'
        "document.title = document.activeElement.dataset.key;"
    )
    assert title_after(tmp_path, script) == "two,2"


@pytest.mark.parametrize("width", [380, 760, 1280])
def test_nothing_sticks_out_at_any_width(tmp_path: Path, width: int) -> None:
    assert width_in_a_window_of(tmp_path, page(), width) == width
