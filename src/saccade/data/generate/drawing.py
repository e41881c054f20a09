"""Draw the things a generated scene contains: shapes with digits, word signs, clutter.

Pure functions from plain values to RGBA tiles; `scenes.py` decides what goes where. Tiles are
drawn at twice the size and box-filtered, so edges are smooth at a few milliseconds a scene. The
font is the one inside Pillow's wheel, hence the same pixels on every machine.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "green": (34, 139, 34),
    "blue": (31, 80, 200),
    "yellow": (240, 205, 20),
    "purple": (130, 40, 160),
    "orange": (250, 130, 15),
    "cyan": (20, 190, 205),
    "pink": (245, 120, 180),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
SUPERSAMPLING = 2


@functools.cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size_px)


def _regular_points(
    count: int, *, radius: float, center: float, inner: float = 1.0
) -> list[tuple[float, float]]:
    """Corners of a regular polygon, or of a star when `inner` < 1 shortens every second one."""
    points = []
    for corner in range(count):
        reach = radius * (inner if corner % 2 else 1.0)
        angle = -math.pi / 2 + 2 * math.pi * corner / count
        points.append((center + reach * math.cos(angle), center + reach * math.sin(angle)))
    return points


def _draw_outline(draw: ImageDraw.ImageDraw, shape: str, *, side: int, fill: tuple) -> None:
    c, r = side / 2, side / 2 - 1
    if shape == "circle":
        draw.ellipse((1, 1, side - 1, side - 1), fill=fill)
    elif shape == "square":
        draw.rectangle((side * 0.1, side * 0.1, side * 0.9, side * 0.9), fill=fill)
    elif shape == "triangle":
        draw.polygon([(c, 1), (side - 1, side - 2), (1, side - 2)], fill=fill)
    elif shape == "star":
        draw.polygon(_regular_points(10, radius=r, center=c, inner=0.5), fill=fill)
    elif shape == "heart":
        draw.ellipse((0, side * 0.08, side * 0.52, side * 0.58), fill=fill)
        draw.ellipse((side * 0.48, side * 0.08, side, side * 0.58), fill=fill)
        draw.polygon([(side * 0.03, side * 0.42), (side * 0.97, side * 0.42), (c, side)], fill=fill)
    elif shape == "cross":
        draw.rectangle((side * 0.3, 1, side * 0.7, side - 1), fill=fill)
        draw.rectangle((1, side * 0.3, side - 1, side * 0.7), fill=fill)
    elif shape == "diamond":
        draw.polygon([(c, 0), (side, c), (c, side), (0, c)], fill=fill)
    else:  # moon: a disc with a bite
        draw.ellipse((1, 1, side - 1, side - 1), fill=fill)
        draw.ellipse((side * 0.62, side * -0.15, side * 1.5, side * 0.6), fill=(0, 0, 0, 0))


def shape_tile(*, shape: str, color: str, digit: int, side_px: int, badge_px: int) -> Image.Image:
    """A filled shape with its digit on a white badge in the middle; RGBA, `side_px` square."""
    side = side_px * SUPERSAMPLING
    tile = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(tile)
    _draw_outline(draw, shape, side=side, fill=(*COLORS[color], 255))
    middle, reach = side / 2, badge_px * SUPERSAMPLING / 2
    draw.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill="white")
    font = _font(round(badge_px * SUPERSAMPLING * 0.9))
    draw.text((middle, middle), str(digit), font=font, fill=(20, 20, 25), anchor="mm")
    return tile.reduce(SUPERSAMPLING)


def sign_tile(*, word: str, color: str, width_px: int, height_px: int, text_px: int) -> Image.Image:
    """A white plate with a coloured frame and a dark word; RGBA."""
    width, height = width_px * SUPERSAMPLING, height_px * SUPERSAMPLING
    tile = Image.new("RGBA", (width, height), (*COLORS[color], 255))
    draw = ImageDraw.Draw(tile)
    rim = 4 * SUPERSAMPLING
    draw.rectangle((rim, rim, width - rim - 1, height - rim - 1), fill=(250, 250, 245, 255))
    font = _font(text_px * SUPERSAMPLING)
    draw.text((width / 2, height / 2), word, font=font, fill=(20, 20, 25), anchor="mm")
    return tile.reduce(SUPERSAMPLING)


def clutter_tile(rng: np.random.Generator, *, side_px: int) -> Image.Image:
    """Busy, high-contrast texture that carries no answer: noise, stripes or a checkerboard."""
    style = int(rng.integers(3))
    a, b = rng.integers(20, 235, size=(2, 3))
    y, x = np.mgrid[0:side_px, 0:side_px]
    if style == 0:
        coarse = rng.integers(0, 256, size=(side_px // 4 + 1, side_px // 4 + 1, 3))
        pixels = np.repeat(np.repeat(coarse, 4, 0), 4, 1)[:side_px, :side_px]
    else:
        period = int(rng.integers(3, 6))
        stripe = (x + y) // period if style == 1 else x // period + y // period
        pixels = np.where((stripe % 2 == 0)[..., None], a, b)
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGBA")


def background(rng: np.random.Generator, *, width_px: int, height_px: int) -> Image.Image:
    """A soft diagonal gradient between two pale tones, with faint grain."""
    start, end = rng.integers(150, 235, size=(2, 3)).astype(np.float32)
    grey = float(rng.uniform(0.5, 1.0))  # towards neutral, so that colour names stay with objects
    start = start * (1 - grey) + start.mean() * grey
    end = end * (1 - grey) + end.mean() * grey
    ramp = (
        np.linspace(0, 0.5, width_px)[None, :, None] + np.linspace(0, 0.5, height_px)[:, None, None]
    )
    grain = rng.normal(0, 4, size=(height_px, width_px, 1))
    pixels = start * (1 - ramp) + end * ramp + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
