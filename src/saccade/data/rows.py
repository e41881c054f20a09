"""One row of any table becomes one `Sample`, or a `DataError` that names what is wrong with it.

In go a row (object or list), the columns that hold each field and where images live; out comes a
checked sample. Only the row is looked at: no image is opened here. Answers may be text, numbers,
true/false (read as yes/no) or a list of them, as ten people's answers in VQA: the most common
one comes first and is trained on, all are accepted, the raw list rides in `facts`.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.config.errors import InputError
from saccade.data.samples import DataError, ImageRef, Sample
from saccade.data.tables import Row, json_type
from saccade.data.turns import Conversation, place_images, read_history, read_messages

Column = str | int

FIELDS = (
    "id", "image", "question", "answer", "kind", "history", "messages", "objects", "rejected",
)  # fmt: skip
REQUIRED = ("question", "answer")
PREFERENCES = {"question": "prompt", "answer": "chosen"}
"""Names in tables of preferences, which are known by their columns `chosen` and `rejected`."""
PLURALS = {"image": "images", "answer": "answers", "messages": "conversations"}

IMAGE_LIKE = (
    "img", "imgs", "image_path", "image_file", "image_id", "file_name", "filename",
    "picture", "photo", "path", "jpg", "png",
)  # fmt: skip
"""Names that suggest a forgotten mapping; without one the rows would silently be text-only."""

RESERVED = (
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
    "<|im_start|>", "<|im_end|>",
)  # fmt: skip
"""Marks of the chat template; inside a question they would be taken for images or turns."""


@dataclass(frozen=True)
class RowReader:
    """Reads rows of one table: which column holds what, and where image paths start."""

    columns: Mapping[str, Column]
    image_root: Path
    image_format: str = "{}"
    ask: str | None = None

    def sample(self, row: Row, *, where: str, default_id: str) -> Sample:
        """Return the row as a sample; raises `DataError` at the first thing that is wrong."""
        self._check_shape(row, where=where)
        name = self._scalar(row, "id", where=where) or default_id
        where = f"{where} (id {name})"
        images = self.images(row, where=where)
        spoken = self._conversation(row, where=where)
        if spoken.answer is None:
            given = self._answers(row, where=where)
        else:
            given = (_answer(spoken.answer, where=where),)
        asked = [question for question, _ in spoken.turns] + [spoken.question]
        asked, image_turns = place_images(asked, images=len(images), where=where)
        replies = [reply for _, reply in spoken.turns]
        _check_texts([*asked, *replies], where=where)
        return Sample(
            id=name,
            question=asked[-1],
            answers=tuple(answer for answer, _ in Counter(given).most_common()),
            images=images,
            kind=self._scalar(row, "kind", where=where) or "question",
            image_key=image_key(images),
            turns=tuple(zip(asked[:-1], replies, strict=True)),
            image_turns=image_turns,
            facts=self._facts(row, given=given, where=where),
        )

    def images(self, row: Row, *, where: str) -> tuple[ImageRef, ...]:
        """References to the row's images; none for null, empty text or an empty list."""
        cell = self._cell(row, "image", where=where)
        cells = cell if isinstance(cell, list | tuple) else [cell]
        if any(isinstance(inner, list | tuple) for inner in cells):
            raise DataError(
                "the image is a list inside a list",
                where=where,
                fix="give one path, or one flat list of paths",
            )
        if len(cells) == 1 and cells[0] in (None, ""):
            return ()
        return tuple(self._image(inner, where=where) for inner in cells)

    def _image(self, cell: Any, *, where: str) -> ImageRef:
        if isinstance(cell, bytes | Image.Image):
            return cell
        if isinstance(cell, dict):
            if isinstance(cell.get("bytes"), bytes):
                return cell["bytes"]
            cell = cell.get("path")
        if isinstance(cell, bool) or not isinstance(cell, str | int) or cell == "":
            raise DataError(
                f"the image is {'empty' if cell == '' else json_type(cell)}",
                where=where,
                fix="give the path of an image file, or a list of paths",
            )
        if isinstance(cell, str) and cell.startswith(("http://", "https://", "data:", "gs://")):
            raise DataError(
                f"the image is an address ({cell[:60]}), not a file",
                where=where,
                fix="download the images and give their paths",
            )
        return self.image_root / self.image_format.format(cell)

    def _conversation(self, row: Row, *, where: str) -> Conversation:
        """The row's turns: a question of its own, one with a history, or messages."""
        if self.columns.get("messages") is not None:
            return read_messages(self._cell(row, "messages", where=where), where=where)
        question = self.ask or self._cell(row, "question", where=where)
        if not isinstance(question, str):
            raise _wrong_type("question", question, where=where, wanted="text")
        history = read_history(self._cell(row, "history", where=where), where=where)
        return Conversation(history, question.strip(), None)

    def _answers(self, row: Row, *, where: str) -> tuple[str, ...]:
        cell = self._cell(row, "answer", where=where)
        if isinstance(cell, dict) and isinstance(cell.get("answer"), list):
            cell = cell["answer"]  # VQA annotations as parquet stores them: an object of lists
        cells = cell if isinstance(cell, list | tuple) else [cell]
        if not cells:
            raise DataError("the list of answers is empty", where=where, fix="give one answer")
        return tuple(_answer(inner, where=where) for inner in cells)

    def _facts(self, row: Row, *, given: tuple[str, ...], where: str) -> dict[str, Any]:
        """What is for measuring only: everybody's answers, and objects known to be there."""
        facts: dict[str, Any] = {"human_answers": given} if len(given) > 1 else {}
        if "objects" in self.columns:
            cell = self._cell(row, "objects", where=where) or []
            if not isinstance(cell, list | tuple) or not all(isinstance(one, str) for one in cell):
                raise _wrong_type("objects", cell, where=where, wanted="a list of names")
            facts["objects"] = tuple(cell)
        if "rejected" in self.columns:
            facts["rejected"] = _answer(self._cell(row, "rejected", where=where), where=where)
        return facts

    def _scalar(self, row: Row, field: str, *, where: str) -> str:
        """An optional name such as id or kind as text; empty when absent."""
        cell = self._cell(row, field, where=where)
        if cell is None:
            return ""
        if isinstance(cell, bool) or not isinstance(cell, str | int | float):
            raise _wrong_type(field, cell, where=where, wanted="text or a number")
        return str(cell).strip()

    def _cell(self, row: Row, field: str, *, where: str) -> Any:
        column = self.columns.get(field)
        if column is None:
            return None
        if isinstance(row, dict):
            if column not in row and field in REQUIRED:
                near = _nearest(str(column), list(row))
                raise DataError(
                    f"the row has no column {column!r}; it has {_listed(list(row))}",
                    where=where,
                    fix=f"rename {near!r}" if near else "add it or drop the row",
                )
            return row.get(column)  # type: ignore[arg-type]
        assert isinstance(column, int)
        if column >= len(row):
            raise DataError(
                f"the row has {len(row)} cells, the {field} should be at position {column}",
                where=where,
                fix="correct or drop the row (positions count from 0)",
            )
        return row[column]

    def _check_shape(self, row: Row, *, where: str) -> None:
        positions = any(isinstance(column, int) for column in self.columns.values())
        if isinstance(row, list) == positions:
            return
        this, others = ("a list", "objects") if isinstance(row, list) else ("an object", "lists")
        raise DataError(
            f"the row is {this}, the other rows are {others}", where=where, fix="correct the row"
        )


