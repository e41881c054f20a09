"""Open what is to be encoded: scenes, grids, stories, code, folders of text or of pictures.

A `ShardsConfig` flows in, one `Mixture` flows out: every source's samples once, spread evenly over
the whole by position alone, so an early part of the shards looks like all of them. Opening reads
files once to know how many samples there are; only offsets stay in memory. Drawing happens later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.schema_data import CaptionsSource
from saccade.config.shards import ShardsConfig, ShardSource
from saccade.data.generate.captions import CaptionScenes
from saccade.data.grids import columns
from saccade.data.grids.arc import read_tasks, task_hash
from saccade.data.grids.augment import variants
from saccade.data.grids.canvas import Grid, place
from saccade.data.images import load_image
from saccade.data.samples import DataError
from saccade.data.shards.held_out import Contents, content_number
from saccade.data.shards.render import Layout, draw_grid, draw_text, make_square, pages
from saccade.data.shards.samples import ShardSample, ShardSamples, byte_tokens, grid_tokens
from saccade.data.streams import Document, code_documents, find_files, text_documents

SCENES = 12_000
"""Of the default build; its first shard is done at 7 %, so a training beside it begins early."""
SCENE_CELL = 16
SMALLEST_SCENE = 36
"""Cells of a scene in which the widest sign still fits."""
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Mixture:
    """All sources' samples in one order, each source spread evenly over the whole."""

    def __init__(self, sources: Sequence[ShardSamples]) -> None:
        self.sources = list(sources)
        sizes = [len(source) for source in self.sources]
        # sample i of n stands at (i + 1/2) / n of the way
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in sizes])
        which = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        order = np.lexsort((which, places))
        self._which = which[order]
        starts = np.cumsum([0, *sizes[:-1]])
        self._item = (order - starts[self._which]).astype(np.int64)

    def __len__(self) -> int:
        return len(self._which)

    def source_of(self, position: int) -> int:
        """Number of the source of a position."""
        return int(self._which[position])

    def __getitem__(self, position: int) -> ShardSample:
        return self.sources[self._which[position]][int(self._item[position])]

    @property
    def widths(self) -> tuple[int, int]:
        """Most symbols of an input and of a target."""
        both = [source.widths for source in self.sources]
        return max(width[0] for width in both), max(width[1] for width in both)

    def contents(self) -> Contents:
        """A number per position, equal for samples of one task, document or picture."""
        numbers = np.zeros(len(self), dtype=np.uint64)
        for number, source in enumerate(self.sources):
            mine = self._which == number
            numbers[mine] = source.contents()[self._item[mine]]
        return numbers

    def fingerprint(self) -> str:
        """Equal for equal mixtures."""
        return _digest([source.fingerprint() for source in self.sources])


def open_sources(config: ShardsConfig) -> Mixture:
    """Open every source; raises `InputError` for what is missing, empty or without targets."""
    return Mixture([_open(source, config) for source in config.drawn()])


def _open(source: ShardSource, config: ShardsConfig) -> ShardSamples:
    if source.type == "scenes":
        return SceneSamples(source, config)
    assert source.path is not None
    if source.type == "grids":
        return GridSamples(source, config)
    if source.type == "images":
        return ImageSamples(source, config)
    documents = (code_documents if source.type == "code" else text_documents)(source.path)
    return PageSamples(source, config, documents=documents)


