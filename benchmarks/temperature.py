"""How far the temperature of what a model has not seen is from the best one, model by model of finished curations.

    python benchmarks/temperature.py NAME=RUN [NAME=RUN ...] --out benchmarks/results/temperature.md

Each RUN has test images; NAME stands in the table. T is fitted to the held-out references, to the held-out curated
samples (a fine-tuning has some), and to both, which is what the run takes. The best T on the test images is a yardstick
here; no run reads it. "Scatter": standard deviation of log T over the held-out references drawn again with
replacement; "expected": by the curvature of the fit's cost, which the weights of both are made of. "Too sure by": mean
confidence less accuracy on the test images, scaled by the run's T. "Curate": the held-out references are among those
that samples are compared with, and so reach the model through the labels of others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trainref_ray import load_run
from trainref_ray.evaluate import metrics
from trainref_ray.report.collect import test_logits
from trainref_ray.results import HELD_OUT_SAMPLES, held_out_logits, model_temperature
from trainref_ray.training.calibrate import fit_distributions, fit_labels, fit_temperature, softmax

RESAMPLES = 200


NAMES = (
    *("run", "fine-tunings", "references", "curate", "samples", "T, references", "T, samples", "T, both", "T, best"),
    *("scatter", "expected", "ece, unscaled", "ece, references", "ece, samples", "ece, both", "ece, best"),
    *("too sure by", "accuracy, references", "accuracy, test"),
)


def rows(name: str, path: str) -> list[str]:
    """A line of the table for each model of a run that has a head."""
    run, lines = load_run(path), []
    curate = bool(set(run.stages["held_out"]) & set(run.stages["curating"]))
    for index, entry in enumerate(run.stages["models"]):
        model = run.model_stage(index)
        trusted, curated = held_out_logits(model), held_out_logits(model, HELD_OUT_SAMPLES)
        if trusted is None:
            continue
        logits, labels = test_logits(run, entry["round"])
        count = len(trusted[1])
        fit = fit_labels(*trusted)
        temperatures: list[float | None] = [
            fit.temperature,
            None if curated is None else fit_distributions(*curated).temperature,
            model_temperature(model),
            fit_temperature(logits, labels),
        ]
        random = np.random.default_rng(0)
        draws = [random.integers(0, count, count) for _ in range(RESAMPLES)]
        scatter = np.std([fit_labels(trusted[0][draw], trusted[1][draw]).log_temperature for draw in draws])
        eces = [
            None if temperature is None else metrics.ece(softmax(logits, temperature), labels)
            for temperature in (1.0, *temperatures)
        ]
        scaled = softmax(logits, model_temperature(model))
        too_sure = float(scaled.max(axis=1).mean() - (scaled.argmax(axis=1) == labels).mean())
        right = [float((found.argmax(axis=1) == of).mean()) for found, of in (trusted, (logits, labels))]
        cells = [name, f"{entry['round']}", f"{count}", "yes" if curate else "no"]
        cells += ["–" if curated is None else f"{len(curated[1])}"]
        figures = [*temperatures, float(scatter), fit.variance**0.5, *eces]
        cells += ["–" if value is None else f"{value:.3f}" for value in figures]
        cells += [f"{too_sure:+.3f}", *(f"{share:.3f}" for share in right)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    content = [f"| {' | '.join(NAMES)} |", "|---" * len(NAMES) + "|"]
    for run in arguments.runs:
        name, equals, path = run.partition("=")
        if not equals:
            parser.error(f"{run!r} is no NAME=RUN")
        content += rows(name, path)
    text = "\n".join(content) + "\n"
    print(text)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
