"""Shards merged are one index: with ties, short shards and empty shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.method.influence import unit_rows
from trainref_ray.retrieval.index import SupporterIndex
from trainref_ray.retrieval.merge import merge


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5), st.integers(1, 12))
def test_equals_one_index(seed, members, shards, k):
    generator = np.random.default_rng(seed)
    few = unit_rows(generator.integers(1, 3, (6, 4)).astype(np.float32))  # few directions: many ties
    vectors, queries = few[generator.integers(0, 6, members)], few[generator.integers(0, 6, 5)]
    ids = generator.permutation(1000)[:members]
    shard = generator.integers(0, shards, members)  # some are empty, some hold fewer than k
    parts = [
        SupporterIndex.build(vectors[shard == part], ids[shard == part]).search(queries, k) for part in range(shards)
    ]
    similarity, found = merge(parts, k)
    expected_similarity, expected = SupporterIndex.build(vectors, ids).search(queries, k)
    assert (found == expected).all()
    assert (similarity == expected_similarity).all()
    assert ((found >= 0).sum(1) == min(k, members)).all()


def test_by_hand():
    left = (np.array([[0.9, 0.5, 0.1]], np.float32), np.array([[7, 2, 4]]))
    right = (np.array([[0.9, 0.5, 9.0]], np.float32), np.array([[3, 1, -1]]))  # whatever stands beside -1 is no member
    similarity, ids = merge([left, right], 4)
    assert ids.tolist() == [[3, 7, 1, 2]]
    assert similarity.round(6).tolist() == np.array([[0.9, 0.9, 0.5, 0.5]], np.float32).tolist()
    assert merge([left, right], 7)[1].tolist() == [[3, 7, 1, 2, 4, -1, -1]]
    with pytest.raises(ValueError, match="at least one shard"):
        merge([], 3)
