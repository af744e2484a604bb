"""What the weights of the sources, the sharpening and the given label do to one round of a finished curation.

    OMP_NUM_THREADS=1 python benchmarks/weights.py RUN --round 2 --out benchmarks/results/weights.md

RUN is a finished curation of shards with a trusted field, its model trained on labels. The round's votes and model are
taken as they are; the influence is that of the references which trainings saw, so that the held-out ones can be judged
beside all other images. The model's logits are taken as they are, and divided by the temperature that fits the held-out
references ("at 0.58"). The table of given labels is taken as counted ("plain") and as `method.vote.transition` has it
("steadied"). Weights "by references" are fitted, from the one that the run was set to, to the share of references that
were given their true label (`vote.fit_given_weight`), those "by truth" to that of all other samples that are not called
ood. The last two columns are what a likelihood would choose by: on the held-out references, and on the others.

A second table tells how many references the fit needs: so many other samples are drawn in their place, as many of each
class, again and again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from trainref_ray import load_run
from trainref_ray.config import make_config
from trainref_ray.distributed import curation
from trainref_ray.evaluate import metrics
from trainref_ray.method import influence, vote
from trainref_ray.report.summary import true_labels, usable_decisions
from trainref_ray.results import model_temperature
from trainref_ray.schemas import to_matrix
from trainref_ray.training.calibrate import softmax

WEIGHTS = ((0, 0, 1), (1, 1, 1), (1, 1, 4))
TEMPERATURES = (0.7, 1.0)
GIVEN_WEIGHTS = (0.0, 0.5, 1.0, 1.5)
KEEP_AT = 0.5
DRAWS = 40
DRAWN = (50, 100, 200, 500, 1000)
FIGURES = (
    *("noise_auroc", "noise_ap", "noise_f1", "mean_quality", "quality_ece", "relabel_accuracy"),
    *("nll_held_out", "nll_others"),
)


@dataclass(frozen=True)
class Sources:
    """What a round says of N samples: three distributions float32 [N, C], the model's by how its logits are scaled,
    given and true labels int64 [N], which rows are references, held out, and called ood, bool [N], and the weight of
    the given label that the run was set to."""

    vote: np.ndarray
    influence: np.ndarray
    model: dict[str, np.ndarray]
    given: np.ndarray
    truth: np.ndarray
    is_reference: np.ndarray
    held_out: np.ndarray
    flagged: np.ndarray
    set_weight: float


def read(path: str, round_: int) -> Sources:
    """The sources of one round."""
    run = load_run(path)
    classes, table, logits = len(run.class_names), run.table("embeddings", round_), run.model_logits(round_)
    assert logits is not None, f"{path}: the model of round {round_} has no head"
    uids, vectors = table["uid"].to_numpy(), influence.unit_rows(to_matrix(table["embedding"]))
    truth = true_labels(run, uids)
    is_reference = np.isin(uids, run.reference_uids)
    held_out = np.isin(uids, run.stages["held_out"])
    seen = is_reference & ~held_out
    probe = curation.probe_of(run.stage("probe", round_))
    probabilities = probe.probabilities(vectors)
    evidence = influence.class_evidence(
        vectors,
        probabilities,
        vectors[seen],
        probabilities[:, seen],
        truth[seen],
        classes=classes,
        bias=probe.bias is not None,
    )
    supporters = curation.read_supporters(run.supporters(round_))
    members = np.bincount(run.references(round_)["label"].to_numpy(), minlength=classes)
    votes = vote.vote(supporters.labels, supporters.similarity, classes=classes, member_counts=members, balance=1.0)
    decisions = usable_decisions(run, round_)
    given, flagged = (
        decisions["label"].to_numpy().astype(np.int64),
        np.array(decisions["decision"].to_pylist()) == "ood",
    )
    temperature = model_temperature(run.model_stage(round_ - 1))
    model = {"as it is": softmax(logits), f"at {temperature:.2f}": softmax(logits, temperature)}
    said = votes, influence.soft_labels(evidence.normalised)[0], model
    set_weight = make_config(run.settings).vote.given_weight
    return Sources(*said, given, truth, is_reference, held_out, flagged, set_weight)


def settings(sources: Sources) -> Iterator[tuple[list[str], np.ndarray]]:
    """Cells that name a setting, and its curated distributions float32 [N, C]."""
    for (scaling, model), weights in product(sources.model.items(), WEIGHTS):
        combined = vote.combine(sources.vote, sources.influence, model, weights=weights)
        for temperature in TEMPERATURES:
            sharpened = vote.sharpen(combined, temperature)
            mass = vote.class_label_mass(sharpened, sources.given)
            plain = mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-9)
            tables = {"plain": plain, "steadied": vote.transition(mass)}
            fitted = fitted_weights(sources, sharpened, mass) if temperature == 1 else {}
            named = [
                *(
                    (f"{weight}", weight, name)
                    for weight in GIVEN_WEIGHTS
                    for name in (tables if weight else ["plain"])
                ),
                *((f"{weight:.3f} by {by}", weight, "steadied") for by, weight in fitted.items()),
            ]
            for title, weight, name in named:
                curated = sharpened * tables[name].T[sources.given] ** weight
                cells = [scaling, ", ".join(map(str, weights)), f"{temperature}", title, name if weight else ""]
                yield cells, curated / curated.sum(axis=1, keepdims=True)


def by_number(sources: Sources) -> Iterator[tuple[str, str, Mapping[str, float | None]]]:
    """Number of references, the weights that so many find, mean and standard deviation, and the mean figures, beside
    those of the weight that is set; with the last setting of `settings`."""
    scaled = list(sources.model.values())[-1]
    distribution = vote.combine(sources.vote, sources.influence, scaled, weights=WEIGHTS[-1])
    mass = vote.class_label_mass(distribution, sources.given)
    known = np.flatnonzero(~sources.is_reference & ~sources.flagged & (sources.truth >= 0))
    right, random = sources.given == sources.truth, np.random.default_rng(0)

    def measured(weight: float) -> dict[str, float | None]:
        return figures(sources, vote.weigh_given_label(distribution, sources.given, mass, weight))

    yield "none", f"{sources.set_weight:g}", measured(sources.set_weight)
    classes = distribution.shape[1]
    for number in DRAWN:
        if number < classes:
            continue
        weights = []
        for _ in range(DRAWS):
            mixed = random.permutation(known)
            ordered = mixed[np.argsort(sources.truth[mixed], kind="stable")]
            first = np.searchsorted(sources.truth[ordered], np.arange(classes))
            rows = ordered[(first[:, None] + np.arange(number // classes)).ravel()]
            share, error = vote.share_right(right[rows], sources.truth[rows], mass.sum(axis=1))
            weights.append(fitted_weight(sources, distribution, mass, share, error))
        each = [measured(weight) for weight in weights]
        means = {name: float(np.mean([found[name] or 0.0 for found in each])) for name in FIGURES}
        yield f"{number:,}", f"{np.mean(weights):.2f} ± {np.std(weights):.2f}", means


def fitted_weights(sources: Sources, sharpened: np.ndarray, mass: np.ndarray) -> dict[str, float]:
    """The weights of the given label by the share of right labels, by who knows that."""
    others, right = ~sources.is_reference & ~sources.flagged, sources.given == sources.truth
    references = sources.truth[sources.is_reference]
    share, error = vote.share_right(right[sources.is_reference], references, mass.sum(axis=1))
    known = {"references": (share, error), "truth": (float(right[others].mean()), 1e-3)}
    return {name: fitted_weight(sources, sharpened, mass, *told) for name, told in known.items()}


def fitted_weight(sources: Sources, sharpened: np.ndarray, mass: np.ndarray, share: float, error: float) -> float:
    """The weight that the run's own gives way to where `share`, with its standard error, contradicts it."""
    others = ~sources.is_reference & ~sources.flagged
    return vote.fit_given_weight(
        sharpened[others],
        sources.given[others],
        mass,
        share=share,
        standard_error=error,
        set_weight=sources.set_weight,
    )


