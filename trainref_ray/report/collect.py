"""From a run's tables to what the report shows: which samples are in the galleries, and the figures beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from trainref_ray.config import Config, make_config
from trainref_ray.evaluate.metrics import reliability_bins
from trainref_ray.report.card import dataset_card
from trainref_ray.report.content import (
    Figure,
    Reliability,
    ReportContent,
    SampleCard,
    SupporterCard,
    Table,
    baseline_label,
)
from trainref_ray.report.page import render, render_ood
from trainref_ray.report.summary import UNKNOWN, curated_class_counts, test_logits, true_labels, usable_decisions
from trainref_ray.results import HELD_OUT_SAMPLES, CurationRun, held_out_logits
from trainref_ray.training.calibrate import softmax

SHOWN_SUPPORTERS = 4
SHOWN_CLASSES = 5
"""Supporters and classes beside each image, as the paper's page shows them."""
SHOWN_QUARANTINED = 200
BY_CHANCE = 3.0
"""Standard errors by which two shares may differ without a word: one run in 400 differs by more. The 50 references of
the embedded sample, with seed 0, do by 2.5."""
SHOWN_LEFT_SHORT = 10
"""Names in the note on classes that no sample joined; summary.json has all."""
HEADLINES = {
    "noise_auroc": (
        "Wrong labels found (AUROC)",
        "higher",
        "how well the label quality ranks wrong labels below right ones",
    ),
    "relabel_accuracy": (
        "Curated labels right",
        "higher",
        "share of images whose leading curated class is the true one",
    ),
    "ood_auroc": (
        "Foreign images found (AUROC)",
        "higher",
        "how well the out-of-distribution score ranks foreign images first",
    ),
    "accuracy": ("Test accuracy", "higher", "of the model fine-tuned on the curated set, on clean test images"),
    "ece_ts": (
        "Calibration error",
        "lower",
        "gap between confidence and accuracy on test images, after temperature scaling",
    ),
}
TABLE_COLUMNS = {
    "noise_auroc": "higher",
    "noise_ap": "higher",
    "noise_f1": "higher",
    "relabel_accuracy": "higher",
    "ood_auroc": "higher",
    "accuracy": "higher",
    "nll_ts": "lower",
    "brier_ts": "lower",
    "ece_ts": "lower",
}

Fetch = Callable[[np.ndarray], Mapping[int, bytes]]
"""Images' files by uid; how they are read is the caller's business."""


def build_report(run: CurationRun, fetch: Fetch) -> None:
    """Write `report/index.html`, `report/ood.html` and `report/dataset_card.md` into the run folder."""
    content = collect(run, fetch)
    run.storage.write_bytes("report/index.html", render(content).encode())
    if content.random_ood:
        run.storage.write_bytes("report/ood.html", render_ood(content).encode())
    else:
        run.storage.remove("report/ood.html")  # of an earlier start
    run.storage.write_bytes("report/dataset_card.md", dataset_card(content).encode())


def collect(run: CurationRun, fetch: Fetch) -> ReportContent:
    """Everything the report shows.

    Args:
        run: a run with a `summary.json`.
        fetch: gives the image files of the uids it is called with.
    """
    summary = run.summary
    config = make_config(run.settings)
    decisions = usable_decisions(run)
    gallery = gallery_rows(decisions, run.reference_uids, config.report.gallery, config.seed)
    strange = _strangest(decisions, config.report.gallery)
    random_ood = _random_ood(decisions, config.report.random_ood, config.seed)
    uids = decisions["uid"].to_numpy()
    supporters = _supporters_of(run, uids[gallery])
    needed = np.unique(
        np.concatenate(
            [uids[gallery], uids[strange], uids[random_ood], *[found["uid"] for found in supporters]]
        ).astype(np.int64)
    )
    images = fetch(needed)
    truth = true_labels(run, uids)
    given = decisions["label"].to_numpy()
    classes = len(run.class_names)
    is_known = bool((truth != UNKNOWN).all())  # beside counts of all images, those of some would mislead
    quarantined = run.decisions().filter(pa.array(np.array(run.decisions()["decision"].to_pylist()) == "quarantined"))
    return ReportContent(
        title="Curation report",
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=_headline(summary),
        results=_results(summary),
        counts=summary["counts"],
        class_names=run.class_names,
        noisy_counts=np.bincount(given, minlength=classes).tolist(),
        curated_counts=curated_class_counts(run).tolist(),
        true_counts=np.bincount(truth[truth >= 0], minlength=classes).tolist() if is_known else None,
        gallery=[
            _card(run, decisions, row, images, truth, found) for row, found in zip(gallery, supporters, strict=True)
        ],
        ood_gallery=[_card(run, decisions, row, images, truth, None) for row in strange],
        random_ood=[_card(run, decisions, row, images, truth, None) for row in random_ood],
        quarantine=[
            (row["key"], str(row["uid"] >> 32), row["reason"])
            for row in quarantined.slice(0, SHOWN_QUARANTINED).to_pylist()
        ],
        quarantine_total=quarantined.num_rows,
        reliability=_reliability(run, summary),
        stages=summary["stages"],
        decide=config.decide,
        settings=summary["config"],
        versions=summary["versions"],
        notes=_notes(run, config, summary),
    )


