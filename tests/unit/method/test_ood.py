"""METHOD 4: distances, the random calibration draw and the cut."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.method import ood


def reference_distance(values, means, precision):
    differences = values[:, None] - means[None]
    return np.sqrt(np.einsum("ngd,de,nge->ng", differences, precision, differences).min(1))


@pytest.mark.parametrize("by_class", [True, False])
def test_gaussian_and_distance_against_the_definition(by_class):
    generator = np.random.default_rng(0)
    values, labels = generator.normal(size=(60, 5)), generator.integers(0, 3, 60)
    groups = labels if by_class else np.zeros(60, int)
    means = np.stack([values[groups == label].mean(0) for label in np.unique(groups)])
    centred = values - means[groups]
    covariance = centred.T @ centred / (60 - len(means))
    shrunk = 0.8 * covariance + 0.2 * np.trace(covariance) / 5 * np.eye(5)
    fitted = ood.fit_gaussian(values, labels if by_class else None, classes=4, shrinkage=0.2)
    assert fitted.means.shape == (3 if by_class else 1, 5)  # class 3 has no member
    np.testing.assert_allclose(fitted.precision, np.linalg.inv(shrunk), rtol=1e-4, atol=1e-5)
    others = generator.normal(size=(20, 5))
    np.testing.assert_allclose(
        ood.mahalanobis(others, fitted), reference_distance(others, means, np.linalg.inv(shrunk)), rtol=1e-4
    )


def test_shrunk_to_the_identity_distances_are_euclidean():
    values = np.array([[0.0, 0.0], [2.0, 0.0]])
    fitted = ood.fit_gaussian(values, None, classes=2, shrinkage=1.0)  # mean (1, 0), variance (2 + 0) / 2 = 1
    assert ood.mahalanobis(np.array([[1.0, 3.0]]), fitted) == pytest.approx(3.0, rel=1e-5)


def test_fewer_members_than_width_and_one_a_class():
    values = np.eye(3, 50)
    fitted = ood.fit_gaussian(values, np.arange(3), classes=3, shrinkage=0.1)
    assert ood.mahalanobis(values, fitted).tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    singular = ood.fit_gaussian(values[:2], None, classes=3, shrinkage=0.0)
    assert np.isfinite(ood.mahalanobis(values, singular)).all()
    with pytest.raises(ValueError, match="at least one member"):
        ood.fit_gaussian(values[:0], None, classes=3, shrinkage=0.1)


def test_knn_distance_by_hand():
    found = ood.knn_distance(np.array([[0.9, 0.7], [0.4, 0.1], [0.0, 0.0]]), np.array([[1, 1], [1, 0], [0, 0]], bool))
    np.testing.assert_allclose(found, [0.2, 0.6, 2.0], rtol=1e-6)


def draw(uids, passes, calibration, fit, seed=7):
    rows = ood.draw_passing(uids, passes, calibration=calibration, fit=fit, seed=seed)
    return [set(uids[part].tolist()) for part in rows]


def test_draw_depends_on_uids_and_seed_alone():
    generator = np.random.default_rng(0)
    uids = generator.permutation(5000)[:1000]
    passes = uids % 3 == 0
    calibration, fit = draw(uids, passes, 50, 80)
    assert (len(calibration), len(fit), len(calibration & fit)) == (50, 80, 0)
    assert all(uid % 3 == 0 for uid in calibration | fit)
    order = generator.permutation(1000)
    assert draw(uids[order], passes[order], 50, 80) == [calibration, fit]
    alone = uids[passes]  # rows that do not pass play no part
    assert draw(alone, alone >= 0, 50, 80) == [calibration, fit]
    assert draw(uids, passes, 50, 80, seed=8) != [calibration, fit]


def test_draw_is_random_and_leaves_half_to_the_fit():
    uids, all_pass = np.arange(10_000), np.ones(10_000, bool)
    calibration, fit = draw(uids, all_pass, 2000, 100_000)
    assert np.mean(list(calibration)) == pytest.approx(5000, abs=4 * 2887 / 2000**0.5)
    assert calibration | fit == set(range(10_000))
    assert [len(part) for part in draw(uids[:5], all_pass[:5], 20, 20)] == [2, 3]
    assert draw(uids, ~all_pass, 20, 20) == [set(), set()]


def test_cut_by_hand():
    scores = np.arange(1.0, 20.0)  # n = 19: rank ⌈20 · 0.95⌉ = 19
    assert ood.cut(scores, 0.95) == 19.0
    assert ood.cut(np.arange(1.0, 40.0), 0.95) == 38.0  # ⌈40 · 0.95⌉
    assert ood.cut(np.arange(1.0, 4.0), 0.5) == 2.0
    assert ood.cut(np.arange(1.0, 4.0), 0.1) == 1.0


def test_no_cut_on_too_few_scores():
    assert ood.cut(np.arange(1.0, 19.0), 0.95) == math.inf  # n = 18: rank ⌈19 · 0.95⌉ = 19
    assert ood.cut(np.array([]), 0.95) == math.inf
    assert ood.cut(np.array([]), 0.01) == math.inf


def test_cut_flags_the_stated_share_of_new_samples():
    generator = np.random.default_rng(1)
    rates = [(generator.random(1000) > ood.cut(generator.random(99), 0.95)).mean() for _ in range(400)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.004)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e30), min_size=2, max_size=20), st.floats(0, 1e30))
def test_score_is_half_at_the_cut_and_rises(raw, cut):
    values = np.sort(np.array([*raw, cut, np.nextafter(cut, np.inf)]))
    score = ood.ood_score(values, cut)
    assert ((score >= 0) & (score < 1)).all()
    assert (np.diff(score) >= 0).all()
    assert ((score > 0.5) == (values > cut)).all()
    assert (score[values == cut] == 0.5).all()


def test_score_by_hand():
    np.testing.assert_allclose(ood.ood_score(np.array([0.0, 1.0, 3.0, 9.0]), 3.0), [0, 0.25, 0.5, 0.75])


def test_without_a_cut_scores_rank_and_flag_nothing():
    np.testing.assert_allclose(ood.ood_score(np.array([0.0, 1.0, 4.0]), math.inf), [0, 0.25, 0.4])
    assert ood.ood_score(np.array([1e30]), math.inf) == 0.5
