"""Open any configured source as a sequence of samples.

In goes a `Source` of the configuration, out comes a `SampleSource`: a length, samples by
position, the groups that share an image, and a fingerprint of the content. Files become a
`Table` (`tables.py`, `arrow.py`) whose rows a `RowReader` turns into samples; scenes are drawn.
Opening is cheap: no image is opened, and a broken row raises only when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

from saccade.config.errors import InputError
from saccade.config.grids import ArcSource, ArraysSource, ColumnsSource
from saccade.config.schema import (
    CaptionsSource,
    FolderSource,
    HubSource,
    JsonlSource,
    LayoutSource,
    MazeSource,
    ParquetSource,
    PreferenceSource,
    ProbingSource,
    ScenesSource,
    Source,
    SudokuSource,
)
from saccade.config.screens import GroundingFilesSource, ScreenSpotSource, ScreensSource
from saccade.config.shards import EncodedSource
from saccade.config.streams import StreamSource
from saccade.config.thoughts import LogicSource
from saccade.data.rows import RowReader, image_key, match_columns
from saccade.data.samples import DataError, Sample
from saccade.data.tables import CsvTable, Table, open_json

INDEX_NAMES = (
    "index.jsonl", "index.json", "index.csv", "metadata.jsonl", "metadata.csv", "questions.json",
)  # fmt: skip
"""Index files looked for in a folder, in this order."""


class SampleSource(Protocol):
    """Samples by position; a broken row raises `DataError` when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Sample: ...

    def fingerprint(self) -> str: ...

    def groups(self) -> list[list[int]]: ...


class TableSource:
    """A table's rows as samples."""

    def __init__(self, table: Table, *, reader: RowReader, name: str, limit: int | None) -> None:
        self.table = table
        self.reader = reader
        self.name = name
        self._length = len(table) if limit is None else min(limit, len(table))
        if not self._length:
            raise InputError(f"{table.path}: there are no rows\n  fix: one row per question")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < self._length:
            raise IndexError(position)
        return self.reader.sample(
            self.table.row(position),
            where=self.table.where(position),
            default_id=f"{self.name}-{self.table.number(position)}",
        )

    def number(self, position: int) -> int:
        """Line or row number, counted from 1, that error messages use for this position."""
        return self.table.number(position)

    def groups(self) -> list[list[int]]:
        """Positions that show the same images, in order of first appearance.

        Rows without an image, and broken ones, stand alone.
        """
        groups: dict[object, list[int]] = {}
        for position in range(self._length):
            try:
                images = self.reader.images(self.table.row(position), where="")
            except DataError:
                images = ()
            groups.setdefault(image_key(images) or position, []).append(position)
        return list(groups.values())

    def fingerprint(self) -> str:
        """Hash of the index's content and of how it is read; the images are not opened."""
        reading = [sorted(self.reader.columns.items()), self.reader.image_format, self._length]
        reading += [self.reader.ask] if self.reader.ask else []
        text = self.table.digest() + json.dumps(reading)
        return "table:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def open_source(source: Source) -> SampleSource:
    """Open a source; raises `InputError` for a missing file or column, not for broken rows."""
    if isinstance(source, ProbingSource):
        from saccade.data.generate.probing import ProbingScenes

        return ProbingScenes(source)
    if isinstance(source, CaptionsSource):
        from saccade.data.generate.captions import CaptionScenes

        return CaptionScenes(source)
    if isinstance(source, PreferenceSource):
        from saccade.data.generate.preferences import PreferenceScenes

        return PreferenceScenes(source)
    if isinstance(source, ScenesSource):
        from saccade.data.generate.scenes import SceneSource

        return SceneSource(source)
    if isinstance(source, SudokuSource):
        from saccade.data.generate.sudoku import SudokuPuzzles

        return SudokuPuzzles(source)
    if isinstance(source, MazeSource):
        from saccade.data.generate.maze import Mazes

        return Mazes(source)
    if isinstance(source, (ArcSource, ColumnsSource, ArraysSource)):
        from saccade.data.grids.source import open_grids

        return open_grids(source)
    if isinstance(source, LogicSource):
        from saccade.data.generate.logic import LogicQuestions

        return LogicQuestions(source)
    if isinstance(source, StreamSource):
        from saccade.data.reading import StreamWindows

        return StreamWindows(source)
    if isinstance(source, EncodedSource):
        from saccade.data.shards.puzzles import EncodedPuzzles

        return EncodedPuzzles(source)
    if isinstance(source, (ScreensSource, ScreenSpotSource, GroundingFilesSource)):
        return _open_screens(source)
    if isinstance(source, LayoutSource):
        from saccade.data.layouts import open_layout

        return open_layout(source)
    if isinstance(source, JsonlSource):
        return _table_source(open_json(source.path), source)
    if isinstance(source, FolderSource):
        return _table_source(_open_index(source), source)
    from saccade.data import arrow

    if isinstance(source, ParquetSource):
        return _table_source(arrow.open_parquet(source.path), source)
    return _table_source(arrow.open_hub(source), source)


