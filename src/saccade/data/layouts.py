"""Public benchmarks as they are distributed: files found by name, rows joined, images named.

In goes a `LayoutSource` (benchmark, folder, split), out comes a table whose rows a `RowReader`
turns into samples, with every person's answer, the question's type and the benchmark's own metric
in `facts`. Adding a benchmark is one function here and one line in `LAYOUTS`. Nothing is copied
or converted, and no image is opened; a broken or unanswered row raises when it is asked for, with
its file and place. Left out: splits without published answers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from saccade.config.errors import InputError
from saccade.config.schema import LayoutSource
from saccade.data.rows import RowReader
from saccade.data.samples import DataError, Sample
from saccade.data.sources import TableSource
from saccade.data.tables import CsvTable, JsonLines, file_digest, json_type, read_text

FIELDS = ("id", "image", "question", "answer", "kind")


class Entry(NamedTuple):
    """One raw row and where it stands."""

    file: Path
    number: int
    place: str
    raw: Any


Fields = dict[str, Any]
Read = Callable[[Any], Fields]
"""From a raw row to `FIELDS`, plus `people` (every answer given) and any further facts."""


@dataclass(frozen=True)
class Opened:
    """A benchmark's rows, how to read one, its images' folder, and all files that matter."""

    entries: list[Entry]
    read: Read
    images: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Layout:
    """How one benchmark is opened and scored; `split` is the one scored by default."""

    metric: str
    split: str | None
    open: Callable[[LayoutSource, str], Opened]


class LayoutTable:
    """A benchmark's rows as a `Table`."""

    def __init__(self, opened: Opened, *, path: Path) -> None:
        self.path = path
        self._opened = opened

    def __len__(self) -> int:
        return len(self._opened.entries)

    def row(self, index: int) -> Fields:
        entry = self._opened.entries[index]
        if isinstance(entry.raw, DataError):
            raise entry.raw
        try:
            return self._opened.read(entry.raw)
        except KeyError as missing:
            raise DataError(
                f"the row has no {missing}", where=self.where(index), fix="restore the file"
            ) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the row is not as the benchmark writes it ({error})",
                where=self.where(index),
                fix="restore the file",
            ) from None

    def number(self, index: int) -> int:
        return self._opened.entries[index].number

    def where(self, index: int) -> str:
        entry = self._opened.entries[index]
        return f"{entry.file}, {entry.place}"

    def columns(self) -> list[str]:
        return list(FIELDS)

    def select(self, columns: list[str]) -> None:
        """Nothing to skip: the files are in memory."""

    def digest(self) -> str:
        text = "".join(file_digest(file) for file in self._opened.files)
        return hashlib.sha256(text.encode()).hexdigest()


class LayoutRows(TableSource):
    """A benchmark's samples; `facts` hold metric, place, every answer and the question's type."""

    def __init__(self, table: LayoutTable, *, source: LayoutSource, images: Path) -> None:
        reader = RowReader(columns={name: name for name in FIELDS}, image_root=images)
        super().__init__(table, reader=reader, name=source.layout, limit=source.limit)
        self.metric = LAYOUTS[source.layout].metric

    def __getitem__(self, position: int) -> Sample:
        sample = super().__getitem__(position)
        row = self.table.row(position)
        assert isinstance(row, dict)
        facts: dict[str, Any] = {name: row[name] for name in row if name not in FIELDS}
        people = tuple(facts.pop("people", ()) or sample.answers)
        known = {"metric": self.metric, "where": self.table.where(position)}
        return replace(sample, facts={**facts, **known, "human_answers": people})


def open_layout(source: LayoutSource) -> LayoutRows:
    """Open a benchmark; raises `InputError` when its folder or a file is not there."""
    if not source.path.is_dir():
        raise InputError(
            f"{source.path}: no such folder\n  fix: set path to the folder {source.layout} is in"
        )
    layout = LAYOUTS[source.layout]
    opened = layout.open(source, source.split or layout.split or "")
    table = LayoutTable(opened, path=opened.files[0])
    return LayoutRows(table, source=source, images=opened.images)


# -- VQA v2 and OK-VQA ---------------------------------------------------------------------------

COCO = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}


