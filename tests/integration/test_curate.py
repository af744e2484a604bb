"""The whole job on a real local Ray: tables, figures, report; started again; with a changed setting."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import TINY
from safetensors.numpy import load

from trainref_ray import cli, curate, curate_arrays, make_config
from trainref_ray.data.reference import read_reference_csv
from trainref_ray.distributed import pipeline
from trainref_ray.distributed.rival_data import pixel_blocks
from trainref_ray.distributed.trainer import TrainJob
from trainref_ray.errors import ShardError
from trainref_ray.method import steps
from trainref_ray.method.draw import draw_samples
from trainref_ray.method.influence import unit_rows
from trainref_ray.method.ood import Gaussian, mahalanobis, ood_score
from trainref_ray.method.vote import share_right
from trainref_ray.models.backbones import predict
from trainref_ray.report.image_files import read_image_files
from trainref_ray.results import HELD_OUT_SAMPLES, CurationRun, held_out_logits
from trainref_ray.schemas import DECISION, check, dense_soft_labels, to_matrix
from trainref_ray.training.calibrate import fit_distributions, fit_labels, pool_fits, softmax

pytestmark = pytest.mark.ray


def start(out: Path, **changes: Any) -> CurationRun:
    return curate(make_config(TINY, {"out": str(out)}, changes))


@pytest.fixture(scope="module")
def run(tiny_run: CurationRun) -> CurationRun:
    return tiny_run


def test_counts_add_up(run: CurationRun) -> None:
    counts = run.summary["counts"]
    assert counts["samples"] == 500
    assert counts["samples"] == sum(counts[name] for name in ("quarantined", "keep", "relabel", "soften", "ood"))


def test_decisions_have_a_row_for_every_sample(run: CurationRun) -> None:
    decisions = check(run.decisions(), DECISION, "decisions")
    assert decisions["uid"].to_pylist() == run.samples()["uid"].to_pylist()
    dense = dense_soft_labels(decisions["soft_label"], 10)
    trained_on = np.isin(np.array(decisions["decision"].to_pylist()), ["keep", "relabel", "soften"])
    assert np.allclose(dense.sum(1), trained_on, atol=1e-5)


def test_references_keep_their_trusted_label(run: CurationRun) -> None:
    decisions = run.decisions()
    rows = decisions.filter(pa.array(np.isin(decisions["uid"].to_numpy(), run.reference_uids)))
    assert set(rows["decision"].to_pylist()) == {"keep"}
    assert rows["best_class"].to_pylist() == run.stages["references"]["labels"]


def test_references_held_out_are_compared_with_no_sample(run: CurationRun, local_ray: None, tmp_path: Path) -> None:
    """Where enough others are left; else a model would learn their labels from the images they support."""
    weights = {"model": {"weights": f"{run.path}/model"}, "pretrain": {"objective": "none"}, "finetune_model": False}
    shards = {name: run.settings[name] for name in ("data", "test_data")}
    other = start(tmp_path / "other", **shards, **weights, calibrate={"per_class": 1})
    held_out = np.array(other.stages["held_out"])
    assert len(held_out) == 10
    members = other.references()
    given = members.filter(members["given"])["uid"].to_pylist()
    assert given == sorted(set(other.reference_uids.tolist()) - set(held_out.tolist()))
    assert len(given) == 20
    assert not np.isin(held_out, to_matrix(other.supporters()["supporter_uid"], fill=-1)).any()
    assert not np.isin(held_out, members["uid"].to_numpy()).any()
    evidence = other.table("evidence", 1)
    rows = np.isin(evidence["uid"].to_numpy(), other.reference_uids)
    assert evidence["label"].to_numpy()[rows].tolist() == other.stages["references"]["labels"]
    test_references_keep_their_trusted_label(other)
    everyone = run.references()
    assert everyone.filter(everyone["given"])["uid"].to_pylist() == run.reference_uids.tolist(), "three a class are few"


def test_a_fine_tuning_leaves_samples_out_for_its_temperature(
    run: CurationRun, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curated ones, no references, with the distributions that were decided."""
    decisions = run.decisions()
    curated = np.isin(np.array(decisions["decision"].to_pylist()), ["keep", "relabel", "soften"])
    uids = decisions["uid"].to_numpy()[curated]
    drawn = draw_samples(np.setdiff1d(uids, run.reference_uids), 1000, 0)
    assert len(drawn) == (len(uids) - 30) // 32 > 1
    trusted, found = held_out_logits(run.model_stage()), held_out_logits(run.model_stage(), HELD_OUT_SAMPLES)
    assert trusted is not None
    assert found is not None
    dense = dense_soft_labels(decisions["soft_label"], 10)
    np.testing.assert_array_equal(found[1], dense[np.isin(decisions["uid"].to_numpy(), drawn)])
    assert run.summary["temperature"] == pool_fits(fit_labels(*trusted), fit_distributions(*found))
    assert held_out_logits(run.model_stage(0), HELD_OUT_SAMPLES) is None, "nothing is curated yet"

    jobs = []

    def stop(job: TrainJob, *_: Any) -> None:
        jobs.append(job)
        raise ShardError("far enough")

    monkeypatch.setattr(pipeline, "run_training", stop)
    shutil.copytree(run.path, tmp_path / "other")
    shards = {name: run.settings[name] for name in ("data", "test_data")}
    for samples, expected in ((1, draw_samples(np.setdiff1d(uids, run.reference_uids), 1, 0)), (0, drawn[:0])):
        with pytest.raises(ShardError, match="far enough"):
            start(tmp_path / "other", **shards, calibrate={"samples": samples})
        job = jobs.pop()
        assert job.held_out == {*run.stages["held_out"], *expected.tolist()}
        assert job.rows == len(uids) - len(job.held_out)


