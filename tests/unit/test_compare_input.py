"""Wrong input to a comparison: one clear line and exit code 2, before Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from trainref_ray.baselines.settings import rival_settings
from trainref_ray.cli import compare_command, parse_compare
from trainref_ray.config import make_config
from trainref_ray.models.backbones import ModelSpec, build, save_model
from trainref_ray.report.comparison_notes import comparison_notes

CASES: dict[str, tuple[list[str], str]] = {
    "unknown method": (["--methods", "knn,disk"], "'disk' is unknown; allowed: trainref,"),
    "no number": (["--seeds", "0,one"], "'one' is no number from 0"),
    "negative seed": (["--seeds=-1"], "'-1'"),
    "no value": (["--seeds"], "--seeds needs a value"),
    "too many images": (["--resources.cache-bytes", "1000", "--limit", "100"], "resources.cache_bytes is 1,000"),
    "unknown backbone": (["--backbone", "resnet19"], "resnet18"),
    "no shard": (["--data", "none-*.tar"], "none-"),
    "no votes": (["--human-field", "poeple"], "--human-field is 'poeple', and no sample of --data or --test-data"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_ends_with_one_line_and_code_2(
    name: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainref_ray.baselines.methods.cleanlab_installed", lambda: True)  # else a line says it is not
    options, part = CASES[name]
    if "--data" not in options:
        options = [*options, "--data", str(digits / "train-*.tar")]
    started = ray.is_initialized()
    out = ["--image-size", "8", "--reference-per-class", "1", "--out", str(tmp_path / "out")]
    for _ in range(2):  # what was refused can be put right in the same folder: it is not refused as another's
        assert compare_command([*out, *options] if name != "no value" else [*out, "--seeds"]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert part in lines[0]
    assert ray.is_initialized() == started


def test_a_folder_of_something_else_is_left_alone(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    options = ["--data", str(digits / "train-*.tar"), "--reference-per-class", "1", "--out", str(tmp_path)]
    assert compare_command([*options, "--no-resume"]) == 2
    assert "letter.txt" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "mine"


def test_without_any_training_there_is_no_number_of_passes_for_rivals(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = ModelSpec("cnn_small", 10, 8)
    save_model(build(spec), spec, tmp_path / "model")
    options = ["--data", str(digits / "train-*.tar"), "--reference-per-class", "1", "--out", str(tmp_path / "out")]
    given = ["--pretrain.objective", "none", "--model.weights", str(tmp_path / "model"), "--no-finetune-model"]
    assert compare_command([*options, *given, "--image-size", "8", "--methods", "knn,disc,mixup"]) == 2
    assert "mixup, disc train for as many image passes as trainref" in capsys.readouterr().err


def test_rivals_are_trained_as_the_first_model_or_where_it_is_given_as_the_fine_tuning() -> None:
    changes = {"pretrain": {"learning_rate": 0.3, "randaugment": 2}, "finetune": {"learning_rate": 0.01, "mixup": 0.5}}
    own = make_config(changes)
    assert rival_settings(own) == own.pretrain
    found = rival_settings(make_config(changes, {"pretrain": {"objective": "none"}, "model": {"weights": "public"}}))
    assert (found.learning_rate, found.randaugment, found.mixup) == (0.01, 2, own.pretrain.mixup)


def test_options_of_the_comparison_beside_those_of_the_curation() -> None:
    arguments = ["--methods", "disc, knn", "--seeds=2,0,2", "--human-field", "people", "--data", "x", "--vote.k", "7"]
    config, request = parse_compare([*arguments, "--reference-per-class", "1"], default_preset="cifar10")
    assert request.methods == ("trainref", "knn", "disc")
    assert request.seeds == (2, 0)
    assert request.human_field == "people"
    assert config.vote.k == 7
    assert config.out == "runs/cifar10"


@pytest.mark.parametrize("named", [True, False])
def test_that_cleanlab_is_missing_is_told_where_it_would_have_been_run(
    named: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainref_ray.baselines.methods.cleanlab_installed", lambda: False)
    arguments = ["--data", "x", "--reference-per-class", "1", *(["--methods", "knn"] if named else [])]
    parse_compare(arguments, default_preset="cifar10")
    assert ("cleanlab is not installed" in capsys.readouterr().err) == (not named)


def test_notes_name_the_views_that_only_trainref_and_one_rival_train_on() -> None:
    keys = ("samples", "classes", "tests", "references", "held_out", "curating", "image_passes")
    setups = [dict.fromkeys(keys, 7)]
    strong = " ".join(comparison_notes(setups, make_config({"finetune": {"randaugment": 6, "mixup": 0.5}})))
    assert "(randaugment 6, mixup 0.5); of the rivals cross_entropy_augmented alone" in strong
    same = {"crop": True, "flip": False, "randaugment": 0}
    plain = " ".join(comparison_notes(setups, make_config({"finetune": same | {"mixup": 0.0}, "pretrain": same})))
    assert "cross_entropy_augmented" not in plain
    assert "temperature that fits the held-out references" in plain
    assert "disc, which releases its last as trainref's fine-tunings do" in plain
    assert "of the model that was trained on the noisy labels; their seconds" in plain
    assert "disc has its published optimizer" not in plain
    given = " ".join(
        comparison_notes(setups, make_config({"pretrain": {"objective": "none"}, "model": {"weights": "public"}}))
    )
    assert "disc has its published optimizer" in given
    label_free = " ".join(comparison_notes(setups, make_config({"pretrain": {"objective": "contrastive"}})))
    assert "of the model that was trained without labels; their seconds" in label_free


def test_notes_say_where_predictions_are_of_two_images() -> None:
    keys = ("samples", "classes", "tests", "references", "held_out", "curating", "image_passes")
    setups = [dict.fromkeys(keys, 7)]
    assert "mirror image" in " ".join(comparison_notes(setups, make_config({"model": {"mirror": True}})))
    assert "mirror image" not in " ".join(comparison_notes(setups, make_config({})))
