"""Views of the fine-tuning and sources of evidence of the preset cifar10, each beside what it is better than.

    OMP_NUM_THREADS=2 python benchmarks/cifar10_settings.py --cifar10 DIR --human FILE --seeds 1

DIR as of `pretraining.py`; FILE is CIFAR-10N's `train-labels.npz` with `worse_label` by official number. Writes
benchmarks/results/cifar10_settings.md. Accuracy is of training images that no model saw; no test image is read.
Truth is used to compare settings here; no run reads it to choose anything.
"""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import read_images
from curation import curated, curation_figures
from pretraining import CLASSES, embed, pretrained, trained

from trainref_ray import make_config
from trainref_ray.config import Config, load_preset
from trainref_ray.data.reference import draw_references
from trainref_ray.models.backbones import Classifier

JUDGED = 5000
"""Images that the accuracy is of."""
PLAIN = {"randaugment": 0, "mixup": 0.0}
FINETUNINGS: dict[str, dict[str, Any]] = {
    "8 epochs, crop and flip": {"epochs": 8} | PLAIN,
    "crop and flip": PLAIN,
    "Mixup": {"randaugment": 0},
    "RandAugment": {"mixup": 0.0},
    "RandAugment and Mixup (preset)": {},
}
SOURCES: dict[str, dict[str, Any]] = {
    "preset": {},
    "model_source probe": {"model_source": "probe"},
    "temperature 0.7, given_weight 1": {"temperature": 0.7, "given_weight": 1.0},
    "given_weight 0": {"given_weight": 0.0},
    "vote_weight 0": {"vote_weight": 0.0},
    "influence_weight 0": {"influence_weight": 0.0},
    "model_weight 0": {"model_weight": 0.0},
}
FIGURES = ("noise_auroc", "noise_ap", "noise_f1", "relabel_accuracy")


@dataclass(frozen=True)
class Data:
    """Images with given and true labels, the rows of the references, and images to judge a model by."""

    images: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    references: np.ndarray
    judged: tuple[np.ndarray, np.ndarray]
    classes: int = CLASSES

    @property
    def others(self) -> np.ndarray:
        """Rows that are no references."""
        return np.setdiff1d(np.arange(len(self.truth)), self.references)

    def embedded(self, model: Classifier) -> tuple[np.ndarray, np.ndarray | None]:
        """What the model says of all images, scaled by the references."""
        return embed(model, self.images, (self.images[self.references], self.truth[self.references]))

    def figures(self, model: Classifier, config: Config) -> list[float]:
        """The values of `FIGURES` of a curation with the model."""
        found = curation_figures(*self.embedded(model), self.given, self.truth, self.references, config, self.classes)
        return [float(found[name] or 0.0) for name in FIGURES]

    def accuracy(self, model: Classifier) -> float:
        """Of the model on the images to judge it by."""
        _, probabilities = embed(model, self.judged[0])
        assert probabilities is not None
        return float((probabilities.argmax(axis=1) == self.judged[1]).mean())


def read(folder: Path, human: Path, images: int, seed: int, per_class: int) -> Data:
    """The first images of train-0.npz with people's labels; the first of train-1.npz to judge by."""
    known, judged = read_images(folder, "train-0").first(images), read_images(folder, "train-1").first(JUDGED)
    given = np.load(human, allow_pickle=False)["worse_label"][known.index].astype(np.int64)
    references = draw_references(np.arange(images), known.labels, per_class=per_class, classes=CLASSES, seed=seed)
    return Data(known.pixels, given, known.labels, references, (judged.pixels, judged.labels))


def finetuned(start: Classifier, data: Data, config: Config) -> Classifier:
    """The model after the preset's rounds."""
    model = start
    for _ in range(config.rounds):
        found = curated(*data.embedded(model), data.given, data.truth, data.references, config, CLASSES)
        kept = found.decision != "ood"
        model = trained(
            copy.deepcopy(model),
            data.images[data.others][kept],
            found.soft_label[kept],
            None,
            config.finetune,
            config.seed,
        )
    return model


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--human", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    preset = load_preset("cifar10")
    models: dict[str, list[list[float]]] = {}
    sources: dict[str, list[list[float]]] = {}
    for seed in range(arguments.seeds):
        config = make_config(preset, {"seed": seed})
        data = read(arguments.cifar10, arguments.human, arguments.images, seed, config.reference_per_class or 1)
        rows, validation = data.others, (data.images[data.references], data.truth[data.references])
        start = pretrained(data.images[rows], data.given[rows], validation, config.pretrain, seed, config.model.mirror)
        models.setdefault("none", []).append([data.accuracy(start), *data.figures(start, config)])
        for name, change in FINETUNINGS.items():
            model = finetuned(start, data, make_config(preset, {"seed": seed, "finetune": change}))
            models.setdefault(name, []).append([data.accuracy(model), *data.figures(model, config)])
            print(seed, name, models[name][-1], flush=True)
        for name, change in SOURCES.items():
            sources.setdefault(name, []).append(
                data.figures(model, make_config(preset, {"seed": seed, "vote": change}))
            )
    head = (
        f"{arguments.images:,} CIFAR-10 images, `worse` labels of CIFAR-10N, none foreign, preset cifar10, "
        f"{arguments.seeds} seeds: mean (standard deviation). "
        f"accuracy: of {JUDGED:,} training images not trained on."
    )
    after = "After the fine-tuning of the preset, sources of evidence (`vote`):"
    content = "\n".join(
        [
            head,
            "",
            *table("fine-tuning", ("accuracy", *FIGURES), models),
            "",
            after,
            "",
            *table("change", FIGURES, sources),
        ]
    )
    (Path(__file__).parent / "results" / "cifar10_settings.md").write_text(content + "\n")
    print(content)


def table(title: str, names: tuple[str, ...], values: dict[str, list[list[float]]]) -> list[str]:
    """Lines of a Markdown table: mean and standard deviation over the seeds."""
    lines = [f"| {title} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, rows in values.items():
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, len(rows) - 1))
        cells = [
            f"{one:.4f} ({other:.4f})" if len(rows) > 1 else f"{one:.4f}"
            for one, other in zip(mean, spread, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
