"""Published settings of CIFAR from scratch on one GPU: label-free, then noisy training, then two rounds.

    python benchmarks/published.py --data DIR --work FOLDER --out FOLDER --seeds 0 --minutes 9

Needs torch, torchvision, Pillow, pyarrow and safetensors, neither Ray nor FAISS.
DIR has the folders `cifar10` and `cifar100` with `train*.npz` and `test*.npz` (`cifar.read_images`), and
`cifar10n/train-labels.npz` with CIFAR-10N's labels. Start the same command again to go on: every finished training and
curation in --work is kept, an unfinished training goes on from its last save. After each setting published.json and
published.md are written to --out, of all rows in --work that are of the same recipe.
Human labels: `--settings cifar10:human:FILE.npz:NAME`, in the official order of the images, FILE below DIR or any path.

The true labels of the training images give the noise, the references and the figures; training and curation read those
of the references alone. The test images are looked at once, by the last model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cifar import Images, read_images
from published_table import ROW_FILE, devices_of, note_device, rows_of, table, write_text

from trainref_ray.arrays import Curation, curate_arrays
from trainref_ray.data.noise import CLEAN_COLUMN, READERS, inject, parse_noise
from trainref_ray.data.reference import draw_references
from trainref_ray.data.sources.cifar import confusion_of
from trainref_ray.errors import TrainRefError
from trainref_ray.evaluate import metrics
from trainref_ray.files import written_aside
from trainref_ray.method.draw import draw_samples
from trainref_ray.models.backbones import Classifier, ModelSpec, build, load_model, predict, save_model
from trainref_ray.models.precision import use_bf16
from trainref_ray.retrieval.exact import build_exact_search
from trainref_ray.training.calibrate import fit_held_out, softmax
from trainref_ray.training.loop import (
    ArrayBatches,
    EpochReport,
    TrainPlan,
    TrainState,
    add_projection,
    load_state,
    save_state,
    steps_per_epoch,
    train,
)
from trainref_ray.training.state import remove_state
from trainref_ray.version import METHOD_VERSION

CLASSES = {"cifar10": 10, "cifar100": 100}
SETTINGS = (
    *("cifar100:sym:0.2", "cifar100:sym:0.5", "cifar100:sym:0.8", "cifar100:sym:0.9", "cifar100:asym:0.4"),
    "cifar10:human:cifar10n/train-labels.npz:worse_label",
)
SAVE_SECONDS = 60.0
"""A training is saved so often; a ResNet-18 with its optimiser is 90 MB."""
Targets = tuple[np.ndarray, np.ndarray]
"""Rows int64 [n] of the training images and label distributions float32 [n, C]."""


class OutOfTime(Exception):
    """The time given has run out; everything is saved."""


@dataclass(frozen=True)
class Task:
    """One setting with one seed.

    Attributes:
        name: such as `cifar100:sym:0.8`.
        data: training images.
        given: int64 [N], noisy labels.
        references: int64 [R], rows of `data` whose true labels are known.
        held_out: int64 [H], those of them that neither a training nor a curation sees.
        classes: C.
        recipe: content of published.json.
        seed: of every draw.
        device: where to train.
    """

    name: str
    data: Images
    given: np.ndarray
    references: np.ndarray
    held_out: np.ndarray
    classes: int
    recipe: dict[str, Any]
    seed: int
    device: str

    @property
    def hardware(self) -> str:
        """The device's name, for the table."""
        return torch.cuda.get_device_name() if self.device.startswith("cuda") else "CPU"

    @property
    def others(self) -> np.ndarray:
        """Rows that are no references."""
        return np.setdiff1d(np.arange(len(self.given)), self.references)

    def targets(self) -> np.ndarray:
        """float32 [N, C]: the noisy labels, the references' true ones."""
        labels = self.given.copy()
        labels[self.references] = self.data.labels[self.references]
        return np.eye(self.classes, dtype=np.float32)[labels]