def test_no_sample_supports_itself(run: CurationRun) -> None:
    supporters = run.supporters()
    for uid, others in zip(supporters["uid"].to_pylist(), supporters["supporter_uid"].to_pylist(), strict=True):
        assert uid not in others


def test_figures_and_report_are_there(run: CurationRun) -> None:
    metrics = run.summary["metrics"]
    assert {"noise_auroc", "relabel_accuracy", "ood_auroc", "accuracy", "ece_ts"} <= set(metrics)
    assert metrics["noise_auroc"] > 0.8
    assert run.summary["baselines"]["cross_entropy"]["accuracy"] > 0.5
    assert "<html" in run.storage.read_bytes("report/index.html").decode()
    assert run.model()(run.model().prepare(_zeros())).shape == (1, 10)


def _zeros() -> Any:
    import torch

    return torch.zeros((1, 8, 8, 3), dtype=torch.uint8)


def test_started_again_it_does_nothing_twice(run: CurationRun, local_ray: None) -> None:
    before = run.decisions()
    again = start(Path(run.path))
    assert again.decisions().equals(before)
    assert all(stage["shards_reused"] == stage["shards"] for stage in again.summary["stages"])


def test_other_settings_compute_supporters_and_what_follows(
    run: CurationRun, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, tmp_path / "other")  # other tests look at the run itself
    shards = {name: run.settings[name] for name in ("data", "test_data")}
    cut_on_too_few = {"quantile": 0.999}
    other = start(tmp_path / "other", **shards, vote={"k": 5}, ood=cut_on_too_few, finetune_model=False)
    reused = {stage["name"] for stage in other.summary["stages"] if stage["shards_reused"] == stage["shards"]}
    done = {stage["name"] for stage in other.summary["stages"] if stage["shards_reused"] < stage["shards"]}
    assert {"inventory", "pretrain", "embeddings", "probe", "evidence", "references"} <= reused
    assert done == {"supporters", "distributions", "transition", "ood", "decisions"}
    assert other.supporters()["supporter_uid"].type.list_size == 5
    assert run.summary["counts"]["ood"] > 0
    assert other.summary["counts"]["ood"] == 0
    assert other.summary["metrics"]["ood_auroc"] > 0.8
    assert "no sample is called ood" in " ".join(capsys.readouterr().err.split())
    assert "No sample is called out of distribution" in other.storage.read_bytes("report/index.html").decode()


def test_drawn_references_correct_the_weight_of_the_given_label(
    run: CurationRun, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[np.ndarray, ...]] = []
    fit = steps.fitted_given_weight
    monkeypatch.setattr(steps, "fitted_given_weight", lambda *args, **named: seen.append(args) or fit(*args, **named))

    def again(name: str, weight: float, **changes: Any) -> CurationRun:
        shutil.copytree(run.path, tmp_path / name)
        shards = {name: run.settings[name] for name in ("data", "test_data")}
        vote = {"given_weight": weight, "temperature": 3.0, **changes.pop("vote", {})}
        settings = {**shards, "vote": vote, "finetune_model": False}
        found = start(tmp_path / name, **settings, **changes)
        done = {stage["name"] for stage in found.summary["stages"] if stage["shards_reused"] < stage["shards"]}
        assert done == {"transition", "decisions"}
        return found

    corrected = again("corrected", 0.0)
    [(combined, fitted_to, mass, told_right, trusted)] = seen
    weight = corrected.summary["rounds"][0]["given_weight"]
    decisions = corrected.decisions()
    labels, is_reference = decisions["label"].to_numpy(), np.isin(decisions["uid"].to_numpy(), run.reference_uids)
    right = labels[is_reference] == np.array(run.stages["references"]["labels"])
    flagged = np.array(decisions["decision"].to_pylist()) == "ood"
    judged = ~is_reference & ~flagged
    sources = to_matrix(corrected.table("distributions")["distribution"])
    assert fitted_to.tolist() == labels[judged].tolist()
    assert combined.tolist() == sources[judged].tolist()
    assert told_right.tolist() == right.tolist()

    fixed = again("fixed", weight, vote={"fit_given_weight": "never"})
    assert fixed.decisions().equals(decisions)  # the weight that is told is the one that was used
    assert "given_weight" not in fixed.summary["metrics"]
    assert corrected.settled(1)["vote"] == fixed.settings["vote"]
    page = corrected.storage.read_bytes("report/index.html").decode()
    assert f"The given label weighs {weight:.2f}, not 0 as set: with the latter the mean label quality is too" in page

    # of the same references in a file nobody knows how they were chosen
    references = str(tmp_path / "fixed" / "references.csv")
    of_a_file = again("file", 0.0, reference=references, reference_per_class=None)
    assert len(seen) == 1
    assert "given_weight" not in of_a_file.summary["metrics"]
    share, error = share_right(told_right, trusted, mass.sum(axis=1))
    before, after = (one.summary["labels_right"]["label_quality"] for one in (of_a_file, corrected))
    assert share - after == pytest.approx(error, abs=1e-3)
    assert before < after - 0.02


