"""Settings: what is refused, how presets are laid over each other, and what a fingerprint depends on."""

from __future__ import annotations

import pytest

from trainref_ray.config import STAGE_SETTINGS, Config, fingerprint, load_preset, make_config, preset_names, setting
from trainref_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"vote": {"kk": 1}}, ["vote.kk", "near_duplicate"]),
        ({"nope": 1}, ["'nope'", "reference_per_class"]),
        ({"vote": {"k": 0}}, ["vote.k", "0", "greater than or equal to 1"]),
        ({"ood": {"score": "x"}}, ["ood.score", "'x'", "mahalanobis"]),
        ({"reference": "a.csv", "reference_per_class": 1}, ["not both"]),
        ({"pretrain": {"objective": "simclr"}}, ["pretrain.objective", "'simclr'", "'contrastive'"]),
        ({"pretrain": {"objective": "none"}}, ["model.weights is none", "contrastive"]),
        ({"pretrain": {"objective": "contrastive", "freeze_backbone": True}}, ["freeze_backbone"]),
        ({"finetune": {"objective": "contrastive"}}, ["finetune.objective"]),
        ({"vote": {"vote_weight": 0, "influence_weight": 0, "model_weight": 0}}, ["must be above 0"]),
    ],
)
def test_bad_settings_name_key_value_and_what_is_allowed(content: dict, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(content)
    for part in parts:
        assert part in str(caught.value)


def test_layers_are_merged_group_by_group() -> None:
    config = make_config({"vote": {"k": 20, "diversity": True}}, {"vote": {"k": 30}})
    assert (config.vote.k, config.vote.diversity) == (30, True)
    assert config.finetune.learning_rate == Config().finetune.learning_rate


def test_every_preset_is_valid() -> None:
    assert {"demo", "cifar10", "cifar100", "webvision", "webvision_mini"} <= set(preset_names())
    for name in preset_names():
        make_config(load_preset(name))


def test_unknown_preset_names_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"'nothing'.*cifar10, cifar100, demo"):
        load_preset("nothing")


def test_fingerprint_follows_the_stage_settings_and_upstream_only() -> None:
    base = Config()
    other_k = make_config({"vote": {"k": 11}})
    assert fingerprint(base, "supporters") != fingerprint(other_k, "supporters")
    assert fingerprint(base, "embeddings") == fingerprint(other_k, "embeddings")
    assert fingerprint(base, "embeddings", "a") != fingerprint(base, "embeddings", "b")
    elsewhere = make_config({"out": "elsewhere", "resources": {"train_workers": 4}})
    for stage in STAGE_SETTINGS:
        assert fingerprint(base, stage) == fingerprint(elsewhere, stage)


@pytest.mark.parametrize(
    ("group", "name", "value"), [("resources", "embed_workers", 0), ("evaluate", "fewer_references", (2, 0))]
)
def test_numbers_that_nothing_can_be_made_of_are_refused(group: str, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{group}\.{name}.*greater than"):
        make_config({group: {name: value}})


@pytest.mark.parametrize("training", ["pretrain", "finetune"])
def test_mirror_images_are_predicted_only_by_models_that_learn_from_them(training: str) -> None:
    preset, no_flip = load_preset("cifar10"), {training: {"flip": False}}
    with pytest.raises(ConfigError, match=rf"{training}\.flip is off.*--model\.no-mirror"):
        make_config(preset, no_flip)
    assert not make_config(preset, no_flip, {"model": {"mirror": False}}).model.mirror
    others = {"pretrain": {"objective": "none"}, "finetune_model": False, "model": {"weights": "public"}}
    assert make_config(preset, no_flip, others).model.mirror, "nothing is trained"


def test_stage_settings_exist() -> None:
    for names in STAGE_SETTINGS.values():
        for name in names:
            setting(Config(), name)


def test_paths_are_in_no_fingerprint() -> None:
    other = make_config(
        {"classes": "c.json", "model": {"weights": "w.safetensors"}, "data": ["x"], "reference": "r.csv"}
    )
    for stage in STAGE_SETTINGS:
        assert fingerprint(Config(), stage) == fingerprint(other, stage)


@pytest.mark.parametrize("change", [{"model": {"mirror": True}}, {"model": {"cifar_stem": True}}, {"image_size": 40}])
def test_stages_of_a_model_are_made_again_when_it_changes(change: dict[str, object]) -> None:
    other = make_config(change)
    made_again = {stage for stage in STAGE_SETTINGS if fingerprint(Config(), stage) != fingerprint(other, stage)}
    assert made_again == {"pretrain", "pretrain_label_free", "embeddings", "finetune", "predictions"}


def test_label_free_pretraining_does_not_depend_on_what_the_references_decide() -> None:
    base = make_config({"pretrain": {"objective": "contrastive"}})
    other = make_config(
        {"pretrain": {"objective": "contrastive"}, "calibrate": {"per_class": 3}, "reference_per_class": 7}
    )
    assert fingerprint(base, "pretrain_label_free") == fingerprint(other, "pretrain_label_free")
    cooler = make_config({"pretrain": {"objective": "contrastive", "contrastive_temperature": 0.1}})
    assert fingerprint(base, "pretrain_label_free") != fingerprint(cooler, "pretrain_label_free")
