"""What the number, the mistakes, the balance and the choice of references do to a curation.

    OMP_NUM_THREADS=1 python benchmarks/references.py RUN --draws 5 --out benchmarks/results/references.md

RUN is a finished curation of shards with a trusted field, of which the first round's embeddings are curated anew.
Figures are over the images that are no reference in any row of the draw. Typical images are drawn from the tenth of
their true class that lies nearest to its mean embedding, atypical ones from the farthest tenth.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from curation import FirstRound

from trainref_ray import make_config
from trainref_ray.config import Config
from trainref_ray.method.influence import unit_rows

FIGURES = ("noise_auroc", "noise_ap", "noise_f1", "relabel_accuracy")
SOURCES: dict[str, dict[str, Any]] = {
    "all three sources": {},
    "vote and influence alone": {"vote": {"model_weight": 0.0}},
}
COUNTS = (1, 2, 5, 10)
WRONG = (0.1, 0.2, 0.3)
LONG_TAIL = 20.0
"""Times as many references in the largest class as in the smallest, in the row of imbalanced ones."""


def draws_of(data: FirstRound, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name of a row, rows of its references int64 [R] and their labels int64 [R], which may be wrong."""
    random = np.random.default_rng(seed)
    shuffled = {name: _by_class(data, np.random.default_rng(seed), name) for name in ("any", "typical", "atypical")}
    most = max(COUNTS)
    for count in COUNTS:
        rows = np.concatenate([pool[:count] for pool in shuffled["any"]])
        yield f"{count} a class", rows, data.truth[rows]
    ten = np.concatenate([pool[:most] for pool in shuffled["any"]])
    order, shift = random.permutation(len(ten)), random.integers(1, data.classes, len(ten))
    for share in WRONG:
        labels = data.truth[ten].copy()
        wrong = order[: round(share * len(ten))]
        labels[wrong] = (labels[wrong] + shift[wrong]) % data.classes
        yield f"{most} a class, {share:.0%} of them wrong", ten, labels
    sizes = LONG_TAIL ** -np.linspace(0, 1, data.classes)
    sizes = np.maximum(1, np.round(sizes / sizes.sum() * most * data.classes)).astype(int)
    unequal = [pool[:size] for pool, size in zip(shuffled["any"], random.permutation(sizes), strict=True)]
    rows = np.concatenate(unequal)
    yield f"{len(rows)}, {sizes.min()} to {sizes.max()} a class", rows, data.truth[rows]
    for name in ("typical", "atypical"):
        for count in (1, most):
            rows = np.concatenate([pool[:count] for pool in shuffled[name]])
            yield f"{count} {name} a class", rows, data.truth[rows]


def _by_class(data: FirstRound, random: np.random.Generator, kind: str) -> list[np.ndarray]:
    """Rows of each true class that may become references, in random order."""
    pools = []
    for name in range(data.classes):
        rows = np.flatnonzero(data.truth == name)
        if kind != "any":
            distance = -data.embeddings[rows] @ unit_rows(data.embeddings[rows].mean(axis=0, keepdims=True))[0]
            tenth = max(10, len(rows) // 10)
            nearest = rows[np.argsort(distance, kind="stable")]
            rows = nearest[:tenth] if kind == "typical" else nearest[-tenth:]
        pools.append(random.permutation(rows))
    return pools


def figures(
    data: FirstRound, references: np.ndarray, labels: np.ndarray, judged: np.ndarray, config: Config
) -> list[float]:
    """The values of `FIGURES` on the judged rows, and the share of wrong labels in the augmented reference set."""
    found = data.curate(references, labels=labels, config=config)
    measured = data.figures(found, references, judged)
    joined = data.others(references)[found.in_reference_set]
    wrong = np.concatenate([labels != data.truth[references], data.given[joined] != data.truth[joined]])
    return [*(float(measured[name] or 0.0) for name in FIGURES), float(wrong.mean())]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    data = FirstRound.read(arguments.run, arguments.images)
    draws = [list(draws_of(data, seed)) for seed in range(arguments.draws)]
    judged = [np.setdiff1d(np.arange(len(data.truth)), np.concatenate([rows for _, rows, _ in draw])) for draw in draws]
    content = [
        f"{len(data.truth):,} images of {data.classes} classes, the first round's embeddings of one run; "
        f"{arguments.draws} draws of references. Mean (standard deviation over draws).",
    ]
    for source, overrides in SOURCES.items():
        config = make_config(data.config.model_dump(mode="json"), overrides)
        header = " | ".join((*FIGURES, "wrong in the augmented set"))
        content += ["", f"{source.capitalize()}:", "", f"| references | {header} |", "|---" * (len(FIGURES) + 2) + "|"]
        for row, (name, _, _) in enumerate(draws[0]):
            values = [figures(data, *draw[row][1:], rest, config) for draw, rest in zip(draws, judged, strict=True)]
            cells = [f"{mean:.3f} ({sd:.3f})" for mean, sd in zip(np.mean(values, 0), np.std(values, 0), strict=True)]
            content.append(f"| {name} | {' | '.join(cells)} |")
            print(content[-1], flush=True)
    arguments.out.write_text("\n".join(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
