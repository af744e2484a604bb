"""METHOD 7's figures: against scikit-learn, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from trainref_ray.evaluate import metrics


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 80), st.integers(1, 12))
def test_ranking_figures_equal_scikit_learn(seed, count, levels):
    generator = np.random.default_rng(seed)
    score = generator.integers(0, levels, count) / levels  # many ties
    positive = generator.random(count) < 0.4
    if positive.all() or not positive.any():
        assert metrics.auroc(score, positive) is None
        assert metrics.average_precision(score, positive) is None
        assert metrics.fpr_at_tpr(score, positive) is None
        return
    assert metrics.auroc(score, positive) == pytest.approx(sk.roc_auc_score(positive, score))
    assert metrics.average_precision(score, positive) == pytest.approx(sk.average_precision_score(positive, score))
    fpr, tpr, _ = sk.roc_curve(positive, score, drop_intermediate=False)
    assert metrics.fpr_at_tpr(score, positive, 0.95) == pytest.approx(fpr[tpr >= 0.95].min())
    assert metrics.f1(score > 0.5, positive) == pytest.approx(sk.f1_score(positive, score > 0.5))


def test_f1_by_hand():
    assert metrics.f1(np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)) == 0.5
    assert metrics.f1(np.zeros(2, bool), np.zeros(2, bool)) is None


P = np.array([[0.9, 0.1], [0.6, 0.4], [0.35, 0.65], [0.2, 0.8]])
LABELS = np.array([0, 1, 1, 1])


def test_confidence_figures_by_hand():
    assert metrics.accuracy(P, LABELS) == 0.75
    assert metrics.nll(P, LABELS) == pytest.approx(-np.log([0.9, 0.4, 0.65, 0.8]).mean())
    assert metrics.brier(P, LABELS) == pytest.approx(2 * np.mean([0.01, 0.36, 0.1225, 0.04]))
    # bins (0.5, 1] with 2 bins: all four; mean confidence 0.7375, accuracy 0.75
    assert metrics.ece(P, LABELS, bins=2) == pytest.approx(0.0125)
    # with 10 bins: 0.9 -> (0.8, 0.9], 0.6 -> (0.5, 0.6], 0.65 -> (0.6, 0.7], 0.8 -> (0.7, 0.8]
    assert metrics.ece(P, LABELS, bins=10) == pytest.approx((0.1 + 0.6 + 0.35 + 0.2) / 4)
    # equal mass, 2 bins: {0.6 wrong, 0.65 right}, {0.8 right, 0.9 right}
    assert metrics.ece_mass(P, LABELS, bins=2) == pytest.approx((abs(0.5 - 0.625) + abs(1 - 0.85)) / 2)
    assert metrics.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(-np.log(metrics.FLOOR))


def test_bins_of_equal_numbers_do_not_depend_on_the_order_of_ties():
    sure = np.tile([0.2, 0.8], (10, 1))
    labels = np.array([1] * 8 + [0] * 2)  # as often right as it says
    assert metrics.ece_mass(sure, labels, bins=5) == pytest.approx(0)
    assert metrics.ece_mass(sure, labels[::-1], bins=5) == pytest.approx(0)
    # 2 bins: {0.7 wrong, a 0.8}, {a 0.8, a 0.8}; of the three 0.8 two are right
    mixed, labels = np.array([[0.3, 0.7], *[[0.2, 0.8]] * 3]), np.array([0, 1, 1, 0])
    by_hand = (abs(2 / 3 / 2 - 0.75) + abs(2 / 3 - 0.8)) / 2
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        assert metrics.ece_mass(mixed[order], labels[order], bins=2) == pytest.approx(by_hand)


def test_reliability_bins_by_hand():
    found = metrics.reliability_bins(P, LABELS, bins=4)  # (0.5, 0.75]: 0.6 wrong, 0.65 right; (0.75, 1]: both right
    assert found.count.tolist() == [2, 2]
    assert found.accuracy.tolist() == [0.5, 1.0]
    assert found.confidence.tolist() == pytest.approx([0.625, 0.85])


def test_brier_equals_scikit_learn_on_two_classes():
    assert metrics.brier(P, LABELS) == pytest.approx(2 * sk.brier_score_loss(LABELS, P[:, 1]))
    assert metrics.nll(P, LABELS) == pytest.approx(sk.log_loss(LABELS, P))


def test_nothing_to_measure_is_none():
    empty, none = np.zeros((0, 3)), np.zeros(0, int)
    for metric in (metrics.accuracy, metrics.nll, metrics.brier, metrics.ece, metrics.ece_mass):
        assert metric(empty, none) is None
    assert metrics.confidence_metrics(empty, none, 2.0) == {}
    assert metrics.relabel_accuracy(none, none, none.astype(bool)) is None


def test_cross_entropy_of_distributions_by_hand():
    q, human = np.array([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]), np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    hand = [np.log(2), 0.0, (np.log(4) + np.log(4 / 3)) / 2]
    assert metrics.soft_cross_entropy(q, human) == pytest.approx(hand)
    assert metrics.soft_cross_entropy(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])) == pytest.approx(-np.log(1e-7))


def test_noise_metrics_leave_references_and_foreign_images_out():
    quality = np.array([0.9, 0.1, 0.6, 0.0, 0.0])
    given, truth = np.array([0, 0, 1, 0, 1]), np.array([0, 1, 1, 1, -1])
    is_reference = np.array([False, False, False, True, False])
    flagged = np.array([True, True, False, False, False])
    found = metrics.noise_metrics(quality, given, truth, is_reference, flagged)
    hand = {"noise_auroc": 1.0, "noise_ap": 1.0, "noise_f1": 2 / 3, "quality_ece": (0.1 + 0.1 + 0.4) / 3}
    assert found == pytest.approx(hand)
    # what the truth of a reference or a foreign image is said to be changes nothing
    assert found == metrics.noise_metrics(quality, given, np.array([0, 1, 1, 0, -1]), is_reference, flagged)
    assert metrics.relabel_accuracy(np.array([0, 1, 0, 0, 0]), truth, is_reference) == pytest.approx(2 / 3)


def test_noise_metrics_without_wrong_labels_leave_figures_out():
    found = metrics.noise_metrics(*[np.array(v) for v in ([0.5, 0.6], [0, 1], [0, 1], [False] * 2, [False] * 2)])
    assert found == {"quality_ece": pytest.approx(0.45)}


def test_ood_metrics_by_hand():
    raw = np.array([1.0, 2.0, 3.0, 5.0, 4.0, 9.0])
    given, truth = np.array([0, 0, 0, 0, 0, 0]), np.array([0, 1, 1, -1, -1, -1])
    is_reference = np.array([False] * 5 + [True])
    flagged = raw > 2.5
    found = metrics.ood_metrics(raw, given, truth, is_reference, flagged)
    assert found == {
        "ood_auroc": 1.0,
        "ood_ap": 1.0,
        "ood_fpr95": 0.0,
        "ood_flag_rate": pytest.approx(0.6),
        "ood_flag_rate_in_distribution": pytest.approx(1 / 3),
        "ood_flag_rate_mislabelled": pytest.approx(0.5),
        "ood_flag_rate_foreign": 1.0,
    }


def test_confidence_metrics_after_temperature_scaling():
    logits = np.log(P)
    found = metrics.confidence_metrics(logits, LABELS, 2.0)
    assert set(found) == {
        f"{name}{end}" for name in ("accuracy", "nll", "brier", "ece", "ece_mass") for end in ("", "_ts")
    }
    assert found["nll"] == pytest.approx(metrics.nll(P, LABELS))
    cooled = np.sqrt(P) / np.sqrt(P).sum(1, keepdims=True)
    assert found["nll_ts"] == pytest.approx(metrics.nll(cooled, LABELS))
    assert found["accuracy"] == found["accuracy_ts"]
    assert len(metrics.confidence_metrics(logits * 1e4, LABELS)) == 5  # no overflow, no _ts


def test_bootstrap_interval():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = metrics.bootstrap_interval(lambda part: float(part.mean()), [values], resamples=500, seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert (low, high) == metrics.bootstrap_interval(lambda part: float(part.mean()), [values], resamples=500, seed=0)
    paired = metrics.bootstrap_interval(lambda a, b: float((a - b).max()), [values, values], resamples=20, seed=0)
    assert paired == (0.0, 0.0)  # rows of all arrays are drawn alike
    assert metrics.bootstrap_interval(lambda part: None, [values], resamples=10, seed=0) is None
    assert metrics.bootstrap_interval(lambda part: 1.0, [values], resamples=0, seed=0) is None
    assert metrics.bootstrap_interval(lambda part: 1.0, [values[:0]], resamples=5, seed=0) is None
