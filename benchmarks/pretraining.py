"""Pre-training on noisy labels against pre-training without labels, at equal numbers of image passes, on CIFAR-10.

    OMP_NUM_THREADS=2 python benchmarks/pretraining.py --cifar10 DIR --seeds 3 --epochs 16

DIR holds `train-*.npz` and `test.npz` with `residual` and `label` (see `read_images`). Writes
benchmarks/results/pretraining.md. A contrastive epoch puts each image through the model twice, so it gets half the
epochs. The supervised pre-training keeps its best epoch by the references, as a run does; the contrastive one keeps the
last and is one model for all noise levels. Truth is used to compare here; no run reads it to choose anything.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from trainref_ray import curate_arrays, make_config
from trainref_ray.config import Config, PretrainSettings, load_preset
from trainref_ray.data.noise import inject
from trainref_ray.data.reference import draw_references
from trainref_ray.evaluate import metrics
from trainref_ray.models.backbones import Classifier, ModelSpec, build, predict
from trainref_ray.models.precision import use_bf16
from trainref_ray.models.probe import fit_probe
from trainref_ray.training.loop import ArrayBatches, TrainPlan, add_projection, steps_per_epoch, train

CLASSES, SIDE, TEST_IMAGES = 10, 32, 2000
FIGURES = ("noise_auroc", "relabel_accuracy", "probe_on_references", "seconds")


def read_images(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of a file of differences along width, height and from green."""
    content = np.load(path, allow_pickle=False)
    channels = np.cumsum(np.cumsum(content["residual"], axis=3, dtype=np.uint8), axis=2, dtype=np.uint8)
    channels[:, 0] += channels[:, 1]
    channels[:, 2] += channels[:, 1]
    return np.ascontiguousarray(channels.transpose(0, 2, 3, 1)), content["label"].astype(np.int64)


def pretrained(
    images: np.ndarray,
    labels: np.ndarray | None,
    validation: tuple[np.ndarray, np.ndarray] | None,
    settings: PretrainSettings,
    seed: int,
) -> Classifier:
    """A model after pre-training on noisy labels, or on none."""
    torch.manual_seed(seed)
    model = build(ModelSpec("cnn_small", 0 if labels is None else CLASSES, SIDE))
    if labels is None:
        add_projection(model, settings.projection_width)
    shared = set(TrainPlan.__dataclass_fields__) & set(PretrainSettings.model_fields)
    steps = steps_per_epoch(len(images), settings.batch_size)
    options = {name: getattr(settings, name) for name in shared}
    plan = TrainPlan(**options, steps_per_epoch=steps, seed=seed, bf16=use_bf16(None, "cpu"))
    targets = np.zeros((len(images), 0)) if labels is None else np.eye(CLASSES)[labels]
    batches = ArrayBatches(
        images, targets.astype(np.float32), batch_size=settings.batch_size, steps_per_epoch=steps, seed=seed
    )
    model.load_state_dict(train(model, batches, plan, validation=validation).final())
    return model


def embed(model: Classifier, images: np.ndarray) -> np.ndarray:
    """float32 [N, D], unit norm."""
    return predict(model, images, bf16=use_bf16(None, "cpu"))[0].astype(np.float32)


def curated(
    vectors: np.ndarray, labels: np.ndarray, truth: np.ndarray, references: np.ndarray, config: Config
) -> dict[str, float]:
    """How well one curation on these embeddings finds wrong labels and names right ones, the references left out."""
    others = np.setdiff1d(np.arange(len(truth)), references)
    result = curate_arrays(
        vectors[others],
        labels[others],
        vectors[references],
        truth[references],
        classes=CLASSES,
        seed=config.seed,
        settings=config,
    )
    nobody = np.zeros(len(others), bool)
    flagged = result.decision != "keep"
    found = metrics.noise_metrics(result.label_quality, labels[others], truth[others], nobody, flagged)
    right = metrics.relabel_accuracy(result.best_class, truth[others], nobody)
    auroc = found["noise_auroc"]
    assert auroc is not None
    assert right is not None
    return {"noise_auroc": auroc, "relabel_accuracy": right}


