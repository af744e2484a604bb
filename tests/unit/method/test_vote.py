"""METHOD 3: who may support a sample, and what the supporters say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainref_ray.method import vote


def pick(sha=None, candidate_sha=None, k=2, near_duplicate=0.99):
    return vote.pick_supporters(
        np.array([1, 2]),
        sha,
        np.array([[1, 7, 8, 9], [5, 6, -1, -1]]),
        np.array([[1.0, 0.995, 0.9, 0.8], [0.7, 0.6, 0.0, 0.0]], np.float32),
        candidate_sha,
        k=k,
        near_duplicate=near_duplicate,
    )


def test_self_copies_and_missing_are_dropped():
    columns, valid, enough = pick()
    assert columns.tolist() == [[2, 3], [0, 1]]
    assert valid.all()
    assert enough.all()
    digests = np.array([["a", "x", "a", "y"], [None, "b", None, None]], dtype=object)
    columns, valid, enough = pick(np.array(["a", None], dtype=object), digests)
    assert columns.tolist() == [[3, 0], [0, 1]]  # an unknown digest equals no other
    assert valid.tolist() == [[True, False], [True, True]]
    assert enough.tolist() == [False, True]


def test_more_supporters_than_candidates():
    columns, valid, enough = pick(k=6, near_duplicate=1.0)
    assert columns.shape == valid.shape == (2, 6)
    assert valid.sum(1).tolist() == [3, 2]
    assert (columns[~valid] == 0).all()
    assert not enough.any()


def test_diverse_takes_the_one_least_similar_to_those_taken():
    # columns 0, 1, 2 point almost alike; column 3 does not and comes second; 4 is not valid
    pool = np.array([[[1, 0], [0.999, 0.0447], [0.995, 0.0999], [0, 1], [-1, 0]]], np.float32)
    columns, valid = vote.diverse_supporters(pool, np.array([[True] * 4 + [False]]), k=2)
    assert columns.tolist() == [[0, 3]]
    assert valid.all()
    columns, valid = vote.diverse_supporters(pool, np.array([[True] * 4 + [False]]), k=5)
    assert columns[0, :4].tolist() == [0, 1, 2, 3]
    assert valid.tolist() == [[True] * 4 + [False]]
    # after 0 and 3 (cosines 1 and 0 to 0), column 2 is less similar to them at its nearest than column 1
    assert vote.diverse_supporters(pool, np.array([[True] * 4 + [False]]), k=3)[0].tolist() == [[0, 2, 3]]


def test_diversity_pool_leaves_a_choice_where_there_are_members():
    assert vote.diversity_pool(10, 4000) == 40
    assert vote.diversity_pool(10, 80) == 20
    assert vote.diversity_pool(10, 12) == 10


def test_vote_by_hand():
    labels = np.array([[0, 1, 1], [2, -1, -1], [0, 0, -1]])
    similarity = np.array([[0.5, 0.25, 0.25], [0.9, 0.9, 0.9], [-0.5, 0.0, 0.3]], np.float32)
    counts = np.array([6, 2, 2])
    plain = vote.vote(labels, similarity, classes=3, member_counts=counts, balance=0.0)
    np.testing.assert_allclose(plain, [[0.5, 0.5, 0], [0, 0, 1], [1 / 3] * 3], rtol=1e-6)
    balanced = vote.vote(labels, similarity, classes=3, member_counts=counts, balance=1.0)
    np.testing.assert_allclose(balanced[0], [0.25, 0.75, 0], rtol=1e-6)
    assert balanced.dtype == np.float32


def test_sharpen_by_hand():
    q = np.array([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(vote.sharpen(q, 0.5)[0], np.array([36, 9, 1]) / 46, rtol=1e-6)
    np.testing.assert_allclose(vote.sharpen(q, 1.0), q, rtol=1e-6)
    np.testing.assert_allclose(vote.sharpen(np.full((1, 1000), 1e-3), 0.01), 1e-3, rtol=1e-5)  # no underflow


def test_combine_is_the_weighted_mean():
    parts = [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])]
    np.testing.assert_allclose(vote.combine(*parts, weights=(2, 1, 1)), [[0.625, 0.375]], rtol=1e-6)
    np.testing.assert_allclose(vote.combine(*parts, weights=(0, 3, 0)), [[0.0, 1.0]], rtol=1e-6)
    with pytest.raises(ValueError, match="zip"):
        vote.combine(*parts, weights=(1, 1))


def test_transition_by_hand():
    mass = np.array([[1800.0, 200.0], [1200.0, 800.0]])
    # labels are right at a rate of 0.65: wrong cells vary by 0.25², of which 0.35 * 0.65 / 2000 by chance
    prior = 1 / (0.25**2 / (0.35 * 0.65) - 1 / 2000)
    expected = [[1800 + 0.65 * prior, 200 + 0.35 * prior], [1200 + 0.35 * prior, 800 + 0.65 * prior]]
    np.testing.assert_allclose(vote.transition(mass), np.array(expected) / (2000 + prior))
    # the more samples, the nearer the table's own rows
    np.testing.assert_allclose(vote.transition(1e6 * mass), mass / 2000, atol=1e-6)


def test_transition_finds_the_noise_that_made_the_labels():
    """Symmetric noise of few samples a cell is seen as such, confusions of two classes are kept."""
    random = np.random.default_rng(0)
    classes, count = 50, 200
    truth = np.repeat(np.arange(classes), count)
    for confused in (random.integers(0, classes, len(truth)), truth ^ 1):
        labels = np.where(random.random(len(truth)) < 0.4, confused, truth)
        mass = vote.class_label_mass(np.eye(classes, dtype=np.float32)[truth], labels)
        exact = np.eye(classes) * 0.6
        exact += 0.4 / classes if (confused != truth ^ 1).any() else 0.4 * np.eye(classes)[np.arange(classes) ^ 1]
        plain = mass / mass.sum(axis=1, keepdims=True)
        error, before = np.abs(vote.transition(mass) - exact).sum(), np.abs(plain - exact).sum()
        assert error < (0.2 * before if (confused != truth ^ 1).any() else 1.1 * before)


def test_transition_of_nothing_and_of_right_labels():
    np.testing.assert_allclose(vote.transition(np.zeros((4, 4))), 0.25)
    np.testing.assert_allclose(vote.transition(np.diag([3.0, 5.0, 0.0])), np.eye(3))
    lonely = vote.transition(np.array([[4.0, 1, 0], [0, 0, 0], [1, 0, 4]]))
    np.testing.assert_allclose(lonely.sum(axis=1), 1)
    assert lonely[1, 1] == pytest.approx(0.8)  # a class that no sample bears gets what the others have


def test_given_label_by_hand():
    combined = np.array([[0.8, 0.2], [0.6, 0.4], [0.2, 0.8], [0.4, 0.6]], np.float32)
    labels = np.array([0, 0, 1, 0])
    mass = vote.class_label_mass(combined, labels)
    np.testing.assert_allclose(mass, [[1.8, 0.2], [1.2, 0.8]], rtol=1e-6)  # class by label
    parts = [vote.class_label_mass(combined[rows], labels[rows]) for rows in ([0, 2], [1, 3])]
    np.testing.assert_allclose(sum(parts), mass)
    few = vote.class_label_mass(np.array([[0.5, 0.3, 0.2]], np.float32), np.array([2]))
    np.testing.assert_allclose(few, [[0, 0, 0.5], [0, 0, 0.3], [0, 0, 0.2]], rtol=1e-6)
    # four samples tell no two classes apart: T = [[0.65, 0.35], [0.35, 0.65]]; last row: 0.4 * 0.65 against 0.6 * 0.35
    found = vote.weigh_given_label(combined, labels, mass, 1.0)[3]
    np.testing.assert_allclose(found, [0.26 / 0.47, 0.21 / 0.47], rtol=1e-5)
    np.testing.assert_allclose(vote.weigh_given_label(combined, labels, mass, 0.0), combined, rtol=1e-6)
    second = np.array([0.4 * 0.65**0.5, 0.6 * 0.35**0.5])
    found = vote.weigh_given_label(combined, labels, mass, 0.5)[3]
    np.testing.assert_allclose(found, second / second.sum(), rtol=1e-6)


def test_share_of_right_labels_weighs_classes_by_their_samples() -> None:
    right, labels = np.array([True, True, False, True, False, False]), np.array([0, 0, 0, 0, 1, 1])
    share, error = vote.share_right(right, labels, np.array([10.0, 30.0, 60.0]))  # no reference of the third
    assert share == pytest.approx(0.25 * 0.75 + 0.75 * 0)
    steadied = (6 * 0.1875 + 2) / 10
    assert error == pytest.approx(np.sqrt(steadied * (1 - steadied) * (4 * (0.25 / 4) ** 2 + 2 * (0.75 / 2) ** 2)))


def test_share_of_right_labels_of_even_classes_is_the_mean_and_never_certain() -> None:
    labels = np.repeat(np.arange(5), 4)
    share, error = vote.share_right(np.arange(20) < 13, labels, np.ones(5))
    assert share == pytest.approx(13 / 20)
    assert error == pytest.approx(np.sqrt(15 / 24 * 9 / 24 / 20))
    share, error = vote.share_right(np.ones(20, bool), labels, np.ones(5))
    assert share == pytest.approx(1)
    assert error == pytest.approx(np.sqrt(22 / 24 * 2 / 24 / 20))
    with pytest.raises(ValueError, match="none of a class with references"):
        vote.share_right(np.ones(1, bool), np.array([0]), np.array([0.0, 3.0]))


def noisy(count: int, classes: int, right: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Calibrated distributions, labels that are drawn from the true classes and are right at that rate, the classes."""
    random = np.random.default_rng(5)
    distribution = random.dirichlet(np.full(classes, 0.4), count)
    truth = (distribution.cumsum(axis=1) > random.random((count, 1))).argmax(axis=1)
    wrong = (truth + random.integers(1, classes, count)) % classes
    return distribution, np.where(random.random(count) < right, truth, wrong), truth


