"""Microseconds an image of RandAugment on a batch, beside torchvision's, which takes one image at a time.

    OMP_NUM_THREADS=1 python benchmarks/randaugment.py --repeats 9

Paired runs, medians, on the GPU if there is one. Writes benchmarks/results/randaugment.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandAugment

from trainref_ray.training.randaugment import KINDS, OPERATIONS_AN_IMAGE, STRONGEST, randaugment

SIDES, BATCH, MAGNITUDE = (32, 224), 256, 6
RIVAL = RandAugment(OPERATIONS_AN_IMAGE, MAGNITUDE, num_magnitude_bins=STRONGEST + 1)


def ours(pixels: Tensor) -> None:
    """Every image of uint8 [B, S, S, 3] changed, as one batch."""
    randaugment(pixels, MAGNITUDE, torch.Generator().manual_seed(0))


def torchvisions(pixels: Tensor) -> None:
    """The same, one by one."""
    for image in pixels.permute(0, 3, 1, 2):
        RIVAL(image)


def seconds(change: Callable[[Tensor], None], pixels: Tensor) -> float:
    """Of one call; a GPU has done its work then."""
    started = time.perf_counter()
    change(pixels)
    if pixels.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {threads} thread(s)"
    lines = [
        f"{name}: batches of {BATCH}, {OPERATIONS_AN_IMAGE} of {len(KINDS)} operations an image, magnitude "
        f"{MAGNITUDE}, median of {repeats} paired runs after one that is not counted.",
        "",
        "| side | torchvision, one by one, µs an image | as a batch, µs an image | times as fast (least to largest) |",
        "|---|---|---|---|",
    ]
    for side in SIDES:
        pixels = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8).to(device)
        pairs = np.array([[seconds(change, pixels) for change in (torchvisions, ours)] for _ in range(repeats + 1)][1:])
        ratio = pairs[:, 0] / pairs[:, 1]
        theirs, own = np.median(pairs, axis=0) / BATCH * 1e6
        lines.append(
            f"| {side} | {theirs:.0f} | {own:.0f} | {np.median(ratio):.1f} ({ratio.min():.1f} to {ratio.max():.1f}) |"
        )
    content = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "randaugment.md").write_text(content)
    print(content)


if __name__ == "__main__":
    main()
