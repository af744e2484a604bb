"""From what a method says to its figures: by hand, and equal to the functions of `evaluate.metrics`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainref_ray.baselines.results import RivalResult, from_tensors, to_tensors
from trainref_ray.evaluate import metrics
from trainref_ray.report import scores
from trainref_ray.report.scores import METRICS, Truth, leading_class, score
from trainref_ray.report.summary import UNKNOWN
from trainref_ray.training.calibrate import fit_temperature

# five samples: right, wrong, right, foreign, of unknown truth
TRUTH = Truth(
    given=np.array([0, 1, 1, 0, 1]),
    truth=np.array([0, 0, 1, -1, UNKNOWN]),
    votes=None,
    test_labels=np.array([0, 1, -1, 1]),
    test_votes=None,
    held_out_labels=np.array([0, 1]),
)
RESULT = RivalResult(
    label_quality=np.array([0.9, 0.6, 0.5, 0.1, 0.2], np.float32),
    flagged=np.array([False, True, True, True, True]),
    soft_label=np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0, 0], [0.8, 0.2]], np.float32),
    best_class=np.array([0, 1, 1, 0, 0]),
    ood=np.array([0.1, 0.5, 0.2, 0.4, 9.0], np.float32),
    test_logits=np.log(np.array([[0.8, 0.2], [0.7, 0.3], [0.5, 0.5], [0.1, 0.9]], np.float32)),
    held_out_logits=np.log(np.array([[0.6, 0.4], [0.2, 0.8]], np.float32)),
)


def figures(result: RivalResult, truth: Truth = TRUTH) -> dict[str, float]:
    return score(result, truth, resamples=0, seed=0).metrics


def test_figures_by_hand() -> None:
    found = figures(RESULT)
    assert found["noise_auroc"] == 0.5  # the wrong one's 0.6 lies between the right ones' 0.9 and 0.5
    assert found["noise_ap"] == 0.5  # found second: one of two
    assert found["noise_f1"] == pytest.approx(2 / 3)  # two flagged, one of them wrong
    assert found["quality_ece"] == pytest.approx((0.1 + 0.6 + 0.5) / 3)
    assert found["relabel_accuracy"] == pytest.approx(2 / 3)
    assert found["ood_auroc"] == pytest.approx(2 / 3)  # 0.4 above 0.1 and 0.2, below 0.5; the unknown one left out
    assert found["accuracy"] == pytest.approx(2 / 3)  # the test image without a label left out
    assert found["nll"] == pytest.approx(-np.log([0.8, 0.3, 0.9]).mean())
    assert found["brier"] == pytest.approx((0.08 + 0.98 + 0.02) / 3)
    # three bins of one image each: gaps 0.2, 0.7 and 0.1
    assert found["ece"] == pytest.approx((0.2 + 0.7 + 0.1) / 3)


def test_figures_equal_those_of_the_metrics() -> None:
    random = np.random.default_rng(0)
    count, classes, tests = 400, 4, 300
    truth = random.integers(-1, classes, count)
    given = np.where(random.random(count) < 0.4, random.integers(0, classes, count), np.maximum(truth, 0))
    soft = random.dirichlet(np.ones(classes), count).astype(np.float32)
    result = RivalResult(
        label_quality=soft[np.arange(count), given],
        flagged=random.random(count) < 0.3,
        soft_label=soft,
        ood=random.random(count).astype(np.float32),
        test_logits=random.normal(size=(tests, classes)).astype(np.float32),
        held_out_logits=random.normal(size=(20, classes)).astype(np.float32),
    )
    held_out = random.integers(0, classes, 20)
    votes = random.dirichlet(np.ones(classes), count)
    labels = random.integers(0, classes, tests)
    found = figures(result, Truth(given, truth, votes, labels, None, held_out))
    nobody = np.zeros(count, bool)
    expected = metrics.noise_metrics(result.label_quality, given, truth, nobody, result.flagged)  # type: ignore[arg-type]
    expected |= metrics.ood_metrics(result.ood, given, truth, nobody, nobody)  # type: ignore[arg-type]
    expected |= metrics.confidence_metrics(
        result.test_logits,  # type: ignore[arg-type]
        labels,
        fit_temperature(result.held_out_logits, held_out),  # type: ignore[arg-type]
    )
    expected["relabel_accuracy"] = metrics.relabel_accuracy(soft.argmax(1), truth, nobody)  # type: ignore[assignment]
    entropy = -(votes * np.log(votes)).sum(axis=1).mean()
    expected["soft_nll"] = -(votes * np.log(soft)).sum(axis=1).mean()
    expected["soft_kl"] = expected["soft_nll"] - entropy
    temperature = fit_temperature(result.held_out_logits, held_out)  # type: ignore[arg-type]
    scaled = soft ** (1 / temperature) / (soft ** (1 / temperature)).sum(axis=1, keepdims=True)
    noise = metrics.noise_metrics(scaled[np.arange(count), given], given, truth, nobody, result.flagged)  # type: ignore[arg-type]
    expected |= {f"{name}_ts": value for name, value in noise.items()}
    expected["soft_nll_ts"] = -(votes * np.log(scaled)).sum(axis=1).mean()
    expected["soft_kl_ts"] = expected["soft_nll_ts"] - entropy
    expected = {name: value for name, value in expected.items() if name in METRICS}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_a_method_does_not_say_has_no_figure() -> None:
    assert figures(RivalResult(ood=RESULT.ood)).keys() == {"ood_auroc", "ood_ap", "ood_fpr95"}
    assert not any(name.endswith("_ts") for name in figures(replace(RESULT, held_out_logits=None)))
    nothing_known = replace(TRUTH, truth=np.full(5, UNKNOWN), test_labels=np.full(4, -1))
    assert figures(RESULT, nothing_known) == {}


def test_temperature_scaling_changes_confidence_and_not_accuracy() -> None:
    found = score(RESULT, TRUTH, resamples=0, seed=0)
    assert found.temperature == pytest.approx(fit_temperature(RESULT.held_out_logits, np.array([0, 1])))  # type: ignore[arg-type]
    assert found.metrics["accuracy_ts"] == found.metrics["accuracy"]
    assert found.metrics["nll_ts"] != found.metrics["nll"]


def test_label_quality_at_the_temperature_by_hand() -> None:
    """A temperature of 0.5 squares: 0.81 / 0.82 of the right label, 0.36 / 0.52 of the wrong one, 0.5 of the other."""
    held_out = replace(TRUTH, held_out_labels=np.array([0]))
    logits = RESULT.test_logits / 2  # type: ignore[operator]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "fit_temperature", lambda logits, labels: 0.5)
        found = figures(replace(RESULT, test_logits=logits), held_out)
    assert found["quality_ece_ts"] == pytest.approx((1 - 0.81 / 0.82 + 0.36 / 0.52 + 0.5) / 3)
    assert found["nll_ts"] == pytest.approx(figures(RESULT)["nll"])
    assert found["noise_auroc_ts"] == 0.5


def test_what_is_said_at_a_temperature_is_not_scaled_again() -> None:
    own = replace(RESULT, held_out_logits=None, temperature=np.array([0.5]))
    found = figures(own)
    for name in ("noise_auroc", "noise_ap", "quality_ece"):
        assert found[f"{name}_ts"] == found[name]
    assert found["nll_ts"] != found["nll"]


def test_people_s_votes_by_hand() -> None:
    """Votes for two of the samples; the foreign one, without a distribution, counts as the uniform one."""
    votes = np.full((5, 2), np.nan)
    votes[0], votes[3] = [1, 0], [0.5, 0.5]
    found = figures(RESULT, replace(TRUTH, votes=votes))
    assert found["soft_nll"] == pytest.approx((-np.log(0.9) + np.log(2)) / 2, rel=1e-6)
    assert found["soft_kl"] == pytest.approx(-np.log(0.9) / 2, rel=1e-5)


def test_people_s_votes_of_test_images_by_hand() -> None:
    votes = np.full((4, 2), np.nan)
    votes[2] = [1, 0]
    found = figures(RESULT, replace(TRUTH, test_votes=votes))
    assert found["test_soft_nll"] == pytest.approx(np.log(2), rel=1e-6)
    assert "soft_nll" not in found


def test_the_leading_class_is_the_stated_one_or_the_largest() -> None:
    assert leading_class(RESULT) is RESULT.best_class
    assert leading_class(replace(RESULT, best_class=None)).tolist() == [0, 1, 0, 0, 0]  # type: ignore[union-attr]
    assert leading_class(RivalResult()) is None


def test_intervals_hold_the_figure_and_narrow_with_samples() -> None:
    random = np.random.default_rng(1)

    def width(count: int) -> float:
        labels = random.integers(0, 2, count)
        logits = np.eye(2)[np.where(random.random(count) < 0.7, labels, 1 - labels)] * 2
        nobody = np.zeros(0, np.int64)
        truth = Truth(nobody, nobody, None, labels, None, nobody)
        found = score(RivalResult(test_logits=logits), truth, resamples=200, seed=0)
        low, high = found.intervals["accuracy"]
        assert low < found.metrics["accuracy"] < high
        assert found.intervals.keys() == found.metrics.keys()
        return high - low

    # a binomial's 95 % interval: 3.92 √(0.7 · 0.3 / n)
    assert width(100) == pytest.approx(0.18, abs=0.05)
    assert width(10_000) == pytest.approx(0.018, abs=0.005)


def test_a_result_survives_its_file() -> None:
    again = from_tensors(to_tensors(RESULT))
    for name, value in to_tensors(RESULT).items():
        assert np.array_equal(getattr(again, name), value)
    assert from_tensors({}).label_quality is None
    with pytest.raises(ValueError, match="mood"):
        from_tensors({"mood": np.zeros(1)})