def _open_vqa(source: LayoutSource, split: str) -> Opened:
    subset = COCO.get(split, split)
    questions = _file(
        source, source.questions,
        [f"{edition}OpenEnded_mscoco_{subset}_questions.json" for edition in ("v2_", "")]
        + ["questions.json"], what="questions",
    )  # fmt: skip
    annotations = _file(
        source, source.annotations,
        [f"v2_mscoco_{subset}_annotations.json", f"mscoco_{subset}_annotations.json",
         "annotations.json"], what="answers",
    )  # fmt: skip
    asked = _object(_document(questions), file=questions)
    answered = _object(_document(annotations, hook=_only_the_answer), file=annotations)
    found = asked.get("data_subtype", subset)
    if source.split and found != subset:
        raise InputError(f"{questions}: holds {found}\n  fix: split={source.split} is elsewhere")
    rows = _list(asked, "questions", file=questions)
    by_id = {
        row.get("question_id"): row for row in _list(answered, "annotations", file=annotations)
    }
    names: dict[str, str] = answered.get("question_types") or {}
    photos = "test2015" if found == "test-dev2015" else found

    def read(row: Any) -> Fields:
        answer = by_id.get(row["question_id"])
        if answer is None:
            raise ValueError(f"question {row['question_id']} has no answers in {annotations}")
        people = _people(answer["answers"])
        kind = answer.get("question_type", "") if names else answer.get("answer_type", "")
        return {
            "id": row["question_id"], "question": row["question"],
            "image": f"COCO_{photos}_{int(row['image_id']):012d}.jpg",
            "answer": _commonest(people), "people": people, "kind": names.get(kind, kind),
            "question_type": answer.get("question_type", ""),
        }  # fmt: skip

    folder = _images(source, [photos, f"images/{photos}", "images"])
    return Opened(_entries(questions, rows), read, folder, (questions, annotations))


def _only_the_answer(value: dict[str, Any]) -> Any:
    """Keep a person's words alone: millions of small objects would fill the memory."""
    if "answer_id" in value and isinstance(value.get("answer"), str):
        return sys.intern(value["answer"])
    return value


# -- GQA and Visual Genome -----------------------------------------------------------------------


def _open_gqa(source: LayoutSource, split: str) -> Opened:
    name = f"{split}_balanced" if split in ("train", "val", "testdev") else split
    place = _file(
        source, source.questions,
        [f"{name}_questions.json", f"questions1.2/{name}_questions.json", f"{name}_questions",
         "questions.json"], what="questions",
    )  # fmt: skip
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    entries = []
    for file in files:
        for number, (key, row) in enumerate(_object(_document(file), file=file).items(), start=1):
            entries.append(Entry(file, number, f"question {key}", (key, row)))

    def read(pair: Any) -> Fields:
        key, row = pair
        types = row.get("types") or {}
        return {
            "id": key, "image": f"{row['imageId']}.jpg", "question": row["question"],
            "answer": row["answer"], "kind": types.get("structural") or "question",
            "semantic": types.get("semantic"), "full_answer": row.get("fullAnswer"),
        }  # fmt: skip

    return Opened(entries, read, _images(source, ["images", "allImages/images"]), tuple(files))


def _open_visual_genome(source: LayoutSource, split: str) -> Opened:
    file = _file(source, source.questions, ["question_answers.json"], what="questions")
    entries = []
    for number, photo in enumerate(_list(_document(file), None, file=file), start=1):
        for row in photo.get("qas", []):
            place = f"row {number}, question {row.get('qa_id')}"
            entries.append(Entry(file, number, place, row))

    def read(row: Any) -> Fields:
        words = str(row["question"]).split()
        return {
            "id": row["qa_id"], "image": f"{row['image_id']}.jpg", "question": row["question"],
            "answer": row["answer"], "kind": words[0].lower() if words else "question",
        }  # fmt: skip

    return Opened(entries, read, _images(source, ["images", "VG_100K", "VG_100K_2"]), (file,))


# -- text in pictures: TextVQA, DocVQA, ChartQA --------------------------------------------------


def _open_textvqa(source: LayoutSource, split: str) -> Opened:
    file = _file(source, source.questions, [f"TextVQA_0.5.1_{split}.json"], what="questions")
    read_text_file = source.path / f"TextVQA_Rosetta_OCR_v0.2_{split}.json"
    has_ocr = read_text_file.is_file()
    found = _list(_document(read_text_file), "data", file=read_text_file) if has_ocr else []
    tokens = {row.get("image_id"): tuple(row.get("ocr_tokens", ())) for row in found}

    def read(row: Any) -> Fields:
        people = _people(row["answers"])
        return {
            "id": row["question_id"], "image": f"{row['image_id']}.jpg",
            "question": row["question"], "answer": _commonest(people), "people": people,
            "kind": "question", "ocr_tokens": tokens.get(row["image_id"], ()),
        }  # fmt: skip

    photos = "test_images" if split == "test" else "train_images"
    entries = _entries(file, _list(_document(file), "data", file=file))
    files = (file, read_text_file) if has_ocr else (file,)
    return Opened(
        entries, read, _images(source, [photos, f"train_val_images/{photos}", "images"]), files
    )