class SceneSamples:
    """Generated scenes; asked for is a caption."""

    kind = "scenes"

    def __init__(self, source: ShardSource, config: ShardsConfig) -> None:
        cells = (config.side // SCENE_CELL) ** 2
        if cells < SMALLEST_SCENE:
            raise InputError(f"shards.side={config.side}: scenes need at least {6 * SCENE_CELL}")
        objects = max(2, cells // 20)
        self.config = config
        self.scenes = CaptionScenes(
            CaptionsSource(
                scenes=source.limit or SCENES, seed=source.seed, max_cells=cells,
                min_cells=max(SMALLEST_SCENE, cells * 3 // 4), min_objects=objects,
                max_objects=objects + 3,
            )
        )  # fmt: skip
        self.widths = (config.input_tokens, config.target_tokens)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, position: int) -> ShardSample:
        sample = self.scenes[position]
        (draw,) = sample.images
        assert callable(draw)
        return ShardSample(
            id=sample.id,
            draw=partial(_squared, draw, self.config.side),
            inputs=byte_tokens(sample.question.encode(), limit=self.widths[0]),
            targets=byte_tokens(sample.answer.encode(), limit=self.widths[1]),
        )

    def contents(self) -> Contents:
        seed = self.scenes.source.seed
        keys = (f"scene {seed} {index}".encode() for index in range(len(self)))
        return np.array([content_number(key) for key in keys], dtype=np.uint64)

    def fingerprint(self) -> str:
        return _digest([self.kind, self.scenes.fingerprint(), self.widths])


class PageSamples:
    """Pages of text or code; asked for are the bytes that follow the page."""

    def __init__(
        self, source: ShardSource, config: ShardsConfig, *, documents: Sequence[Document]
    ) -> None:
        self.kind = source.type
        style = "code" if source.type == "code" else "prose"
        self.layout = Layout(config.side, config.text_pixels, style)
        self.widths = (config.input_tokens, config.target_tokens)
        self.documents = list(documents)
        digest = hashlib.sha256()
        starts: list[tuple[int, int, int]] = []
        texts: list[int] = []
        for number, document in enumerate(self.documents):
            content = document.text()
            digest.update(content.encode())
            texts.append(content_number(content.encode()))
            starts += _page_bounds(content, number, layout=self.layout)
            if source.limit is not None and len(starts) >= source.limit:
                break
        # document, first byte, byte behind the last
        self._pages = np.array(starts[: source.limit], dtype=np.int64).reshape(-1, 3)
        self._texts = np.array(texts, dtype=np.uint64)
        self._content = digest.hexdigest()
        if not len(self._pages):
            raise InputError(
                f"{source.path}: no text is longer than one page, so nothing follows a page"
                "\n  fix: larger shards.text_pixels or a smaller shards.side, or longer texts"
            )

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, position: int) -> ShardSample:
        number, start, end = (int(value) for value in self._pages[position])
        document = self.documents[number]
        shown = document.read(start=start, end=end)
        asked = document.read(start=end, end=end + self.widths[1])
        return ShardSample(
            id=f"{self.kind}:{document.file.name}@{document.start + start}",
            draw=partial(draw_text, shown.decode("utf-8"), layout=self.layout),
            inputs=byte_tokens(shown, limit=self.widths[0]),
            targets=byte_tokens(asked, limit=self.widths[1]),
        )

    def contents(self) -> Contents:
        return self._texts[self._pages[:, 0]]

    def fingerprint(self) -> str:
        return _digest([self.kind, self._content, repr(self.layout), self.widths, len(self)])


def _page_bounds(content: str, number: int, *, layout: Layout) -> list[tuple[int, int, int]]:
    """Byte bounds of every page but the last, after which nothing follows."""
    bounds, start = [], 0
    for page in pages(content, layout=layout):
        end = start + len(page.encode())
        bounds.append((number, start, end))
        start = end
    return bounds[:-1]


class GridSamples:
    """Input grids; asked for is the output grid, cell by cell."""

    kind = "grids"

    def __init__(self, source: ShardSource, config: ShardsConfig) -> None:
        assert source.path is not None
        self.config = config
        self.names: list[str] = []
        self.pairs: list[tuple[Grid, Grid]] = []
        self._tasks: list[int] = []
        for name, task, given, asked in _grid_pairs(source, path=source.path):
            if source.limit is not None and len(self.pairs) >= source.limit:
                break
            self.names.append(name)
            self._tasks.append(content_number(task))
            self.pairs.append((given, asked))
        if not self.pairs:
            raise InputError(f"{source.path}: no puzzle has a known solution")
        shapes = [grid.shape for pair in self.pairs for grid in pair]
        self.shape = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
        if max(self.shape) > config.side:
            raise InputError(f"shards.side={config.side}: too small for a grid of {self.shape}")
        self.widths = (self.shape[0] * self.shape[1],) * 2

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> ShardSample:
        given, asked = self.pairs[position]
        return ShardSample(
            id=f"grids:{self.names[position]}",
            draw=partial(draw_grid, given, side=self.config.side),
            inputs=grid_tokens(place(given, shape=self.shape)),
            targets=grid_tokens(place(asked, shape=self.shape)),
        )

    def contents(self) -> Contents:
        return np.array(self._tasks, dtype=np.uint64)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.names, self.config.side]).encode())
        for pair in self.pairs:
            for grid in pair:
                digest.update(repr(grid.shape).encode() + np.ascontiguousarray(grid).tobytes())
        return "grids:" + digest.hexdigest()