def make_task(name: str, data: Images, recipe: dict[str, Any], seed: int, device: str, folder: Path) -> Task:
    """Noisy labels and references of a setting; files of human labels are looked for in `folder` first.

    Raises:
        TrainRefError: an unknown noise, or human labels that are not there or are of other images.
    """
    dataset, _, spec = name.partition(":")
    classes, noise = CLASSES[dataset], parse_noise(spec)
    if noise.kind == "human":
        # The file is in the official order; these images may be a part of it.
        file = folder / noise.file if (folder / noise.file).is_file() else Path(noise.file)
        columns = READERS[file.suffix](file) if file.suffix in READERS and file.is_file() else {}
        if CLEAN_COLUMN not in columns:
            raise TrainRefError(f"human labels {file}: no file of {', '.join(READERS)} with a column {CLEAN_COLUMN}")
        official = columns[CLEAN_COLUMN].astype(np.int64)
        if len(official) <= data.index.max() or (official[data.index] != data.labels).any():
            raise TrainRefError(f"human labels {file}: its {CLEAN_COLUMN} differs from the labels of the images")
        given = inject(official, classes, f"human:{file}:{noise.column}", seed)[data.index]
    else:
        given = inject(data.labels, classes, spec, seed, confusion=confusion_of(dataset))
    counts = recipe["references"]
    rows = np.arange(len(given))
    draw = partial(draw_references, classes=classes, seed=seed)
    references = draw(rows, data.labels, per_class=counts["per_class"])
    held_out = references[draw(references, data.labels[references], per_class=counts["held_out"])]
    return Task(name, data, given, references, held_out, classes, recipe, seed, device)


def trained(
    task: Task,
    folder: Path,
    model: Classifier,
    settings: dict[str, Any],
    rows: np.ndarray,
    targets: np.ndarray,
    deadline: float,
) -> Classifier:
    """The model after a training on some rows with targets float32 [n, C]; goes on from what is saved in `folder`.

    Raises:
        OutOfTime: the deadline has passed; the training is saved.
    """
    options = {key: value for key, value in settings.items() if key not in ("batch_size", "projection_width")}
    batch, on_gpu = settings["batch_size"], task.device.startswith("cuda")
    steps = steps_per_epoch(len(rows), batch)
    plan = TrainPlan(
        **options, steps_per_epoch=steps, seed=task.seed, device=task.device, bf16=use_bf16(None, task.device)
    )
    batches = ArrayBatches(task.data.pixels[rows], targets, batch_size=batch, steps_per_epoch=steps, seed=task.seed)
    labelled = plan.objective == "supervised" and len(task.held_out) > 0
    validation = (task.data.pixels[task.held_out], task.data.labels[task.held_out]) if labelled else None
    saved = time.monotonic()

    def on_epoch(report: EpochReport, state: TrainState) -> None:
        nonlocal saved
        rate = report.images / report.seconds
        print(f"{folder.name}: epoch {state.epoch} of {plan.epochs}, {rate:,.0f} images/s", file=sys.stderr, flush=True)
        late = time.monotonic() > deadline
        if late or time.monotonic() > saved + SAVE_SECONDS:
            save_state(state, folder)
            saved = time.monotonic()
        if late and state.epoch < plan.epochs:
            raise OutOfTime

    note_device(folder, task.hardware)
    state = load_state(folder) if (folder / "state.json").exists() else None
    if on_gpu:
        torch.backends.cudnn.benchmark = True
    final = train(model, batches, plan, validation=validation, state=state, on_epoch=on_epoch).final()
    model.load_state_dict(final)
    return model


def model_in(folder: Path, spec: ModelSpec, make: Callable[[], Classifier], deadline: float) -> Classifier:
    """The finished model of a folder; made and saved there if it is not.

    Raises:
        OutOfTime: the deadline has passed; the model, or its training, is saved.
    """
    done = folder / "model"
    if (done / "model.json").exists():  # written last
        return load_model(done)[0]
    model = make()
    save_model(model, spec, done)
    remove_state(folder)  # three times as large as the model
    if time.monotonic() > deadline:
        raise OutOfTime
    return model


def label_free(task: Task, folder: Path, deadline: float) -> Classifier:
    """The backbone after training on views of all images, no label read; one for all settings of the same images."""
    settings, spec = task.recipe["contrastive"], ModelSpec(classes=0, **task.recipe["model"])

    def make() -> Classifier:
        torch.manual_seed(task.seed)
        model = build(spec)
        add_projection(model, settings["projection_width"])
        rows = np.arange(len(task.given))
        trained(task, folder, model, settings, rows, np.zeros((len(rows), 0), np.float32), deadline)
        model.set_classes(0)
        return model

    return model_in(folder, spec, make, deadline)