def _open_docvqa(source: LayoutSource, split: str) -> Opened:
    names = [f"{folder}{split}_v1.0{kind}.json" for folder in ("", f"{split}/", "spdocvqa_qas/")
             for kind in ("_withQT", "")]  # fmt: skip
    file = _file(source, source.questions, names, what="questions")

    def read(row: Any) -> Fields:
        types = tuple(row.get("question_types") or ())
        return {
            "id": row["questionId"], "image": Path(row["image"]).name,
            "question": row["question"], "answer": list(dict.fromkeys(row["answers"])),
            "kind": types[0] if types else "question", "question_types": types,
        }  # fmt: skip

    folder = _images(source, ["documents", f"{split}/documents", "spdocvqa_images", "images"])
    return Opened(_entries(file, _list(_document(file), "data", file=file)), read, folder, (file,))


def _open_chartqa(source: LayoutSource, split: str) -> Opened:
    folders = [f"{folder}{split}" for folder in ("", "ChartQA Dataset/")]
    entries, files = [], []
    for origin in ("human", "augmented"):
        names = [
            f"{folder}/{split}_{origin}.{end}" for folder in folders for end in ("json", "csv")
        ]
        found = [source.path / name for name in names if (source.path / name).is_file()]
        for file in found[:1]:
            files.append(file)
            entries += [e._replace(raw=(origin, e)) for e in _rows_of(file)]
    if not files:
        raise _nothing(source, [f"{split}/{split}_human.json", f"{split}/{split}_augmented.json"])

    def read(pair: Any) -> Fields:
        origin, entry = pair
        if isinstance(entry.raw, DataError):
            raise entry.raw
        row = entry.raw
        return {
            "id": f"{split}_{origin}-{entry.number}", "image": row["imgname"],
            "question": row["query"], "answer": str(row["label"]), "kind": origin,
        }  # fmt: skip

    folder = _images(source, [str((files[0].parent / "png").relative_to(source.path))])
    return Opened(entries, read, folder, tuple(files))


# -- generated puzzles: ShapeWorld, NLVR, PuzzleVQA and AlgoPuzzleVQA ----------------------------


def _open_shapeworld(source: LayoutSource, split: str) -> Opened:
    files = _jsonl_files(source, split)
    entries = []
    for entry in (entry for file in files for entry in _rows_of(file)):
        captions = entry.raw.get("captions") if isinstance(entry.raw, dict) else None
        for place in range(len(captions) if isinstance(captions, list) else 1):
            entries.append(entry._replace(raw=(entry, place)))

    def read(pair: Any) -> Fields:
        entry, place = pair
        if isinstance(entry.raw, DataError):
            raise entry.raw
        row, stem = entry.raw, entry.file.stem
        if len(row["captions"]) != len(row["agreement"]):
            raise ValueError("captions and agreement differ in length")
        return {
            "id": f"{stem}-{entry.number}.{place + 1}", "image": row["image"], "kind": stem,
            "question": _is_it_true(row["captions"][place]),
            "answer": "yes" if row["agreement"][place] else "no",
        }  # fmt: skip

    return Opened(entries, read, _images(source, ["."]), tuple(files))


def _open_nlvr(source: LayoutSource, split: str) -> Opened:
    file = _file(source, source.questions, [f"{split}.jsonl", f"{split}.json"], what="sentences")

    def read(row: Any) -> Fields:
        return {
            "id": row["identifier"], "image": row["image"], "kind": "sentence",
            "question": _is_it_true(row["sentence"]),
            "answer": {"true": "yes", "false": "no"}[str(row["label"]).lower()],
        }  # fmt: skip

    return Opened(_rows_of(file), read, _images(source, ["."]), (file,))


def _open_puzzles(source: LayoutSource, split: str) -> Opened:
    files = _jsonl_files(source, split)
    entries = [e._replace(raw=(e, e.raw)) for file in files for e in _rows_of(file)]

    def read(pair: Any) -> Fields:
        entry, row = pair
        if isinstance(row, DataError):
            raise row
        options = [str(one) for one in row["options"]]
        return {
            "id": f"{entry.file.stem}-{entry.number}", "image": row["image"],
            "question": f"{row['question']} Options: {', '.join(options)}.",
            "answer": str(row["answer"]), "kind": entry.file.stem, "options": tuple(options),
        }  # fmt: skip

    return Opened(entries, read, _images(source, ["."]), tuple(files))


