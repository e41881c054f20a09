"""Figures and overlays: right shapes, right cells, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.evaluation.plot import DARK, LIGHT, flops_text, styled, svg_text
from saccade.microscope import overlays
from saccade.microscope.figures import running_mean, save_panel, training_figures
from tests.report_example import explanation, training_events, view


def test_a_heat_map_spans_its_own_range_and_a_flat_one_stays_calm() -> None:
    ramp = overlays.unit_range(np.arange(100.0).reshape(10, 10))
    assert (ramp.min(), ramp.max()) == (0.0, 1.0)
    assert np.all(np.diff(ramp.reshape(-1)) >= 0)
    assert np.all(overlays.unit_range(np.full((3, 3), 7.0)) == 0.5)


def test_one_outlier_does_not_flatten_a_heat_map() -> None:
    values = np.linspace(0, 1, 400).reshape(20, 20)
    values[0, 0] = 1e6
    assert overlays.unit_range(values)[10, 10] > 0.4


def test_overlays_have_one_pixel_per_cell_and_clear_kept_cells() -> None:
    picture = overlays.dropped(view().keep_HW)
    assert picture.size == (5, 3)
    assert picture.getpixel((2, 1)) == (0, 0, 0, 0)
    assert picture.getpixel((0, 0)) == overlays.DROPPED_RGBA
    assert overlays.heat(view().maps["balance"]).size == (5, 3)


def test_an_outline_runs_around_cells_not_between_them() -> None:
    edges = overlays.outline([7, 8], grid=(3, 5))
    assert len(edges) == 6
    assert (3, 1, 3, 2) not in edges
    assert {(2, 1, 2, 2), (4, 1, 4, 2)} <= set(edges)


def test_a_picture_is_never_enlarged_and_its_aspect_stays() -> None:
    import base64
    import io

    def size(uri: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size

    assert size(overlays.photo_uri(Image.new("RGB", (40, 20)), longest_px=448)) == (40, 20)
    assert size(overlays.photo_uri(Image.new("RGB", (900, 300)), longest_px=300)) == (300, 100)


def test_a_running_mean_keeps_length_and_constants() -> None:
    assert running_mean([3.0] * 7, share=0.3) == pytest.approx([3.0] * 7)
    assert len(running_mean([1.0], share=0.1)) == 1


def test_curves_are_drawn_for_what_was_logged_and_only_that() -> None:
    assert set(training_figures(training_events(), theme=LIGHT)) == {
        "loss", "held-out accuracy", "learning rate", "gradients by group",
    }  # fmt: skip
    assert training_figures([], theme=DARK) == {}
    assert set(training_figures(training_events()[:3], theme=DARK)) == {"loss", "learning rate"}


def test_figures_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    def draw() -> str:
        with styled(LIGHT):
            return svg_text(training_figures(training_events(), theme=LIGHT)["loss"])

    assert draw() == draw()
    first = save_panel(explanation(), tmp_path / "a.png").read_bytes()
    assert first == save_panel(explanation(), tmp_path / "b.png").read_bytes()


def test_dollars_and_control_characters_in_a_question_are_only_text(tmp_path: Path) -> None:
    assert save_panel(explanation("is it $5 or $_\x1b?"), tmp_path / "a.png").is_file()


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    training_figures(training_events(), theme=DARK)
    assert dict(matplotlib.rcParams) == before


def test_operations_read_with_a_unit() -> None:
    assert [flops_text(v) for v in (12.0, 3.4e6, 1.56e12)] == ["12", "3.4 M", "1.56 T"]