def test_the_first_models_classes_are_those_of_its_logits(run: CurationRun) -> None:
    logits, classes = run.model_logits(1), run.model_classes(1)
    assert logits is not None
    assert logits.shape == (500, 10)
    assert classes is not None
    assert classes.tolist() == logits.argmax(axis=1).tolist()
    truth = run.truth()["true_label"].to_numpy()
    counted = (truth >= 0) & ~np.isin(run.table("embeddings", 1, ["uid"])["uid"].to_numpy(), run.reference_uids)
    assert run.summary["rounds"][0]["model_accuracy"] == pytest.approx((classes == truth)[counted].mean())


def test_a_run_gives_what_curate_arrays_gives(run: CurationRun) -> None:
    """On the run's own embeddings; the mathematics is one, and the references are set apart in one of the two."""
    decisions, embeddings = run.decisions(), run.table("embeddings", 1)
    uids = embeddings["uid"].to_numpy()
    assert uids.tolist() == decisions["uid"].to_pylist()
    is_reference = np.isin(uids, run.reference_uids)
    vectors = to_matrix(embeddings["embedding"])
    result = curate_arrays(
        vectors[~is_reference],
        decisions["label"].to_numpy().astype(int)[~is_reference],
        vectors[is_reference],
        np.array(run.stages["references"]["labels"]),
        class_names=run.class_names,
        settings=make_config(TINY),
        model_probabilities=run.model_probabilities(1)[~is_reference],
    )
    others = decisions.filter(pa.array(~is_reference))
    # the probe sees the samples in another order: measured 0.015
    assert np.abs(result.label_quality - others["label_quality"].to_numpy()).max() < 0.03
    written = result.soft_label.any(axis=1)
    leading = np.sort(result.soft_label[written], axis=1)[:, ::-1]
    clear = leading[:, 0] - leading[:, 1] > 0.06  # twice that bound: the two leading classes cannot change places
    assert clear.sum() > 50
    assert (result.best_class == others["best_class"].to_numpy())[written][clear].all()
    # the cut is set on other samples, of which there are few here
    decision = np.array(others["decision"].to_pylist())
    inside = (result.decision != "ood") & (decision != "ood")
    assert inside.sum() > 50
    assert (result.decision == decision)[inside].mean() > 0.94


def test_a_second_round_goes_on_from_the_first(run: CurationRun, local_ray: None, tmp_path: Path) -> None:
    """The first round is not done again; the second is of the fine-tuned model, but for what is out of distribution."""
    shutil.copytree(run.path, tmp_path / "other")
    shards = {name: run.settings[name] for name in ("data", "test_data")}
    other = start(tmp_path / "other", **shards, rounds=2)
    for stage in other.summary["stages"]:
        first = stage["round"] == 0 or (stage["round"] == 1 and stage["name"] != "left_out")
        assert (stage["shards_reused"] == stage["shards"]) == first, stage["name"]
    assert other.decisions(1).equals(run.decisions())
    vectors = [unit_rows(to_matrix(other.table("embeddings", number)["embedding"])) for number in (1, 2)]
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01
    fitted = load(other.tables.read_bytes(other.stage("ood").path("gaussian.safetensors")))
    gaussian, cut = Gaussian(fitted["means"], fitted["precision"]), other.stage("ood").facts()["cut"]
    first, second = (ood_score(mahalanobis(part, gaussian), cut) for part in vectors)
    np.testing.assert_allclose(other.decisions()["ood_score"].to_numpy(), first, rtol=1e-4)
    assert np.abs(second - first).max() > 0.01
    members = {number: other.references(number) for number in (1, 2)}
    members = {number: table.filter(pc.invert(table["given"])) for number, table in members.items()}
    before, after = (set(members[number]["uid"].to_pylist()) for number in (1, 2))
    truth = dict(zip(other.truth()["uid"].to_pylist(), other.truth()["true_label"].to_pylist(), strict=True))
    labels = dict(zip(members[1]["uid"].to_pylist(), members[1]["label"].to_pylist(), strict=True))
    right = {uid for uid in before if truth[uid] == labels[uid]}
    figures = other.summary["rounds"][1]
    assert figures["right_references_kept"] == pytest.approx(len(right & after) / len(right))
    wrong = before - right
    assert figures["wrong_references_kept"] == (pytest.approx(len(wrong & after) / len(wrong)) if wrong else None)
    assert "right_references_kept" not in other.summary["rounds"][0]


