"""Screenshots with one target per instruction, as the ScreenSpot family publishes them.

A `ScreenSpotSource` flows in; samples of kind `point` flow out: the picture, the instruction, and
in `facts` the target's box in shares of the picture's sides (for rows that know only a click, the
point), its platform, element type, application and the picture's size. Opening reads every box
and, where a file does not state sizes, the pictures' headers, because only a whole file can tell
that its boxes do not mean what they claim. A broken row raises `DataError` when it is asked for.
Left out: which columns hold what (`screenspot_layouts.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.screens import ScreenSpotSource
from saccade.data.boxes import Box, Size
from saccade.data.images import image_size
from saccade.data.rows import RESERVED, image_key, unique_id
from saccade.data.samples import DataError, ImageRef, Sample
from saccade.data.screens.conventions import (
    Edges,
    Noted,
    Sides,
    contradiction,
    edges_of,
    fault_of,
    finite_numbers,
    four_numbers,
)
from saccade.data.screens.screenspot_layouts import (
    ELEMENT,
    PICTURE,
    PLATFORM,
    SIZE,
    Annotations,
    first_of,
    open_annotations,
    picture_roots,
)
from saccade.data.tables import Row

UNKNOWN = "unknown"
SAME_SHAPE = 0.02
"""A picture may be a scaled copy of the stated size, if its sides' ratio differs by no more."""


@dataclass(frozen=True)
class Place:
    """Where a row stands: which annotation file, which row of it; and what it is called."""

    file: Annotations
    position: int
    name: str

    @property
    def where(self) -> str:
        return self.file.table.where(self.position)


class ScreenSpotRows:
    """Rows of one or more annotation files as samples."""

    def __init__(self, source: ScreenSpotSource) -> None:
        self.files = open_annotations(source)
        self._roots = picture_roots(source)
        base = source.path if source.path.is_dir() else source.path.parent
        self._names = {one.file: one.file.stem for one in self.files}
        if len(self.files) == 1:
            self._names = {self.files[0].file: base.resolve().name}
        self._sizes: dict[Path, Size | None] = {}
        for one in self.files:
            self._refuse_contradiction(one)
        self._places = self._of_platforms(self._every(), wanted=source.platforms)[: source.limit]
        if not self._places:
            raise InputError(f"{source.path}: there are no rows\n  fix: one row per instruction")

    @property
    def benchmarks(self) -> list[str]:
        """Public test splits among the rows."""
        return sorted({one.layout.benchmark for one in self.files if one.layout.benchmark})

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        place = self._places[position]
        where = place.where
        row = _object(place.file.table.row(place.position), where=where)
        where = f"{where} (id {place.name})"
        picture = self._picture(row, where=where)
        size, stated = self._size(row, picture, where=where)
        facts = self._facts(row, place=place, size=stated, where=where)
        return Sample(
            id=place.name,
            question=_instruction(row, where=where),
            answers=(),
            images=(picture,),
            kind="point",
            image_key=image_key((picture,)),
            facts={**facts, "size": size},
        )

    def groups(self) -> list[list[int]]:
        """Positions that show the same picture, in order of first appearance."""
        groups: dict[object, list[int]] = {}
        for position, place in enumerate(self._places):
            try:
                key = _picture_name(place.file.light.row(place.position)) or position
            except DataError:
                key = position
            groups.setdefault(key, []).append(position)
        return list(groups.values())

    def fingerprint(self) -> str:
        """Hash of the annotations and of how they are read; the pictures are not opened."""
        reading = [
            [one.table.digest(), one.layout.name, one.layout.meaning, one.layout.shares]
            for one in self.files
        ]
        chosen = [[place.file.file.name, place.position] for place in self._places]
        text = json.dumps([reading, chosen])
        return "screenspot:" + hashlib.sha256(text.encode()).hexdigest()[:16]

    def pictures_digest(self) -> str:
        """Hash of the pictures' bytes; those embedded in an annotation file are in its own."""
        digest = hashlib.sha256()
        for picture in sorted(self._picture_files):
            digest.update(picture.name.encode())
            if picture.is_file():
                digest.update(hashlib.sha256(picture.read_bytes()).digest())
        return digest.hexdigest()[:16]

    # -- one row ---------------------------------------------------------------------------------

    @cached_property
    def _picture_files(self) -> set[Path]:
        files = set()
        for place in self._places:
            try:
                name = _picture_name(place.file.light.row(place.position))
            except DataError:
                continue
            if name:
                files.add(self._find(name))
        return files

    def _picture(self, row: dict[str, Any], *, where: str) -> ImageRef:
        embedded = row.get("image")
        if isinstance(embedded, dict) and isinstance(embedded.get("bytes"), bytes):
            return embedded["bytes"]
        name = _picture_name(row)
        if not name:
            raise DataError("the row names no picture", where=where, fix="add img_filename")
        return self._find(name)

    def _find(self, name: str) -> Path:
        """The first folder that has the picture; the likeliest one, so that errors can name it."""
        places = [root / name for root in self._roots] or [Path(name)]
        return next((place for place in places if place.is_file()), places[0])

    def _size(self, row: dict[str, Any], picture: ImageRef, *, where: str) -> tuple[Size, Size]:
        """The picture's size, and the one that the row's numbers refer to."""
        stated = _stated_size(row)
        if stated is not None and isinstance(picture, Path) and not picture.is_file():
            return stated, stated  # annotations without pictures can still be looked at
        size = image_size(picture, where=where)
        if stated is None or size == stated:
            return size, size
        if abs(size[0] * stated[1] / (size[1] * stated[0]) - 1) > SAME_SHAPE:
            raise DataError(
                f"the picture is {size[0]} x {size[1]} pixels, the row says"
                f" {stated[0]} x {stated[1]}",
                where=where,
                fix="use the picture that was annotated, or correct img_size",
            )
        return size, stated

    def _facts(
        self, row: dict[str, Any], *, place: Place, size: Size, where: str
    ) -> dict[str, Any]:
        layout = place.file.layout
        element = str(first_of(row, ELEMENT) or "").strip().lower()
        facts: dict[str, Any] = {
            "box": None,
            "platform": str(first_of(row, PLATFORM) or UNKNOWN),
            "element": element if element in ("icon", "text") else UNKNOWN,
            "source": layout.benchmark or self._names[place.file.file],
        }
        facts |= {name: str(row[name]) for name in ("application", "group") if row.get(name)}
        sides: Sides = (1.0, 1.0) if layout.shares else (float(size[0]), float(size[1]))
        if row.get("bbox") is None and row.get("point") is not None:
            facts["point"] = _point(row["point"], sides=sides, where=where)
            return facts
        numbers = four_numbers(row.get("bbox"))
        if numbers is None:
            raise DataError(
                f"bbox is {row.get('bbox')!r}, four finite numbers are needed",
                where=where,
                fix="correct or drop the row",
            )
        edges = edges_of(numbers, meaning=layout.meaning)
        fault = fault_of(edges, sides=sides)
        if fault:
            raise DataError(
                f"the box {list(row['bbox'])} {fault}", where=where, fix="correct or drop the row"
            )
        facts["box"] = tuple(_box(edges, sides=sides))
        return facts

    # -- a whole file ----------------------------------------------------------------------------

    def _every(self) -> list[Place]:
        """All rows under names of their own: files count alike, and some repeat an id."""
        known: Counter[str] = Counter()
        places = []
        for one in self.files:
            for position in range(len(one.table)):
                name = _stated_id(one, position)
                name = name or f"{self._names[one.file]}-{one.table.number(position)}"
                places.append(Place(one, position, unique_id(name, known=known)))
        return places

    def _refuse_contradiction(self, one: Annotations) -> None:
        noted = []
        for position in range(len(one.light)):
            try:
                row = one.light.row(position)
            except DataError:
                continue
            numbers = four_numbers(row.get("bbox")) if isinstance(row, dict) else None
            if isinstance(row, dict) and numbers is not None:
                sides = (1.0, 1.0) if one.layout.shares else self._known_sides(row)
                noted.append(Noted(numbers, sides, one.light.where(position)))
        problem = contradiction(noted, meaning=one.layout.meaning)
        if problem:
            raise InputError(problem)

    def _known_sides(self, row: dict[str, Any]) -> Sides | None:
        stated = _stated_size(row)
        name = _picture_name(row)
        if stated is None and name:
            picture = self._find(name)
            if picture not in self._sizes:
                try:
                    self._sizes[picture] = image_size(picture, where="")
                except DataError:  # the row itself will say so
                    self._sizes[picture] = None
            stated = self._sizes[picture]
        return None if stated is None else (float(stated[0]), float(stated[1]))

    def _of_platforms(self, places: list[Place], *, wanted: list[str]) -> list[Place]:
        if not wanted:
            return places
        kept, known = [], set()
        for place in places:
            try:
                row = place.file.light.row(place.position)
            except DataError:
                continue
            platform = str(first_of(row, PLATFORM) or UNKNOWN) if isinstance(row, dict) else UNKNOWN
            known.add(platform)
            if platform in wanted:
                kept.append(place)
        strange = sorted(set(wanted) - known)
        if strange:
            raise InputError(
                f"platforms={strange[0]}: no row is of this platform"
                f"\n  fix: choose of {', '.join(sorted(known))}"
            )
        return kept


