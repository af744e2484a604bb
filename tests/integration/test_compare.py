"""A comparison on a real local Ray: every method of two seeds; again; with a method's result removed or cut short."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from rich.console import Console
from shards import rewrite

from trainref_ray import make_config
from trainref_ray.baselines.methods import ON_FEATURES, REWEIGHTED, TRAINED, choose_methods
from trainref_ray.distributed.compare import Comparison, compare
from trainref_ray.distributed.compare_checks import Request
from trainref_ray.progress import Reporter
from trainref_ray.report.scores import METRICS

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

CHANGES: dict[str, Any] = {
    "limit": 300,
    "pretrain": {"batch_size": 32},
    "finetune_model": False,
    "calibrate": {"per_class": 1},
    "report": {"gallery": 8},
}
"""Each start of training workers takes half a minute on two CPUs, so only one test fine-tunes."""


class Lines(Reporter):
    """A reporter whose lines can be read."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), width=200))

    @property
    def text(self) -> str:
        return self.console.file.getvalue()  # type: ignore[attr-defined]


def start(out: Path, request: Request, data: Path, **changes: Any) -> tuple[Comparison, str]:
    shards = {"data": [str(data / "train-*.tar")], "test_data": [str(data / "test-*.tar")]}
    reporter = Lines()
    config = make_config(TINY, CHANGES, shards, {"out": str(out)}, changes)
    return compare(config, request, reporter), reporter.text


def rows_of(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["method"], row["seed"]): row for row in json.loads((out / "compare.json").read_text())["rows"]}


def written(out: Path) -> dict[str, int]:
    """When each method's result was written."""
    return {str(path): path.stat().st_mtime_ns for path in out.glob("seed-*/*/result.safetensors")}


