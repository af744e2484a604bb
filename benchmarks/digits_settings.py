"""How much the settings of one curation matter on the embedded sample: the table behind the demo preset.

    python benchmarks/digits_settings.py --seeds 5

Writes benchmarks/results/digits_settings.md: mean and worst seed of each figure, 40 % of the labels flipped, before any
fine-tuning. Truth is used to compare settings here; no run reads it to choose anything.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curation import curation_figures
from PIL import Image

from trainref_ray import make_config
from trainref_ray.config import TrainSettings, load_preset
from trainref_ray.data.noise import inject
from trainref_ray.data.reference import draw_references
from trainref_ray.data.sources.digits import FOREIGN, digits_source
from trainref_ray.models.backbones import ModelSpec, build, predict
from trainref_ray.training.calibrate import fit_temperature, softmax
from trainref_ray.training.loop import ArrayBatches, TrainPlan, steps_per_epoch, train

CLASSES = 10
CHANGES: list[dict[str, Any]] = [
    {},
    {"vote": {"vote_weight": 1.0}},
    {"vote": {"vote_weight": 2.0}},
    {"vote": {"vote_weight": 8.0}},
    {"vote": {"k": 5}},
    {"vote": {"k": 20}},
    {"vote": {"given_weight": 0.0}},
    {"vote": {"given_weight": 0.5}},
    {"vote": {"temperature": 1.0}},
    {"vote": {"influence_weight": 0.0}},
    {"vote": {"model_weight": 0.0}},
    {"vote": {"model_source": "probe"}},
    {"ood": {"score": "mahalanobis_class"}},
    {"ood": {"score": "knn"}},
]
FIGURES = ("noise_auroc", "noise_f1", "relabel_accuracy", "ood_auroc")


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Training images uint8 [N, 8, 8, 3] and true labels int64 [N]."""
    source = digits_source("train")
    images = [np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB")) for sample in source.samples()]
    return np.stack(images), source.labels


def noisy_labels(truth: np.ndarray, seed: int) -> np.ndarray:
    """40 % of the digits' labels flipped, a random class for each foreign image."""
    digits = truth != FOREIGN
    labels = np.random.default_rng([seed, 1]).integers(0, CLASSES, len(truth))
    labels[digits] = inject(truth[digits], CLASSES, "symflip:0.4", seed)
    return labels


def pretrained(
    images: np.ndarray,
    labels: np.ndarray,
    validation: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    settings: TrainSettings,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [N, D] and probabilities [N, C] of all images after noisy pre-training on `rows`."""
    torch.manual_seed(seed)
    model = build(ModelSpec("cnn_small", CLASSES, images.shape[1]))
    shared = set(TrainPlan.__dataclass_fields__) & set(TrainSettings.model_fields)
    steps = steps_per_epoch(len(rows), settings.batch_size)
    plan = TrainPlan(**{name: getattr(settings, name) for name in shared}, steps_per_epoch=steps, seed=seed)
    targets = np.eye(CLASSES, dtype=np.float32)[labels[rows]]
    batches = ArrayBatches(images[rows], targets, batch_size=settings.batch_size, steps_per_epoch=steps, seed=seed)
    model.load_state_dict(train(model, batches, plan, validation=validation).final())
    embeddings, logits = predict(model, images)
    temperature = fit_temperature(predict(model, validation[0])[1], validation[1])
    return embeddings.astype(np.float32), softmax(logits, temperature)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    preset = load_preset("demo")
    images, truth = pixels()
    values = np.zeros((len(CHANGES), len(seeds), len(FIGURES)))
    for seed in seeds:
        config = make_config(preset, {"seed": seed})
        labels = noisy_labels(truth, seed)
        per_class = config.reference_per_class or 1
        references = draw_references(np.arange(len(truth)), truth, per_class=per_class, classes=CLASSES, seed=seed)
        rows = np.setdiff1d(np.arange(len(truth)), references)
        validation = (images[references], truth[references])
        model = pretrained(images, labels, validation, rows, config.pretrain, seed)
        for number, change in enumerate(CHANGES):
            changed = make_config(preset, {"seed": seed}, change)
            found = curation_figures(*model, labels, truth, references, changed, CLASSES)
            values[number, seed] = [found[name] for name in FIGURES]
    lines = [
        f"Demo preset and changes of it, {len(seeds)} seeds: mean (worst).",
        "",
        "| change | " + " | ".join(FIGURES) + " |",
        "|---" * (len(FIGURES) + 1) + "|",
    ]
    for change, table in zip(CHANGES, values, strict=True):
        text = ", ".join(f"{group}.{name} {value}" for group, part in change.items() for name, value in part.items())
        cells = [f"{column.mean():.4f} ({column.min():.4f})" for column in table.T]
        lines.append(f"| {text or 'none'} | " + " | ".join(cells) + " |")
    content = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / "digits_settings.md").write_text(content)
    print(content)


if __name__ == "__main__":
    main()
