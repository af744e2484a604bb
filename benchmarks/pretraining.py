"""Pre-training on noisy labels against pre-training without labels, at equal numbers of image passes, on CIFAR-10.

    OMP_NUM_THREADS=2 python benchmarks/pretraining.py --cifar10 DIR --seeds 3 --epochs 40

DIR holds `train-*.npz` with `residual` and `label` (see `read_images`). Writes
benchmarks/results/pretraining.md. A contrastive epoch puts each image through the model twice, so it gets half the
epochs. The supervised pre-training keeps its best epoch by the references, as a run does; the contrastive one keeps the
last and is one model for all noise levels. Truth is used to compare here; no run reads it to choose anything.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cifar import read_images
from curation import curation_figures

from trainref_ray import make_config
from trainref_ray.config import Config, PretrainSettings, TrainSettings, load_preset
from trainref_ray.data.noise import inject
from trainref_ray.data.reference import draw_references
from trainref_ray.models.backbones import Classifier, ModelSpec, build, predict
from trainref_ray.models.precision import use_bf16
from trainref_ray.models.probe import fit_probe
from trainref_ray.training.calibrate import fit_temperature, softmax
from trainref_ray.training.loop import ArrayBatches, TrainPlan, add_projection, steps_per_epoch, train

CLASSES, SIDE = 10, 32
JUDGED = 2000
"""Training images after the used ones, that the probe is judged by: the choice of a default sees no test image."""
FIGURES = ("noise_auroc", "relabel_accuracy", "probe_on_references", "seconds")


def pretrained(
    images: np.ndarray,
    labels: np.ndarray | None,
    validation: tuple[np.ndarray, np.ndarray] | None,
    settings: PretrainSettings,
    seed: int,
    mirror: bool = False,
) -> Classifier:
    """A model after pre-training on noisy labels, or on none."""
    torch.manual_seed(seed)
    model = build(ModelSpec("cnn_small", 0 if labels is None else CLASSES, SIDE, mirror=mirror))
    if labels is None:
        add_projection(model, settings.projection_width)
    targets = np.zeros((len(images), 0)) if labels is None else np.eye(CLASSES)[labels]
    return trained(model, images, targets.astype(np.float32), validation, settings, seed)


def trained(
    model: Classifier,
    images: np.ndarray,
    targets: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray] | None,
    settings: TrainSettings,
    seed: int,
) -> Classifier:
    """The model after a training on targets float32 [N, C]."""
    shared = set(TrainPlan.__dataclass_fields__) & set(type(settings).model_fields)
    steps = steps_per_epoch(len(images), settings.batch_size)
    options = {name: getattr(settings, name) for name in shared}
    plan = TrainPlan(**options, steps_per_epoch=steps, seed=seed, bf16=use_bf16(None, "cpu"))
    batches = ArrayBatches(images, targets, batch_size=settings.batch_size, steps_per_epoch=steps, seed=seed)
    model.load_state_dict(train(model, batches, plan, validation=validation).final())
    return model


def embed(
    model: Classifier, images: np.ndarray, held_out: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Embeddings float32 [N, D], unit norm, and the head's probabilities [N, C], if it has one.

    Args:
        model: embeds.
        images: uint8 [N, S, S, 3].
        held_out: images and trusted labels that the probabilities are scaled by; None = as they are.
    """
    bf16 = use_bf16(None, "cpu")
    vectors, logits = predict(model, images, bf16=bf16)
    if not logits.shape[1]:
        return vectors.astype(np.float32), None
    temperature = 1.0
    if held_out is not None:
        temperature = fit_temperature(predict(model, held_out[0], bf16=bf16)[1], held_out[1])
    return vectors.astype(np.float32), softmax(logits, temperature)


def probe_accuracy(
    vectors: np.ndarray, labels: np.ndarray, judged_vectors: np.ndarray, judged_labels: np.ndarray, seed: int
) -> float:
    """Accuracy of a linear head that is trained on the references alone."""
    probe = fit_probe(
        vectors,
        labels,
        classes=CLASSES,
        epochs=100,
        batch_size=len(labels),
        learning_rate=0.01,
        weight_decay=1e-4,
        scale=16.0,
        checkpoints=1,
        bias=True,
        seed=seed,
    )
    return float((probe.probabilities(judged_vectors)[0].argmax(1) == judged_labels).mean())


