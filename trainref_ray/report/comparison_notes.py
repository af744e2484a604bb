"""What a reader of a comparison's figures should know, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainref_ray.baselines.settings import finetune_views, rival_settings
from trainref_ray.baselines.training import AUGMENTED
from trainref_ray.config import Config

FIRST_MODELS = {
    "supervised": "the model that was trained on the noisy labels",
    "contrastive": "the model that was trained without labels",
    "none": "the model that model.weights names",
}
"""By `pretrain.objective`."""


def comparison_notes(setups: Sequence[dict[str, Any]], config: Config) -> list[str]:
    """What a reader of the figures should know."""
    first = setups[0]
    everyone = first["references"] + first["held_out"]
    notes = [
        f"{first['samples']:,} samples of {first['classes']} classes, {first['tests']:,} test images, {everyone:,} "
        f"references. {first['held_out']:,} of these choose the temperature and, where pretrain.keep_best is set, the "
        "epoch of the first model and of all rivals but disc, which releases its last as trainref's fine-tunings do "
        "(but for finetune.keep_best); no model is trained on them. Every rival has the other "
        f"{first['references']:,} in its training set.",
        f"trainref compares its samples with {first['curating']:,} of the references"
        + (", held-out ones among them." if first["curating"] > first["references"] else ", none of them held out."),
        f"Trainings: backbone {config.backbone}, "
        + " or ".join(f"{passes:,}" for passes in sorted({setup["image_passes"] for setup in setups}))
        + " forward-backward image passes: what trainref's own trainings made, each view counted.",
        "Methods on embeddings, and trainref/… without a training, get round 1's float16 embeddings, of "
        f"{FIRST_MODELS[config.pretrain.objective]}; their seconds leave what was trained before out. trainref/… among "
        "them curate round 1 again with the weight of the given label that it has, fitted or set.",
    ]
    if config.pretrain.objective == "none":
        notes.append(
            "disc has its published optimizer, learning rate and batch size, which are for weights from scratch, and "
            "trains the whole network; the other rivals have the fine-tuning's."
        )
    views = finetune_views(config)
    if config.finetune_model and views != {name: getattr(rival_settings(config), name) for name in views}:
        strong = ", ".join(f"{name} {views[name]:g}" for name in ("randaugment", "mixup"))
        notes.append(
            f"trainref's fine-tuning has views of its own ({strong}); of the rivals {AUGMENTED} alone trains on them. "
            "All others have none of these but crop and flip, and disc has a strong view of its own beside them."
        )
    if config.model.mirror:
        notes.append(
            "Embeddings and predictions, rivals' too, are means of an image's and its mirror image's (model.mirror)."
        )
    notes.append(
        "A rival's label quality is what its model gives the label, as it comes; in the figures with _ts its model, as "
        "trainref's in all, speaks at the temperature that fits the held-out references."
    )
    if config.finetune_model and config.calibrate.samples:
        notes.append(
            "trainref's temperature is also fitted to the label distributions of at most "
            f"{config.calibrate.samples:,} curated samples that its last training left out; a rival has none."
        )
    if not first["references"]:
        notes.append(
            f"All references are held out (calibrate.per_class {config.calibrate.per_class}): no rival was trained on "
            "any. A lower calibrate.per_class gives them some."
        )
    return notes
