"""Commands in manifests and guides: the jobs exist, and so does every option."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from trainref_ray.cli import parse_curate, parse_sweep
from trainref_ray.config import Config
from trainref_ray.search_space import load_space

ENTRYPOINTS = sorted((ROOT / "cluster" / "kuberay" / "overlays").glob("*/job.yaml"))
GUIDES = [ROOT / "cluster" / "README.md", ROOT / "jobs" / "README.md"]
PRESETS = {"jobs/curate_webvision.py": "webvision", "jobs/curate_cifar.py": "cifar10"}
"""The preset that each curation job falls back to."""


def curation(command: str) -> Config:
    """Settings of a command that names a curation job and its options.

    Raises:
        SystemExit: an option does not exist.
    """
    words = [word for quoted in shlex.split(command) for word in shlex.split(quoted)]  # some are handed on as one word
    position = next(index for index, word in enumerate(words) if word.endswith(".py"))
    job = words[position].removeprefix("/app/")  # where the image has the repository's jobs
    assert (ROOT / job).is_file(), job
    assert words[position - 1] == "python"
    return parse_curate(words[position + 1 :], default_preset=PRESETS[job])


def entrypoint(path: Path) -> str:
    return yaml.safe_load(path.read_text())["spec"]["entrypoint"]


@pytest.mark.parametrize("path", ENTRYPOINTS, ids=lambda path: path.parent.name)
def test_entrypoints_are_commands_of_this_release(path: Path) -> None:
    config = curation(entrypoint(path))
    stores = (*config.data, *config.test_data, config.reference or "", config.out)
    assert all(location.startswith("s3://") for location in stores)
    assert config.reference_per_class is None
    assert config.tracking.uri is not None
    assert config.tracking.uri.startswith("http://mlflow.")


def test_what_the_two_overlays_curate() -> None:
    small, full = (curation(entrypoint(ROOT / "cluster/kuberay/overlays" / n / "job.yaml")) for n in ("small", "gpu"))
    assert (small.backbone, small.image_size, small.finetune.epochs) == ("resnet18", 64, 2)
    assert (full.backbone, full.image_size, full.finetune.epochs) == ("resnet50", 224, 10)
    assert full.resources.gpu is True


def test_a_wrong_option_in_a_command_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    command = entrypoint(ENTRYPOINTS[0])
    with pytest.raises(SystemExit):
        curation(command.replace("--resources.timeout", "--resources.time-out"))
    assert "--resources.time-out" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="curate_web"):
        curation(command.replace("curate_webvision", "curate_web"))


def commands(guide: Path) -> list[str]:
    """The shell commands of a guide's code blocks, continued lines joined."""
    found, inside = [], False
    for line in guide.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside and line.strip() and not line.lstrip().startswith("#"):
            found.append(line.strip())
    return found


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.parent.name)
def test_commands_of_the_guides_exist(guide: Path) -> None:
    curations = [command for command in commands(guide) if "jobs/curate_" in command]
    assert curations
    for command in curations:
        # a preset that a command before this one writes
        assert curation(re.sub(r"--preset \S+/best\.yaml", "--preset demo", command)).out
    for command in commands(guide):
        if "jobs/sweep.py" in command:
            config, settings = parse_sweep(shlex.split(command)[2:])
            assert load_space(settings.space)
            assert config.out
    for command in commands(guide):
        for word in shlex.split(command, comments=True):
            if word.startswith(("cluster/", "jobs/")):
                assert (ROOT / word).exists(), f"{guide}: {word}"
