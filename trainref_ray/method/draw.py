"""Random draws of samples by their uids: who is drawn does not depend on how many others are there."""

from __future__ import annotations

import numpy as np

HELD_OUT_SHARE = 32
"""Of so many curated samples at most one is left out of a training: 3 % fewer images."""
OF_TEMPERATURE = 1
"""Second seed of this draw, so that the cut of foreign images is set on others: with `ood.score knn` it would be set on
images that the model has not seen."""


def random_order(uids: np.ndarray, *seeds: int) -> np.ndarray:
    """Rows in a random order, int64 [n], which gives two samples the same order whoever else is there.

    Args:
        uids: int64 [n], unique.
        seeds: of the order, 0 and up; orders of different seeds are independent.
    """
    mixed = uids.astype(np.uint64)
    for seed in seeds:
        mixed = _mixed(mixed, seed)
    return np.lexsort((uids, mixed))


def draw_samples(uids: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Samples to leave out of a training for the temperature: at most `most`, and one of `HELD_OUT_SHARE`.

    Drawn by uid, so that each round leaves out the same, as far as it has curated them: otherwise the fine-tunings
    before have trained on nearly all of what the last one leaves out. The pre-training has seen all, with their given
    labels.

    Args:
        uids: int64 [N], ascending.
        most: how many at most.
        seed: of the draw.

    Returns:
        int64, ascending.
    """
    count = min(most, len(uids) // HELD_OUT_SHARE)
    order = random_order(uids, seed, OF_TEMPERATURE)
    return np.sort(uids[order[:count]])


def _mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [n] to well-mixed uint64 [n], one to one: the finaliser of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
