"""What rivals take from a curation's settings."""

from __future__ import annotations

from typing import Any

from trainref_ray.config import Config, TrainSettings


def rival_settings(config: Config) -> TrainSettings:
    """How the trained rivals are trained: as the first model is. Where that is given and not trained, they have the
    fine-tuning's optimizer, crop and flip, which are trainref's own for these weights."""
    if config.pretrain.objective != "none":
        return config.pretrain
    names = ("batch_size", "optimizer", "learning_rate", "weight_decay", "warmup", "freeze_backbone", "crop", "flip")
    return config.pretrain.model_copy(update={name: getattr(config.finetune, name) for name in names})


def finetune_views(config: Config) -> dict[str, Any]:
    """What trainref's fine-tuning does to an image before the network sees it."""
    return {name: getattr(config.finetune, name) for name in ("crop", "flip", "randaugment", "mixup")}


def is_asymmetric(config: Config) -> bool:
    """Whether the noise is known to be so, for which DISC's published settings differ: it was put in by the run."""
    return config.noise.startswith("asym")
