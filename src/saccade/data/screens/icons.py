"""The outlines of target icons, one definition for the browser and for our own drawing.

In goes a shape's name, out comes its outline as points in a unit square, an SVG element or an RGBA
tile. Left out: colours by name (`generate/drawing.py` has them).
"""

from __future__ import annotations

import functools
import math

from PIL import Image, ImageDraw

from saccade.data.generate.drawing import COLORS

SMOOTHING = 4
ROUND = 40
"""Corners of a circle."""


def _arc(
    center: tuple[float, float], radius: float, start: float, stop: float, corners: int = ROUND
) -> list[tuple[float, float]]:
    """Points on a circle between two angles in turns, 0 = right, clockwise."""
    steps = [start + (stop - start) * step / corners for step in range(corners + 1)]
    return [
        (
            center[0] + radius * math.cos(2 * math.pi * turn),
            center[1] + radius * math.sin(2 * math.pi * turn),
        )
        for turn in steps
    ]


def _star() -> list[tuple[float, float]]:
    reach = [0.53 if corner % 2 == 0 else 0.24 for corner in range(10)]
    return [
        (
            0.5 + length * math.sin(math.pi * corner / 5),
            0.53 - length * math.cos(math.pi * corner / 5),
        )
        for corner, length in enumerate(reach)
    ]


@functools.cache
def outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners in shares of the icon's side; raises `KeyError` for an unknown shape."""
    thin, thick = 0.32, 0.68
    return tuple(
        {
            "circle": lambda: _arc((0.5, 0.5), 0.5, 0, 1),
            "square": lambda: [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
            "triangle": lambda: [(0.5, 0.02), (1.0, 0.96), (0.0, 0.96)],
            "star": _star,
            "heart": lambda: [
                *_arc((0.27, 0.3), 0.27, 0.37, 0.912),
                *_arc((0.73, 0.3), 0.27, 0.588, 1.13),
                (0.5, 1.0),
            ],
            "cross": lambda: [
                (thin, 0), (thick, 0), (thick, thin), (1, thin), (1, thick), (thick, thick),
                (thick, 1), (thin, 1), (thin, thick), (0, thick), (0, thin), (thin, thin),
            ],
            "diamond": lambda: [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
            # a disc and the disc that bites it: the arcs end where the two circles cross
            "moon": lambda: [
                *_arc((0.5, 0.5), 0.5, 0.088, 0.743), *_arc((0.84, 0.3), 0.47, 0.61, 0.221)
            ],
        }[shape]()
    )  # fmt: skip


def svg(shape: str, color: str) -> str:
    """An SVG element that fills the element around it."""
    points = " ".join(f"{100 * x:.1f},{100 * y:.1f}" for x, y in outline(shape))
    red, green, blue = COLORS[color]
    return (
        '<svg viewBox="0 0 100 100" width="100%" height="100%" aria-hidden="true">'
        f'<polygon points="{points}" fill="rgb({red},{green},{blue})"/></svg>'
    )


@functools.lru_cache(maxsize=1024)
def tile(shape: str, color: str, side: int) -> Image.Image:
    """RGBA, `side` pixels square; not to be changed."""
    large = side * SMOOTHING
    mask = Image.new("L", (large, large), 0)
    ImageDraw.Draw(mask).polygon([(x * large, y * large) for x, y in outline(shape)], fill=255)
    image = Image.new("RGBA", (side, side), (*COLORS[color], 255))
    image.putalpha(mask.reduce(SMOOTHING))
    return image