def _grid_pairs(source: ShardSource, *, path: Path) -> list[tuple[str, bytes, Grid, Grid]]:
    """Name of a pair, what its task is known by, question and answer."""
    if path.suffix.lower() == ".csv":
        puzzles = columns.read_columns(path, limit=source.limit)
        return [
            (f"{path.stem}-{i}", p.answer.tobytes(), p.question, p.answer)
            for i, p in enumerate(puzzles)
        ]
    found = []
    for index, task in enumerate(read_tasks(path)):
        rng = np.random.default_rng([source.seed, index])
        for variant in variants(task, count=source.augmentations, rng=rng):
            for number, pair in enumerate(variant.pairs()):
                if pair.output is not None:
                    name, known_by = f"{variant.name}#{number}", task_hash(task).encode()
                    found.append((name, known_by, pair.input, pair.output))
    return found


class ImageSamples:
    """Pictures of a folder; asked for is the text beside a picture, else its folder's name."""

    kind = "images"

    def __init__(self, source: ShardSource, config: ShardsConfig) -> None:
        assert source.path is not None
        self.root = source.path
        self.side = config.side
        self.files = find_files(source.path, endings=IMAGE_ENDINGS)[: source.limit]
        self.widths = (1, config.target_tokens)
        for file in self.files:
            self._text(file)  # a picture without a target must not surface after hours
        self._digests = [hashlib.sha256(file.read_bytes()).digest() for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> ShardSample:
        file = self.files[position]
        return ShardSample(
            id=f"images:{self._name(file)}",
            draw=partial(_loaded, file, self.side),
            inputs=byte_tokens(b"", limit=1),
            targets=byte_tokens(self._text(file).encode(), limit=self.widths[1]),
        )

    def contents(self) -> Contents:
        return np.array([content_number(one) for one in self._digests], dtype=np.uint64)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.side, self.widths)).encode())
        for file, content in zip(self.files, self._digests, strict=True):
            digest.update(self._name(file).encode() + self._text(file).encode() + content)
        return "images:" + digest.hexdigest()

    def _name(self, file: Path) -> str:
        return str(file.relative_to(self.root)) if self.root.is_dir() else file.name

    def _text(self, file: Path) -> str:
        beside = file.with_suffix(".txt")
        if beside.is_file():
            text = beside.read_text(encoding="utf-8").strip()
        else:
            text = file.parent.name if self.root.is_dir() and file.parent != self.root else ""
        if not text:
            raise DataError(
                "nothing says what this picture shows",
                where=str(file),
                fix=f"write it to {beside.name} beside it, or sort pictures into folders by name",
            )
        return text


def _squared(draw: Callable[[], Image.Image], side: int) -> Image.Image:
    return make_square(draw(), side=side)


def _loaded(file: Path, side: int) -> Image.Image:
    return make_square(load_image(file, where=str(file)), side=side)


def _digest(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
