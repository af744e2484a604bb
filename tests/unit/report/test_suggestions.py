"""The file and the page of suggested references: what they hold, and that answers are never lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainref_ray.data.reference import read_reference_csv
from trainref_ray.errors import ReferenceSetError
from trainref_ray.report.suggestions import (
    FILE,
    PAGE,
    Suggestion,
    Suggestions,
    render_suggestions,
    suggestions_csv,
    write_suggestions,
)
from trainref_ray.run import Storage

HOSTILE = '</script><img src=x onerror=alert(1)>,"'
FOUND = Suggestions(
    images=[
        Suggestion(1, "a/1", "cat", [("cat", 0.6), ("dog", 0.4)], "keep", b"", 0.7),
        Suggestion(2, HOSTILE, "dog", [(HOSTILE, 0.5)], "soften", b"", 0.8),
    ],
    class_names=["cat", "dog", HOSTILE],
    references=[("r,1", "dog"), ("r2", HOSTILE)],
    doubtful=1234,
    nearest=0.5,
)


def write(folder: Path, found: Suggestions = FOUND) -> Any:
    run: Any = SimpleNamespace(storage=Storage(str(folder)))
    write_suggestions(run, found)
    return run


def test_the_file_has_what_there_is_and_room_for_what_is_asked() -> None:
    lines = suggestions_csv(FOUND).splitlines()
    assert lines[0] == "key,label,given,curated"
    assert lines[1] == '"r,1",dog,,'
    assert lines[3] == 'a/1,,cat,"cat 60 %, dog 40 %"'
    assert len(lines) == 5


def test_filled_in_it_is_a_reference_file(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / FILE
    with pytest.raises(ReferenceSetError, match="2 lines have no label, the first is line 4, key 'a/1'"):
        read_reference_csv(str(path), FOUND.class_names)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].replace("a/1,,", "a/1,dog,")]))  # the last one deleted
    assert read_reference_csv(str(path), FOUND.class_names) == [("r,1", 1), ("r2", 2), ("a/1", 1)]


def test_labels_that_were_filled_in_are_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path)  # nobody has answered yet
    path = tmp_path / FILE
    filled = path.read_text().replace("a/1,,", "a/1,dog,")
    path.write_text("\ufeff" + filled.replace("\n", "\r\n"), newline="")  # as spreadsheets save it
    with pytest.raises(ReferenceSetError, match=r"1 labels that this run does not know, the first of 'a/1'"):
        write(tmp_path)
    assert "a/1,dog," in path.read_text(encoding="utf-8-sig")
    known = replace(FOUND, references=[*FOUND.references, ("a/1", "dog")])
    write(tmp_path, known)  # the run was started again with them
    assert (tmp_path / PAGE).read_text().count('data-key="') == 2


def test_a_label_that_the_run_knows_may_be_a_number(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"r,1",dog', '"r,1",1'))
    write(tmp_path)
    assert '"r,1",dog' in path.read_text()


@pytest.mark.parametrize("label", ["0", "3", "dogs"])
def test_another_class_or_none_is_a_label_that_the_run_does_not_know(tmp_path: Path, label: str) -> None:
    write(tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"r,1",dog', f'"r,1",{label}'))
    with pytest.raises(ReferenceSetError, match="1 labels that this run does not know"):
        write(tmp_path)


def test_a_corrected_label_of_a_reference_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"r,1",dog', '"r,1",cat'))
    with pytest.raises(ReferenceSetError, match=r"1 labels that this run does not know, the first of 'r,1'"):
        write(tmp_path)


@pytest.mark.parametrize("saved", [lambda text: text.replace(",", ";").encode(), lambda text: text.encode("utf-16")])
def test_a_file_in_which_labels_cannot_be_looked_for_is_not_overwritten(
    tmp_path: Path, saved: Callable[[str], bytes]
) -> None:
    write(tmp_path)
    path = tmp_path / FILE
    content = saved(path.read_text().replace("a/1,,", "a/1,dog,"))
    path.write_bytes(content)
    with pytest.raises(ReferenceSetError, match="no comma-separated UTF-8 text with the columns key and label"):
        write(tmp_path)
    assert path.read_bytes() == content


def test_every_text_is_escaped_and_the_facts_are_data() -> None:
    page = render_suggestions(FOUND)
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    facts = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page)
    assert facts is not None
    assert json.loads(facts[1]) == {
        "references": [["r,1", "dog"], ["r2", HOSTILE]],
        "classes": ["cat", "dog", HOSTILE],
    }
    assert "2 of the 1,234 images" in page
    assert "0.500 now and 0.800 with all" in page


def test_nothing_to_check_is_said() -> None:
    page = render_suggestions(replace(FOUND, images=[], doubtful=0))
    assert "there is nothing to check" in page
    assert "<form" not in page
