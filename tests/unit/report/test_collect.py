"""From a run's tables to what the report shows, where truth and test images are whole, in part or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_run
from small_run import finished_run, pictures

from trainref_ray.arrays import curate_arrays
from trainref_ray.cli import result_rows
from trainref_ray.report import summary
from trainref_ray.report.card import dataset_card
from trainref_ray.report.collect import collect
from trainref_ray.report.page import render
from trainref_ray.results import open_tables


def test_a_test_set_measures_the_model(tmp_path: Path) -> None:
    content = collect(finished_run(tmp_path), pictures)
    assert [figure.value for figure in content.headline if figure.name == "accuracy"] == [0.75]
    assert [diagram.bins.count.sum() for diagram in content.reliability] == [4, 4]
    assert content.reliability[0].ece == pytest.approx(abs(0.75 - 1 / (1 + 2.718281828**-3)))
    assert [name for name, _ in content.results.rows] == ["first model (cross-entropy)", "trainref"]
    assert not any("test image" in note for note in content.notes)


def test_a_test_set_without_an_image_of_a_class_is_named_and_measures_nothing(tmp_path: Path) -> None:
    content = collect(finished_run(tmp_path, test_truth=[-1] * 4), pictures)
    assert content.reliability == []
    assert {"accuracy", "ece_ts"}.isdisjoint(figure.name for figure in content.headline)
    assert [name for name, _ in content.results.rows] == ["trainref"]
    assert "No test image has a usable label: nothing was measured on the test set." in content.notes
    assert "no model predicted test images with a usable label" in render(content)


def test_true_counts_are_shown_beside_the_others_where_all_are_known(tmp_path: Path) -> None:
    content = collect(finished_run(tmp_path / "all"), pictures)
    assert content.true_counts == [3, 3]  # g is of no class, and h is quarantined
    assert "whatever was decided" in render(content)
    content = collect(finished_run(tmp_path / "some", truth=[0, *[None] * 4, 0, -1, 1]), pictures)
    assert content.true_counts is None
    assert "true labels" not in render(content)


def test_the_words_of_decisions_are_those_of_the_run_s_settings(tmp_path: Path) -> None:
    run = finished_run(tmp_path, settings={"decide": {"keep_at": 0.3, "relabel_as": "hard"}})
    content = collect(run, pictures)
    assert (content.decide.keep_at, content.decide.relabel_as) == (0.3, "hard")
    assert "at least 0.3" in dataset_card(content)


def test_the_gallery_holds_no_reference(tmp_path: Path) -> None:
    """Theirs are trusted labels: d was given as a cat, and is kept as the dog that it is."""
    content = collect(finished_run(tmp_path), pictures)
    assert [(card.key, card.decision) for card in content.gallery] == [("c", "relabel"), ("f", "soften"), ("b", "keep")]


def test_classes_that_no_sample_joined_are_named_in_the_summary_and_in_a_note(tmp_path: Path) -> None:
    run = finished_run(tmp_path, left_short=[1])
    assert [figures["classes_left_short"] for figures in run.summary["rounds"]] == [["dog"]]
    assert "classes_left_short" not in run.summary["metrics"]  # those are numbers
    assert "No sample joined the references of 1 class: dog." in collect(run, pictures).notes
    assert finished_run(tmp_path).summary["rounds"][0]["classes_left_short"] == []


def test_label_qualities_that_the_references_contradict_are_told_with_what_would_help(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    found = run.summary["labels_right"]
    # 0.9 + 0.8 + 0.1 + 0.2 + 0.6 + 0.7 of the seven usable are cats: the cat's label is right, one of the two dogs'
    assert found["references"] == pytest.approx(3.3 / 7 * 1 + 3.7 / 7 * 0.5)
    assert found["label_quality"] == pytest.approx((0.8 + 0.1 + 0.4) / 3)  # g, which is called ood, aside

    def told(references: float) -> list[str]:
        changed = found | {"references": references, "standard_error": 0.05}
        run.storage.write_json("summary.json", run.summary | {"labels_right": changed})
        return [note for note in collect(open_tables(run.storage), pictures).notes if "given_weight" in note]

    assert told(0.55) == []  # 2.3 standard errors
    for references, wanted in (
        (0.6, "a higher vote.given_weight (here 1)"),
        (0.2, "a lower vote.given_weight (here 1)"),
    ):
        [note] = told(references)
        assert "quality 43 % of the labels are right" in note
        assert f"{100 * references:.0f} % (standard error 5.0 %)" in note
        assert wanted in note


def test_without_another_sample_of_a_class_nothing_is_said_of_right_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_run, "DECIDED", ["keep", *["ood"] * 2, "keep", "keep", *["ood"] * 2, "quarantined"])
    run = finished_run(tmp_path)
    assert run.summary["labels_right"] is None
    assert not any("given_weight" in note for note in collect(run, pictures).notes)


@pytest.mark.parametrize("drawn", [True, False])
def test_fewer_references_weigh_the_given_labels_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def spy(*arguments: Any, **named: Any) -> Any:
        asked.append(named)
        return curate_arrays(*arguments, **named)

    monkeypatch.setattr(summary, "curate_arrays", spy)
    source = {"reference_per_class": 2, "reference": None} if drawn else {"reference": "refs.csv"}
    finished_run(tmp_path, settings={"evaluate": {"fewer_references": [1]}} | source)
    [named] = asked
    assert named["settings"].vote.fit_given_weight == "drawn"
    given = named["reference_given_labels"]
    assert given is None if not drawn else given.tolist() == [0, 0]  # of a and d, whose trusted labels are 0 and 1


def test_fewer_references_are_tried_where_that_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {"evaluate": {"fewer_references": [1]}}
    run = finished_run(tmp_path / "known", settings=fewer)
    assert run.summary["baselines"]["references_per_class_1"]["relabel_accuracy"] is not None
    names = [name for name, _ in collect(run, pictures).results.rows]
    assert names == ["first model (cross-entropy)", "trainref before fine-tuning, 1 reference a class", "trainref"]
    assert [name for name, _ in result_rows(run.summary)] == names

    monkeypatch.setattr(summary, "curate_arrays", lambda *_, **__: pytest.fail("a curation for a row of dashes"))
    of_references = [0, None, None, 1, 1, None, None, None]
    run = finished_run(tmp_path / "unknown", truth=of_references, settings=fewer)
    assert list(run.summary["baselines"]) == ["cross_entropy"]
