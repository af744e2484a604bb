"""Steps between tables: a row's result does not depend on which other rows are with it."""

import numpy as np
import pytest

from trainref_ray.method import steps, vote
from trainref_ray.method.influence import unit_rows
from trainref_ray.retrieval.index import SupporterIndex

GENERATOR = np.random.default_rng(0)
EMBEDDINGS = unit_rows(GENERATOR.normal(size=(120, 6)).astype(np.float16))
MEMBER_ROWS = np.sort(GENERATOR.permutation(120)[:50])
RULES = {"k": 4, "near_duplicate": 0.999, "diversity": False}


def make_members(embeddings=EMBEDDINGS, digests=None):
    labels = np.arange(120) % 3
    return steps.Members(
        MEMBER_ROWS, labels[MEMBER_ROWS], embeddings[MEMBER_ROWS], None if digests is None else digests[MEMBER_ROWS]
    )


def find(rows, embeddings=EMBEDDINGS, digests=None, **changes):
    members = make_members(embeddings, digests)
    search = SupporterIndex.build(members.embeddings, members.uids).search
    own = None if digests is None else digests[rows]
    return steps.find_supporters(search, rows, embeddings[rows], own, members, **(RULES | changes))


@pytest.mark.parametrize("diversity", [False, True])
def test_a_shard_gives_what_all_rows_give(diversity):
    everything = find(np.arange(120), diversity=diversity)
    part = find(np.arange(30, 41), diversity=diversity)
    for name in ("uids", "similarity", "labels"):
        assert (getattr(part, name) == getattr(everything, name)[30:41]).all()
    assert (np.diff(everything.similarity) <= 0).all()
    assert (everything.uids != np.arange(120)[:, None]).all()
    assert (everything.labels == everything.uids % 3).all()


def test_supporters_are_the_nearest_members():
    similarity = EMBEDDINGS @ EMBEDDINGS[MEMBER_ROWS].T
    similarity[MEMBER_ROWS, np.arange(50)] = -9
    expected = MEMBER_ROWS[np.argsort(-similarity, axis=1)[:, :4]]
    assert (find(np.arange(120)).uids == expected).all()


def test_many_copies_are_searched_past():
    embeddings = EMBEDDINGS.copy()
    embeddings[MEMBER_ROWS[:40]] = embeddings[MEMBER_ROWS[0]]  # 40 members are copies of one image
    found = find(MEMBER_ROWS[:1], embeddings)
    assert set(found.uids[0]) <= set(MEMBER_ROWS[40:].tolist())
    assert (found.uids >= 0).all()
    digests = np.arange(120)
    digests[MEMBER_ROWS[1:46]] = digests[MEMBER_ROWS[0]]  # known by digest alone: only 4 others are left
    assert set(find(MEMBER_ROWS[:1], digests=digests).uids[0]) == set(MEMBER_ROWS[46:].tolist())
    short = find(MEMBER_ROWS[:1], digests=digests, k=6)
    assert short.uids[0, 4:].tolist() == [-1, -1]
    assert short.similarity[0, 4:].tolist() == [0.0, 0.0]
    assert short.labels[0, 4:].tolist() == [-1, -1]


def test_diverse_supporters_are_less_alike():
    def alike(found):
        vectors = EMBEDDINGS[found.uids]
        return np.einsum("nkd,nld->nkl", vectors, vectors).mean()

    assert alike(find(np.arange(120), diversity=True)) < alike(find(np.arange(120))) - 0.05


@pytest.mark.parametrize("score", ["knn", "mahalanobis", "mahalanobis_class"])
def test_cut_is_the_quantile_of_the_calibration_samples(score):
    drawn, fitted_on = np.arange(20), np.arange(20, 120)
    found = find(drawn)
    model = steps.fit_ood(
        EMBEDDINGS[fitted_on],
        fitted_on % 3,
        EMBEDDINGS[drawn],
        found,
        score=score,
        classes=3,
        shrinkage=0.1,
        quantile=0.8,
    )
    raw = steps.raw_ood(EMBEDDINGS[drawn], found, model.gaussian)
    assert model.cut == pytest.approx(np.sort(raw)[16])  # ⌈21 · 0.8⌉ = 17th
    if score == "knn":
        assert model.gaussian is None
    else:
        assert model.gaussian.means.shape == ((3, 6) if score == "mahalanobis_class" else (1, 6))


def test_distribution_is_sharpened_then_weighed_by_hand():
    combined = np.array([[0.75, 0.25], [0.25, 0.75]], np.float16)
    labels = np.array([0, 0])
    # to the power 2: 0.9 and 0.1; class 0 has mass 0.9 + 0.1 under label 0, class 1 as much: T is 1 everywhere used
    mass = steps.label_mass(combined, labels, temperature=0.5)
    np.testing.assert_allclose(mass, [[1.0, 0.0], [1.0, 0.0]], atol=1e-6)
    q = steps.curated_distributions(combined, labels, mass, temperature=0.5, given_weight=1.0)
    np.testing.assert_allclose(q, [[0.9, 0.1], [0.1, 0.9]], rtol=1e-6)
    skewed = np.array([[9.0, 1.0], [1.0, 9.0]])  # class 0 is given label 0 nine times of ten, class 1 once
    q = steps.curated_distributions(combined, labels, skewed, temperature=0.5, given_weight=1.0)
    np.testing.assert_allclose(q, [[0.81 / 0.82, 0.01 / 0.82], [0.5, 0.5]], rtol=1e-5)
    q = steps.curated_distributions(combined, labels, skewed, temperature=1.0, given_weight=0.0)
    np.testing.assert_allclose(q, combined, rtol=1e-3)


def test_the_weight_of_the_given_label_is_fitted_to_the_references_of_the_samples_classes() -> None:
    random = np.random.default_rng(3)
    combined = random.dirichlet(np.ones(3), 2000).astype(np.float16)
    labels = np.where(random.random(2000) < 0.8, combined.argmax(axis=1), random.integers(0, 3, 2000))
    mass = steps.label_mass(combined, labels, temperature=0.5)
    right, trusted = np.arange(300) % 4 > 0, np.repeat([0, 1, 2], 100)
    fitted = steps.fitted_given_weight(combined, labels, mass, right, trusted, temperature=0.5, set_weight=1.0)
    share, error = vote.share_right(right, trusted, mass.sum(axis=1))
    assert share == pytest.approx(0.75)
    sharpened = vote.sharpen(combined.astype(np.float32), 0.5)
    assert fitted == vote.fit_given_weight(sharpened, labels, mass, share=share, standard_error=error, set_weight=1.0)
    assert 0.0 < fitted < 1.0
    none = steps.fitted_given_weight(combined[:0], labels[:0], mass, right, trusted, temperature=0.5, set_weight=0.7)
    assert none == 0.7
