"""The search without FAISS answers as the one with it."""

import numpy as np
import pytest

from trainref_ray.method.influence import unit_rows
from trainref_ray.retrieval import exact
from trainref_ray.retrieval.index import SupporterIndex


@pytest.fixture
def vectors():
    return unit_rows(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32))


def test_it_finds_what_the_index_finds(vectors, monkeypatch):
    monkeypatch.setattr(exact, "QUERIES", 64)
    ids = np.random.default_rng(1).permutation(10**12 + np.arange(300))
    search, index = exact.build_exact_search(vectors, ids), SupporterIndex.build(vectors, ids)
    for k in (1, 20, 300):
        similarity, found = search(vectors, k)
        expected_similarity, expected = index.search(vectors, k)
        assert found.dtype == np.int64
        np.testing.assert_allclose(similarity, expected_similarity, atol=1e-6)
        swapped = found != expected
        assert (np.abs(similarity - expected_similarity)[swapped] < 1e-6).all()
        assert swapped.mean() < 0.01


def test_fewer_members_than_wanted_are_filled_up(vectors):
    similarity, ids = exact.build_exact_search(vectors[:2], np.array([7, 3]))(vectors[:1], 4)
    assert ids.tolist() == [[7, 3, -1, -1]]
    assert similarity[0, 0] == pytest.approx(1)
    assert similarity[0, 2:].tolist() == [-2, -2]
    similarity, ids = exact.build_exact_search(vectors[:0], np.zeros(0, np.int64))(vectors[:1], 2)
    assert ids.tolist() == [[-1, -1]]
