"""One index shard: exact answers that do not depend on the batch, files that are checked."""

import hashlib

import numpy as np
import pytest

from trainref_ray.method.influence import unit_rows
from trainref_ray.retrieval.index import SupporterIndex


@pytest.fixture
def vectors():
    return unit_rows(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float16))


def exact(queries, vectors, ids, k):
    similarity = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(ids, similarity.shape), -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, 1), ids[order]


def test_search_is_exact_with_ties_beyond_the_reach(vectors):
    ids = np.random.default_rng(1).permutation(10**12 + np.arange(300))
    vectors[50:120] = vectors[50]  # 70 copies: more than k and its slack
    index = SupporterIndex.build(vectors, ids)
    for k in (1, 5, 60, 300):
        similarity, found = index.search(vectors[:80], k)
        expected_similarity, expected = exact(vectors[:80], vectors, ids, k)
        np.testing.assert_allclose(similarity, expected_similarity, atol=1e-7)
        assert found.dtype == np.int64
        tied = ids[50:120]
        assert set(found[60, : min(k, 70)]) == set(np.sort(tied)[: min(k, 70)].tolist())
        assert (found == expected).all()


def test_an_answer_does_not_depend_on_the_batch(vectors):
    index = SupporterIndex.build(vectors, np.arange(300))
    together = index.search(vectors, 10)
    for row in (0, 17, 299):
        alone = index.search(vectors[row : row + 1], 10)
        assert (alone[0] == together[0][row]).all()
        assert (alone[1] == together[1][row]).all()


def test_fewer_members_than_wanted(vectors):
    similarity, ids = SupporterIndex.build(vectors[:2], np.array([5, 3])).search(vectors[:1], 4)
    assert ids.tolist() == [[5, 3, -1, -1]]
    assert similarity[0, 0] == pytest.approx(1.0)
    assert similarity[0, 2:].tolist() == [-2.0, -2.0]
    similarity, ids = SupporterIndex.build(vectors[:0], np.zeros(0, np.int64)).search(vectors[:3], 2)
    assert ids.tolist() == [[-1, -1]] * 3
    assert SupporterIndex.build(vectors, np.arange(300)).search(vectors[:0], 2)[1].shape == (0, 2)


def test_loading_checks_the_digest(vectors, tmp_path):
    index = SupporterIndex.build(vectors, np.arange(300))
    path = tmp_path / "shard.faiss"
    path.write_bytes(index.to_bytes())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = SupporterIndex.load(path, digest)
    assert (loaded.search(vectors, 7)[1] == index.search(vectors, 7)[1]).all()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=digest) as error:
        SupporterIndex.load(path, digest)
    assert "shard.faiss" in str(error.value)


def test_write_into_a_store(vectors):
    files = {}

    class Store:
        def write_bytes(self, path, data):
            files[path] = data

    index = SupporterIndex.build(vectors, np.arange(300))
    path, digest = index.write(Store(), "stage/index.faiss")
    assert path == "stage/index.faiss"
    assert files[path] == index.to_bytes()
    assert digest == hashlib.sha256(files[path]).hexdigest()


def test_bad_members_are_refused(vectors):
    with pytest.raises(ValueError, match="do not fit"):
        SupporterIndex.build(vectors, np.arange(299))
    for ids in ([1, 1], [-1, 0]):
        with pytest.raises(ValueError, match="unique and not negative"):
            SupporterIndex.build(vectors[:2], np.array(ids))
