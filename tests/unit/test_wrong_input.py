"""Wrong input to the job: one clear line and exit code 2, before Ray is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from trainref_ray.cli import compare_command, curate_command, doctor_command, sweep_command

Case = Callable[[Path, Path], list[str]]


def _references(folder: Path, text: str) -> list[str]:
    (folder / "refs.csv").write_text(text)
    return ["--reference", str(folder / "refs.csv")]


def _truncated(digits: Path, folder: Path) -> list[str]:
    content = (digits / "train-00000.tar").read_bytes()
    (folder / "cut.tar").write_bytes(content[:-700])
    return ["--data", str(folder / "cut.tar"), "--reference-per-class", "1"]


def _foreign_folder(digits: Path, folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "letter.txt").write_text("mine")
    return ["--reference-per-class", "1"]


def _classes(digits: Path, folder: Path) -> list[str]:
    (folder / "classes.json").write_text(json.dumps({"a": 1}))
    return ["--reference-per-class", "1", "--classes", str(folder / "classes.json")]


CASES: dict[str, tuple[Case, str]] = {
    "no shard matches": (
        lambda digits, folder: ["--data", str(folder / "none-*.tar"), "--reference-per-class", "1"],
        "none-",
    ),
    "no references": (lambda digits, folder: [], "--reference"),
    "missing column": (lambda digits, folder: _references(folder, "key,mood\na,good\n"), "mood"),
    "label not filled in": (lambda digits, folder: _references(folder, "key,label,given\na,,one\n"), "fill them in"),
    "label outside": (lambda digits, folder: _references(folder, "key,label\na,10\n"), "10"),
    "class without a reference": (
        lambda digits, folder: _references(folder, "key,label\n" + "".join(f"k{n},{n}\n" for n in range(9))),
        "nine",
    ),
    "key in no shard": (
        lambda digits, folder: _references(folder, "key,label\n" + "".join(f"digit-9{n:03d},{n}\n" for n in range(10))),
        "10 of 10 reference keys are no usable sample: 'digit-9000'",
    ),
    "both references": (
        lambda digits, folder: ["--reference-per-class", "1", *_references(folder, "key,label\na,1\n")],
        "not both",
    ),
    "unknown preset": (lambda digits, folder: ["--preset", "nothing"], "nothing"),
    "unknown backbone": (lambda digits, folder: ["--reference-per-class", "1", "--backbone", "resnet19"], "resnet18"),
    "not a run folder": (_foreign_folder, "letter.txt"),
    "truncated shard": (_truncated, "cut.tar"),
    "class names": (_classes, "classes.json"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_ends_with_one_line_and_code_2(
    name: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, part = CASES[name]
    options = make(digits, tmp_path)
    if "--data" not in options and "--preset" not in options:
        options = ["--data", str(digits / "train-*.tar"), *options]
    started = ray.is_initialized()
    assert curate_command([*options, "--out", str(tmp_path / "out"), "--tracking.no-enabled"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert part in lines[0]
    assert ray.is_initialized() == started


@pytest.mark.parametrize(
    ("name", "command"),
    [("curate", curate_command), ("doctor", doctor_command), ("compare", compare_command), ("sweep", sweep_command)],
)
def test_unknown_option_ends_with_code_2(
    name: str, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command(["--vote.kk", "3", *(["--space", "k.yaml"] if name == "sweep" else [])])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "--vote.k" in told
    assert f"{name} --help" in told


def test_after_a_refusal_the_folder_is_a_runs(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = _references(tmp_path, "key,label\n" + "".join(f"digit-9{n:03d},{n}\n" for n in range(10)))
    data = ["--data", str(digits / "train-*.tar"), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second start meets what the first one wrote
        assert curate_command([*data, *wrong]) == 2
        assert "are no usable sample" in capsys.readouterr().err
