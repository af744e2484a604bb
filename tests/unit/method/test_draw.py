"""Draws of samples by their uids."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainref_ray.method.draw import HELD_OUT_SHARE, draw_samples
from trainref_ray.method.ood import draw_passing


@settings(max_examples=30, deadline=None)
@given(total=st.integers(0, 3000), most=st.integers(0, 100), seed=st.integers(0, 99))
def test_few_samples_are_drawn_and_the_same_again(total: int, most: int, seed: int) -> None:
    uids = np.arange(total) * 7
    drawn = draw_samples(uids, most, seed)
    assert len(drawn) == min(most, total // HELD_OUT_SHARE)
    assert np.isin(drawn, uids).all()
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, draw_samples(uids, most, seed))


@settings(max_examples=30, deadline=None)
@given(total=st.integers(64, 2000), share=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_what_one_round_leaves_out_the_next_leaves_out_as_far_as_it_is_there(
    total: int, share: float, seed: int
) -> None:
    uids = np.arange(total) * 7
    left = uids[np.random.default_rng(seed).random(total) < share]
    before, after = draw_samples(uids, total, seed), draw_samples(left, total, seed)
    if len(after):
        still_there = np.isin(before, left).sum()
        assert np.isin(after, before).sum() == min(still_there, len(after))


def test_the_temperature_has_other_samples_than_the_cut_of_foreign_images() -> None:
    uids = np.arange(3200)
    of_cut, _ = draw_passing(uids, np.ones(3200, bool), calibration=100, fit=0, seed=3)
    common = np.isin(draw_samples(uids, 100, 3), uids[of_cut]).sum()
    assert common < 15  # 3 are expected of independent draws