def test_the_released_model_curates_last(run: CurationRun, local_ray: None, tmp_path: Path) -> None:
    """Nothing is trained once more: the same model and the same figures of it, and other decisions."""
    shutil.copytree(run.path, tmp_path / "other")
    shards = {name: run.settings[name] for name in ("data", "test_data")}
    other = start(tmp_path / "other", **shards, final_curation=True)
    assert other.rounds == 2
    assert other.stages["models"] == run.stages["models"]
    assert other.decisions(1).equals(run.decisions())
    trained = [stage for stage in other.summary["stages"] if stage["name"] in ("pretrain", "finetune", "predictions")]
    assert all(stage["shards_reused"] == stage["shards"] for stage in trained)
    table = other.table("embeddings")
    vectors, uids = to_matrix(table["embedding"]), table["uid"].to_numpy()
    pixels = np.concatenate([block for _, block in pixel_blocks(other, make_config(other.settings), uids)])
    expected, logits = predict(other.model(), pixels)
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    found = other.model_probabilities()
    assert found is not None
    np.testing.assert_allclose(found, softmax(logits, other.summary["temperature"]), atol=2e-2)
    figures, before = other.summary["metrics"], run.summary["metrics"]
    assert figures["accuracy"] == before["accuracy"]
    assert figures["ece_ts"] == before["ece_ts"]
    assert figures["noise_auroc"] != before["noise_auroc"]
    assert figures["noise_auroc"] == other.summary["rounds"][1]["noise_auroc"]
    assert "accuracy" not in other.summary["rounds"][1]
    note = "The model was trained on the label distributions of round 1"
    pages = [source.storage.read_bytes("report/index.html").decode() for source in (other, run)]
    assert [note in page for page in pages] == [True, False]


def test_images_to_check_are_suggested(run: CurationRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, of a copy of the run: doubtful images that are neither references nor foreign, the same again."""
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    assert cli.suggest_command([str(copy), "--count", "7"]) == 0
    assert "7 of " in capsys.readouterr().out
    content = (copy / "suggestions.csv").read_text()
    rows = list(csv.DictReader(content.splitlines()))
    known = read_reference_csv(str(copy / "references.csv"), run.class_names)
    assert [(row["key"], row["label"]) for row in rows[:-7]] == [(key, run.class_names[label]) for key, label in known]
    decisions = {row["key"]: row for row in run.decisions().to_pylist()}
    for row in rows[-7:]:
        decided = decisions[row["key"]]
        assert row["label"] == ""
        assert row["given"] == run.class_names[decided["label"]]
        assert row["curated"].split()[0] == run.class_names[decided["best_class"]]
        assert decided["decision"] in ("keep", "relabel", "soften")
        assert row["key"] not in dict(known)
    assert len({row["key"] for row in rows}) == len(rows)
    assert (copy / "report" / "suggestions.html").read_text().count('class="picture') == 7
    assert cli.suggest_command(["--run", str(copy), "--count", "7"]) == 0
    assert (copy / "suggestions.csv").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["NONE"], "NONE holds no run"),
        (["RUN", "--count", "0"], "--count is 0; allowed: 1 and more"),
    ],
)
def test_what_cannot_be_suggested_is_told(
    run: CurationRun, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.suggest_command([run.path if argument == "RUN" else argument for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_shard_that_changed_gives_no_images(run: CurationRun) -> None:
    uids = run.samples()["uid"].to_numpy()[:3]
    assert sorted(read_image_files(run, uids)) == uids.tolist()
    samples = run.samples()
    changed = samples.set_column(samples.column_names.index("sha256"), "sha256", pa.array(["0"] * samples.num_rows))
    other = SimpleNamespace(tables=run.tables, settings=run.settings, class_names=run.class_names)
    other.samples = lambda test: changed
    with pytest.raises(ShardError, match="has changed since the run"):
        read_image_files(other, uids)  # type: ignore[arg-type]