def _open_screens(source: ScreensSource | ScreenSpotSource | GroundingFilesSource) -> SampleSource:
    if isinstance(source, ScreensSource):
        from saccade.data.screens.generated import GeneratedScreens

        return GeneratedScreens(source)
    if isinstance(source, ScreenSpotSource):
        from saccade.data.screens.screenspot import ScreenSpotRows

        return ScreenSpotRows(source)
    from saccade.data.screens.built import BuiltRows

    return BuiltRows(source)


def leave_out_broken(source: SampleSource) -> list[str]:
    """Leave out what a source finds broken before anything is read of it; says what that is."""
    known = getattr(source, "leave_out_broken", None)
    return [] if known is None else known()


def infer_source(path: Path) -> Source:
    """Guess the source a path stands for, from its ending or from what the folder holds."""
    if path.is_dir():
        return _infer_folder(path)
    endings = {".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
               ".csv": "folder", ".tsv": "folder"}  # fmt: skip
    kind = endings.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: no such data; a source is a folder or a file ending in {', '.join(endings)}"
        )
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if kind == "folder":
        return FolderSource(type="folder", path=path.parent, index=path.name)
    if path.name.lower().startswith("screenspot"):
        return ScreenSpotSource(type="screenspot", path=path)
    if kind == "parquet":
        return ParquetSource(type="parquet", path=path)
    return JsonlSource(type="jsonl", path=path)


def _infer_folder(path: Path) -> Source:
    if (path / "screenspot.json").is_file() or any(path.glob("screenspot_*.json")):
        return ScreenSpotSource(type="screenspot", path=path)
    if (path / "annotations").is_dir() and _points_at_things(path):
        return ScreenSpotSource(type="screenspot", path=path)
    if all((path / name).is_file() for name in ("manifest.json", "train.parquet")):
        return GroundingFilesSource(type="grounding", path=path)
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return HubSource(type="hub", name=str(path))
    if any((path / name).is_file() for name in INDEX_NAMES):
        return FolderSource(type="folder", path=path)
    if (path / "README.md").is_file() or (path / "data").is_dir():
        return HubSource(type="hub", name=str(path))
    if any(path.glob("*.parquet")):
        return ParquetSource(type="parquet", path=path)
    if _points_at_things(path):
        return ScreenSpotSource(type="screenspot", path=path)
    raise InputError(
        f"{path}: the folder holds no index ({', '.join(INDEX_NAMES)}) and no parquet file\n"
        "  fix: write an index with one row per question, or name the index file"
    )


def _points_at_things(path: Path) -> bool:
    """Whether a folder holds annotations with instructions and boxes or points."""
    from saccade.data.screens.screenspot_layouts import open_annotations

    try:
        return bool(open_annotations(ScreenSpotSource(type="screenspot", path=path)))
    except InputError:
        return False


def _open_index(source: FolderSource) -> Table:
    if not source.path.is_dir():
        what = "is a file, a folder was expected" if source.path.exists() else "no such folder"
        raise InputError(f"{source.path}: {what}\n  fix: set path to the folder of the images")
    names = [source.index] if source.index else INDEX_NAMES
    for name in names:
        file = source.path / name
        if source.index or file.is_file():
            return CsvTable(file) if file.suffix.lower() in (".csv", ".tsv") else open_json(file)
    raise InputError(
        f"{source.path}: no index file; looked for {', '.join(INDEX_NAMES)}\n"
        "  fix: add one, or name it with index=FILE"
    )


def _table_source(
    table: Table, source: JsonlSource | ParquetSource | FolderSource | HubSource
) -> TableSource:
    label = str(table.path)
    wanted = {**source.columns, **({"question": ""} if source.ask else {})}
    columns = match_columns(wanted, available=table.columns(), where=label)
    table.select([str(column) for column in columns.values()])
    reader = RowReader(
        columns=columns,
        image_root=_image_root(source),
        image_format=_checked_format(getattr(source, "image_format", "{}"), where=label),
        ask=source.ask,
    )
    folder = isinstance(source, FolderSource)
    name = source.path.resolve().name if folder else table.path.stem
    return TableSource(table, reader=reader, name=name, limit=source.limit)


def _image_root(source: JsonlSource | ParquetSource | FolderSource | HubSource) -> Path:
    if isinstance(source, FolderSource):
        return source.path
    if isinstance(source, HubSource):
        return Path(source.name).expanduser()
    own = source.path if source.path.is_dir() else source.path.parent
    return source.image_root or own


def _checked_format(image_format: str, *, where: str) -> str:
    """A format without a place for the cell would give every row the same image."""
    try:
        distinct = image_format.format("a") != image_format.format("b")
    except (IndexError, KeyError, ValueError):
        distinct = False
    if not distinct:
        raise InputError(
            f"{where}: image_format={image_format!r} needs one {{}} where the image's name goes\n"
            "  fix: for example images/{}.png"
        )
    return image_format
