"""The data part of the configuration tree: where samples come from, one sentence per key.

Part of `schema.py`, which holds the rest and passes these names on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.grids import ArcSource, ArraysSource, ColumnsSource
from saccade.config.nodes import Node, NonNegative, NonNegativeInt, RowField
from saccade.config.recursion import MazeSource, SudokuSource
from saccade.config.screens import GroundingFilesSource, ScreenSpotSource, ScreensSource
from saccade.config.shards import EncodedSource
from saccade.config.streams import StreamSource
from saccade.config.thoughts import LogicSource


class ScenesSource(Node):
    """Scenes drawn on the fly from (seed, split, index); no files."""

    type: Literal["scenes"] = "scenes"
    """Kind of source."""
    split: Literal["train", "validation", "test"] = "train"
    """Disjoint streams of scenes: the same index in another split is another scene."""
    scenes: PositiveInt = 4000
    """Number of scenes (images)."""
    questions: PositiveInt = 4
    """Questions asked per scene."""
    kinds: Annotated[
        list[Literal["color", "shape", "digit", "word", "count", "relation", "odd"]],
        Field(min_length=1),
    ] = ["color", "shape", "digit", "word", "count", "relation", "odd"]
    """Question kinds to ask."""
    min_cells: PositiveInt = 196
    """Smallest scene area in merged cells (visual tokens)."""
    max_cells: PositiveInt = 324
    """Largest scene area in merged cells (visual tokens)."""
    cell_pixels: Annotated[int, Field(ge=8)] = 16
    """Side of one cell in pixels; equals patch size x merge size of the model."""
    min_objects: PositiveInt = 9
    """Fewest objects per scene."""
    max_objects: PositiveInt = 14
    """Most objects per scene."""
    clutter: NonNegative = 2.0
    """Patches of busy texture that carry no answer, as a multiple of the number of objects."""
    odd_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the scenes in which all shapes but one have the same colour (kind `odd`)."""
    scaled_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the scenes drawn smaller (training a base that copes with previews and resizing)."""
    min_scale: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Smallest side of a scene drawn smaller, as a share; log-uniform between this and 1."""
    seed: NonNegativeInt = 0
    """Seed of the stream of scenes."""

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> ScenesSource:
        for name in ("cells", "objects"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least > most:
                raise ValueError(f"min_{name}={least} is more than max_{name}={most}")
        return self


class ProbingSource(ScenesSource):
    """Generated scenes again, with yes/no questions about what they show (POPE)."""

    type: Literal["probing"] = "probing"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Kind of source."""
    negatives: Literal["random", "adversarial"] = "adversarial"
    """What the questions answered by no ask for: any absent object, or one whose colour and shape
    are both there, in two objects."""


class CaptionsSource(ScenesSource):
    """Generated scenes again, each with captions that say what it shows."""

    type: Literal["captions"] = "captions"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Kind of source."""
    questions: PositiveInt = 1
    """Captions per scene, each phrased differently."""
    mentions: PositiveInt = 5
    """Most things a caption names, in reading order."""
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the captions that are wrong about some of what they name; such a pair's quality is
    the share it is right about."""


class PreferenceSource(ScenesSource):
    """Generated scenes again, each question with its right answer and a plausible wrong one."""

    type: Literal["preferences"] = "preferences"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Kind of source."""


class JsonlSource(Node):
    """One JSON object per line; column names are mapped below."""

    type: Literal["jsonl"]
    """Kind of source."""
    path: Path
    """The .jsonl (or .json list) file."""
    image_root: Path | None = None
    """Folder that image paths are relative to; default: the file's own folder."""
    image_format: str = "{}"
    """How a cell of the image column becomes a path, e.g. `images/{}.png`."""
    columns: dict[RowField, str | int] = {}
    """Column (name, or position in a list row) for each field; default: the field's own name."""
    ask: str | None = None
    """Question put to every row instead of a question column, e.g. `Describe the picture.`"""
    limit: PositiveInt | None = None
    """Use only the first rows."""


class ParquetSource(Node):
    """A parquet file; images as paths, bytes or {bytes, path} structs."""

    type: Literal["parquet"]
    """Kind of source."""
    path: Path
    """The .parquet file or a folder of them."""
    image_root: Path | None = None
    """Folder that image paths are relative to; default: the file's own folder."""
    columns: dict[RowField, str] = {}
    """Column name for each field; default: the field's own name."""
    ask: str | None = None
    """Question put to every row instead of a question column, e.g. `Describe the picture.`"""
    limit: PositiveInt | None = None
    """Use only the first rows."""


class FolderSource(Node):
    """A folder of images with an index file (`index.jsonl`, `index.json` or `index.csv`)."""

    type: Literal["folder"]
    """Kind of source."""
    path: Path
    """The folder."""
    index: str | None = None
    """Index file inside the folder; default: the first of index.jsonl, index.json, index.csv,
    metadata.jsonl, metadata.csv, questions.json."""
    image_format: str = "{}"
    """How a cell of the image column becomes a path below the folder, e.g. `images/{}.png`."""
    columns: dict[RowField, str | int] = {}
    """Column (name, or position in a list row) for each field; default: the field's own name."""
    ask: str | None = None
    """Question put to every row instead of a question column, e.g. `Describe the picture.`"""
    limit: PositiveInt | None = None
    """Use only the first rows."""


class HubSource(Node):
    """A dataset on the Hugging Face hub, or a local folder in hub layout."""

    type: Literal["hub"]
    """Kind of source."""
    name: str
    """Dataset name, e.g. `HuggingFaceM4/VQAv2`, or a local dataset folder."""
    subset: str | None = None
    """Configuration (subset) of the dataset."""
    split: str = "train"
    """Split, slices allowed (`train[:1000]`)."""
    revision: str | None = None
    """Hub revision to load."""
    columns: dict[RowField, str] = {}
    """Column name for each field; default: the field's own name."""
    ask: str | None = None
    """Question put to every row instead of a question column, e.g. `Describe the picture.`"""
    limit: PositiveInt | None = None
    """Use only the first rows."""


class LayoutSource(Node):
    """A public benchmark in the folder layout it is distributed in."""

    type: Literal["layout"]
    """Kind of source."""
    layout: Literal[
        "vqav2", "okvqa", "gqa", "visual_genome", "textvqa", "docvqa", "chartqa", "shapeworld",
        "nlvr", "puzzlevqa",
    ]  # fmt: skip
    """The benchmark (see the guide to benchmarks); sets files, fields and metric."""
    path: Path
    """Folder that the benchmark was unpacked into."""
    split: str | None = None
    """Split as the benchmark names it, e.g. `val`; default: the one its layout is scored on."""
    questions: Path | None = None
    """Question file, or folder of them, below `path`; default: searched by its published name."""
    annotations: Path | None = None
    """Answer file below `path`, where answers are apart; default: searched likewise."""
    images: Path | None = None
    """Folder of the images below `path`; default: searched likewise."""
    limit: PositiveInt | None = None
    """Use only the first rows."""


Source = Annotated[
    ScenesSource | JsonlSource | ParquetSource | FolderSource | HubSource | LayoutSource
    | ProbingSource | CaptionsSource | PreferenceSource | SudokuSource | MazeSource
    | ArcSource | ColumnsSource | ArraysSource | EncodedSource | LogicSource | StreamSource
    | ScreensSource | ScreenSpotSource | GroundingFilesSource,
    Field(discriminator="type"),
]  # fmt: skip


class DataConfig(Node):
    train: Source = ScenesSource()
    """Samples to train on."""
    eval: Source = ScenesSource(split="test", scenes=150, questions=4)
    """Held-out samples for `saccade eval` and `saccade compare`."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a broken row does while training: stop with its name, or skip it with a warning."""
