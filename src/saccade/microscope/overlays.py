"""Small pictures that lie over an image: heat maps, dropped cells, outlines of cells.

In go per-cell maps (one number per cell of the image's own grid); out come RGBA images of one
pixel per cell, which page and panel stretch over the picture without smoothing, so every cell
shows as the square it is. Values map to colours by rank-robust range (2nd to 98th percentile of
that map) through one perceptually even, colour-blind-safe scale. Left out: the picture itself.

Shapes: H x W cells.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import matplotlib
import numpy as np
from PIL import Image

SCALE = "inferno"
SCALE_SPAN = (0.12, 0.97)
"""The part of the scale in use: its black end would look like missing data."""
SMALLEST_ALPHA, LARGEST_ALPHA = 0.3, 0.85
DROPPED_RGBA = (16, 20, 26, 200)


def unit_range(map_HW: np.ndarray) -> np.ndarray:
    """Scale to [0, 1] between the 2nd and 98th percentile; a flat map becomes 0.5 throughout."""
    values_HW = np.asarray(map_HW, dtype=np.float64)
    low, high = np.percentile(values_HW, [2, 98])
    if high - low < 1e-9:
        return np.full(values_HW.shape, 0.5)
    return np.clip((values_HW - low) / (high - low), 0.0, 1.0)


def heat(map_HW: np.ndarray, *, fixed: bool = False) -> Image.Image:
    """Heat map, more opaque where the value is high; `fixed` takes values as already in [0, 1]."""
    values_HW = np.clip(map_HW, 0.0, 1.0) if fixed else unit_range(map_HW)
    low, high = SCALE_SPAN
    rgba_HW4 = matplotlib.colormaps[SCALE](low + (high - low) * values_HW)
    rgba_HW4[..., 3] = SMALLEST_ALPHA + (LARGEST_ALPHA - SMALLEST_ALPHA) * values_HW
    return Image.fromarray((255 * rgba_HW4).round().astype(np.uint8), "RGBA")


def dropped(keep_HW: np.ndarray) -> Image.Image:
    """Dark where a cell was dropped, clear where it was kept."""
    rgba_HW4 = np.zeros((*keep_HW.shape, 4), dtype=np.uint8)
    rgba_HW4[~keep_HW] = DROPPED_RGBA
    return Image.fromarray(rgba_HW4, "RGBA")


def outline(cells: Iterable[int], *, grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Edges (x0, y0, x1, y1), in cells, around a set of raster cell indices."""
    rows, columns = grid
    inside = np.zeros((rows + 2, columns + 2), dtype=bool)
    for cell in cells:
        inside[cell // columns + 1, cell % columns + 1] = True
    edges = []
    for y, x in zip(*np.nonzero(inside), strict=True):
        y, x = int(y), int(x)
        neighbours = [
            (inside[y - 1, x], (x - 1, y - 1, x, y - 1)),
            (inside[y + 1, x], (x - 1, y, x, y)),
            (inside[y, x - 1], (x - 1, y - 1, x - 1, y)),
            (inside[y, x + 1], (x, y - 1, x, y)),
        ]
        edges += [edge for same, edge in neighbours if not same]
    return edges


def png_uri(image: Image.Image) -> str:
    """The image as a lossless data URI."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def photo_uri(image: Image.Image, *, longest_px: int) -> str:
    """A picture as a data URI, scaled down to `longest_px`; JPEG unless PNG is smaller."""
    picture = image.convert("RGB")
    scale = longest_px / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=88, optimize=True)
    jpeg = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return min(jpeg, png_uri(picture), key=len)
