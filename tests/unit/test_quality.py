"""Numbers about kept cells, on choices small enough to compute by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from saccade.microscope import overlays
from saccade.microscope.differences import (
    difference,
    difference_strip,
    signs,
    texture_strips,
    value_range,
)
from saccade.microscope.explain import View
from saccade.microscope.quality import (
    answer_recall,
    coverage,
    decay_curve,
    nearest_neighbour,
    overlap,
    quality,
    quartiles,
    spatial_entropy,
)


def cells(*rows: str) -> np.ndarray:
    return np.array([[mark == "x" for mark in row] for row in rows])


def view(keep_HW: np.ndarray, *, replaced: bool = False, **maps: np.ndarray) -> View:
    return View(
        image=Image.new("RGB", (8 * keep_HW.shape[1], 8 * keep_HW.shape[0])),
        full=keep_HW.size, kept=int(keep_HW.sum()), keep_HW=keep_HW, maps=maps, tensions={},
        answer_cells=(0, 1), textures={"red": np.ones(keep_HW.shape)}, replaced=replaced,
    )  # fmt: skip


def test_recall_counts_the_answers_cells_and_is_unknown_without_them() -> None:
    keep = cells("x..", "..x")
    assert answer_recall(keep, (0, 1, 5)) == pytest.approx(2 / 3)
    assert answer_recall(keep, ()) is None


def test_coverage_counts_blocks_that_hold_a_kept_cell() -> None:
    keep = np.zeros((8, 8), dtype=bool)
    keep[0, 0] = keep[1, 1] = keep[7, 7] = True  # the first two share a 2 x 2 block
    assert coverage(keep) == pytest.approx(2 / 16)
    assert coverage(np.ones((8, 8), dtype=bool)) == 1.0
    assert coverage(cells("xx", "xx")) == 1.0  # blocks that hold no cell at all do not count


def test_entropy_is_zero_in_one_block_and_six_bits_when_every_block_has_its_share() -> None:
    one = np.zeros((16, 16), dtype=bool)
    one[:2, :2] = True
    assert spatial_entropy(one) == (0.0, 2.0)
    bits, most = spatial_entropy(np.ones((16, 16), dtype=bool))
    assert (bits, most) == (pytest.approx(6.0), 6.0)
    assert spatial_entropy(np.zeros((4, 4), dtype=bool)) == (0.0, 0.0)


def test_nearest_neighbours_are_measured_in_cells() -> None:
    assert nearest_neighbour(cells("x..x", "....", "....", "x...")) == pytest.approx(3.0)
    assert nearest_neighbour(cells("x..", "...")) is None
    many = np.ones((40, 40), dtype=bool)  # more cells than one block of distances
    assert nearest_neighbour(many) == pytest.approx(1.0)


def test_quartiles_and_decay_describe_a_ramp() -> None:
    ramp = np.arange(25.0).reshape(5, 5)
    assert quartiles(ramp) == (0.0, 6.0, 12.0, 18.0, 24.0)
    curve = decay_curve(ramp, points=5)
    assert curve == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0))
    assert decay_curve(np.full((3, 3), 7.0), points=3) == (0.0, 0.0, 0.0)


def test_overlap_stands_beside_what_chance_would_give() -> None:
    first, second = view(cells("xx..", "....")), view(cells(".xx.", "...."))
    shared = overlap(first, second)
    assert shared is not None
    assert (shared.both, shared.only_first, shared.only_second) == (1, 1, 1)
    assert shared.iou == pytest.approx(1 / 3)
    assert shared.by_chance == pytest.approx(0.5 / 3.5)
    same = overlap(first, first)
    assert same is not None and same.iou == 1.0


def test_choices_on_other_grids_and_merged_tokens_are_not_compared() -> None:
    first = view(cells("xx..", "...."))
    assert overlap(first, view(cells("xx", ".."))) is None
    assert overlap(first, view(cells("xxxx", "xxxx"), replaced=True)) is None
    assert quality(view(cells("xx"), replaced=True)) is None
    other = view(cells("xx", ".."))
    assert difference_strip(first, other, questions=("a", "b")) is None


def test_quality_is_plain_numbers_that_json_can_hold() -> None:
    import json

    found = quality(view(cells("xx..", "...x"), balance=np.arange(8.0).reshape(2, 4)))
    assert found is not None
    assert found.answer_cell_recall == 1.0
    assert found.nearest_neighbour_ratio == pytest.approx(
        (1 + 1 + math.sqrt(5)) / 3 / (0.5 * math.sqrt(8 / 3)), abs=0.2
    )
    assert json.loads(json.dumps(found.as_dict()))["quartiles"]["balance"][0] == 0.0


def test_a_difference_tints_what_only_one_question_keeps_and_signs_say_the_same() -> None:
    first, second = view(cells("xx..")), view(cells(".xx."))
    picture = difference(first, second)
    removed, both, added, neither = (picture.getpixel((x, 0)) for x in range(4))
    assert both == (0, 0, 0, 0)
    assert neither == overlays.DROPPED_RGBA
    assert removed != added
    assert signs(first, second) == {"-": [(0, 0)], "+": [(0, 2)]}


def test_strips_name_the_counts_and_hold_every_channel() -> None:
    heat = np.arange(4.0).reshape(1, 4)
    first, second = view(cells("xx.."), balance=heat), view(cells(".xx."), balance=heat)
    strip = difference_strip(first, second, questions=("what colour?", "which digit?"))
    assert strip is not None
    assert "IoU 0.33" in strip.title
    assert len(strip.tiles) == 5
    assert [tile.title for strip in texture_strips(first) for tile in strip.tiles] == [
        "red  1.00 to 1.00"
    ]
    assert value_range(np.array([[-0.001, 0.5]])) == "0.00 to 0.50"
