"""What the jobs of a comparison are given of a run, need, and depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from trainref_ray.baselines import methods
from trainref_ray.baselines.settings import finetune_views, is_asymmetric, rival_settings
from trainref_ray.baselines.training import AUGMENTED
from trainref_ray.config import MODEL_SETTINGS, Config, make_config, setting
from trainref_ray.distributed.context import weights_digest
from trainref_ray.distributed.rival_data import read_split, shards_of, training_history, usable_counts
from trainref_ray.distributed.rival_worker import OUT_OF_FOLD, PRETRAINED_PIECE, TRUTH
from trainref_ray.report.summary import usable_decisions
from trainref_ray.results import CurationRun
from trainref_ray.version import METHOD_VERSION

COMPARE_VERSION = 4
"""Raised when a change of the code changes a rival's result for equal settings."""


def pieces_of(names: Sequence[str]) -> list[str]:
    """Pieces that the methods need, in the order in which they can be made."""
    on_features = any(name in (*methods.ON_FEATURES, *methods.CLEANLAB) for name in names)
    return [
        TRUTH,
        *([PRETRAINED_PIECE] if on_features or methods.PRETRAINED in names else []),
        *([OUT_OF_FOLD] if any(name in methods.ON_PROBABILITIES for name in names) else []),
    ]


def run_facts(run: CurationRun) -> dict[str, Any]:
    """What every method is given of a run, in numbers."""
    split = read_split(run)
    decisions = usable_decisions(run)
    judged = np.isin(decisions["uid"].to_numpy(), split.samples)
    wrong, classes = float(1 - decisions["label_quality"].to_numpy()[judged].mean()), len(run.class_names)
    return {
        "samples": len(split.samples),
        "references": len(split.references),
        "held_out": len(split.held_out),
        "curating": int(run.is_curating.sum()),
        "tests": len(split.tests),
        "classes": classes,
        "image_passes": sum(report["images"] for report in training_history(run)),
        # DISC's published settings ask for the rate at which labels were drawn from all classes, of which the share
        # (C - 1)/C became wrong: by the share that our own scores expect
        "noise_rate": round(wrong * classes / max(classes - 1, 1), 2),
    }


def depends_on(name: str, run: CurationRun, config: Config, facts: dict[str, Any]) -> dict[str, Any]:
    """Everything that may change a method's result, as plain data."""
    stages = run.stages
    content: dict[str, Any] = {
        "method": name,
        "versions": [METHOD_VERSION, COMPARE_VERSION],
        "seed": config.seed,
        "inventory": [stages["inventory"], stages.get("noisy")],
        "shards": [[s.shard_id, s.etag, s.rows] for test in (False, True) for s in shards_of(run, test=test)],
        "usable": usable_counts(run),
        "references": [stages["references"], stages["held_out"], stages["curating"]],
        "classes": run.class_names,
        "image_size": config.image_size,
    }
    if name == methods.OURS or name in methods.RETRAINED:
        return content | {"stages": [stages["rounds"], stages["models"], stages["predictions"]]}
    if name in methods.TRAINED:
        own = {
            **{key: setting(config, key) for key in MODEL_SETTINGS},
            "pretrain": rival_settings(config).model_dump(mode="json"),
            "weights": weights_digest(config),
            "image_passes": facts["image_passes"],
        }
        if name == AUGMENTED:
            own |= {"views": finetune_views(config)}
        if name == "disc":
            images = facts["samples"] + facts["references"]
            plan = methods.disc_plan(
                images, facts["image_passes"], facts["noise_rate"], asymmetric=is_asymmetric(config)
            )
            own |= {"plan": asdict(plan)}
        return content | own
    if name == methods.HARD_LABEL:
        return content | {"decisions": stages["rounds"][-1]["decisions"]}
    if name == methods.TRAINED_ON:
        return content | {"decisions": stages["rounds"][config.rounds - 1]["decisions"]}
    content["embeddings"] = stages["rounds"][0]["embeddings"]
    if name == methods.FIRST_ROUND:
        return content | {"decisions": stages["rounds"][0]["decisions"]}
    if name in methods.REWEIGHTED:
        changed = make_config(run.settled(1), methods.REWEIGHTED[name]).model_dump(mode="json")
        return content | {key: changed[key] for key in ("probe", "augment", "vote", "ood", "decide")}
    if name in methods.CLEANLAB:
        return content | {"cleanlab": version("cleanlab")}
    return content