def mean_quality(distribution: np.ndarray, labels: np.ndarray, weight: float) -> float:
    mass = vote.class_label_mass(distribution, labels)
    weighed = vote.weigh_given_label(distribution, labels, mass, weight)
    return float(weighed[np.arange(len(labels)), labels].mean(dtype=np.float64))


@pytest.mark.parametrize(
    ("set_weight", "share", "wanted"), [(0.3, 0.45, 0.44), (0.3, 0.7, 0.69), (3.0, 0.6, 0.61), (1.0, 0.37, 0.38)]
)
def test_the_fitted_weight_makes_about_as_many_labels_right_as_the_references_say(
    set_weight: float, share: float, wanted: float
) -> None:
    distribution, labels, _ = noisy(4000, 5, 0.6)
    mass = vote.class_label_mass(distribution, labels)
    assert abs(mean_quality(distribution, labels, set_weight) - share) > 0.01
    weight = vote.fit_given_weight(distribution, labels, mass, share=share, standard_error=0.01, set_weight=set_weight)
    assert mean_quality(distribution, labels, weight) == pytest.approx(wanted, abs=5e-4)  # a step of the weight


@given(st.floats(0.0, 5.0), st.floats(0.0, 1.0), st.floats(1e-6, 1.0))
def test_the_fitted_weight_is_the_nearest_that_references_do_not_contradict(
    set_weight: float, share: float, error: float
) -> None:
    distribution, labels, _ = noisy(200, 4, 0.6)
    mass = vote.class_label_mass(distribution, labels)

    def off(weight: float) -> float:
        return abs(mean_quality(distribution, labels, weight) - share)

    weight = vote.fit_given_weight(distribution, labels, mass, share=share, standard_error=error, set_weight=set_weight)
    as_set, larger = (mean_quality(distribution, labels, set_weight + more) for more in (0, 1))
    if off(set_weight) < error - 1e-6 or abs(larger - as_set) < error - 1e-6:
        assert weight == set_weight
    elif off(weight) > error + vote.WEIGHT_STEP:
        assert weight in (0.0, max(vote.MOST_WEIGHT, set_weight))
    else:
        nearer = weight + np.sign(set_weight - weight) * 2 * vote.WEIGHT_STEP
        assert abs(weight - set_weight) <= 2 * vote.WEIGHT_STEP or off(nearer) > error


