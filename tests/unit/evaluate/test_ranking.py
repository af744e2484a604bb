"""The ranking of settings by references left out: hand-computed agreements, differences and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainref_ray.evaluate.ranking import Judgement, rank, share_error


def judgement(right: list[int], uids: list[int] | None = None, probability: float = 0.5) -> Judgement:
    numbers = list(range(len(right))) if uids is None else uids
    return Judgement(np.array(numbers), np.array(right, bool), np.full(len(right), probability))


def test_agreement_and_log_likelihood() -> None:
    found = Judgement(np.arange(4), np.array([True, True, True, False]), np.array([1.0, 0.5, 0.5, 0.0]))
    assert found.agreement == 0.75
    assert found.log_likelihood == pytest.approx((0 + 2 * math.log(0.5) + math.log(1e-6)) / 4)


def test_the_best_comes_first_with_the_others_behind_it() -> None:
    ranked = rank({"a": [judgement([1, 1, 0, 0])], "b": [judgement([1, 1, 1, 0])]})
    assert list(ranked) == ["b", "a"]
    assert ranked["b"].agreement == 0.75
    assert ranked["b"].standard_error == pytest.approx(0.5 / 2)  # sd of 1, 1, 1, 0 is 0.5
    assert (ranked["b"].behind, ranked["b"].behind_error) == (0.0, 0.0)
    assert ranked["a"].behind == 0.25  # differences 0, 0, 1, 0
    assert ranked["a"].behind_error == pytest.approx(0.5 / 2)
    assert ranked["a"].tied


def test_a_clear_difference_is_no_tie() -> None:
    ranked = rank({"good": [judgement([1] * 20)], "bad": [judgement([1] * 5 + [0] * 15)]})
    assert ranked["bad"].behind == 0.75
    assert ranked["bad"].behind_error == pytest.approx(math.sqrt(0.75 * 0.25 * 20 / 19) / math.sqrt(20))
    assert not ranked["bad"].tied


def test_two_references_that_differ_alike_are_no_clear_difference_and_three_are() -> None:
    """Differences 1, 1 and then 1 and -1 besides: mean 0.5, sd 1, error 1 / 2."""
    two = rank({"good": [judgement([1, 1])], "bad": [judgement([0, 0])]})["bad"]
    assert (two.behind, two.behind_error, two.tied) == (1.0, pytest.approx(0.5), True)
    three = rank({"good": [judgement([1] * 3)], "bad": [judgement([0] * 3)]})["bad"]
    assert three.behind_error == pytest.approx(0.4)  # 1, 1, 1, 1, -1: sd of 0.8 ** 0.5
    assert not three.tied
    thirds = rank({"good": [judgement([1] * 4)] * 3, "bad": [judgement([1] * 4)] * 2 + [judgement([0] * 4)]})["bad"]
    assert (thirds.behind, thirds.tied) == (pytest.approx(1 / 3), True)  # 1/3 four times, and 1 and -1 besides
    equal = rank({"a": [judgement([1, 1])], "b": [judgement([1, 1])]})["b"]
    assert (equal.behind, equal.behind_error) == (0.0, 0.0)


def test_equal_agreements_are_ordered_by_likelihood() -> None:
    ranked = rank({"unsure": [judgement([1, 0], probability=0.5)], "sure": [judgement([1, 0], probability=0.6)]})
    assert list(ranked) == ["sure", "unsure"]
    assert ranked["unsure"].tied


def test_a_reference_counts_once_however_many_trials_judge_it() -> None:
    once = rank({"a": [judgement([1, 0, 1, 1])]})["a"]
    thrice = rank({"a": [judgement([1, 0, 1, 1])] * 3})["a"]
    assert thrice.trials == 3
    assert thrice.standard_error == once.standard_error


def test_differences_are_taken_on_shared_references_alone() -> None:
    ranked = rank({"a": [judgement([1, 1], [0, 1])], "b": [judgement([0, 1], [1, 2])]})
    assert ranked["b"].behind == 1.0  # on reference 1
    assert ranked["b"].behind_error is None
    assert ranked["b"].tied


def test_without_a_shared_reference_nothing_is_told_apart() -> None:
    ranked = rank({"a": [judgement([1], [0])], "b": [judgement([0], [1])]})
    assert (ranked["b"].behind, ranked["b"].behind_error, ranked["b"].tied) == (0.0, None, True)


def test_all_right_is_not_certain() -> None:
    assert share_error(1.0, 8) == pytest.approx(math.sqrt(0.9 * 0.1 / 8))
    assert share_error(0.5, 100) == pytest.approx(0.05)
    assert rank({"a": [judgement([1] * 8)]})["a"].standard_error == pytest.approx(share_error(1.0, 8))
