"""How far the temperature from the held-out references is from the best one, model by model of finished curations.

    python benchmarks/temperature.py NAME=RUN [NAME=RUN ...] --out benchmarks/results/temperature.md

Each RUN has test images; NAME stands in the table. The best temperature on these is a yardstick here; no run reads it.
"Scatter": standard deviation of log temperature over held-out references drawn again with replacement. "Too sure by":
mean confidence less accuracy on the test images, after scaling with the fitted temperature. "Curate": the held-out
references are among those that samples are compared with, and so reach the model through the labels of others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from trainref_ray import load_run
from trainref_ray.evaluate import metrics
from trainref_ray.report.collect import test_logits
from trainref_ray.results import held_out_logits
from trainref_ray.training.calibrate import fit_temperature, softmax

RESAMPLES = 200


def rows(name: str, path: str) -> list[str]:
    """A line of the table for each model of a run that has a head."""
    run, lines = load_run(path), []
    curate = bool(set(run.stages["held_out"]) & set(run.stages["curating"]))
    for index, model in enumerate(run.stages["models"]):
        held_out = held_out_logits(run.model_stage(index))
        if held_out is None:
            continue
        logits, labels = test_logits(run, model["round"])
        fitted, best = fit_temperature(*held_out), fit_temperature(logits, labels)
        random, count = np.random.default_rng(0), len(held_out[1])
        draws = [random.integers(0, count, count) for _ in range(RESAMPLES)]
        scatter = np.std([np.log(fit_temperature(held_out[0][draw], held_out[1][draw])) for draw in draws])
        eces = [metrics.ece(softmax(logits, temperature), labels) for temperature in (1.0, fitted, best)]
        scaled = softmax(logits, fitted)
        too_sure = float(scaled.max(axis=1).mean() - (scaled.argmax(axis=1) == labels).mean())
        cells = [name, f"{model['round']}", f"{count}", "yes" if curate else "no", f"{fitted:.3f}", f"{best:.3f}"]
        cells += [f"{scatter:.3f}", *(f"{value or 0.0:.3f}" for value in eces), f"{too_sure:+.3f}"]
        right = [(found.argmax(axis=1) == of).mean() for found, of in (held_out, (logits, labels))]
        cells += [f"{share:.3f}" for share in right]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    names = [
        "run",
        "fine-tunings",
        "held out",
        "curate",
        "fitted",
        "best",
        "scatter",
        "ece",
        "ece, fitted",
        "ece, best",
    ]
    names += ["too sure by", "accuracy, held out", "accuracy, test"]
    content = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
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