def image_key(images: tuple[ImageRef, ...]) -> str | None:
    """Equal for equal images: by path, or by content for bytes; None without images."""
    keys = [
        hashlib.blake2b(ref, digest_size=16).hexdigest() if isinstance(ref, bytes) else str(ref)
        for ref in images
    ]
    return "|".join(keys) or None


def unique_id(name: str, *, known: Counter[str]) -> str:
    """`name`, or where it was given before the next free one of `name-2`, `name-3`, ..."""
    known[name] += 1
    return name if known[name] == 1 else unique_id(f"{name}-{known[name]}", known=known)


def match_columns(
    wanted: Mapping[Any, Column], *, available: list[str] | int | None, where: str
) -> dict[str, Column]:
    """Decide which column holds each field; raises `InputError` naming the nearest column."""
    if available is None:  # no readable row: every row will report itself
        by_position = any(isinstance(column, int) for column in wanted.values())
        names = {} if by_position else {field: field for field in FIELDS[:5]}
        return {field: column for field, column in {**names, **wanted}.items() if column != ""}
    if isinstance(available, int):
        return _match_positions(wanted, width=available, where=where)
    found: dict[str, Column] = {}
    chat = _is_chat(wanted, available)
    prefers = {"chosen", "rejected"} <= set(available)
    for field in FIELDS:
        if (field == "messages" and not chat) or (field == "objects" and field not in wanted):
            continue  # many data sets have objects of another kind; these are asked for by name
        if field == "rejected" and field not in wanted and not prefers:
            continue
        if field in wanted:
            if wanted[field] == "":
                continue
            found[field] = _named(wanted[field], field=field, available=available, where=where)
        elif field in available:
            found[field] = field
        elif PLURALS.get(field) in available:
            found[field] = PLURALS[field]
        elif prefers and PREFERENCES.get(field) in available:
            found[field] = PREFERENCES[field]
        elif field in REQUIRED and not chat:
            raise _missing(field, field, available=available, where=where)
    likely = [name for name in available if name.lower() in IMAGE_LIKE]
    if "image" not in found and "image" not in wanted and likely:
        raise InputError(
            f"{where}: no column 'image', but {likely[0]!r} looks like one\n"
            f"  fix: set columns.image={likely[0]}, or columns.image='' for text without images"
        )
    return found


