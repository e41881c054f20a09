"""The verdict on a click: half-open boxes, distance, overlap, and numbers that are none."""

from __future__ import annotations

import math

import pytest

from saccade.data.boxes import Box
from saccade.scoring.points import NEAR, judge_near, judge_point

TARGET = Box(0.2, 0.4, 0.6, 0.8)


@pytest.mark.parametrize(
    ("point", "hit"),
    [
        ((0.4, 0.6), True),
        ((0.2, 0.4), True),
        ((0.6, 0.6), False),
        ((0.4, 0.8), False),
        ((0.19999, 0.6), False),
        ((0.59999, 0.79999), True),
        ((math.nan, 0.6), False),
        ((0.4, math.inf), False),
    ],
)
def test_a_box_is_half_open(point: tuple[float, float], hit: bool) -> None:
    assert judge_point(point=point, box=TARGET).hit is hit


def test_the_edges_of_a_box_in_pixels_are_judged_exactly() -> None:
    box = Box.from_pixels(33, 7, 61, 19, size=(1919, 1079))
    assert judge_point(point=(33 / 1919, 7 / 1079), box=box).hit
    assert not judge_point(point=(61 / 1919, 7 / 1079), box=box).hit
    assert not judge_point(point=(33 / 1919, 19 / 1079), box=box).hit


def test_distance_is_to_the_middle_in_shares_of_the_sides() -> None:
    assert judge_point(point=(0.7, 1.0), box=TARGET).distance == pytest.approx(0.5)
    assert judge_point(point=(math.nan, 0.6), box=TARGET).distance == math.inf


def test_overlap_is_known_only_where_a_box_was_predicted() -> None:
    point = TARGET.center
    assert judge_point(point=point, box=TARGET).iou is None
    assert judge_point(point=point, box=TARGET, predicted_box=TARGET).iou == 1.0
    half = judge_point(point=point, box=TARGET, predicted_box=(0.2, 0.4, 0.4, 0.8)).iou
    assert half == pytest.approx(0.5)


@pytest.mark.parametrize(
    "predicted",
    [
        (0.6, 0.8, 0.2, 0.4),
        (0.6, 0.4, 0.2, 0.8),
        (0.3, 0.5, 0.3, 0.5),
        (math.nan, 0.4, 0.6, 0.8),
        (-math.inf, -math.inf, math.inf, math.inf),
    ],
)
def test_a_box_that_is_none_overlaps_nothing(predicted: tuple[float, ...]) -> None:
    assert judge_point(point=TARGET.center, box=TARGET, predicted_box=predicted).iou == 0.0


def test_a_target_known_only_as_a_point_is_hit_from_near() -> None:
    assert judge_near(point=(0.5, 0.5 + NEAR - 1e-9), target=(0.5, 0.5)).hit
    assert not judge_near(point=(0.5, 0.5 + NEAR + 1e-9), target=(0.5, 0.5)).hit
    lost = judge_near(point=(math.nan, 0.5), target=(0.5, 0.5))
    assert not lost.hit and lost.distance == math.inf and lost.iou is None
