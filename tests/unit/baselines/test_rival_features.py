"""The rivals on embeddings: neighbours and cleanlab by hand, logistic regression against what it must not know."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from trainref_ray.baselines.features import (
    FeatureData,
    cleanlab_label_issues,
    cleanlab_ood_features,
    cleanlab_ood_probabilities,
    logistic_regression,
    nearest_neighbours,
    out_of_fold_probabilities,
)
from trainref_ray.baselines.results import from_probabilities
from trainref_ray.errors import ConfigError


def at(*degrees: float) -> np.ndarray:
    """Unit vectors at these angles, float32 [n, 2]."""
    angles = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def far(degrees: float) -> float:
    """Cosine distance of two vectors at this angle."""
    return 1 - float(np.cos(np.deg2rad(degrees)))


ON_A_CIRCLE = FeatureData(
    embeddings=at(0, 10, 20, 90, 101),
    labels=np.array([0, 0, 1, 1, 1]),
    references=at(95),
    reference_labels=np.array([1]),
    test=at(14, 94),
    classes=2,
)


def blobs(count: int = 300, classes: int = 3, wrong: float = 0.3, seed: int = 0) -> tuple[FeatureData, np.ndarray]:
    """Unit vectors around one axis a class, a share of the labels wrong, and the true classes."""
    random = np.random.default_rng(seed)

    def drawn(truth: np.ndarray) -> np.ndarray:
        vectors = np.eye(8)[truth] + 0.3 * random.standard_normal((len(truth), 8))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    truth = random.integers(0, classes, count)
    labels = truth.copy()
    bad = random.permutation(count)[: round(wrong * count)]
    labels[bad] = (truth[bad] + random.integers(1, classes, len(bad))) % classes
    trusted, tested = np.arange(classes).repeat(2), random.integers(0, classes, 50)
    return FeatureData(drawn(truth), labels, drawn(trusted), trusted, drawn(tested), classes), truth


def test_probabilities_are_read_by_hand() -> None:
    found = from_probabilities(np.array([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 1]))
    assert found.label_quality is not None
    assert found.label_quality.tolist() == pytest.approx([0.7, 0.4])
    assert found.flagged is not None
    assert found.flagged.tolist() == [False, True]
    assert found.ood is None
    assert found.test_logits is None


def test_neighbours_by_hand() -> None:
    """The two nearest of each sample, itself left out and the reference let in: {10°, 20°}, {0°, 20°}, {10°, 0°},
    {95°, 101°}, {95°, 90°}; of the tests {10°, 20°} and {95°, 90°}."""
    found = nearest_neighbours(ON_A_CIRCLE, k=2)
    assert found.soft_label is not None
    assert found.label_quality is not None
    assert found.flagged is not None
    assert found.ood is not None
    assert found.test_logits is not None
    half, one, none = 0.5, 2.5 / 3, 0.5 / 3
    np.testing.assert_allclose(found.soft_label, [[half, half], [half, half], [one, none], [none, one], [none, one]])
    np.testing.assert_allclose(found.label_quality, [half, half, none, one, one])
    assert found.flagged.tolist() == [False, False, True, False, False]
    by_hand = [
        (far(10) + far(20)) / 2,
        far(10),
        (far(10) + far(20)) / 2,
        (far(5) + far(11)) / 2,
        (far(6) + far(11)) / 2,
    ]
    np.testing.assert_allclose(found.ood, by_hand, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.test_logits), [[0.5, 0.5], [0.5 / 3, 2.5 / 3]], rtol=1e-6)


def test_neighbours_over_several_blocks_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = blobs(100)
    whole = nearest_neighbours(data, k=7)
    monkeypatch.setattr("trainref_ray.baselines.features.BLOCK", 16)
    pieces = nearest_neighbours(data, k=7)
    for name in ("soft_label", "ood", "test_logits"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-5)


@pytest.mark.parametrize("k", [0, 6])
def test_neighbours_that_are_not_there_are_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}; with 6 samples and references, allowed: 1 to 5"):
        nearest_neighbours(ON_A_CIRCLE, k=k)


def test_logistic_regression_is_scikit_learns_on_samples_and_references() -> None:
    data, _ = blobs()
    found = logistic_regression(data, strength=2.0)
    expected = LogisticRegression(C=2.0, max_iter=500).fit(
        np.concatenate([data.embeddings, data.references]), np.concatenate([data.labels, data.reference_labels])
    )
    assert found.soft_label is not None
    assert found.test_logits is not None
    np.testing.assert_allclose(found.soft_label, expected.predict_proba(data.embeddings), atol=1e-5)
    shares = np.exp(found.test_logits) / np.exp(found.test_logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, expected.predict_proba(data.test), atol=1e-5)


def test_a_class_that_only_the_references_have_is_known_in_every_fold_and_a_missing_one_is_not() -> None:
    data, _ = blobs(classes=2)
    data = replace(data, classes=4, references=np.eye(8, dtype=np.float32)[[2, 2]], reference_labels=np.array([2, 2]))
    for found in (out_of_fold_probabilities(data), logistic_regression(data).soft_label):
        assert found is not None
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
        assert (found[:, 2] > 0).all()
        assert (found[:, 3] == 0).all()
    logits = logistic_regression(data).test_logits
    assert logits is not None
    assert np.isfinite(logits).all()


def test_held_out_probabilities_do_not_know_the_samples_own_label() -> None:
    """Every sample has an axis of its own, by which a regression that saw it remembers its wrong label."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 120)
    labels = truth.copy()
    labels[:24] = 1 - truth[:24]
    vectors = np.concatenate([np.eye(2)[truth] * 0.5, np.eye(120)], axis=1)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    data = FeatureData(vectors, labels, vectors[60:64], truth[60:64], vectors[:0], 2)
    seen = logistic_regression(data, strength=1000.0)
    held_out = from_probabilities(out_of_fold_probabilities(data, strength=1000.0), labels)
    assert seen.flagged is not None
    assert held_out.flagged is not None
    assert seen.flagged.sum() == 0
    assert np.array_equal(held_out.flagged, labels != truth)
    assert seen.test_logits is not None
    assert seen.test_logits.shape == (0, 2)


