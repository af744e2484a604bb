"""The table of `published.py`: what each setting reached with each seed, beside published figures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainref_ray.files import written_aside

ROW_FILE, DEVICE_FILE = "row.json", "devices.json"
FIGURES = (
    *("accuracy", "ece", "ece_ts", "nll_ts"),
    *("noise_auroc", "noise_f1", "quality_ece", "relabel_accuracy", "references_noise_rate", "ood_flag_rate"),
)
TO_BEAT = (
    (r"cifar100:sym:0.2", "81.6", "85.44"),
    (r"cifar100:sym:0.5", "79.5", "82.07"),
    (r"cifar100:sym:0.8", "71.7", "77.85"),
    (r"cifar100:sym:0.9", "64.3", "–"),
    (r"cifar100:asym:0.4", "77.9", "79.67"),
    (r"cifar10:human:[^:]+:worse(_label)?", "–", "94.75"),
)
"""Test accuracy in percent of a setting: C2D (Zheltonozhskii et al. 2022), and TrainRef with a far larger pre-trained
backbone; all of `ALL_IMAGES` training images."""
ALL_IMAGES = 50_000


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or none."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def note_device(folder: Path, name: str) -> None:
    """Keep the name of the device that a stage is computed on beside it; a later piece may have another."""
    path = folder / DEVICE_FILE
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if name not in before:
        write_text(path, json.dumps([*before, name]) + "\n")


def devices_of(folders: Sequence[Path]) -> list[str]:
    """Names of all devices that computed a stage below these folders."""
    paths = [path for folder in folders for path in folder.rglob(DEVICE_FILE)]
    return sorted({name for path in paths for name in json.loads(path.read_text(encoding="utf-8"))})


def rows_of(work: Path, recipe: str) -> list[dict[str, Any]]:
    """All finished rows of a recipe's fingerprint, by setting and seed."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob(f"*/{ROW_FILE}")]
    of_recipe = [row for row in rows if row["recipe"] == recipe]
    return sorted(of_recipe, key=lambda row: (row["setting"], row["images"], row["seed"]))


def table(rows: list[dict[str, Any]], recipe: dict[str, Any]) -> str:
    """Markdown, a line a setting: mean ± sample standard deviation over its seeds, where there are several."""
    counts = recipe["references"]
    devices = sorted({name for row in rows for name in row["devices"]})
    lines = [
        f"{', '.join(devices)}. {recipe['model']['backbone']} from scratch at {recipe['model']['image_size']} px, "
        f"{recipe['contrastive']['epochs']} epochs without labels, {recipe['pretrain']['epochs']} on the noisy ones, "
        f"{recipe['rounds']} rounds with {recipe['finetune']['epochs']} epochs of fine-tuning each; "
        f"{counts['per_class']} references a class, {counts['held_out']} of them held out for epoch and temperature, "
        f"and at most {recipe['held_out_samples']} curated samples left out of each fine-tuning for its temperature.",
        f"C2D and TrainRef: published test accuracy in percent, of {ALL_IMAGES:,} training images.",
        "",
        f"| setting | training images | seeds | {' | '.join(FIGURES)} | C2D | TrainRef |",
        "|---" * (len(FIGURES) + 5) + "|",
    ]
    for setting, images in sorted({(row["setting"], row["images"]) for row in rows}):
        several = [row for row in rows if (row["setting"], row["images"]) == (setting, images)]
        seeds = ", ".join(str(row["seed"]) for row in several)
        cells = [_cell([row["rounds"][-1] | row["test"] for row in several], name) for name in FIGURES]
        known = next((known for pattern, *known in TO_BEAT if re.fullmatch(pattern, setting)), ["–", "–"])
        lines.append(f"| {' | '.join([setting, f'{images:,}', seeds, *cells, *known])} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[dict[str, float]], name: str) -> str:
    found = [row[name] for row in values if name in row]
    if not found:
        return "–"
    spread = f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else ""
    return f"{np.mean(found):.3f}{spread}"
