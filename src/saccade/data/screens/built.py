"""Rows that `saccade data build grounding` wrote, as samples, and the columns they are kept in.

A `GroundingFilesSource` flows in; samples of kind `point` flow out, with boxes and points bit by
bit as they were. `COLUMNS` is the one place that says what a built file holds; `prepare.py` writes
by it. Left out: other parquet files (`data.train.type=parquet`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.config.screens import GroundingFilesSource
from saccade.data.samples import DataError, Sample
from saccade.data.screens.screenspot_layouts import BENCHMARKS
from saccade.data.tables import file_digest

if TYPE_CHECKING:
    import pyarrow

COLUMNS = {
    "id": "string",
    "prompt": "string",  # chat messages as JSON; {"type": "image"} stands for the picture
    "instruction": "string",
    "box": "numbers",  # left, top, right, bottom in shares of the picture's sides, or null
    "point": "numbers",  # x, y in shares, for rows that know no box
    "image": "string",  # path relative to the folder of the file
    "platform": "string",
    "element": "string",
    "application": "string",
    "group": "string",
    "source": "string",
    "width": "int",
    "height": "int",
    "image_sha256": "string",  # of the picture's file
    "pixels_sha256": "string",  # of its decoded pixels: what splits and groups go by
    "split": "string",
    "difficulty": "float",  # root of the box's area in pixels of the model's first look
    "tree": "string",  # accessibility tree as JSON, of generated pages
    "loading_tree": "string",  # the same while the page loads
    "loading": "string",  # path of the page still loading, where there is one
}
"""Columns of a built file and what is in them."""

OPTIONAL = ("application", "group", "source")
TREES = ("tree", "loading_tree")
NEEDS_ZOOM = "needs_zoom"
"""A column that no build writes, because it depends on a policy: true or false where somebody
measured whether a row is right after a look and wrong without, else null."""


class BuiltRows:
    """One split of a built folder."""

    def __init__(self, source: GroundingFilesSource) -> None:
        is_file = source.path.suffix == ".parquet"
        self.file = source.path if is_file else source.path / f"{source.split}.parquet"
        self._folder = self.file.parent
        self._rows = _read(self.file)[: source.limit]
        if not self._rows:
            raise InputError(
                f"{self.file}: there are no rows\n  fix: build with more samples or other shares"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        row = self._rows[position]
        where = f"{self.file}, row {position + 1} (id {row['id']})"
        facts: dict[str, Any] = {
            "box": _numbers(row["box"], count=4, where=where),
            "platform": row["platform"],
            "element": row["element"],
            "size": (row["width"], row["height"]),
            "difficulty": row["difficulty"],
            "split": row["split"],
        }
        facts |= {name: row[name] for name in (*OPTIONAL, NEEDS_ZOOM) if row.get(name) is not None}
        if row["point"] is not None:
            facts["point"] = _numbers(row["point"], count=2, where=where)
        facts |= {name: json.loads(row[name]) for name in TREES if row[name] is not None}
        if row["loading"] is not None:
            facts["loading"] = self._folder / row["loading"]
        return Sample(
            id=row["id"],
            question=row["instruction"],
            answers=(),
            images=(self._folder / row["image"],),
            kind="point",
            image_key=row["pixels_sha256"],
            facts=facts,
        )

    @property
    def benchmarks(self) -> list[str]:
        """Public test splits among the rows, which were insisted on when they were built."""
        return sorted({row["source"] for row in self._rows} & set(BENCHMARKS.values()))

    def groups(self) -> list[list[int]]:
        """Positions that show the same picture, in order of first appearance."""
        groups: dict[str, list[int]] = {}
        for position, row in enumerate(self._rows):
            groups.setdefault(row["pixels_sha256"], []).append(position)
        return list(groups.values())

    def fingerprint(self) -> str:
        """Equal for equal files; pictures are in it by their hashes."""
        text = f"{file_digest(self.file)}:{len(self)}"
        return "grounding:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def schema() -> pyarrow.Schema:
    """The columns as Arrow types."""
    import pyarrow

    types = {
        "string": pyarrow.string(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "numbers": pyarrow.list_(pyarrow.float64()),
    }
    return pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])


def _read(file: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    if not file.is_file():
        raise InputError(
            f"{file}: no such file\n  fix: build it with `saccade data build grounding --out"
            f" {file.parent}`"
        )
    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{file}: not a readable parquet file ({error})\n  fix: remove the folder, build again"
        ) from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise InputError(
            f"{file}: no column {missing[0]!r}, so `saccade data build grounding` did not write it"
            "\n  fix: build it, or read it with type=parquet"
        )
    told = [NEEDS_ZOOM] if NEEDS_ZOOM in table.column_names else []
    if told and not pyarrow.types.is_boolean(table.schema.field(NEEDS_ZOOM).type):
        raise InputError(
            f"{file}: column {NEEDS_ZOOM!r} is {table.schema.field(NEEDS_ZOOM).type}"
            "\n  fix: write it as booleans, null where nobody knows"
        )
    return table.select([*COLUMNS, *told]).to_pylist()


def _numbers(value: Any, *, count: int, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if len(value) != count:
        raise DataError(f"{value} are not {count} numbers", where=where, fix="build again")
    return tuple(value)
