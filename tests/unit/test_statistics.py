"""Intervals and paired differences on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.evaluation.statistics import (
    grouped_interval,
    mean_sd,
    paired_difference,
    wilson_interval,
)


def test_wilsons_interval_of_eight_in_ten() -> None:
    low, high = wilson_interval(8, total=10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilsons_interval_holds_the_share_and_stays_in_range(total: int, share: float) -> None:
    correct = round(share * total)
    low, high = wilson_interval(correct, total=total)
    assert 0.0 <= low <= correct / total <= high <= 1.0


def test_nothing_counted_says_nothing() -> None:
    assert wilson_interval(0, total=0) == (0.0, 1.0)


def test_mean_and_sample_deviation() -> None:
    assert mean_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_sd([0.5]) == (0.5, 0.0)
    assert math.isnan(mean_sd([])[0])


def scores(pattern: str) -> dict[str, float]:
    return {str(i): float(mark == "1") for i, mark in enumerate(pattern)}


def test_a_difference_compares_shared_samples_only() -> None:
    ours, theirs = scores("1101"), scores("1001")
    del theirs["3"]
    found = paired_difference(ours, theirs, groups={})
    assert found.mean == pytest.approx(1 / 3)
    assert found.samples == 3


def test_equal_answers_are_not_apart() -> None:
    found = paired_difference(scores("1010"), scores("1010"), groups={})
    assert (found.mean, found.low, found.high, found.clear) == (0.0, 0.0, 0.0, False)


def test_a_difference_says_on_how_many_images_it_rests() -> None:
    ours, theirs = scores("1" * 60), scores("0" * 60)
    groups = {str(i): f"image {i % 9}" for i in range(60)}
    assert paired_difference(ours, theirs, groups=groups).groups == 9


def test_an_interval_by_image_is_wide_where_images_agree_and_never_empty() -> None:
    hits = {str(i): i % 40 < 20 for i in range(200)}
    alone = grouped_interval(hits, groups={})
    pages = grouped_interval(hits, groups={str(i): str(i // 20) for i in range(200)})
    assert pages[1] - pages[0] > 2 * (alone[1] - alone[0])
    low, high = grouped_interval({str(i): True for i in range(30)}, groups={})
    assert (low, high) == wilson_interval(30, total=30)


def test_a_large_difference_is_clear_and_its_interval_is_reproducible() -> None:
    ours, theirs = scores("1" * 60), scores("10" * 30)
    first = paired_difference(ours, theirs, groups={})
    assert first.clear
    assert first.low < first.mean < first.high
    assert first == paired_difference(ours, theirs, groups={})


def test_questions_about_one_image_widen_the_interval() -> None:
    ours, theirs = scores("1" * 40), scores(("1111" + "0000") * 5)
    alone = paired_difference(ours, theirs, groups={})
    together = paired_difference(ours, theirs, groups={str(i): str(i // 4) for i in range(40)})
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
