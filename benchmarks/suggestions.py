"""References that `trainref suggest-references` names against as many drawn at random.

    OMP_NUM_THREADS=1 python benchmarks/suggestions.py RUN [RUN ...] --draws 5

Each RUN is a finished curation of shards with a trusted field, of which the first round's embeddings are curated anew
with few references. Writes benchmarks/results/suggestions.md. A checked image that is of no class is no reference, and
counts against the budget. Figures are over the images that nobody checked. Truth is what the person who checks would
say, and compares the two; no run reads it to choose anything.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from curation import FirstRound

from trainref_ray.data.reference import draw_references
from trainref_ray.method.decide import entropy_bits
from trainref_ray.method.suggest import suggest
from trainref_ray.report.suggestions import POINTS

STARTS = {"1 of each class": 1.0, "1 of 8 classes in 10": 0.8, "1 of half of the classes": 0.5}
BUDGETS = (5, 20)
FIGURES = ("noise_auroc", "noise_f1", "relabel_accuracy")


def figures(data: FirstRound, checked: np.ndarray, judged: np.ndarray) -> list[float]:
    """The values of `FIGURES` and how many classes have a reference, after these images were checked."""
    references = checked[data.truth[checked] >= 0]
    measured = data.figures(data.curate(references), references, judged)
    return [*(float(measured[name] or 0.0) for name in FIGURES), float(len(np.unique(data.truth[references])))]


def suggested(data: FirstRound, start: np.ndarray, count: int) -> np.ndarray:
    """Rows that are suggested after a curation with the references `start`."""
    found, others = data.curate(start), data.others(start)
    order = np.random.default_rng(data.config.seed).permutation(np.flatnonzero(found.decision != "ood"))
    doubt = entropy_bits(found.soft_label[order])
    order, doubt = order[doubt > 0], doubt[doubt > 0]
    candidates = data.embeddings[others[order]]
    rows, _ = suggest(candidates, doubt, data.embeddings[start], points=POINTS, count=count)
    return others[order[rows]]


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[tuple[str, int, str], list[list[float]]] = {}
    for path in arguments.runs:
        data = FirstRound.read(path, arguments.images)
        for name, share in STARTS.items():
            rows = np.arange(len(data.truth))
            first = draw_references(rows, data.truth, per_class=1, classes=data.classes, seed=data.config.seed)
            start = first[: round(share * data.classes)]
            for budget in BUDGETS:
                drawn = [
                    np.random.default_rng(draw).permutation(data.others(start))[:budget]
                    for draw in range(arguments.draws)
                ]
                chosen = {"none": [start[:0]], "random": drawn, "suggested": [suggested(data, start, budget)]}
                checked = np.concatenate([rows for several in chosen.values() for rows in several])
                judged = np.setdiff1d(data.others(start), checked)
                for how, several in chosen.items():
                    for rows in several:
                        measured = figures(data, np.concatenate([start, rows]), judged)
                        found.setdefault((name, budget, how), []).append(measured)
                    print(path, name, budget, how, np.mean(found[name, budget, how], axis=0), flush=True)
    content = [
        f"{arguments.images:,} images of each of {len(arguments.runs)} runs, their first round's embeddings; random: "
        f"{arguments.draws} draws a run. Mean (standard deviation over runs and draws).",
        "",
        f"| references before | checked | chosen | {' | '.join(FIGURES)} | classes with a reference |",
        "|---" * (len(FIGURES) + 4) + "|",
    ]
    for (name, budget, how), values in found.items():
        cells = [f"{mean:.3f} ({sd:.3f})" for mean, sd in zip(np.mean(values, 0), np.std(values, 0), strict=True)]
        cells[-1] = f"{np.mean(values, 0)[-1]:.1f}"
        content.append(f"| {name} | {budget} | {how} | {' | '.join(cells)} |")
    text = "\n".join(content) + "\n"
    print(text)
    (Path(__file__).parent / "results" / "suggestions.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
