"""Images a second of a training in float32 and in bfloat16 on this machine's processor: paired runs, medians.

    OMP_NUM_THREADS=2 python benchmarks/precision.py --repeats 5

Writes benchmarks/results/precision.md.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from trainref_ray.models.backbones import ModelSpec, build
from trainref_ray.training.loop import ArrayBatches, TrainPlan, train

CASES = ((8, 64, 6400), (32, 128, 5120))
"""Side of the images, batch size, images."""


def images_per_second(side: int, batch: int, count: int, bf16: bool) -> float:
    """Of one epoch of `cnn_small` on random images."""
    torch.manual_seed(0)
    model = build(ModelSpec("cnn_small", 10, side))
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    targets = np.eye(10, dtype=np.float32)[np.arange(count) % 10]
    steps = count // batch
    batches = ArrayBatches(pixels, targets, batch_size=batch, steps_per_epoch=steps, seed=0)
    started = time.perf_counter()
    train(model, batches, TrainPlan(epochs=1, steps_per_epoch=steps, bf16=bf16))
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    lines = [
        f"`cnn_small`, {threads} threads, median of {repeats} paired runs after one that is not counted.",
        "",
        "| side | float32, images/s | bfloat16, images/s | ratio, median (least to largest) |",
        "|---|---|---|---|",
    ]
    for side, batch, count in CASES:
        pairs = np.array(
            [[images_per_second(side, batch, count, bf16) for bf16 in (False, True)] for _ in range(repeats + 1)][1:]
        )
        ratio = pairs[:, 1] / pairs[:, 0]
        plain, half = np.median(pairs, axis=0)
        lines.append(
            f"| {side} | {plain:,.0f} | {half:,.0f} | {np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f}) |"
        )
    content = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "precision.md").write_text(content)
    print(content)


if __name__ == "__main__":
    main()
