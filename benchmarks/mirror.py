"""What it gains to predict from an image and its mirror image together: one network a seed, read both ways.

    OMP_NUM_THREADS=2 python benchmarks/mirror.py --cifar100 DIR --seeds 3

DIR holds CIFAR-100's `train-*.npz` with `residual` and `coarse_label` (see `read_images`). 40 % of the labels of its
20 superclasses are wrong, depending on the image. Writes benchmarks/results/mirror.md. The epoch is kept by the
references, each seen alone. Accuracy is of training images that no model saw; no test image is read. Truth is used to
compare here; no run reads it to choose anything.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from cifar import read_images
from cifar10_settings import FIGURES, JUDGED, Data, table
from pretraining import SIDE, trained

from trainref_ray import make_config
from trainref_ray.config import Config, load_preset
from trainref_ray.data.noise import inject
from trainref_ray.data.reference import draw_references
from trainref_ray.models.backbones import Classifier, ModelSpec, build

CLASSES = 20
NOISE = "instance:0.4"


def read(folder: Path, images: int, seed: int, per_class: int) -> Data:
    """Images drawn at random with noisy superclasses, and others to judge by."""
    everything = read_images(folder, "train", "coarse_label")
    rows = np.random.default_rng(seed).permutation(len(everything.labels))[: images + JUDGED]
    pixels, truth = everything.pixels[rows], everything.labels[rows]
    known, judged = slice(images), slice(images, None)

    def features() -> np.ndarray:
        flat = pixels[known].reshape(images, -1).astype(np.float32)
        return (flat - flat.mean()) / flat.std()

    given = inject(truth[known], CLASSES, NOISE, seed, features=features)
    references = draw_references(np.arange(images), truth[known], per_class=per_class, classes=CLASSES, seed=seed)
    return Data(pixels[known], given, truth[known], references, (pixels[judged], truth[judged]), CLASSES)


def first_model(data: Data, config: Config) -> Classifier:
    """The network that is trained on the noisy labels."""
    torch.manual_seed(config.seed)
    targets = np.eye(CLASSES, dtype=np.float32)[data.given[data.others]]
    validation = (data.images[data.references], data.truth[data.references])
    model = build(ModelSpec("cnn_small", CLASSES, SIDE))
    return trained(model, data.images[data.others], targets, validation, config.pretrain, config.seed)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar100", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    values: dict[str, list[list[float]]] = {"the image": [], "it and its mirror image": [], "gain": []}
    for seed in range(arguments.seeds):
        config = make_config(load_preset("cifar10"), {"seed": seed})
        data = read(arguments.cifar100, arguments.images, seed, config.reference_per_class or 1)
        model = first_model(data, config)
        rows = []
        for mirror in (False, True):
            model.mirror = mirror
            rows.append([*data.figures(model, config), data.accuracy(model)])
        rows.append([together - alone for alone, together in zip(*rows, strict=True)])
        for name, row in zip(values, rows, strict=True):
            values[name].append(row)
            print(seed, name, [round(value, 4) for value in row], flush=True)
    content = "\n".join(
        [
            f"{arguments.images:,} CIFAR-100 images, 20 superclasses, {NOISE}, preset cifar10, first round, "
            f"{arguments.seeds} seeds, one network each: mean (standard deviation). accuracy: of {JUDGED:,} training "
            "images not trained on.",
            "",
            *table("predictions of", (*FIGURES, "accuracy"), values),
        ]
    )
    (Path(__file__).parent / "results" / "mirror.md").write_text(content + "\n")
    print(content)


if __name__ == "__main__":
    main()