def pretrained(task: Task, folder: Path, backbone: Classifier, deadline: float) -> Classifier:
    """The label-free model after training on the noisy labels."""

    def make() -> Classifier:
        torch.manual_seed(task.seed)
        backbone.set_classes(task.classes)
        rows = np.setdiff1d(np.arange(len(task.given)), task.held_out)
        return trained(task, folder, backbone, task.recipe["pretrain"], rows, task.targets()[rows], deadline)

    return model_in(folder, ModelSpec(classes=task.classes, **task.recipe["model"]), make, deadline)


def curated(
    task: Task, folder: Path, model: Classifier, unseen: Targets | None, first: Path
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Rows to train on, their targets float32 [n, C], and the figures of one curation; kept in `folder`.

    Args:
        task: the setting.
        folder: of the round.
        model: that curates.
        unseen: what it has not trained on, for its temperature.
        first: folder of the model before any fine-tuning, by whose embeddings strange images are told in every round.
    """
    path = folder / "curation.npz"
    if not path.exists():
        note_device(folder, task.hardware)
        rows, targets, figures = _curate(task, model, unseen, first)
        with written_aside(path) as aside, aside.open("wb") as file:
            np.savez(file, rows=rows, targets=targets.astype(np.float16), figures=json.dumps(figures))
    with np.load(path, allow_pickle=False) as content:
        return content["rows"], content["targets"].astype(np.float32), json.loads(str(content["figures"]))


def temperature_of(task: Task, logits: np.ndarray, unseen: Targets | None) -> float:
    """By the held-out references and the curated samples that a model has not seen.

    Args:
        task: the setting.
        logits: float32 [N, C] of all training images.
        unseen: rows and targets of these samples.
    """
    trusted = (logits[task.held_out], task.data.labels[task.held_out]) if len(task.held_out) else None
    curated = (logits[unseen[0]], unseen[1]) if unseen is not None and len(unseen[0]) else None
    return fit_held_out(trusted, curated)


def _curate(
    task: Task, model: Classifier, unseen: Targets | None, first: Path
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    precision = use_bf16(None, task.device)
    vectors, logits = predict(model, task.data.pixels, device=task.device, bf16=precision)
    before, _ = predict(load_model(first)[0], task.data.pixels, device=task.device, bf16=precision)
    others, learned = task.others, np.setdiff1d(task.references, task.held_out)
    settings: Any = json.loads(json.dumps(task.recipe["curation"]), object_hook=lambda group: SimpleNamespace(**group))
    temperature = temperature_of(task, logits, unseen) if settings.vote.calibrate_model else 1.0
    found = curate_arrays(
        vectors[others],
        task.given[others],
        vectors[learned],
        task.data.labels[learned],
        classes=task.classes,
        seed=task.seed,
        settings=settings,
        model_probabilities=softmax(logits[others], temperature),
        build_search=partial(build_exact_search, device=task.device),
        ood_features=(before[others], before[learned]),
        reference_given_labels=task.given[learned],
    )
    used = found.decision != "ood"
    targets = np.concatenate([found.soft_label[used], task.targets()[learned]])
    rows = np.concatenate([others[used], learned])
    figures = {"ood_flag_rate": float((~used).mean()), "trained_on": len(rows)}
    return rows, targets, figures | _curation_figures(task, found, settings.decide.keep_at)


def _curation_figures(task: Task, found: Curation, keep_at: float) -> dict[str, float]:
    """Figures that need the truth; nothing goes on from them."""
    given, truth, nobody = task.given[task.others], task.data.labels[task.others], np.zeros(len(task.others), bool)
    wrong = (given != truth)[found.in_reference_set]
    figures = {
        **metrics.noise_metrics(found.label_quality, given, truth, nobody, found.label_quality < keep_at),
        "relabel_accuracy": metrics.relabel_accuracy(found.best_class, truth, nobody),
        "references_noise_rate": wrong.mean() if len(wrong) else None,
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def _digest(*of: Any) -> str:
    """Equal for equal content: bytes, or what JSON can write."""
    parts = [part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode() for part in of]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def _folder(name: str, *of: Any) -> str:
    """A name that differs where any of the rest does: other images, labels, recipes or methods start anew."""
    return f"{re.sub('[^A-Za-z0-9.]+', '-', name)}-{_digest(METHOD_VERSION, *of)[:8]}"


def recipe_digest(recipe: dict[str, Any]) -> str:
    """What rows of one table have in common."""
    return _digest(METHOD_VERSION, recipe)


def run_task(task: Task, test: Images, work: Path, deadline: float) -> None:
    """All stages of a setting, and its row of the table, kept in its folder. Last the released model curates, as in a
    run."""
    recipe = task.recipe
    images = task.data.digest()
    shared = work / _folder(task.name.partition(":")[0], images, task.seed, recipe["model"], recipe["contrastive"])
    setting = re.sub("[^:]*/", "", task.name)  # a file's name, not where it lies on this machine
    own = work / _folder(setting, images, task.given.tobytes(), task.seed, recipe)
    if (own / ROW_FILE).exists():
        return
    first = own / "pretrain" / "model"
    spec = ModelSpec(classes=task.classes, **recipe["model"])
    model = pretrained(task, own / "pretrain", label_free(task, shared, deadline), deadline)
    rounds = []
    unseen: Targets | None = None
    for round_ in range(1, recipe["rounds"] + 1):
        folder = own / f"finetune-{round_}"
        rows, targets, figures = curated(task, folder, model, unseen, first)
        rounds.append(figures)
        samples = np.sort(np.setdiff1d(rows, task.references))
        drawn = np.isin(rows, draw_samples(samples, recipe["held_out_samples"], task.seed))
        unseen = rows[drawn], targets[drawn]
        start, settings = model, recipe["finetune"]
        fine_tune = partial(trained, task, folder, start, settings, rows[~drawn], targets[~drawn], deadline)
        model = model_in(folder, spec, fine_tune, deadline)
    rounds.append(curated(task, own / "final", model, unseen, first)[2])
    precision = use_bf16(None, task.device)
    _, logits = predict(model, test.pixels, device=task.device, bf16=precision)
    _, training_logits = predict(model, task.data.pixels, device=task.device, bf16=precision)
    temperature = temperature_of(task, training_logits, unseen)
    last = metrics.confidence_metrics(logits, test.labels, temperature)
    row = {
        **{"setting": setting, "seed": task.seed, "images": len(task.given), "test_images": len(test.labels)},
        **{"rounds": rounds, "test": last, "temperature": temperature, "devices": devices_of([shared, own])},
        "recipe": recipe_digest(recipe),
    }
    write_text(own / ROW_FILE, json.dumps(row, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the settings in order until the time is up; 75 (try again) if it was, 2 for wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--limit", type=int, help="first so many training images")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("published.json"))
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * arguments.minutes
    recipe = json.loads(arguments.recipe.read_text(encoding="utf-8"))
    try:
        tasks, tests = make_tasks(arguments, recipe)
        for task in tasks:
            run_task(task, tests[task.name.partition(":")[0]], arguments.work, deadline)
            rows = rows_of(arguments.work, recipe_digest(recipe))
            content = {"recipe": recipe, "rows": rows}
            write_text(arguments.out / "published.json", json.dumps(content, indent=2) + "\n")
            write_text(arguments.out / "published.md", table(rows, recipe))
    except OutOfTime:
        print("the time is up; start the same command again to go on", file=sys.stderr)
        return 75
    except (TrainRefError, OSError, FloatingPointError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print((arguments.out / "published.md").read_text(encoding="utf-8"))
    return 0


def make_tasks(arguments: argparse.Namespace, recipe: dict[str, Any]) -> tuple[list[Task], dict[str, Images]]:
    """All settings of all seeds, checked before any is trained, and the test images by data set."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    datasets = {name: name.partition(":")[0] for name in arguments.settings}
    for name, dataset in datasets.items():
        if dataset not in CLASSES:
            raise TrainRefError(f"setting {name!r}: allowed are {' and '.join(CLASSES)}, a colon and a noise")
    read = {name: read_images(arguments.data / name, "train").first(arguments.limit) for name in set(datasets.values())}
    tests = {name: read_images(arguments.data / name, "test") for name in read}
    tasks = [
        make_task(name, read[dataset], recipe, seed, device, arguments.data)
        for seed in arguments.seeds
        for name, dataset in datasets.items()
    ]
    return tasks, tests


if __name__ == "__main__":
    sys.exit(main())