def test_the_weight_is_the_one_set_where_references_tell_nothing_and_bounded_where_they_tell_all() -> None:
    distribution, labels, _ = noisy(500, 5, 0.6)
    mass = vote.class_label_mass(distribution, labels)

    def fit(share: float, error: float, set_weight: float) -> float:
        return vote.fit_given_weight(
            distribution, labels, mass, share=share, standard_error=error, set_weight=set_weight
        )

    assert fit(0.9, 1e3, 0.5) == 0.5
    assert fit(0.9, 1e3, 5.0) == 5.0
    assert fit(1.0, 1e-6, 1.0) == vote.MOST_WEIGHT
    assert fit(0.0, 1e-6, 1.0) == 0.0
    few, many = fit(0.5, 0.05, 0.2), fit(0.5, 0.01, 0.2)
    assert 0.2 < few < many


def test_the_weight_stays_where_sources_are_sure_and_references_cannot_tell() -> None:
    """Else a few references with more right labels than others would take it to the end of its range."""
    _, labels, truth = noisy(500, 5, 0.6)
    sure = np.full((500, 5), 0.001)
    sure[np.arange(500), truth] = 0.996
    mass = vote.class_label_mass(sure, labels)
    share = float((labels == truth).mean())
    assert vote.fit_given_weight(sure, labels, mass, share=share + 0.15, standard_error=0.06, set_weight=1.0) == 1.0
    unsure = 0.5 * sure + 0.1
    mass = vote.class_label_mass(unsure, labels)
    assert vote.fit_given_weight(unsure, labels, mass, share=share + 0.15, standard_error=0.06, set_weight=1.0) > 1.5
