"""METHOD 5: one decision of four, the first rule that holds, and the label that is written."""

import numpy as np
import pytest

from trainref_ray import schemas
from trainref_ray.method import decide

Q = np.array(
    [
        [0.1, 0.9, 0.0],  # a reference: trusted 0
        [0.9, 0.1, 0.0],  # out of distribution, though its label leads
        [0.5, 0.4, 0.1],  # keep, just
        [0.05, 0.95, 0.0],  # relabel: entropy 0.29 bit
        [0.2, 0.6, 0.2],  # soften: entropy 1.37 bit
        [0.45, 0.3, 0.25],  # soften: its own label leads, but below 0.5
    ]
)
LABELS = np.zeros(6, int)
IS_REFERENCE = np.array([True] + [False] * 5)
TRUSTED = np.array([0, 2, 2, 2, 2, 2])
OOD = np.array([0.9, 0.51, 0.5, 0.2, 0.2, 0.2], np.float32)
RULES = {"keep_at": 0.5, "relabel_entropy": 0.8}


def test_first_rule_that_holds():
    codes, reasons = decide.decide(Q, LABELS, IS_REFERENCE, TRUSTED, OOD, **RULES, class_names=["cat", "dog", "owl"])
    assert codes.dtype == np.int8
    names = [decide.DECISIONS[code] for code in codes]
    assert names == ["keep", "ood", "keep", "relabel", "soften", "soften"]
    assert reasons[0] == "trusted reference of cat"
    assert "0.510" in reasons[1]
    assert "cat has probability 0.50" in reasons[2]
    assert "dog leads with 0.95" in reasons[3]
    assert "0.29 bit, below 0.8" in reasons[3]
    assert "1.37 bit is not below 0.8" in reasons[4]
    assert "it leads, but is below 0.5" in reasons[5]
    assert "class 1 leads" in decide.decide(Q, LABELS, IS_REFERENCE, TRUSTED, OOD, **RULES)[1][3]


@pytest.mark.parametrize(
    ("q", "ood_score", "rules", "expected"),
    [
        ([0.4996, 0.3004, 0.2], 0.2, {}, "given label class 0 has probability 0.4996: it leads, but is below 0.5"),
        ([0.5004, 0.2996, 0.2], 0.2, {}, "given label class 0 has probability 0.50, at least 0.5"),
        ([0.7549, 0.2451, 0.0], 0.2, {"keep_at": 0.7541}, "class 0 has probability 0.755, at least 0.7541"),
        ([1.0, 0.0, 0.0], 0.50003, {}, "out-of-distribution score 0.50003 is above 0.5"),
        ([1.0, 0.0, 0.0], np.nextafter(np.float32(0.5), np.float32(1)), {}, "score 0.5000001 is above 0.5"),
        ([0.243, 0.757, 0.0], 0.2, {}, "at an entropy of 0.79999 bit, below 0.8; given label class 0"),
        ([0.2434, 0.7566, 0.0], 0.2, {"relabel_entropy": 0.7999}, "the entropy of 0.80 bit is not below 0.7999"),
        ([0.1, 0.5, 0.4], 0.2, {"relabel_entropy": 1.3609}, "the entropy of 1.361 bit is not below 1.3609"),
        ([0.5 - 1e-12, 0.5 - 1e-12, 2e-12], 0.2, {}, "has probability 0.499999999999: it leads, but is below 0.5"),
    ],
)
def test_a_number_in_a_reason_is_on_its_side_of_the_limit(q, ood_score, rules, expected):
    one = [np.array([value]) for value in (0, False, 0, ood_score)]
    _, (reason,) = decide.decide(np.array([q]), *one, **(RULES | rules))
    assert expected in reason


def test_codes_are_the_tables_words():
    assert schemas.DECISIONS[:4] == decide.DECISIONS
    assert decide.DECISIONS[decide.OOD] == "ood"


@pytest.mark.parametrize("relabel_as", ["soft", "hard"])
@pytest.mark.parametrize("keep_as", ["soft", "hard"])
def test_written_labels(keep_as, relabel_as):
    codes, _ = decide.decide(Q, LABELS, IS_REFERENCE, TRUSTED, OOD, **RULES)
    trusted = np.array([2, 1, 1, 1, 1, 1])
    written = decide.written_labels(Q, codes, LABELS, trusted, IS_REFERENCE, keep_as=keep_as, relabel_as=relabel_as)
    kept = [0.5, 0.4, 0.1] if keep_as == "soft" else [1, 0, 0]
    replaced = Q[3] if relabel_as == "soft" else [0, 1, 0]
    expected = [[0, 0, 1], [0, 0, 0], kept, replaced, [0.2, 0.6, 0.2], [0.45, 0.3, 0.25]]
    np.testing.assert_allclose(written, expected, rtol=1e-6)


def test_entropy_and_quality_by_hand():
    q = np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4])
    np.testing.assert_allclose(decide.entropy_bits(q), [1, 0, 2])
    quality = decide.label_quality(q, np.array([1, 1, 3]))
    assert quality.tolist() == [0.5, 0.0, 0.25]
    assert quality.dtype == np.float32