def _is_chat(wanted: Mapping[Any, Column], available: list[str]) -> bool:
    """Whether rows are conversations: mapped as such, or with messages and without a question."""
    asks = "question" in wanted or "question" in available
    speaks = "messages" in available or PLURALS["messages"] in available
    return bool(wanted.get("messages")) or (speaks and not asks)


def _match_positions(wanted: Mapping[Any, Column], *, width: int, where: str) -> dict[str, Column]:
    found = {field: column for field, column in wanted.items() if column != ""}
    absent = [
        field for field in REQUIRED
        if not {field, "messages"} & found.keys() and wanted.get(field) != ""
    ]  # fmt: skip
    named = [field for field, column in found.items() if not isinstance(column, int)]
    if absent or named:
        raise InputError(
            f"{where}: the rows are lists of {width} cells, so columns need positions\n"
            f"  fix: set columns.{(absent or named)[0]}=0 (positions count from 0)"
        )
    for field, column in found.items():
        if not 0 <= int(column) < width:
            raise InputError(
                f"{where}: columns.{field}={column} is no position in rows of {width} cells\n"
                f"  fix: use 0 to {width - 1}"
            )
    return found


def _named(column: Column, *, field: str, available: list[str], where: str) -> str:
    if str(column) in available:
        return str(column)
    if isinstance(column, int):
        raise InputError(
            f"{where}: columns.{field}={column} is a position, but the rows have named columns: "
            f"{_listed(available)}\n  fix: use one of the names"
        )
    raise _missing(column, field, available=available, where=where)


def _missing(column: str, field: str, *, available: list[str], where: str) -> InputError:
    near = _nearest(column, available)
    return InputError(
        f"{where}: no column {column!r}; there are {_listed(available)}\n"
        f"  fix: set columns.{field}={near or 'NAME'}"
    )


def _nearest(name: str, names: list[str]) -> str | None:
    lower = {other.lower(): other for other in names}
    inside = [other for key, other in lower.items() if name.lower() in key]
    near = difflib.get_close_matches(name.lower(), list(lower), n=1)
    return lower[near[0]] if near else (inside[0] if inside else None)


def _listed(names: list[str], *, most: int = 20) -> str:
    shown = ", ".join(map(repr, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _check_texts(texts: list[str], *, where: str) -> None:
    for text in texts:
        for mark in RESERVED:
            if mark in text:
                raise DataError(
                    f"the question contains {mark}, a mark of the chat template",
                    where=where,
                    fix="remove it; images are placed before the question",
                )
        if not text.strip():
            raise DataError("the question is empty", where=where, fix="fill it in or drop the row")


def _answer(cell: Any, *, where: str) -> str:
    if isinstance(cell, dict) and "answer" in cell:  # VQA annotations: one object per person
        cell = cell["answer"]
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int | float) and not math.isnan(cell):
        return str(int(cell)) if float(cell).is_integer() else str(cell)
    if not isinstance(cell, str):
        raise _wrong_type("answer", cell, where=where, wanted="text or a number")
    if not cell.strip():
        raise DataError("the answer is empty", where=where, fix="fill it in or drop the row")
    return cell.strip()


def _wrong_type(field: str, cell: Any, *, where: str, wanted: str) -> DataError:
    return DataError(
        f"the {field} is {json_type(cell)}, {wanted} is needed",
        where=where,
        fix="correct or drop the row, or map another column",
    )
