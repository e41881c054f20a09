"""Rows of text files, read lazily: JSON lines, a JSON list, CSV.

A `Table` knows its rows by position and where each stands in the file, so that an error can
name the line. Opening finds the line starts and nothing more; a line is parsed when it is asked
for. Files are UTF-8 (a byte-order mark and CRLF are fine). Left out: what the columns mean
(`rows.py`), parquet and hub data sets (`arrow.py`).
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
from array import array
from pathlib import Path
from typing import Any, Protocol

from saccade.config.errors import InputError
from saccade.data.samples import DataError

Row = dict[str, Any] | list[Any]
"""One row: an object with named columns, or a list addressed by position."""

PROBED_ROWS = 50
"""Rows looked at to learn which columns there are."""

FOREIGN = {
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "compressed (gzip); unpack it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"PAR1": "a parquet file; use type: parquet",
    b"\x89PNG": "a PNG image; name the index file or the folder instead",
    b"\xff\xd8\xff": "a JPEG image; name the index file or the folder instead",
    b"version https://git-lfs": "a Git LFS pointer; run git lfs pull",
}


class Table(Protocol):
    """Rows by position; `where` and `number` say where row `index` stands (counted from 1)."""

    path: Path

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row: ...

    def number(self, index: int) -> int: ...

    def where(self, index: int) -> str: ...

    def columns(self) -> list[str] | int | None:
        """Names of object rows, width of list rows, None when no early row is readable."""
        ...

    def select(self, columns: list[str]) -> None:
        """Promise to read only these columns; a table may then skip the others."""
        ...

    def digest(self) -> str:
        """Hash of the content, equal on every machine."""
        ...


class TextTable:
    """What the three kinds of text file share."""

    unit = "line"

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, index: int) -> Row:
        raise NotImplementedError

    def number(self, index: int) -> int:
        return index + 1

    def where(self, index: int) -> str:
        return f"{self.path}, {self.unit} {self.number(index)}"

    def columns(self) -> list[str] | int | None:
        names: dict[str, None] = {}
        width = 0
        for index in range(min(PROBED_ROWS, len(self))):
            try:
                row = self.row(index)
            except DataError:
                continue
            if isinstance(row, dict):
                names.update(dict.fromkeys(row))
            else:
                width = max(width, len(row))
        return list(names) or width or None

    def select(self, columns: list[str]) -> None:
        """Nothing to skip: a line is parsed whole."""

    def digest(self) -> str:
        return file_digest(self.path)


def open_json(path: Path) -> Table:
    """Open JSON lines or a JSON list; the content decides, not the file's ending."""
    first = _first_line(path)
    try:
        value = json.loads(first)
    except ValueError:
        opens_list = first.lstrip()[:1] == b"["
        if path.suffix == ".json" or opens_list:
            return _open_document(path)
        return JsonLines(path)
    rows_inside = isinstance(value, list) and all(isinstance(v, dict | list) for v in value)
    lines = JsonLines(path)
    if rows_inside and len(lines) == 1:
        return JsonList(path, value)
    return lines


def _open_document(path: Path) -> Table:
    """A .json file whose first line is not a row: a list over many lines, or something else."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        if path.suffix != ".json" or text.lstrip()[:1] == "{":
            lines = JsonLines(path)
            if len(lines) > 1 and lines.columns() is not None:
                return lines
        assert isinstance(error, json.JSONDecodeError)
        raise DataError(
            f"JSON syntax error in column {error.colno}: {error.msg}",
            where=f"{path}, line {error.lineno}",
            fix="correct the file; a JSON list cannot be read in part (JSON lines can)",
        ) from None
    if isinstance(value, list):
        return JsonList(path, value)
    keys = [k for k, v in value.items() if isinstance(v, list)] if isinstance(value, dict) else []
    holding = f"; its lists are under {', '.join(map(repr, keys))}" if keys else ""
    raise InputError(
        f"{path}: expected a list of rows, found {json_type(value)}{holding}\n"
        "  fix: write the rows as a list, or one row per line"
    )


class JsonLines(TextTable):
    """One JSON value per line; blank lines do not count as rows but keep their line numbers."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts, self._lines = array("Q"), array("L")
        position = 0
        with open_binary(path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip(b" \t\r\n\xef\xbb\xbf"):
                    self._starts.append(position)
                    self._lines.append(number)
                position += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, index: int) -> int:
        return self._lines[index]

    def row(self, index: int) -> Row:
        where = self.where(index)
        # opened anew each time: nothing to share or lose between data-loading processes
        with open_binary(self.path) as file:
            file.seek(self._starts[index])
            line = file.readline()
        try:
            value = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise _not_utf8(error, where=where) from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"JSON syntax error in column {error.colno}: {error.msg}",
                where=where,
                fix="correct or remove the line",
            ) from None
        return as_row(value, where=where)


