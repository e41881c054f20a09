"""How the ScreenSpot family lies on disk: annotation files, names of their columns, pictures.

A `ScreenSpotSource` flows in; its annotation files flow out, each with its layout: which column
names the picture, what a box means, whether boxes are shares or pixels, and whether the rows are
a public benchmark's test split, which nothing may be trained on. A benchmark is known by its
layout, by the names of its files, its pictures or its platforms, so that a copy under another
name is known, too. Sources: SeeClick (v1), OS-Atlas (v2), ScreenSpot-Pro, and the hub's
conversion of v1. Left out: rows and samples (`screenspot.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saccade.config.errors import InputError
from saccade.config.screens import ScreenSpotSource
from saccade.data.samples import DataError
from saccade.data.screens.conventions import SLACK_SHARE, Meaning, finite_numbers, four_numbers
from saccade.data.tables import Table, open_json

LayoutName = Literal["v1", "v2", "pro", "points"]

PICTURE = ("img_filename", "file_name", "image")
"""Columns that name the picture, the first one there counts."""
ELEMENT = ("ui_type", "data_type")
PLATFORM = ("platform", "data_source")
SIZE = ("img_size", "size")
FOLDERS = ("", "images", "imgs", "screenspot_imgs", "screenspotv2_image", "screenspotv2_imgs")
"""Where pictures lie below the folder of the annotations, by habit of the publishers."""

BENCHMARKS = {"v1": "ScreenSpot", "v2": "ScreenSpot-v2", "pro": "ScreenSpot-Pro"}
"""Names of the public test splits by layout."""
PUBLISHED_FILE = re.compile(r"screenspot_(desktop|mobile|web)(_v2)?|test-\d{5}-of-\d{5}")
PUBLISHED_PICTURE = re.compile(r"(mobile|pc|web)_[0-9a-f]{8}-[0-9a-f]{4}-")
PUBLISHED_PLATFORMS = frozenset(
    {"windows", "macos", "ios", "android", "forum", "gitlab", "shop", "tool"}
)
"""Of v1 and v2; Pro has its layout."""


@dataclass(frozen=True)
class Layout:
    """What the columns of one annotation file mean."""

    name: LayoutName
    meaning: Meaning
    """Of `bbox`, by declaration or by the layout's own habit."""
    shares: bool
    """Boxes and points are shares of the picture's sides instead of pixels."""
    benchmark: str
    """Name of the public test split these rows are; empty for a set in the same layout."""


@dataclass(frozen=True)
class Annotations:
    """One annotation file: all its rows, and a view without pictures for looking at every row."""

    file: Path
    table: Table
    light: Table
    layout: Layout


def open_annotations(source: ScreenSpotSource) -> list[Annotations]:
    """The annotation files of a source; raises InputError when there are none."""
    if not source.path.exists():
        raise InputError(f"{source.path}: no such file or folder\n  fix: correct path")
    opened = []
    for file in _candidates(source.path):
        tables = _open(file, strict=not source.path.is_dir())
        if tables is not None:
            table, light = tables
            layout = layout_of(file, light, declared=source.layout, boxes=source.boxes)
            opened.append(Annotations(file, table, light, layout))
    if not opened:
        raise InputError(
            f"{source.path}: no annotations of the ScreenSpot family here: a .json, .jsonl or"
            " .parquet file with columns instruction and bbox (or point)"
            "\n  fix: name the file or its folder in path"
        )
    return opened


def layout_of(file: Path, table: Table, *, declared: str, boxes: str) -> Layout:
    """What a file's columns mean: as declared, else as its columns and names tell."""
    rows = _objects(table)
    names = {name for row in rows for name in row}
    stem = file.stem
    if declared != "auto":
        name: Any = declared
    elif "bbox" not in names:
        name = "points"
    elif "application" in names:
        name = "pro"
    else:
        name = "v2" if stem.endswith("_v2") or "ui_type" in names else "v1"
    from_hub = name == "v1" and "file_name" in names and "img_filename" not in names
    own: Meaning = "xyxy" if name == "pro" or from_hub else "xywh"
    meaning: Any = own if boxes == "auto" else boxes
    shares = _are_shares(rows)
    benchmark = _benchmark(name, stem=stem, rows=rows, declared=declared != "auto")
    return Layout(name, meaning, shares, benchmark)


