"""Pages hold all of the text and nothing outside the paper; grids keep every cell's colour."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.data import streams
from saccade.data.shards.render import (
    MARGIN,
    PALETTE,
    PAPER,
    Layout,
    draw_grid,
    draw_text,
    make_square,
    pages,
    read_grid,
    wrap,
)

LAYOUT = Layout(side=112, size=11)
text = st.text(st.sampled_from("aW i.\n\t-\u00e9\u4e2d"), max_size=400)


@given(text, st.sampled_from(["prose", "code"]))
def test_pages_joined_are_the_text_and_each_page_stands_alone(content: str, style: str) -> None:
    layout = Layout(side=112, size=11, style=style)
    made = list(pages(content, layout=layout))
    assert "".join(made) == content
    for page in made:
        # a page read from the file alone is laid out like inside the whole
        assert len(list(wrap(page, layout=layout))) <= layout.lines


def test_text_stays_inside_the_margins_and_long_words_are_broken() -> None:
    page = next(pages("short and " + "x" * 40 + " tail " * 80, layout=LAYOUT))
    pixels = np.asarray(draw_text(page, layout=LAYOUT))
    inked = (pixels != PAPER).any(axis=2)
    rows, columns = np.nonzero(inked)
    assert columns.min() >= MARGIN - 1 and columns.max() <= LAYOUT.side - MARGIN
    assert rows.max() < LAYOUT.side
    assert len(page) > 100


def test_words_are_not_cut_where_they_fit() -> None:
    lines = list(wrap("the quick brown fox jumps over the lazy dog " * 3, layout=LAYOUT))
    assert len(lines) > 3
    assert all(line.endswith(" ") for line in lines)


def test_code_keeps_its_indentation() -> None:
    lines = list(wrap("if x:\n    y = 1\n\tz = 2\n", layout=Layout(160, 11, "code")))
    assert lines == ["if x:\n", "    y = 1\n", "\tz = 2\n"]
    plain = draw_text("y = 1", layout=LAYOUT)
    indented = np.asarray(draw_text("    y = 1", layout=LAYOUT))
    assert (indented[:, :12] == PAPER).all()
    assert not np.array_equal(np.asarray(plain), indented)


def test_a_page_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        draw_text("line\n" * 50, layout=LAYOUT)


def test_a_page_of_real_code_is_mostly_on_paper() -> None:
    layout = Layout(224, 11, "code")
    source = inspect.getsource(streams)
    made = list(pages(source, layout=layout))
    assert "".join(made) == source
    assert max(map(len, made)) > 300


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_a_drawn_grid_reads_back(height: int, width: int, seed: int) -> None:
    grid = np.random.default_rng(seed).integers(0, 10, (height, width)).astype(np.uint8)
    picture = draw_grid(grid, side=160)
    assert picture.size == (160, 160)
    assert np.array_equal(read_grid(picture, height=height, width=width), grid)


def test_a_colour_looks_the_same_whatever_else_the_grid_holds() -> None:
    assert len(set(PALETTE)) == 10
    for other in range(10):
        cells = np.array([[3, other]], dtype=np.uint8)
        picture = draw_grid(cells, side=64)
        assert picture.getpixel((16, 32)) == PALETTE[3]


def test_pictures_are_fitted_without_stretching() -> None:
    wide = Image.new("RGB", (200, 50), (10, 20, 30))
    square = make_square(wide, side=64)
    pixels = np.asarray(square)
    assert square.size == (64, 64)
    assert (pixels[24:40] == (10, 20, 30)).all()
    assert (pixels[:24] == PAPER).all() and (pixels[40:] == PAPER).all()
    same = Image.new("RGB", (64, 64))
    assert make_square(same, side=64).tobytes() == same.tobytes()