@pytest.fixture(scope="module")
def with_votes(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with people's votes, sure of the true label, on every sample that has one."""
    folder = tmp_path_factory.mktemp("votes")

    def add(name: str, content: bytes) -> bytes:
        if not name.endswith(".json"):
            return content
        facts = json.loads(content)
        if facts["true_label"] >= 0:
            facts["people"] = [9 if label == facts["true_label"] else 0 for label in range(10)]
        return json.dumps(facts).encode()

    for shard in digits.glob("*.tar"):
        rewrite(shard, folder / shard.name, add)
    shutil.copy(digits / "classes.json", folder)
    return folder


@pytest.fixture(scope="module")
def methods() -> tuple[str, ...]:
    return tuple(choose_methods(None))


@pytest.fixture(scope="module")
def out(local_ray: None, with_votes: Path, methods: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "out"
    start(folder, Request(methods, (0, 1), "people"), with_votes)
    return folder


def test_there_is_a_row_for_every_method_and_seed(out: Path, methods: tuple[str, ...]) -> None:
    rows = rows_of(out)
    assert list(rows) == [(method, seed) for method in methods for seed in (0, 1)]
    for row in rows.values():
        assert set(row["metrics"]) == set(METRICS)
        assert row["error"] is None
        measured = {name for name, value in row["metrics"].items() if value is not None}
        assert measured == set(row["intervals"])


def test_each_method_has_the_figures_that_it_can_have(out: Path, methods: tuple[str, ...]) -> None:
    rows = rows_of(out)

    def measured(method: str) -> set[str]:
        return {name for name, value in rows[method, 0]["metrics"].items() if value is not None}

    labels = {"noise_auroc", "noise_ap", "noise_f1", "quality_ece", "relabel_accuracy", "soft_nll", "soft_kl"}
    foreign = {"ood_auroc", "ood_ap", "ood_fpr95"}
    scaled = {"noise_auroc_ts", "noise_ap_ts", "quality_ece_ts", "soft_nll_ts", "soft_kl_ts"}
    tests = set(METRICS) - labels - scaled - foreign
    assert measured("trainref") == set(METRICS)
    assert measured("knn") == set(METRICS)
    for method in ("logistic_regression", "model_self_confidence", *TRAINED):
        assert measured(method) == labels | scaled | tests, method
    assert measured("trainref/hard-label") == {"relabel_accuracy", "soft_nll", "soft_kl"}
    ours, hard = (rows_of(out)[method, 0]["metrics"] for method in ("trainref", "trainref/hard-label"))
    assert hard["relabel_accuracy"] == ours["relabel_accuracy"]
    assert hard["soft_kl"] != ours["soft_kl"]
    for method in ("trainref/round-1", "trainref/trained-on", *REWEIGHTED):
        assert measured(method) == labels | foreign, method
    if "cleanlab_ood_features" in methods:
        assert measured("cleanlab_ood_features") == foreign
        assert measured("cleanlab_confident_learning") == labels


def test_figures_are_those_of_the_curation(out: Path) -> None:
    """The row of trainref says what the run's own summary says, and the seeds differ."""
    for seed in (0, 1):
        summary = json.loads((out / f"seed-{seed}" / "trainref" / "summary.json").read_text())["metrics"]
        found = rows_of(out)["trainref", seed]["metrics"]
        for name in ("noise_auroc", "noise_f1", "relabel_accuracy", "ood_auroc", "accuracy", "ece", "nll_ts", "ece_ts"):
            assert found[name] == pytest.approx(summary[name], abs=1e-6), name
        pretrained = json.loads((out / f"seed-{seed}" / "trainref" / "summary.json").read_text())["baselines"]
        own = rows_of(out)["model_self_confidence", seed]["metrics"]
        assert own["accuracy"] == pytest.approx(pretrained["cross_entropy"]["accuracy"], abs=1e-6)
    assert rows_of(out)["disc", 0]["metrics"] != rows_of(out)["disc", 1]["metrics"]


def test_an_equal_budget_of_image_passes(out: Path) -> None:
    rows = rows_of(out)
    budget = rows["trainref", 0]["image_passes"]
    for method in TRAINED:
        # to within half a batch an epoch; DISC ends with a step of at most 4 passes an image
        assert rows[method, 0]["image_passes"] == pytest.approx(budget, abs=4 * 32), method
    assert rows["knn", 0]["image_passes"] is None


def test_no_method_s_result_depends_on_truth(out: Path) -> None:
    """Truth lies in one place, which no result's fingerprint covers and no method reads."""
    for path in out.glob("seed-0/*/"):
        if path.name.split("-")[0] in ("disc", "knn", "mixup"):
            assert {file.name for file in path.iterdir()} <= {
                "result.safetensors",
                "scores.json",
                "done.json",
                "states",
            }


def test_tables_and_pages_are_there(out: Path) -> None:
    text = (out / "compare.md").read_text()
    assert "±" in text
    assert "| disc |" in text
    page = (out / "report" / "compare.html").read_text()
    assert "label_smoothing" in page
    assert (out / "report" / "confidence.html").read_text().count("data:image/png") >= 4


def test_started_again_it_does_nothing_twice(
    out: Path, with_votes: Path, methods: tuple[str, ...], local_ray: None
) -> None:
    before, rows = written(out), rows_of(out)
    _, text = start(out, Request(methods, (0, 1), "people"), with_votes)
    assert written(out) == before
    assert rows_of(out) == rows
    assert f"seed 1: {len(methods)} of {len(methods)} methods done" in text


def test_what_is_removed_or_cut_short_is_done_again_with_equal_figures(
    out: Path, with_votes: Path, methods: tuple[str, ...], local_ray: None
) -> None:
    """One result is gone, and DISC was killed after its last epoch but one: the others stay, the figures are equal."""
    before, rows = written(out), rows_of(out)
    (knn,) = out.glob("seed-0/knn-*")
    shutil.rmtree(knn)
    (disc,) = out.glob("seed-1/disc-*")
    states = disc / "states"
    kept = json.loads((states / "latest.json").read_text())
    assert kept["epochs"] > 1
    for name in ("done.json", "result.safetensors", "scores.json"):
        (disc / name).unlink()
    _, text = start(out, Request(methods, (0, 1), "people"), with_votes)
    changed = {Path(path).parent.name for path, time in written(out).items() if before[path] != time}
    assert changed == {knn.name, disc.name}
    assert f"seed 0: {len(methods) - 1} of {len(methods)} methods done" in text
    for key, row in rows_of(out).items():
        assert row["metrics"] == rows[key]["metrics"], key
    # the training was not begun again: its state is the one that was there
    assert json.loads((states / "latest.json").read_text()) == kept


def test_a_fine_tuning_of_its_own_shares_what_is_before_it(out: Path, with_votes: Path, tmp_path: Path) -> None:
    """With fine-tuning, and an ablation of it: one pre-training for both, and the methods on embeddings stay.

    The model was trained on the decisions that the run without fine-tuning ends with, and then curates itself."""
    shutil.copytree(out, tmp_path / "other")
    before = written(tmp_path / "other")
    request = Request(tuple(choose_methods(["trainref/hard", "trainref/trained-on", *ON_FEATURES])), (0,), "people")
    _, text = start(tmp_path / "other", request, with_votes, finetune_model=True, final_curation=True)
    assert text.count("resuming: pretrain: done before") == 2
    added = {Path(path).parent.name for path in written(tmp_path / "other").keys() - before.keys()}
    assert {name.rpartition("-")[0] for name in added} == {"trainref", "trainref-hard"}
    rows, old = rows_of(tmp_path / "other"), rows_of(out)
    ours = ["trainref", "trainref/trained-on", "trainref/hard"]
    assert list(rows) == [(name, 0) for name in (*ours, *ON_FEATURES)]
    assert rows["knn", 0]["metrics"] == old["knn", 0]["metrics"]
    for name in ("noise_auroc", "relabel_accuracy", "soft_nll"):
        assert rows["trainref/trained-on", 0]["metrics"][name] == old["trainref", 0]["metrics"][name], name
        assert rows["trainref", 0]["metrics"][name] != old["trainref", 0]["metrics"][name], name
    losses = {rows["trainref", 0]["metrics"]["nll"], rows["trainref/hard", 0]["metrics"]["nll"]}
    assert len(losses | {old["trainref", 0]["metrics"]["nll"]}) == 3
    assert rows["trainref", 0]["image_passes"] > old["trainref", 0]["image_passes"]
    assert rows["trainref", 0]["seconds"] is None  # earlier starts did a part of it


def test_a_first_model_without_labels_leaves_out_what_it_cannot_say(
    local_ray: None, with_votes: Path, tmp_path: Path
) -> None:
    """Methods on embeddings have figures, its own probabilities do not exist, and trainref predicts no test image."""
    request = Request(tuple(choose_methods(["knn", "model_self_confidence", "disc"])), (0,))
    start(tmp_path / "out", request, with_votes, pretrain={"objective": "contrastive", "batch_size": 32})
    rows = rows_of(tmp_path / "out")
    assert rows["model_self_confidence", 0]["error"] == (
        "ConfigError: the first model was trained without labels and predicts no class"
    )
    assert rows["trainref", 0]["metrics"]["accuracy"] is None
    for method in ("trainref", "knn", "disc"):
        assert rows[method, 0]["metrics"]["noise_auroc"] > 0.5, method
        assert rows[method, 0]["seconds"] > 0, method
    assert "trained without labels" in (tmp_path / "out" / "report" / "compare.html").read_text()
    assert not (tmp_path / "out" / "report" / "confidence.html").exists()