def figures(sources: Sources, curated: np.ndarray) -> dict[str, float | None]:
    """The values of `FIGURES`."""
    quality = curated[np.arange(len(curated)), sources.given]
    others = ~sources.is_reference & (sources.truth >= 0)
    given, truth, is_reference = sources.given, sources.truth, sources.is_reference
    return {
        **metrics.noise_metrics(quality, given, truth, is_reference, quality < KEEP_AT),
        "mean_quality": float(quality[others].mean()),
        "relabel_accuracy": metrics.relabel_accuracy(curated.argmax(axis=1), truth, is_reference),
        "nll_held_out": metrics.nll(curated[sources.held_out], truth[sources.held_out]),
        "nll_others": metrics.nll(curated[others], truth[others]),
    }


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--round", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    sources = read(arguments.run, arguments.round)
    right, others = sources.given == sources.truth, ~sources.is_reference & (sources.truth >= 0)
    content = [
        f"Round {arguments.round} of a run, {len(sources.given):,} samples, {sources.is_reference.sum():,} references; "
        f"{sources.held_out.sum():,} of these held out. Given their true label: "
        f"{right[sources.is_reference].mean():.1%} of the references, {right[others].mean():.1%} of the others, "
        "foreign ones aside.",
        "",
        f"| model | vote, influence, model | temperature | given_weight | table | {' | '.join(FIGURES)} |",
        "|---" * (len(FIGURES) + 5) + "|",
    ]
    for cells, curated in settings(sources):
        values = figures(sources, curated)
        content.append(f"| {' | '.join([*cells, *(f'{values[name] or 0.0:.3f}' for name in FIGURES)])} |")
        print(content[-1], flush=True)
    content += ["", f"| references | given_weight | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 2) + "|"]
    for number, weight, means in by_number(sources):
        content.append(f"| {number} | {weight} | {' | '.join(f'{means[name] or 0.0:.4f}' for name in FIGURES)} |")
        print(content[-1], flush=True)
    arguments.out.write_text("\n".join(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