def _is_it_true(sentence: str) -> str:
    words = sentence.strip().rstrip(" .")
    return f"Is it true that {words[:1].lower()}{words[1:]}?"


LAYOUTS: dict[str, Layout] = {
    "vqav2": Layout("vqa_official", "val", _open_vqa),
    "okvqa": Layout("vqa_official", "val", _open_vqa),
    "gqa": Layout("exact_match", "testdev", _open_gqa),
    "visual_genome": Layout("exact_match", None, _open_visual_genome),
    "textvqa": Layout("vqa_evalai", "val", _open_textvqa),
    "docvqa": Layout("anls", "val", _open_docvqa),
    "chartqa": Layout("relaxed_accuracy", "test", _open_chartqa),
    "shapeworld": Layout("accuracy", None, _open_shapeworld),
    "nlvr": Layout("accuracy", "dev", _open_nlvr),
    "puzzlevqa": Layout("exact_match", None, _open_puzzles),
}
"""Every benchmark by its configuration name."""


# -- files ---------------------------------------------------------------------------------------


def _file(source: LayoutSource, given: Path | None, names: Sequence[str], *, what: str) -> Path:
    """The named file (or folder of files), else the first published name that is there."""
    if given is not None:
        place = source.path / given
        if not place.exists():
            raise InputError(f"{place}: no such file\n  fix: correct the name of the {what}")
        return place
    for name in names:
        if (source.path / name).exists():
            return source.path / name
    raise _nothing(source, names)


def _nothing(source: LayoutSource, names: Sequence[str]) -> InputError:
    return InputError(
        f"{source.path}: {source.layout} is not complete here; looked for {', '.join(names)}"
        f"\n  fix: unpack the split's files into this folder, set split, or name the file"
    )


def _images(source: LayoutSource, names: Iterable[str]) -> Path:
    """The images' folder; when none is there, the first name, so that errors can state it."""
    if source.images is not None:
        folder = source.path / source.images
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder\n  fix: correct images")
        return folder
    folders = [source.path / name for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _jsonl_files(source: LayoutSource, split: str) -> list[Path]:
    """The file of one kind of question, or of all kinds."""
    if source.questions is not None or split:
        return [_file(source, source.questions, [f"{split}.jsonl"], what="questions")]
    files = sorted(source.path.glob("*.jsonl"))
    if not files:
        raise _nothing(source, ["*.jsonl"])
    return files


def _document(file: Path, *, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    text = read_text(file)
    try:
        return json.loads(text, object_hook=hook)
    except json.JSONDecodeError as error:
        raise DataError(
            f"JSON syntax error in column {error.colno}: {error.msg}",
            where=f"{file}, line {error.lineno}",
            fix="download the file again",
        ) from None


def _list(document: Any, key: str | None, *, file: Path) -> list[Any]:
    """The list of rows in a document, under `key` where it is an object."""
    rows = document.get(key) if isinstance(document, dict) and key else document
    if not isinstance(rows, list):
        holding = f"no list {key!r}" if isinstance(document, dict) else json_type(document)
        raise InputError(f"{file}: expected the benchmark's rows, found {holding}")
    return rows


def _object(document: Any, *, file: Path) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InputError(f"{file}: expected the benchmark's object, found {json_type(document)}")
    return document


def _entries(file: Path, rows: Sequence[Any]) -> list[Entry]:
    return [Entry(file, number, f"row {number}", row) for number, row in enumerate(rows, start=1)]


def _rows_of(file: Path) -> list[Entry]:
    """All rows of a JSON list, JSON lines or CSV file; a broken one stands as its error."""
    if file.suffix == ".json":
        text = read_text(file).lstrip()
        if text.startswith("["):
            return _entries(file, _list(_document(file), None, file=file))
    table = CsvTable(file) if file.suffix == ".csv" else JsonLines(file)
    entries = []
    for index in range(len(table)):
        try:
            raw: Any = table.row(index)
        except DataError as error:
            raw = error
        number = table.number(index)
        entries.append(Entry(file, number, f"{table.unit} {number}", raw))
    return entries


def _people(answers: Any) -> tuple[str, ...]:
    """Every person's answer, in order, blank ones included."""
    return tuple(
        str(one["answer"]) if isinstance(one, dict) else str(one) for one in answers
    )  # fmt: skip


def _commonest(people: Sequence[str]) -> list[str]:
    """Distinct answers, the most common first; blank ones cannot be trained on."""
    counts = Counter(one for one in people if one.strip())
    return [answer for answer, _ in counts.most_common()]
