"""Averaged kept maps: exact shares whatever the grids, and a figure of a real (random) run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.config.errors import InputError
from saccade.evaluation.heatmaps import (
    GRID,
    Average,
    entropy_bits,
    heat_map_table,
    heat_maps,
    normalised_map,
)
from tests.scored_run import make_run


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**16))
def test_resampling_keeps_the_share(rows: int, columns: int, seed: int) -> None:
    keep_HW = np.random.default_rng(seed).random((rows, columns)) < 0.3
    map_GG = normalised_map(keep_HW)
    assert map_GG.shape == (GRID, GRID)
    assert map_GG.mean() == pytest.approx(keep_HW.mean())
    assert -1e-12 <= map_GG.min() <= map_GG.max() <= 1 + 1e-12


def test_a_kept_corner_stays_in_its_corner() -> None:
    map_GG = normalised_map(np.array([[True, False, False], [False, False, False]]))
    assert map_GG[: GRID // 2, : GRID // 3].all()
    assert map_GG.sum() == pytest.approx(GRID * GRID / 6)


def test_entropy_is_six_bits_everywhere_alike_and_zero_in_one_place() -> None:
    assert entropy_bits(np.full((GRID, GRID), 0.2)) == pytest.approx(6.0)
    one = np.zeros((8, 8))
    one[3, 3] = 1
    assert entropy_bits(one) == 0.0
    assert entropy_bits(np.zeros((GRID, GRID))) == 0.0


def test_centre_and_border_add_up_to_the_share() -> None:
    average = Average()
    keep_HW = np.zeros((4, 4), dtype=bool)
    keep_HW[1:3, 1:3] = True
    average.add(normalised_map(keep_HW))
    summary = average.summary()
    assert (summary["kept"], summary["centre"]) == (0.25, 1.0)
    assert summary["border"] == pytest.approx(0.0)


def test_a_run_gets_maps_per_selector_and_kind(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    result = heat_maps(run, limit=8)
    assert json.loads((run.path / "heatmaps.json").read_text()) == result
    arms = {row["arm"] for row in result["rows"]}
    assert {"trained", "random", "saliency", "participation"} <= arms
    assert not {"full", "pool", "resize"} & arms
    every = [row for row in result["rows"] if row["kind"] == "all"]
    assert len(every) == len(arms)
    for row in every:
        assert row["kept"] == pytest.approx(0.25, abs=0.03)
        assert row["images"] == 8
        assert 0 <= row["recall"] <= 1
    kinds = [row for row in result["rows"] if row["arm"] == "trained" and row["kind"] != "all"]
    assert sum(row["images"] for row in kinds) == 8
    with Image.open(run.figures / "heatmaps.png") as figure:
        assert min(figure.size) > 300
    assert heat_map_table(result).row_count == len(result["rows"])


def test_selectors_that_choose_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chooses cells"):
        heat_maps(make_run(tmp_path), arms=["pool", "resize"])