@dataclass(frozen=True)
class Trial:
    """One seed: its references, its noisy labels by kind of noise, the figures of every model by noise and name."""

    config: Config
    images: np.ndarray
    truth: np.ndarray
    judged_images: np.ndarray
    judged_truth: np.ndarray
    references: np.ndarray
    noisy: dict[str, np.ndarray]

    def measure(self, model: Classifier, noise: str, seconds: float) -> list[float]:
        """The values of `FIGURES` of one model under one noise."""
        rows = self.references
        vectors, probabilities = embed(model, self.images, (self.images[rows], self.truth[rows]))
        curated = curation_figures(vectors, probabilities, self.noisy[noise], self.truth, rows, self.config, CLASSES)
        found = {name: value for name, value in curated.items() if name in FIGURES and value is not None}
        found["probe_on_references"] = probe_accuracy(
            vectors[rows], self.truth[rows], embed(model, self.judged_images)[0], self.judged_truth, self.config.seed
        )
        found["seconds"] = seconds
        print(self.config.seed, noise, {name: round(value, 4) for name, value in found.items()}, flush=True)
        return [found[name] for name in FIGURES]

    def models(self, epochs: int) -> Iterator[tuple[str, str, Classifier, float]]:
        """Each noise with each name, model and the seconds of its training."""
        seed, preset = self.config.seed, self.config.model_dump()
        torch.manual_seed(seed)
        untrained = build(ModelSpec("cnn_small", 0, SIDE))
        half = {"objective": "contrastive", "epochs": epochs // 2}
        started = time.perf_counter()
        model = pretrained(self.images, None, None, make_config(preset, {"pretrain": half}).pretrain, seed)
        seconds = time.perf_counter() - started
        settings = make_config(preset, {"pretrain": {"epochs": epochs}}).pretrain
        rows = np.setdiff1d(np.arange(len(self.truth)), self.references)
        validation = (self.images[self.references], self.truth[self.references])
        for noise, labels in self.noisy.items():
            yield noise, "none", untrained, 0.0
            yield noise, "contrastive", model, seconds
            started = time.perf_counter()
            supervised = pretrained(self.images[rows], labels[rows], validation, settings, seed)
            yield noise, "supervised", supervised, time.perf_counter() - started


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=40, help="of the supervised pre-training; even")
    parser.add_argument("--noise", nargs="+", default=["symflip:0.4", "symflip:0.8"])
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    found = read_images(arguments.cifar10, "train").first(arguments.images + JUDGED)
    used, judged = slice(0, arguments.images), slice(arguments.images, None)
    images, truth = found.pixels[used], found.labels[used]
    values: dict[tuple[str, str], list[list[float]]] = {}
    for seed in range(arguments.seeds):
        trial = Trial(
            make_config(load_preset("cifar10"), {"seed": seed}),
            images,
            truth,
            found.pixels[judged],
            found.labels[judged],
            draw_references(np.arange(len(truth)), truth, per_class=10, classes=CLASSES, seed=seed),
            {noise: inject(truth, CLASSES, noise, seed) for noise in arguments.noise},
        )
        for noise, name, model, seconds in trial.models(arguments.epochs):
            print(name, end=" ")
            values.setdefault((noise, name), []).append(trial.measure(model, noise, seconds))
    content = table(values, arguments.images, arguments.epochs)
    (Path(__file__).parent / "results" / "pretraining.md").write_text(content)
    print(content)


def table(values: dict[tuple[str, str], list[list[float]]], images: int, epochs: int) -> str:
    """Markdown: a row for each noise and pre-training, mean and standard deviation over the seeds."""
    seeds = len(next(iter(values.values())))
    lines = [
        f"{images:,} CIFAR-10 images, `cnn_small`, {images * epochs:,} image passes ({epochs} supervised or "
        f"{epochs // 2} contrastive epochs), 10 references a class, preset cifar10 without mirror "
        f"images, {seeds} seeds: mean ± standard deviation. "
        f"probe_on_references: accuracy on {JUDGED:,} other training images of a head trained on the references.",
        "",
        "| noise | pre-training | " + " | ".join(FIGURES) + " |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    for (noise, name), rows in sorted(values.items()):
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, seeds - 1))
        digits = [0 if figure == "seconds" else 3 for figure in FIGURES]
        cells = [f"{one:.{n}f} ± {other:.{n}f}" for one, other, n in zip(mean, spread, digits, strict=True)]
        lines.append(f"| {noise} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