class JsonList(TextTable):
    """A JSON file that is one list of rows; held in memory."""

    unit = "row"

    def __init__(self, path: Path, rows: list[Any]) -> None:
        super().__init__(path)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Row:
        return as_row(self._rows[index], where=self.where(index))


class CsvTable(TextTable):
    """A CSV or TSV file with a header line; every cell is text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        text = read_text(path)
        header_line = text.split("\n", 1)[0]
        delimiter = max("\t;,", key=header_line.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        self._rows: list[list[str]] = []
        self._lines = array("L")
        try:
            self.header = [name.strip() for name in next(reader, [])]
            last = reader.line_num
            for row in reader:
                if row:
                    self._rows.append(row)
                    self._lines.append(last + 1)
                last = reader.line_num
        except csv.Error as error:
            raise DataError(
                f"CSV error: {error}", where=f"{path}, line {reader.line_num}", fix="correct it"
            ) from None

    def __len__(self) -> int:
        return len(self._rows)

    def number(self, index: int) -> int:
        return self._lines[index]

    def row(self, index: int) -> Row:
        cells = self._rows[index]
        if len(cells) != len(self.header):
            raise DataError(
                f"{len(cells)} cells, but the header names {len(self.header)} columns",
                where=self.where(index),
                fix='put cells that contain the delimiter in "quotes"',
            )
        return dict(zip(self.header, cells, strict=True))


def as_row(value: Any, *, where: str) -> Row:
    """Accept an object or a list as a row; name anything else."""
    if isinstance(value, dict | list):
        return value
    raise DataError(
        f"a row must be an object or a list, this one is {json_type(value)}",
        where=where,
        fix="correct or remove the row",
    )


def json_type(value: object) -> str:
    """A value's type in words a data file's author uses."""
    names = {bool: "true/false", int: "a number", float: "a number", str: "text",
             dict: "an object", list: "a list", tuple: "a list", type(None): "null",
             bytes: "bytes"}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def open_binary(path: Path) -> io.BufferedReader:
    """Open an index file for reading; each way this fails gets its own sentence."""
    try:
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file{_nearby(path)}") from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: is a folder, a file was expected\n  fix: name a file in it, or use type: "
            "folder"
        ) from None
    except PermissionError:
        raise InputError(f"{path}: may not be read\n  fix: allow reading (chmod +r)") from None


def read_text(path: Path) -> str:
    """The whole file as text, without a byte-order mark."""
    _first_line(path)
    with open_binary(path) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(error, where=f"{path}, line {line}") from None


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _first_line(path: Path) -> bytes:
    """The first line with something on it; refuses files that are no text at all."""
    with open_binary(path) as file:
        head = file.read(64)
        for magic, what in FOREIGN.items():
            if head.startswith(magic):
                raise InputError(f"{path}: is {what}")
        file.seek(0)
        for line in file:
            line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                return line
    raise InputError(f"{path}: the file is empty\n  fix: write one row per question")


def _not_utf8(error: UnicodeDecodeError, *, where: str) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"not UTF-8 text (byte 0x{byte:02x})", where=where, fix="save the file as UTF-8"
    )


def _nearby(path: Path) -> str:
    """A hint: the most similar name in the same folder, or the first folder that is missing."""
    parent = path.parent
    if not parent.is_dir():
        return f" (the folder {parent} does not exist either)"
    near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"\n  fix: did you mean {parent / near[0]}?" if near else ""
