"""The Dockerfile: clean to its linter, and of one mind with the project's files. No image is built here."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


def hadolint() -> str:
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not here; it is among the development tools of pyproject.toml")
    return found


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([hadolint(), str(path)], capture_output=True, text=True, timeout=60)


def test_the_linter_finds_nothing() -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("uv==0.13.9", "uv"))
    assert "DL3013" in lint(tmp_path / "Dockerfile").stdout


def test_python_is_the_one_that_the_lock_was_made_for() -> None:
    (image,) = re.findall(r"^FROM python:(\d+\.\d+)-", DOCKERFILE.read_text(), re.MULTILINE)
    (locked,) = re.findall(r"--python-version (\d+\.\d+)", LOCK)
    assert image == locked
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{image}.0")


def test_every_requirement_of_the_image_is_locked() -> None:
    assert "--constraints requirements.lock --requirements pyproject.toml" in DOCKERFILE.read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", LOCK, re.MULTILINE))
    linux = {"sys_platform": "linux", "platform_machine": "x86_64", "python_full_version": "3.11.0"}
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(linux):
            assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def test_what_the_image_copies_exists_and_is_sent_to_the_builder() -> None:
    rules = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert "*" in rules
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    names = {name for sources in copied for name in sources.split()}
    assert {"trainref_ray", "jobs", "requirements.lock"} <= names
    assert names == sent
    assert all((ROOT / name).exists() for name in names)
    assert not any(fnmatch.fnmatch(name, "*.env") for name in names)
