"""`summary.json`: counts, figures of METHOD 7 and what each stage cost, computed from a run's tables.

The only place, besides the choice of references, that reads true labels.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from trainref_ray.arrays import curate_arrays
from trainref_ray.config import Config, make_config
from trainref_ray.evaluate import metrics
from trainref_ray.method.vote import share_right
from trainref_ray.report.content import FEWER_REFERENCES
from trainref_ray.results import CurationRun, given_weight_of, label_mass_of, model_temperature
from trainref_ray.schemas import DECISIONS, dense_soft_labels, to_matrix

UNKNOWN = -2
"""Stands for "true label not known" in integer arrays; -1 is METHOD's "belongs to no class"."""
FEWER_REFERENCES_LIMIT = 200_000
"""Samples above which the curation with fewer references is left out: it runs in one process."""


def summarise(run: CurationRun, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that `summary.json` holds.

    Args:
        run: a run whose tables are complete.
        stages: records of the stages, as `progress.StageRecord.as_dict` gives them.
    """
    config = make_config(run.settings)
    counts = _counts(run)
    rounds = [_round(run, number) for number in range(1, run.rounds + 1)]
    models = [entry["round"] for entry in run.stages["models"]]
    baselines: dict[str, dict[str, Any]] = {}
    intervals = _intervals(run, config)
    final: dict[str, Any] = {}
    if run.stages["predictions"]:
        final = _confidence(run, models[-1], model_temperature(run.model_stage(-1)))
        for index, number in enumerate(models[1:], start=1):
            rounds[number - 1] |= _confidence(run, number, model_temperature(run.model_stage(index)))
        intervals |= _confidence_intervals(run, models[-1], config)
        if config.pretrain.reads_labels and final:
            baselines["cross_entropy"] = _confidence(run, models[0], model_temperature(run.model_stage(0)))
            baselines["cross_entropy"]["intervals"] = _confidence_intervals(run, models[0], config)
    for per_class in config.evaluate.fewer_references:
        figures = _fewer_references(run, config, per_class)
        if figures is not None:
            baselines[f"{FEWER_REFERENCES}{per_class}"] = figures
    return {
        "counts": counts,
        "metrics": rounds[-1] | final,
        "intervals": intervals,
        "rounds": [
            figures | {"classes_left_short": _left_short(run, number)} for number, figures in enumerate(rounds, start=1)
        ],
        "baselines": baselines,
        "labels_right": _labels_right(run),
        "temperature": model_temperature(run.model_stage(-1)) if config.pretrain.reads_labels or models[-1] else None,
        "stages": stages,
        "config": run.settings,
        "config_hash": hashlib.sha256(json.dumps(run.settings, sort_keys=True).encode()).hexdigest()[:16],
        "versions": run.storage.read_json("environment.json"),
    }


def _counts(run: CurationRun) -> dict[str, int]:
    found = Counter(run.decisions()["decision"].to_pylist())
    return {"samples": sum(found.values()), **{name: found.get(name, 0) for name in ("quarantined", *DECISIONS[:4])}}


def true_labels(run: CurationRun, uids: np.ndarray, *, test: bool = False) -> np.ndarray:
    """True labels int64 [n] by uid; `UNKNOWN` where there is none."""
    truth = run.truth(test=test)
    known = truth["true_label"].fill_null(UNKNOWN).to_numpy().astype(np.int64)
    order = truth["uid"].to_numpy()
    return known[np.searchsorted(order, uids)]


def usable_decisions(run: CurationRun, round_: int | None = None) -> pa.Table:
    """Decisions without the quarantined rows, which have no scores."""
    table = run.decisions(round_)
    return table.filter(pa.array(np.array(table["decision"].to_pylist()) != "quarantined"))


def _arrays(run: CurationRun, round_: int) -> dict[str, np.ndarray]:
    table = usable_decisions(run, round_)
    uids, quality = table["uid"].to_numpy(), table["label_quality"].to_numpy()
    return {
        "uid": uids,
        "given": table["label"].to_numpy().astype(np.int64),
        "best": table["best_class"].to_numpy().astype(np.int64),
        "quality": quality,
        "ood_score": table["ood_score"].to_numpy(),
        "flagged_wrong": quality < make_config(run.settings).decide.keep_at,
        "flagged_ood": np.array(table["decision"].to_pylist()) == "ood",
        "truth": true_labels(run, uids),
        "is_reference": np.isin(uids, run.reference_uids),
    }


def _labels_right(run: CurationRun) -> dict[str, float] | None:
    """Share of right labels by the references, with its standard error, and by the mean label quality of the others.

    The two should agree where the references are a random choice. A class has the share of the samples that the sources
    give it, as where the weight of the given label is fitted. None where no other sample is of any class.
    """
    arrays, trusted = _arrays(run, run.rounds), np.array(run.stages["references"]["labels"])
    others = ~arrays["is_reference"] & ~arrays["flagged_ood"]
    if not others.any():
        return None
    given = arrays["given"][np.searchsorted(arrays["uid"], run.reference_uids)]
    share, error = share_right(given == trusted, trusted, label_mass_of(run.stage("transition")).sum(axis=1))
    return {"references": share, "standard_error": error, "label_quality": float(arrays["quality"][others].mean())}


def _label_metrics(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """noise_*, relabel_accuracy and ood_* where the truth is known."""
    known = arrays["truth"] != UNKNOWN
    if not known.any():
        others = ~arrays["is_reference"]
        return {"ood_flag_rate": float(arrays["flagged_ood"][others].mean())} if others.any() else {}
    part = {name: values[known] for name, values in arrays.items()}
    return {
        **metrics.noise_metrics(
            part["quality"], part["given"], part["truth"], part["is_reference"], part["flagged_wrong"]
        ),
        "relabel_accuracy": metrics.relabel_accuracy(part["best"], part["truth"], part["is_reference"]),
        **metrics.ood_metrics(
            part["ood_score"], part["given"], part["truth"], part["is_reference"], part["flagged_ood"]
        ),
    }


def _round(run: CurationRun, number: int) -> dict[str, Any]:
    """Figures of one round, the embedding model's own argmax beside the curated label."""
    arrays = _arrays(run, number)
    figures = _label_metrics(arrays)
    members = run.references(number)
    figures["references"] = members.num_rows
    config = make_config(run.settings)
    if config.fits_given_weight:
        figures["given_weight"] = given_weight_of(run.stage("transition", number), config.vote)
    known = arrays["truth"] != UNKNOWN
    if known.any():
        model_classes = run.model_classes(number)
        if model_classes is not None:
            figures["model_accuracy"] = metrics.relabel_accuracy(
                model_classes[known], arrays["truth"][known], arrays["is_reference"][known]
            )
        uids, wrong = _joined(run, number)
        figures["references_noise_rate"] = _share(wrong)
        if number > 1:
            before, was_wrong = _joined(run, number - 1)
            stayed = np.isin(before, uids)
            figures["wrong_references_kept"] = _share(stayed[was_wrong])
            figures["right_references_kept"] = _share(stayed[~was_wrong])
    return figures


def _left_short(run: CurationRun, number: int) -> list[str]:
    """Names of the classes that no sample joined in a round."""
    return [run.class_names[label] for label in run.stage("references", number).facts()["classes_left_short"]]


def _joined(run: CurationRun, number: int) -> tuple[np.ndarray, np.ndarray]:
    """uids int64 [n] of the samples of known truth that joined a round's reference set, and whose label is wrong."""
    members = run.references(number)
    added = members.filter(pa.array(~np.array(members["given"].to_pylist())))
    uids = added["uid"].to_numpy()
    truth = true_labels(run, uids)
    known = truth != UNKNOWN
    return uids[known], (truth != added["label"].to_numpy())[known]


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _intervals(run: CurationRun, config: Config) -> dict[str, list[float]]:
    """95 % bootstrap intervals of the figures of the last round."""
    arrays = _arrays(run, run.rounds)
    counted = (arrays["truth"] != UNKNOWN) & ~arrays["is_reference"]
    of_some_class = counted & (arrays["truth"] >= 0)
    wrong = (arrays["given"] != arrays["truth"])[of_some_class]
    suspicion = -arrays["quality"][of_some_class]
    figures: dict[str, tuple[Callable[..., float | None], list[np.ndarray]]] = {
        "noise_auroc": (metrics.auroc, [suspicion, wrong]),
        "noise_ap": (metrics.average_precision, [suspicion, wrong]),
        "noise_f1": (metrics.f1, [arrays["flagged_wrong"][of_some_class], wrong]),
        "quality_ece": (metrics.quality_ece, [arrays["quality"][of_some_class], ~wrong]),
        "relabel_accuracy": (_mean, [(arrays["best"] == arrays["truth"])[of_some_class]]),
        "ood_auroc": (metrics.auroc, [arrays["ood_score"][counted], (arrays["truth"] == -1)[counted]]),
    }
    found = {}
    for name, (figure, values) in figures.items():
        interval = metrics.bootstrap_interval(figure, values, resamples=config.evaluate.bootstrap, seed=config.seed)
        if interval is not None:
            found[name] = list(interval)
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def test_logits(run: CurationRun, round_: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the usable test images; the true label where there is one, else the given."""
    table = run.predictions(round_)
    assert table is not None
    uids = table["uid"].to_numpy()
    samples = run.samples(test=True)
    given = samples["label"].fill_null(-1).to_numpy().astype(np.int64)[np.searchsorted(samples["uid"].to_numpy(), uids)]
    truth = true_labels(run, uids, test=True)
    labels = np.where(truth == UNKNOWN, given, truth)
    return to_matrix(table["logits"])[labels >= 0], labels[labels >= 0]


def _confidence(run: CurationRun, round_: int, temperature: float) -> dict[str, Any]:
    logits, labels = test_logits(run, round_)
    return dict(metrics.confidence_metrics(logits, labels, temperature))


def _confidence_intervals(run: CurationRun, round_: int, config: Config) -> dict[str, list[float]]:
    if not config.evaluate.bootstrap:
        return {}
    logits, labels = test_logits(run, round_)
    right = logits.argmax(1) == labels
    interval = metrics.bootstrap_interval(_mean, [right], resamples=config.evaluate.bootstrap, seed=config.seed)
    return {"accuracy": list(interval)} if interval is not None else {}


def _fewer_references(run: CurationRun, config: Config, per_class: int) -> dict[str, Any] | None:
    """The first round's curation once more with fewer references a class, on the same embeddings.

    Those of later rounds are of models that learned from all references. None where there are too many samples for
    one process, or the truth of none of them is known.
    """
    arrays = _arrays(run, 1)
    measurable = (arrays["truth"] != UNKNOWN) & ~arrays["is_reference"]
    if len(measurable) > FEWER_REFERENCES_LIMIT or not measurable.any():
        return None
    table = run.table("embeddings", 1, ["uid", "embedding"])
    uids = table["uid"].to_numpy()
    features, model = to_matrix(table["embedding"]).astype(np.float32), run.model_probabilities(1)
    labels = np.array(run.stages["references"]["labels"])
    usable = run.is_curating
    chosen = np.concatenate([np.flatnonzero((labels == label) & usable)[:per_class] for label in np.unique(labels)])
    rows = np.searchsorted(uids, run.reference_uids[chosen])
    others = ~np.isin(np.arange(len(uids)), rows)
    result = curate_arrays(
        features[others],
        arrays["given"][others],
        features[rows],
        labels[chosen],
        classes=len(run.class_names),
        seed=config.seed,
        settings=config,
        model_probabilities=None if model is None else model[others],
        reference_given_labels=arrays["given"][rows] if config.fits_given_weight else None,
    )
    part = {name: values[others] for name, values in arrays.items()}
    part |= {
        "best": result.best_class,
        "quality": result.label_quality,
        "ood_score": result.ood_score,
        "flagged_wrong": result.label_quality < config.decide.keep_at,
        "flagged_ood": result.decision == "ood",
    }
    return _label_metrics(part)


def curated_class_counts(run: CurationRun) -> np.ndarray:
    """Sum of the soft labels of all samples that are trained on, float64 [C]."""
    table = usable_decisions(run)
    return dense_soft_labels(table["soft_label"], len(run.class_names)).astype(np.float64).sum(0)
