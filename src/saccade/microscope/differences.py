"""What changes when the question changes: cells added, removed and kept between two choices.

In go two `View`s of one image; out come an overlay of one pixel per cell, its legend, and the
strips of pictures that a panel adds under a look: the difference, and the texture channels. The
colours are two of the Okabe-Ito set that stay apart for every kind of colour vision, and each
carries a sign (- and +), so nothing rests on colour alone. Left out: numbers (`quality.py`).

Shapes: H x W cells of one image.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

from saccade.microscope import overlays
from saccade.microscope.explain import View
from saccade.microscope.figures import Strip, Tile
from saccade.microscope.quality import overlap

ONLY_FIRST = "#d55e00"
ONLY_SECOND = "#0072b2"
TINT_ALPHA = 165
TEXTURE_SCALE = "cividis"
TILES_PER_STRIP = 7


def difference(first: View, second: View) -> Image.Image:
    """Tint cells that only one question keeps; clear = kept by both, dark = by neither."""
    a, b = first.keep_HW.astype(bool), second.keep_HW.astype(bool)
    rgba_HW4 = np.zeros((*a.shape, 4), dtype=np.uint8)
    rgba_HW4[~a & ~b] = overlays.DROPPED_RGBA
    rgba_HW4[a & ~b] = (*_rgb(ONLY_FIRST), TINT_ALPHA)
    rgba_HW4[b & ~a] = (*_rgb(ONLY_SECOND), TINT_ALPHA)
    return Image.fromarray(rgba_HW4, "RGBA")


def signs(first: View, second: View) -> dict[str, list[tuple[int, int]]]:
    """Cells (row, column) by sign: "-" only the first question keeps, "+" only the second."""
    a, b = first.keep_HW.astype(bool), second.keep_HW.astype(bool)
    found = {"-": np.argwhere(a & ~b), "+": np.argwhere(b & ~a)}
    return {sign: [(int(y), int(x)) for y, x in cells] for sign, cells in found.items()}


def texture(map_HW: np.ndarray) -> Image.Image:
    """A channel as an opaque picture of one pixel per cell, over its own range."""
    rgba_HW4 = matplotlib.colormaps[TEXTURE_SCALE](overlays.unit_range(map_HW))
    return Image.fromarray((255 * rgba_HW4).round().astype(np.uint8), "RGBA")


def difference_strip(first: View, second: View, *, questions: tuple[str, str]) -> Strip | None:
    """Both choices, what changed between them, and both balances; None when not comparable."""
    shared = overlap(first, second)
    if shared is None:
        return None
    names = [textwrap.shorten(question, 34, placeholder=" ...") for question in questions]
    tiles = [
        Tile(f"A kept: {first.kept}", first, overlays.dropped(first.keep_HW)),
        Tile(f"B kept: {second.kept}", second, overlays.dropped(second.keep_HW)),
        Tile(
            "only A (-), only B (+)",
            first,
            difference(first, second),
            signs=signs(first, second),
        ),
    ]
    for letter, view in (("A", first), ("B", second)):
        if "balance" in view.maps:
            heat = overlays.heat(view.maps["balance"])
            tiles.append(Tile(f"balance for {letter}", view, heat, grey=True))
    title = (
        f"A: {names[0]}   against   B: {names[1]}     "
        f"{shared.both} cells for both, {shared.only_first} only A, {shared.only_second} only B; "
        f"IoU {shared.iou:.2f} (random choices: {shared.by_chance:.2f})"
    )
    return Strip(title, tuple(tiles))


def texture_strips(view: View) -> list[Strip]:
    """All texture channels, each over its own range."""
    tiles = [
        Tile(f"{name}  {value_range(values_HW)}", view, texture(values_HW))
        for name, values_HW in view.textures.items()
    ]
    rows: Sequence[Sequence[Tile]] = [
        tiles[at : at + TILES_PER_STRIP] for at in range(0, len(tiles), TILES_PER_STRIP)
    ]
    return [
        Strip("texture channels (dark = low, bright = high)" if not place else "", tuple(row))
        for place, row in enumerate(rows)
    ]


def value_range(map_HW: np.ndarray) -> str:
    """Least and greatest value of a map, for a caption."""
    low, high = (round(float(value), 2) + 0.0 for value in (map_HW.min(), map_HW.max()))
    return f"{low:.2f} to {high:.2f}"


def _rgb(hexadecimal: str) -> tuple[int, int, int]:
    value = int(hexadecimal.removeprefix("#"), 16)
    return value >> 16, value >> 8 & 255, value & 255