def test_every_rival_finds_most_wrong_labels_of_blobs() -> None:
    data, truth = blobs()
    wrong = data.labels != truth
    held_out = from_probabilities(out_of_fold_probabilities(data), data.labels)
    for found in (logistic_regression(data), nearest_neighbours(data, k=20), held_out):
        assert found.flagged is not None
        assert found.soft_label is not None
        assert (found.flagged == wrong).mean() > 0.95
        assert (found.soft_label.argmax(axis=1) == truth).mean() > 0.95
        if found.test_logits is not None:
            assert found.test_logits.shape == (50, 3)


def test_cleanlab_label_issues_by_hand() -> None:
    """Thresholds: class 0 (0.9 + 0.2) / 2 = 0.55, class 1 (0.9 + 0.8 + 0.1) / 3 = 0.6. Sample 1 is confidently of
    class 1 (0.8 > 0.6), sample 4 of class 0 (0.9 > 0.55)."""
    pytest.importorskip("cleanlab", reason="cleanlab is in the extra `benchmarks`")
    first = np.array([0.9, 0.2, 0.1, 0.2, 0.9])
    probabilities, labels = np.stack([first, 1 - first], axis=1), np.array([0, 0, 1, 1, 1])
    for by in ("confident_learning", "self_confidence"):
        found = cleanlab_label_issues(probabilities, labels, by=by)
        assert found.flagged is not None
        assert found.label_quality is not None
        assert found.flagged.tolist() == [False, True, False, False, True]
        assert set(np.argsort(found.label_quality)[:2]) == {1, 4}
    np.testing.assert_allclose(found.label_quality, [0.9, 0.2, 0.9, 0.8, 0.1], rtol=1e-6)


def test_cleanlab_ood_scores_are_higher_for_strangers() -> None:
    pytest.importorskip("cleanlab", reason="cleanlab is in the extra `benchmarks`")
    data, _ = blobs()
    stranger = np.eye(8, dtype=np.float32)[[7]]
    data = replace(data, embeddings=np.concatenate([data.embeddings, stranger]), labels=np.append(data.labels, 0))
    by_features = cleanlab_ood_features(data).ood
    assert by_features is not None
    assert len(by_features) == 301
    assert by_features.argmax() == 300
    sure = np.tile([0.98, 0.01, 0.01], (6, 1))[:, [0, 1, 2]]
    sure = np.stack([np.roll(row, shift) for row, shift in zip(sure, [0, 1, 2, 0, 1, 2], strict=True)])
    by_probabilities = cleanlab_ood_probabilities(
        np.concatenate([sure, [[0.34, 0.33, 0.33]]]), np.array([0, 1, 2, 0, 1, 2, 0])
    ).ood
    assert by_probabilities is not None
    assert by_probabilities.argmax() == 6


def test_cleanlab_that_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(ConfigError, match="make benchmarks"):
        cleanlab_ood_features(ON_A_CIRCLE)