def first_of(row: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of these columns that holds something."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def picture_roots(source: ScreenSpotSource) -> list[Path]:
    """Folders that pictures are looked for in, most likely first."""
    base = source.path if source.path.is_dir() else source.path.parent
    if source.images is not None:
        if source.images.is_dir():
            return [source.images]
        if (base / source.images).is_dir():
            return [base / source.images]
        raise InputError(f"{source.images}: no such folder\n  fix: correct images")
    bases = [base, base.parent] if base.name in ("annotations", "data") else [base]
    found = [one / folder for one in bases for folder in FOLDERS if (one / folder).is_dir()]
    return sorted(found, key=lambda folder: folder in bases)


def _candidates(path: Path) -> list[Path]:
    """Files that may hold annotations: text before parquet, never both."""
    if not path.is_dir():
        return [path]
    folders = [path, path / "annotations", path / "data"]
    for endings in ((".json", ".jsonl"), (".parquet",)):
        found = [
            file
            for folder in folders
            if folder.is_dir()
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in endings and file.is_file()
        ]
        if any(_open(file, strict=False) is not None for file in found):
            return found
    return []


def _open(file: Path, *, strict: bool) -> tuple[Table, Table] | None:
    """A file's rows with and without pictures; None for a file of something else."""
    try:
        table, light = _open_parquet(file) if file.suffix == ".parquet" else _open_text(file)
    except DataError:
        raise
    except InputError:
        if strict:
            raise
        return None  # a list of settings, a card: not rows
    columns = light.columns()
    names = set(columns) if isinstance(columns, list) else set()
    if "instruction" in names and names & {"bbox", "point"}:
        return table, light
    if strict:
        raise InputError(
            f"{file}: columns instruction and bbox (or point) are needed; there are"
            f" {', '.join(map(repr, sorted(names))) or 'none'}\n  fix: name another file in path"
        )
    return None


def _open_text(file: Path) -> tuple[Table, Table]:
    table = open_json(file)
    return table, table


def _open_parquet(file: Path) -> tuple[Table, Table]:
    from saccade.data.arrow import open_parquet

    table, light = open_parquet(file), open_parquet(file)
    names = light.columns()
    assert isinstance(names, list)
    light.select([name for name in names if name != "image"])
    return table, light


def _objects(table: Table) -> list[dict[str, Any]]:
    """All rows that can be read."""
    rows = []
    for position in range(len(table)):
        try:
            row = table.row(position)
        except DataError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _are_shares(rows: Iterable[dict[str, Any]]) -> bool:
    """No box of pixels is smaller than one pixel; most decide, so that one slip does not.

    Where there are no boxes, the points decide alike.
    """
    rows = list(rows)
    boxes = [box for row in rows if (box := four_numbers(row.get("bbox"))) is not None]
    points = [two for row in rows if (two := finite_numbers(row.get("point"), count=2)) is not None]
    places = boxes or points
    small = sum(max(place) <= 1 + SLACK_SHARE for place in places)
    return 2 * small > len(places)


def _benchmark(name: str, *, stem: str, rows: list[dict[str, Any]], declared: bool) -> str:
    if name == "points":
        return ""
    title = BENCHMARKS[name]
    if name == "pro" or PUBLISHED_FILE.fullmatch(stem) or (name == "v2" and declared):
        return title
    pictures = (Path(str(first_of(row, PICTURE) or "")).name for row in rows)
    if any(PUBLISHED_PICTURE.match(picture) for picture in pictures):
        return title
    platforms = {str(first_of(row, PLATFORM)).lower() for row in rows}
    return title if platforms and platforms <= PUBLISHED_PLATFORMS else ""