def gallery_rows(decisions: pa.Table, references: np.ndarray, size: int, seed: int) -> list[int]:
    """Rows for the gallery: a third each of relabelled, softened and kept samples, drawn at random, so that the page
    shows what is typical and not what is flattering. References, uids int64 [R], are left out: theirs is no curated
    distribution."""
    decision = np.array(decisions["decision"].to_pylist())
    judged = ~np.isin(decisions["uid"].to_numpy(), references)
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for name in ("relabel", "soften", "keep"):
        rows = np.flatnonzero((decision == name) & judged)
        chosen += np.sort(random.permutation(rows)[: -(-size // 3)]).tolist()
    return chosen[:size]


def _strangest(decisions: pa.Table, size: int) -> list[int]:
    """Rows with the highest out-of-distribution scores among those called so."""
    decision = np.array(decisions["decision"].to_pylist())
    rows = np.flatnonzero(decision == "ood")
    return rows[np.argsort(-decisions["ood_score"].to_numpy()[rows], kind="stable")][:size].tolist()


def _random_ood(decisions: pa.Table, size: int, seed: int) -> list[int]:
    """Rows of images called out of distribution, at random."""
    rows = np.flatnonzero(np.array(decisions["decision"].to_pylist()) == "ood")
    return np.random.default_rng(seed).permutation(rows)[:size].tolist()


def _supporters_of(run: CurationRun, uids: np.ndarray) -> list[dict[str, Any]]:
    """The most similar supporters of each uid: their uids, similarities, labels, and whether they were given."""
    if not len(uids):
        return []
    table = run.supporters()
    rows = table.take(pa.array(np.searchsorted(table["uid"].to_numpy(), uids))).to_pylist()
    found = []
    for row in rows:
        valid = [position for position, uid in enumerate(row["supporter_uid"]) if uid is not None][:SHOWN_SUPPORTERS]
        found.append(
            {
                "uid": np.array([row["supporter_uid"][position] for position in valid], np.int64),
                "similarity": [row["supporter_similarity"][position] for position in valid],
                "label": [row["supporter_label"][position] for position in valid],
            }
        )
    return found


def _card(
    run: CurationRun,
    decisions: pa.Table,
    row: int,
    images: Mapping[int, bytes],
    truth: np.ndarray,
    found: dict[str, Any] | None,
) -> SampleCard:
    record = decisions.slice(row, 1).to_pylist()[0]
    names = run.class_names
    true_label = int(truth[row])
    supporters = []
    if found is not None:
        given = set(run.reference_uids.tolist())
        keys = _keys(run, found["uid"])
        for uid, similarity, label in zip(found["uid"].tolist(), found["similarity"], found["label"], strict=True):
            supporters.append(SupporterCard(keys[uid], images[uid], names[label], similarity, uid in given))
    return SampleCard(
        key=record["key"],
        image=images[record["uid"]],
        given=names[record["label"]],
        truth=None if true_label == UNKNOWN else "none of the classes" if true_label < 0 else names[true_label],
        decision=record["decision"],
        label_quality=record["label_quality"],
        ood_score=record["ood_score"],
        reason=record["reason"],
        top=[(names[entry["class"]], entry["p"]) for entry in (record["soft_label"] or [])[:SHOWN_CLASSES]],
        supporters=supporters,
    )


def _keys(run: CurationRun, uids: np.ndarray) -> dict[int, str]:
    table = run.decisions().select(["uid", "key"])
    rows = table.take(pa.array(np.searchsorted(table["uid"].to_numpy(), uids)))
    return dict(zip(rows["uid"].to_pylist(), rows["key"].to_pylist(), strict=True))


def _headline(summary: dict[str, Any]) -> list[Figure]:
    figures = []
    for name, (label, better, meaning) in HEADLINES.items():
        value = summary["metrics"].get(name)
        if value is not None:
            interval = summary["intervals"].get(name)
            figures.append(Figure(name, label, value, tuple(interval) if interval else None, "", better, meaning))
    return figures


def _results(summary: dict[str, Any]) -> Table:
    columns = [
        name
        for name in TABLE_COLUMNS
        if any(name in row for row in [summary["metrics"], *summary["baselines"].values()])
    ]
    rows = [(baseline_label(name), figures) for name, figures in summary["baselines"].items()]
    rows += [(f"trainref, round {number}", figures) for number, figures in enumerate(summary["rounds"][:-1], start=1)]
    rows.append(("trainref", summary["metrics"]))
    return Table(
        columns=columns,
        rows=[(name, [figures.get(column) for column in columns]) for name, figures in rows],
        better=[TABLE_COLUMNS[column] for column in columns],
    )


def _reliability(run: CurationRun, summary: dict[str, Any]) -> list[Reliability]:
    if not _is_tested(summary):
        return []
    logits, labels = test_logits(run, run.stages["models"][-1]["round"])
    return [
        Reliability(name, reliability_bins(softmax(logits, temperature), labels), summary["metrics"][metric])
        for name, temperature, metric in (
            ("before temperature scaling", 1.0, "ece"),
            ("after temperature scaling", summary["temperature"], "ece_ts"),
        )
    ]


def _is_tested(summary: dict[str, Any]) -> bool:
    """Whether a model predicted test images whose class is known."""
    return "accuracy" in summary["metrics"]


def _notes(run: CurationRun, config: Config, summary: dict[str, Any]) -> list[str]:
    facts, given = run.stage("references").facts(), len(run.reference_uids)
    notes = [
        f"{given:,} references were given; the samples are compared with {facts['given']:,} of them and with "
        f"{facts['members'] - facts['given']:,} samples that joined them "
        f"(delta {config.augment.delta:g}, at most {config.augment.per_class} a class)."
    ]
    if facts["classes_left_short"]:
        names = [run.class_names[label] for label in facts["classes_left_short"]]
        classes = f"{len(names):,} {'class' if len(names) == 1 else 'classes'}"
        shown = ", ".join(names[:SHOWN_LEFT_SHORT]) + (", …" if len(names) > SHOWN_LEFT_SHORT else "")
        notes.append(f"No sample joined the references of {classes}: {shown}.")
    notes += _labels_right_note(config, summary)
    if run.rounds > config.rounds:
        notes.append(
            f"The model was trained on the label distributions of round {config.rounds}; the decisions here are its "
            "own, of a last curation after which nothing was trained."
        )
    calibrated = run.stage("ood").facts()
    if math.isinf(calibrated["cut"]):
        notes.append(
            f"No sample is called out of distribution: the {calibrated['calibration_samples']} samples to set the cut "
            f"on are too few for the quantile {config.ood.quantile:g}."
        )
    if run.stages["predictions"] and not _is_tested(summary):
        notes.append("No test image has a usable label: nothing was measured on the test set.")
    held_out = len(run.stages["held_out"])
    if config.pretrain.reads_labels:
        notes.append(f"{held_out} references were seen by no training; they chose the epoch and the temperature.")
        return [*notes, *_samples_note(run)]
    notes.append(
        "The first embeddings are of a backbone that was trained on no label of these images: "
        "there is no cross-entropy on the noisy labels to compare with."
    )
    if summary["temperature"] is None:
        notes.append("No head was trained: the model gives embeddings, and has no temperature.")
    else:
        notes.append(f"The labels of {held_out} references were seen by no training; they chose the temperature.")
    return [*notes, *_samples_note(run)]


def _labels_right_note(config: Config, summary: dict[str, Any]) -> list[str]:
    """The weight of the given label that was fitted, and where label qualities and references still differ in how many
    labels are right, by more than chance."""
    found, notes = summary["labels_right"], []
    weight = summary["metrics"].get("given_weight", config.vote.given_weight)
    if weight != config.vote.given_weight:
        notes.append(
            f"The given label weighs {weight:.2f}, not {config.vote.given_weight:g} as set: with the latter the mean "
            "label quality is too far from the share of references whose given label is right."
        )
    if found is None or abs(found["label_quality"] - found["references"]) <= BY_CHANCE * found["standard_error"]:
        return notes
    change = "higher" if found["label_quality"] < found["references"] else "lower"
    quality, right, error = (100 * found[name] for name in ("label_quality", "references", "standard_error"))
    return [
        *notes,
        f"By the mean label quality {quality:.0f} % of the labels are right; of the references {right:.0f} % (standard "
        f"error {error:.1f} %) have a right given label. If these are a random choice, a {change} vote.given_weight "
        f"(here {weight:.3g}) gives better distributions.",
    ]


def _samples_note(run: CurationRun) -> list[str]:
    found = held_out_logits(run.model_stage(), HELD_OUT_SAMPLES)
    if found is None:
        return []
    return [
        f"{len(found[1]):,} of the curated samples were left out of the fine-tuning; their label distributions had a "
        "say in the temperature."
    ]
