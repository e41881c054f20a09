"""Show samples to a person: rows of text, and a contact sheet with the images.

In goes a source (configured or open), out come plain dicts for the terminal and, if asked for, a
PNG. Where a sample says which cells carry its answer (generated scenes do) or where its target is
(screenshots do), that is outlined.
A broken row or image is shown as such instead of stopping the rest.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import Source
from saccade.data.boxes import Box
from saccade.data.images import load_image
from saccade.data.samples import DataError, Sample
from saccade.data.sources import open_source

TILE_PX = 300
TEXT_PX = 78
GAP_PX = 12
COLUMNS = 4
INK = (30, 30, 30)
OUTLINE = (230, 0, 90)


def show_samples(
    source: Source,
    *,
    indices: Sequence[int] | None = None,
    limit: int = 12,
    out: Path | None = None,
) -> list[dict[str, Any]]:
    """Return the chosen samples as rows of text; draw them into the PNG `out` if given.

    `indices` count from 0; without them, `limit` samples spread evenly over the source. Raises
    `InputError` for an index outside the source.
    """
    samples = open_source(source)
    chosen = list(indices) if indices is not None else spread(len(samples), count=limit)
    outside = [index for index in chosen if not 0 <= index < len(samples)]
    if outside:
        raise InputError(
            f"sample {outside[0]}: the source has {len(samples)} samples\n"
            f"  fix: use 0 to {len(samples) - 1}"
        )
    rows, tiles = [], []
    for index in chosen:
        try:
            sample = samples[index]
            pictures = [
                load_image(ref, where=f"sample {sample.id}")
                for ref in (sample.images if out is not None else ())
            ]
        except DataError as error:
            rows.append({"index": index, "problem": str(error)})
            tiles.append(_tile([], caption=f"{index}: {error.problem}"))
            continue
        rows.append(_row(sample, index=index))
        tiles.append(_tile(_outlined(sample, pictures), caption=_caption(sample)))
    if out is not None:
        _save(_sheet(tiles), out)
    return rows


def spread(length: int, *, count: int) -> list[int]:
    """`count` positions spread evenly over `length`, first one included."""
    count = min(count, length)
    return [position * length // count for position in range(count)]


def _row(sample: Sample, *, index: int) -> dict[str, Any]:
    place = _place(sample)
    images = [str(ref) if isinstance(ref, Path) else "drawn" if callable(ref) else "embedded"
              for ref in sample.images]  # fmt: skip
    return {
        "index": index,
        "id": sample.id,
        "kind": sample.kind,
        "question": sample.question,
        "answers": list(sample.answers) or ([place] if place else []),
        "images": images,
    }


def _caption(sample: Sample) -> str:
    answers = " / ".join(sample.answers[:3]) or _place(sample)
    return f"{sample.question}\n{answers}  [{sample.kind}]"


def _place(sample: Sample) -> str:
    """Where a target is, in pixels of its screenshot; empty for samples that have none."""
    box, point = sample.facts.get("box"), sample.facts.get("point")
    size = sample.facts.get("size")
    if not size:
        return ""
    if box is not None:
        numbers = Box(*box).pixels(size)
    elif point is not None:
        numbers = (point[0] * size[0], point[1] * size[1])
    else:
        return ""
    about = [str(sample.facts[key]) for key in ("platform", "element") if sample.facts.get(key)]
    return f"[{', '.join(f'{number:.0f}' for number in numbers)}] {' '.join(about)}"


def _outlined(sample: Sample, pictures: list[Image.Image]) -> list[Image.Image]:
    """The pictures; in the first one the answer's cells or the target are outlined, if known."""
    if pictures and (sample.facts.get("box") or sample.facts.get("point")):
        return [_targeted(sample, pictures[0]), *pictures[1:]]
    cells, grid = sample.facts.get("answer_cells"), sample.facts.get("grid")
    if not pictures or not cells or not grid:
        return pictures
    picture = pictures[0].copy()
    pen = ImageDraw.Draw(picture)
    wide, high = picture.width / grid[1], picture.height / grid[0]
    marked = {divmod(cell, grid[1]) for cell in cells}
    for row, column in marked:
        x, y = column * wide, row * high
        edges = {
            (row - 1, column): (x, y, x + wide, y),
            (row + 1, column): (x, y + high, x + wide, y + high),
            (row, column - 1): (x, y, x, y + high),
            (row, column + 1): (x + wide, y, x + wide, y + high),
        }
        for neighbour, line in edges.items():
            if neighbour not in marked:
                pen.line(line, fill=OUTLINE, width=max(1, picture.width // 150))
    return [picture, *pictures[1:]]


def _targeted(sample: Sample, picture: Image.Image) -> Image.Image:
    """The screenshot with its target framed: outside the box, so that small ones stay in sight."""
    picture = picture.copy()
    pen = ImageDraw.Draw(picture)
    wide = max(1, max(picture.size) // 150)
    box, point = sample.facts.get("box"), sample.facts.get("point")
    if box is not None:
        left, top, right, bottom = Box(*box).pixels(picture.size)
        frame = (left - wide, top - wide, right + wide - 1, bottom + wide - 1)
        pen.rectangle(frame, outline=OUTLINE, width=wide)
    elif point is not None:
        x, y = point[0] * picture.width, point[1] * picture.height
        reach = 5 * wide
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=OUTLINE, width=wide)
    return picture


def _tile(pictures: list[Image.Image], *, caption: str) -> Image.Image:
    tile = Image.new("RGB", (TILE_PX, TILE_PX + TEXT_PX), "white")
    share = TILE_PX // max(1, len(pictures))
    for number, picture in enumerate(pictures):
        scale = min(share / picture.width, TILE_PX / picture.height)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # small pictures are enlarged without blur, so that single pixels can be judged
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        corner = (number * share + (share - size[0]) // 2, (TILE_PX - size[1]) // 2)
        tile.paste(picture.resize(size, method), corner)
    lines = [part for line in caption.split("\n") for part in textwrap.wrap(line, 46) or [""]]
    shown = lines if len(lines) <= 4 else [*lines[:2], "...", lines[-1]]
    ImageDraw.Draw(tile).multiline_text(
        (4, TILE_PX + 6), "\n".join(shown), fill=INK, font=ImageFont.load_default(13), spacing=3
    )
    return tile


def _sheet(tiles: list[Image.Image]) -> Image.Image:
    columns = min(COLUMNS, max(1, len(tiles)))
    rows = max(1, -(-len(tiles) // columns))
    step_x, step_y = TILE_PX + GAP_PX, TILE_PX + TEXT_PX + GAP_PX
    sheet = Image.new("RGB", (columns * step_x + GAP_PX, rows * step_y + GAP_PX), (225, 225, 225))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (GAP_PX + column * step_x, GAP_PX + row * step_y))
    return sheet


def _save(sheet: Image.Image, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out, format="PNG")
    except OSError as error:
        raise OutsideError(f"{out}: cannot be written ({error.strerror or error})") from error
