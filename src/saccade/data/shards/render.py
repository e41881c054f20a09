"""Draw what an encoder is to see: pages of text, grids of colours, pictures made square.

Text flows in and leaves as pages: lines are wrapped at words by their measured width, words longer
than a line are broken, tabs and indentation are kept, and a page ends where its lines do, so pages
laid end to end are the text, letter for letter. Grids have ten fixed colours; what else they hold
changes none of them. Fonts are those inside matplotlib's wheel: the same pixels on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.data.grids.canvas import Grid

PALETTE = (
    (0, 0, 0), (30, 100, 210), (230, 50, 45), (45, 175, 65), (245, 215, 30), (150, 150, 150),
    (220, 50, 170), (250, 135, 30), (115, 205, 240), (125, 25, 40),
)  # fmt: skip
"""Colour of each grid value, in the order in which ARC's own viewer names them."""
PAPER, INK, LINE = (255, 255, 255), (20, 20, 25), (70, 70, 75)
FONTS = {"prose": "DejaVuSans.ttf", "code": "DejaVuSansMono.ttf"}
TAB = "    "
LEADING = 1.2
"""Distance of lines as a multiple of the size of letters."""
MARGIN = 4


@dataclass(frozen=True)
class Layout:
    """A page of text: a square of `side` pixels, letters of `size` pixels, prose or code."""

    side: int
    size: int
    style: str = "prose"

    @property
    def lines(self) -> int:
        """Lines of a page; at least one."""
        return max(1, int((self.side - 2 * MARGIN) // self.line_pixels))

    @property
    def line_pixels(self) -> float:
        """Distance from line to line."""
        return self.size * LEADING

    @property
    def width(self) -> int:
        """Pixels of a line."""
        return self.side - 2 * MARGIN


@functools.cache
def _font(style: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # the basic engine is in every Pillow; the other one depends on libraries of the machine
    basic = ImageFont.Layout.BASIC
    return ImageFont.truetype(str(folder / FONTS[style]), size, layout_engine=basic)


@functools.lru_cache(maxsize=1 << 14)
def _width(text: str, style: str, size: int) -> float:
    return _font(style, size).getlength(_visible(text))


def _visible(text: str) -> str:
    """What of a text leaves ink or moves on: no line breaks, no control characters."""
    if text.isprintable():
        return text
    plain = text.rstrip().replace("\t", TAB)
    return "".join(" " if c.isspace() else c for c in plain if c.isspace() or c.isprintable())


def wrap(text: str, *, layout: Layout) -> Iterator[str]:
    """Cut text into lines that fit; the lines joined are the text, line breaks included."""
    for paragraph in text.splitlines(keepends=True):
        line = ""
        for piece in _pieces(paragraph):
            fits = _width((line + piece).rstrip(), layout.style, layout.size) <= layout.width
            if line and not fits:
                yield line
                line = ""
            for part in _broken(piece, layout=layout):
                if line and part is not piece:
                    yield line
                    line = ""
                line += part
        if line:
            yield line


def _pieces(paragraph: str) -> Iterator[str]:
    """Words, each with the white space after it; indentation is a piece of its own."""
    start, in_space = 0, True
    for i, character in enumerate(paragraph):
        space = character.isspace()
        if in_space and not space and i > start:
            yield paragraph[start:i]
            start = i
        in_space = space
    if start < len(paragraph):
        yield paragraph[start:]


def _broken(piece: str, *, layout: Layout) -> Iterator[str]:
    """A piece as it is, or, longer than a line, in parts that fit."""
    if _width(piece.rstrip(), layout.style, layout.size) <= layout.width:
        yield piece
        return
    part = ""
    for character in piece:
        if part and _width(part + character, layout.style, layout.size) > layout.width:
            yield part
            part = ""
        part += character
    yield part


def pages(text: str, *, layout: Layout) -> Iterator[str]:
    """Cut text into pages; the pages joined are the text."""
    page: list[str] = []
    for line in wrap(text, layout=layout):
        page.append(line)
        if len(page) == layout.lines:
            yield "".join(page)
            page = []
    if page:
        yield "".join(page)


def draw_text(page: str, *, layout: Layout) -> Image.Image:
    """Draw one page [side, side, RGB]; raises ValueError when it holds more lines than fit."""
    lines = list(wrap(page, layout=layout))
    if len(lines) > layout.lines:
        raise ValueError(f"{len(lines)} lines do not fit a page of {layout.lines}")
    image = Image.new("RGB", (layout.side, layout.side), PAPER)
    draw = ImageDraw.Draw(image)
    font = _font(layout.style, layout.size)
    for number, line in enumerate(lines):
        place = (MARGIN, MARGIN + round(number * layout.line_pixels))
        draw.text(place, _visible(line.rstrip()), font=font, fill=INK)
    return image


def draw_grid(grid: Grid, *, side: int) -> Image.Image:
    """Draw a grid [H, W] as square cells with fine lines between, centred on white."""
    height, width = grid.shape
    cell = side // max(height, width)
    if cell < 1:
        raise ValueError(f"a {height}x{width} grid does not fit {side} pixels")
    colors = np.array(PALETTE, dtype=np.uint8)
    pixels = colors[grid].repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= 4:
        pixels[::cell], pixels[:, ::cell] = LINE, LINE
    image = Image.new("RGB", (side, side), PAPER)
    corner = (side - width * cell) // 2, (side - height * cell) // 2
    image.paste(Image.fromarray(pixels), corner)
    return image


def read_grid(image: Image.Image, *, height: int, width: int) -> Grid:
    """Read a drawn grid back by its colours: what is drawn keeps every cell's identity."""
    side = image.width
    cell = side // max(height, width)
    left, top = (side - width * cell) // 2, (side - height * cell) // 2
    pixels = np.asarray(image, dtype=np.int64)
    middle = cell // 2
    cells = pixels[top + middle : top + height * cell : cell][:, left + middle :][:, : width * cell]
    apart = np.abs(cells[:, ::cell, None, :] - np.array(PALETTE)).sum(axis=-1)
    return apart.argmin(axis=-1).astype(np.uint8)


def make_square(image: Image.Image, *, side: int) -> Image.Image:
    """Fit a picture into a square without cutting or stretching, the rest white."""
    image = image.convert("RGB")
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if width == height == side:
        return image
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