def probe_accuracy(
    vectors: np.ndarray, labels: np.ndarray, test_vectors: np.ndarray, test_labels: np.ndarray, seed: int
) -> float:
    """Test accuracy of a linear head that is trained on the references alone."""
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
    return float((probe.probabilities(test_vectors)[0].argmax(1) == test_labels).mean())


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=16, help="of the supervised pre-training; even")
    parser.add_argument("--noise", nargs="+", default=["symflip:0.4", "symflip:0.8"])
    parser.add_argument("--contrastive-rate", type=float, default=0.1)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    images, truth = read_images(arguments.cifar10 / "train-0.npz")
    images, truth = images[: arguments.images], truth[: arguments.images]
    test_images, test_truth = read_images(arguments.cifar10 / "test.npz")
    test_images, test_truth = test_images[:TEST_IMAGES], test_truth[:TEST_IMAGES]
    preset = load_preset("cifar10")
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for seed in range(arguments.seeds):
        config = make_config(preset, {"seed": seed})
        references = draw_references(np.arange(len(truth)), truth, per_class=10, classes=CLASSES, seed=seed)
        validation = (images[references], truth[references])
        noisy = {noise: inject(truth, CLASSES, noise, seed) for noise in arguments.noise}

        def measure(name: str, model: Classifier, noises: list[str], seconds: float) -> None:
            vectors, test_vectors = embed(model, images), embed(model, test_images)
            probe = probe_accuracy(vectors[references], truth[references], test_vectors, test_truth, seed)
            for noise in noises:
                found = curated(vectors, noisy[noise], truth, references, config) | {
                    "probe_on_references": probe,
                    "seconds": seconds,
                }
                rows.setdefault((noise, name), []).append([found[figure] for figure in FIGURES])
                print(seed, noise, name, {figure: round(value, 4) for figure, value in found.items()}, flush=True)

        torch.manual_seed(seed)
        measure("no training", build(ModelSpec("cnn_small", 0, SIDE)), arguments.noise, 0.0)
        contrastive = make_config(
            preset,
            {
                "pretrain": {
                    "objective": "contrastive",
                    "epochs": arguments.epochs // 2,
                    "learning_rate": arguments.contrastive_rate,
                }
            },
        ).pretrain
        started = time.perf_counter()
        model = pretrained(images, None, None, contrastive, seed)
        measure("contrastive", model, arguments.noise, time.perf_counter() - started)
        supervised = make_config(preset, {"pretrain": {"epochs": arguments.epochs}}).pretrain
        free = np.setdiff1d(np.arange(len(truth)), references)
        for noise in arguments.noise:
            started = time.perf_counter()
            model = pretrained(images[free], noisy[noise][free], validation, supervised, seed)
            measure("supervised", model, [noise], time.perf_counter() - started)
    passes = arguments.epochs * arguments.images
    lines = [
        f"{arguments.images:,} CIFAR-10 images, `cnn_small`, {passes:,} image passes ({arguments.epochs} supervised or "
        f"{arguments.epochs // 2} contrastive epochs), 10 references a class, preset cifar10, {arguments.seeds} seeds: "
        f"mean ± standard deviation. probe_on_references: {TEST_IMAGES:,} test images, head trained on the references.",
        "",
        "| noise | pre-training | " + " | ".join(FIGURES) + " |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    for (noise, name), values in sorted(rows.items()):
        table = np.array(values)
        deviation = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(FIGURES))
        digits = [3] * (len(FIGURES) - 1) + [0]
        cells = [
            f"{mean:.{n}f} ± {spread:.{n}f}" for mean, spread, n in zip(table.mean(0), deviation, digits, strict=True)
        ]
        lines.append(f"| {noise} | {name} | " + " | ".join(cells) + " |")
    content = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "pretraining.md").write_text(content)
    print(content)


if __name__ == "__main__":
    main()
