"""Which methods run, and how the rivals are set up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainref_ray.baselines import methods
from trainref_ray.baselines.disc import SHORT, image_passes
from trainref_ray.baselines.features import FeatureData, logistic_regression
from trainref_ray.config import make_config
from trainref_ray.errors import ConfigError


def data() -> FeatureData:
    random = np.random.default_rng(0)

    def drawn(labels: np.ndarray) -> np.ndarray:
        vectors = np.eye(4)[labels] + 0.3 * random.standard_normal((len(labels), 4))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    labels = random.integers(0, 3, 90)
    return FeatureData(drawn(labels), labels, drawn(np.arange(3)), np.arange(3), drawn(np.arange(3).repeat(4)), 3)


def test_by_default_all_that_are_installed_without_further_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "cleanlab_installed", lambda: False)
    without = methods.choose_methods(None)
    assert without[0] == "trainref"
    assert not set(without) & {*methods.CLEANLAB, *methods.RETRAINED}
    assert {"disc", "mixup", "knn", "logistic_regression", "model_self_confidence"} <= set(without)
    monkeypatch.setattr(methods, "cleanlab_installed", lambda: True)
    assert set(methods.choose_methods(None)) - set(without) == set(methods.CLEANLAB)


def test_named_ones_come_in_the_table_s_order_after_trainref() -> None:
    assert methods.choose_methods(["disc", "knn", "trainref/hard"]) == ["trainref", "trainref/hard", "knn", "disc"]


def test_an_unknown_method_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError, match=r"'disk' is unknown; allowed: .*disc"):
        methods.choose_methods(["disk"])


def test_cleanlab_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "cleanlab_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"make benchmarks"):
        methods.choose_methods(["cleanlab_ood_features"])


@pytest.mark.parametrize("name", [*methods.REWEIGHTED, *methods.RETRAINED])
def test_every_ablation_is_a_change_of_known_settings(name: str) -> None:
    change = {**methods.REWEIGHTED, **methods.RETRAINED}[name]
    assert make_config(change) != make_config({})


@pytest.mark.parametrize("name", methods.ON_FEATURES)
def test_held_out_references_get_logits_and_change_nothing_else(name: str) -> None:
    given, held_out = data(), data().references[:2]
    found = methods.judge_features(name, given, held_out, None)
    alone = methods.judge_features(name, given, held_out[:0], None)
    assert found.held_out_logits is not None
    assert found.held_out_logits.shape == (2, 3)
    assert np.allclose(found.test_logits, alone.test_logits, atol=1e-5)
    assert np.allclose(found.label_quality, alone.label_quality, atol=1e-5)
    # asked in the place of test images, they get the same answer
    asked = methods.judge_features(name, replace(given, test=held_out), held_out, None)
    assert np.allclose(asked.test_logits, found.held_out_logits, atol=1e-5)


def test_logistic_regression_is_the_one_of_the_features() -> None:
    found = methods.judge_features("logistic_regression", data(), data().references, None)
    assert np.allclose(found.soft_label, logistic_regression(data()).soft_label, atol=1e-6)


def test_disc_has_settings_for_its_budget() -> None:
    short = methods.disc_plan(1000, 36_000, 0.4, seed=3, crop=False)
    assert short.image_passes == 36_000
    assert short.batch_size == SHORT.batch_size
    assert (short.seed, short.crop) == (3, False)
    assert image_passes(short, 1000) == pytest.approx(36_000, rel=0.2)
    long = methods.disc_plan(1000, 760_000, 0.4)
    assert (long.epochs, long.warmup_epochs, long.schedule, long.decay_at) == (200, 20, "steps", (80, 160))
    assert methods.disc_plan(1000, 760_000, 0.7).optimizer == "adam"
    assert methods.disc_plan(1000, 760_000, 0.4, asymmetric=True).threshold_momentum == 0.95
    assert [methods.disc_plan(1000, 36_000, rate).hard_weight for rate in (0.59, 0.6)] == [1.0, 0.2]
