"""METHOD 2: who joins the reference set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.method import augment


def test_bar_is_the_same_share_of_the_ceiling_for_all_numbers_of_classes():
    assert augment.evidence_bar(0.8, 2) == pytest.approx(0.8 * 0.5**0.5)
    for classes in (2, 10, 1000):
        surest = np.full(classes, -1.0)
        surest[0] = classes - 1
        assert augment.evidence_bar(1.0, classes) == pytest.approx(surest[0] / np.linalg.norm(surest))


def test_candidates_by_hand():
    # class 0: rows 1 and 2 tie (the smaller uid is first), row 0 is below the bar, row 3 has too little evidence
    rows = augment.candidates(
        uids=np.array([10, 21, 20, 5, 7, 8]),
        labels=np.array([0, 0, 0, 0, 1, 0]),
        label_evidence=np.array([0.50, 0.65, 0.65, 0.70, 0.60, 0.60], np.float32),
        evidence_norm=np.array([1, 1, 1, 0.01, 1, 1], np.float32),
        classes=3,
        delta=0.7,
        min_norm=0.1,
        per_class=2,
    )
    assert rows.tolist() == [2, 1, 4]
    assert augment.classes_left_short(np.array([0, 0, 1]), 3) == [2]


def test_least_norm_is_a_share_of_the_median():
    assert augment.least_norm(np.array([1.0, 4.0, 3.0]), 0.25) == 0.75
    assert augment.least_norm(np.array([]), 0.25) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 4), st.integers(0, 5))
def test_best_of_the_shards_best_are_the_best_of_all(seed, count, shards, per_class):
    generator = np.random.default_rng(seed)
    uids = generator.permutation(1000)[:count]
    labels = generator.integers(0, 3, count)
    evidence = generator.integers(0, 5, count) / 5  # many ties
    norm = generator.random(count)
    rules = {"classes": 3, "delta": 0.5, "min_norm": 0.2, "per_class": per_class}
    expected = uids[augment.candidates(uids, labels, evidence, norm, **rules)]
    part = generator.integers(0, shards, count)
    kept = []
    for shard in range(shards):
        rows = np.flatnonzero(part == shard)
        kept.append(rows[augment.candidates(uids[rows], labels[rows], evidence[rows], norm[rows], **rules)])
    rows = np.concatenate(kept)
    merged = rows[augment.candidates(uids[rows], labels[rows], evidence[rows], norm[rows], **rules)]
    assert uids[merged].tolist() == expected.tolist()
    assert np.bincount(labels[merged], minlength=3).max(initial=0) <= per_class