def _object(row: Row, *, where: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise DataError("the row is a list, not an object", where=where, fix="correct the row")


def _stated_id(one: Annotations, position: int) -> str:
    try:
        row = one.light.row(position)
    except DataError:
        return ""
    return str(row.get("id") or "") if isinstance(row, dict) else ""


def _picture_name(row: Row) -> str:
    name = first_of(row, PICTURE) if isinstance(row, dict) else None
    if isinstance(name, dict):
        name = name.get("path")
    return name if isinstance(name, str) else ""


def _stated_size(row: dict[str, Any]) -> Size | None:
    found = finite_numbers(first_of(row, SIZE), count=2)
    if found is None or min(found) < 1:
        return None
    return int(found[0]), int(found[1])


def _instruction(row: dict[str, Any], *, where: str) -> str:
    text = row.get("instruction")
    if not isinstance(text, str) or not text.strip():
        raise DataError("the instruction is empty", where=where, fix="fill it in or drop the row")
    for mark in RESERVED:
        if mark in text:
            raise DataError(
                f"the instruction contains {mark}, a mark of the chat template",
                where=where,
                fix="remove it",
            )
    return text.strip()


def _box(edges: Edges, *, sides: Sides) -> Box:
    """In shares; edges up to a pixel outside, which rounding made, are put on the border."""
    width, height = sides
    left, top, right, bottom = edges
    return Box(left / width, top / height, right / width, bottom / height).clamped()


def _point(value: Any, *, sides: Sides, where: str) -> tuple[float, float]:
    found = finite_numbers(value, count=2)
    if found is None:
        raise DataError(
            f"point is {value!r}, two finite numbers are needed", where=where, fix="correct the row"
        )
    x, y = found
    if not (0 <= x < sides[0] and 0 <= y < sides[1]):
        raise DataError(
            f"the point {list(found)} lies outside its picture of {sides[0]:g} x {sides[1]:g}",
            where=where,
            fix="correct or drop the row",
        )
    return x / sides[0], y / sides[1]
