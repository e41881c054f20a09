"""A picture in the terminal: two pixels per character, upper half and lower half of a block.

An image file flows in, a Rich `Text` flows out. Without colour it is drawn in grey steps of
characters. Good enough to see a curve or a heat map over ssh; `o` opens the file itself. Left out:
protocols that only some terminals know.
"""

from __future__ import annotations

from pathlib import Path

from rich.color import Color
from rich.style import Style
from rich.text import Text

HALF = "\u2580"
GREYS = " .:-=+*#%@"


def half_blocks(path: Path, *, width: int, height: int, plain: bool = False) -> Text:
    """Draw an image within so many columns and rows; raises OSError for what is no image."""
    from PIL import Image

    with Image.open(path) as source:
        image = source.convert("RGB")
    scale = min(width / image.width, 2 * height / image.height)
    size = (max(1, round(image.width * scale)), max(2, round(image.height * scale) // 2 * 2))
    image = image.resize(size)
    pixels = image.tobytes()
    columns, rows = size
    text = Text(no_wrap=True)
    for y in range(0, rows, 2):
        for x in range(columns):
            top = _pixel(pixels, columns, x, y)
            low = _pixel(pixels, columns, x, y + 1)
            if plain:
                light = (sum(top) + sum(low)) / (6 * 256)
                text.append(GREYS[int(light * len(GREYS))])
            else:
                text.append(HALF, Style(color=Color.from_rgb(*top), bgcolor=Color.from_rgb(*low)))
        text.append("\n")
    return text


def _pixel(pixels: bytes, columns: int, x: int, y: int) -> tuple[int, int, int]:
    place = (y * columns + x) * 3
    red, green, blue = pixels[place : place + 3]
    return red, green, blue
