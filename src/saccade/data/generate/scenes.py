"""Generated scenes: images whose questions can be answered only from a few of their cells.

A scene is a function of (seed, split, index): shapes that carry a colour and a digit, word signs,
and busy clutter on a plain ground, a few cells each, in images of hundreds of cells with varying
size and aspect ratio. About half the cells show something, so neither a uniform grid nor "keep
what stands out" suffices; the question decides. Each question comes with the cells that carry
its answer, for measuring only (`Sample.facts`). A cell is one visual token, `cell_pixels` wide.
Most questions name what they are about by colour or shape; the kind `odd` names nothing: all
shapes of its scenes share one colour but for one that stands out. Some scenes may be drawn
smaller (`scaled_share`), as a preview of themselves. Left out: occlusion, perspective, textures
from nature.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from saccade.config.schema import ScenesSource
from saccade.data.generate import drawing
from saccade.data.generate.scene_rows import SceneRows
from saccade.data.samples import Sample

COLORS = tuple(drawing.COLORS)
SHAPES = drawing.SHAPES
WORDS = (
    "cat", "dog", "sun", "map", "key", "box", "cup", "hat", "pen", "bus", "fox", "owl",
    "ink", "jam", "net", "oak", "pie", "rug", "van", "web", "zip", "gem", "fan", "log",
    "milk", "tree", "fish", "road", "bell", "coin", "star", "drum",
)  # fmt: skip
SPLIT_CODES = {"train": 0, "validation": 1, "test": 2}
KINDS = ("color", "shape", "digit", "word", "count", "relation", "odd")
LARGEST_CELLS = 324
"""A scene drawn smaller starts from one that is larger by as much, but never above this area."""
LEGIBLE_SCALE = 0.4
"""Below this scale digits and words are a smudge, and no cell is said to show one."""
PLACES = 16
"""Parts of the picture's height and width in which a thing's cells are told to lie."""
CELL_TARGETS = {
    "category": 4,
    "shape": 1 + len(SHAPES),
    "color": 1 + len(COLORS),
    "digit": 11,
    "word": 1 + len(WORDS),
    "row": 1 + PLACES,
    "column": 1 + PLACES,
}
"""What a cell may show, as class counts; class 0 is "nothing of that kind". Where a thing lies is
asked too: a tower that is asked for content alone throws its cells' positions away."""


@dataclass(frozen=True)
class Thing:
    """One drawn object; the box is in pixels (x0, y0, x1, y1)."""

    category: str  # "shape", "sign" or "clutter"
    box: tuple[int, int, int, int]
    shape: str = ""
    color: str = ""
    digit: int = -1
    word: str = ""
    seed: int = 0

    @property
    def center(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) // 2, (y0 + y1) // 2

    def glyph_box(self, cell_px: int) -> tuple[int, int, int, int]:
        """Where the digit or word stands: one cell high, in the middle."""
        x, y = self.center
        half = cell_px // 2
        wide = half if self.category == "shape" else (self.box[2] - self.box[0]) // 2 - half // 2
        return x - wide, y - half, x + wide, y + half


@dataclass(frozen=True)
class Scene:
    """A scene before drawing: size in cells and the things in it."""

    key: str
    rows: int
    columns: int
    cell_px: int
    things: tuple[Thing, ...]
    background_seed: int
    scale: float = 1.0

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells in the drawn image."""
        return max(2, round(self.rows * self.scale)), max(2, round(self.columns * self.scale))

    @property
    def shapes(self) -> list[Thing]:
        return [thing for thing in self.things if thing.category == "shape"]

    @property
    def signs(self) -> list[Thing]:
        return [thing for thing in self.things if thing.category == "sign"]


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str
    about: tuple[Thing, ...]


def make_scene(source: ScenesSource, *, index: int) -> Scene:
    """Lay out scene `index` of the stream; equal arguments give equal scenes on any machine."""
    entropy = [source.seed, SPLIT_CODES[source.split], index]
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    cell = source.cell_pixels
    scale = 1.0
    if rng.random() < source.scaled_share:
        scale = float(source.min_scale ** rng.random())
    drawn = rng.uniform(source.min_cells, source.max_cells)
    area = min(drawn / scale**2, max(LARGEST_CELLS, source.max_cells))
    aspect = 2.0 ** rng.uniform(-0.6, 0.6)
    rows = max(4, round((area / aspect) ** 0.5))
    # flooring keeps rows x columns inside the promised range whatever the rounding of rows
    columns = max(4, min(round(area / rows), int(max(area, source.max_cells)) // rows))
    shapes = round(int(rng.integers(source.min_objects, source.max_objects + 1)) * area / drawn)
    signs = min(3, 1 + shapes // 5) if "word" in source.kinds else 0
    counts = (signs, shapes, max(1, int(shapes * source.clutter)))
    odd = "odd" in source.kinds and bool(rng.random() < source.odd_share)
    things = _place(rng, rows * cell, columns * cell, cell=cell, counts=counts, odd=odd)
    return Scene(
        key=f"scenes-{source.seed}-{source.split}-{index}",
        rows=rows,
        columns=columns,
        cell_px=cell,
        things=tuple(things),
        background_seed=int(rng.integers(2**31)),
        scale=scale,
    )


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    cell: int,
    counts: tuple[int, int, int],
    odd: bool,
) -> list[Thing]:
    """Signs first (they are wide), then shapes, then clutter (`counts`), none overlapping.

    With `odd` every shape has the same colour but the first.
    """
    signs, shapes, clutter = counts
    placed: list[Thing] = []
    half = cell // 2
    frame_colors = rng.permutation(len(COLORS))
    words = rng.permutation(len(WORDS))

    def put(w: int, h: int, **fields: object) -> None:
        for _ in range(80):
            # centres lie on the half-cell raster, so a glyph meets the patches in only one way
            x = half * int(rng.integers(-(-w // 2 // half), (width - w // 2) // half + 1)) - w // 2
            y = half * int(rng.integers(-(-h // 2 // half), (height - h // 2) // half + 1)) - h // 2
            free = all(
                x + w + 2 < t.box[0] or t.box[2] + 2 < x or y + h + 2 < t.box[1] or t.box[3] + 2 < y
                for t in placed
            )
            if free:
                placed.append(Thing(box=(x, y, x + w, y + h), **fields))  # type: ignore[arg-type]
                return

    for number in range(signs):
        w, h = (2 * round(rng.uniform(*span) * half) for span in ((3.4, 4.4), (1.7, 2.2)))
        put(
            min(w, width), h, category="sign",
            color=COLORS[frame_colors[number]], word=WORDS[words[number]],
        )  # fmt: skip
    two = rng.permutation(len(COLORS))[:2]
    for number in range(shapes):
        side = half * int(rng.integers(4, 7))
        put(
            side, side, category="shape",
            shape=SHAPES[rng.integers(len(SHAPES))],
            color=COLORS[two[min(number, 1)] if odd else rng.integers(len(COLORS))],
            digit=int(rng.integers(10)),
        )  # fmt: skip
    for _ in range(clutter):
        side = half * int(rng.integers(3, 7))
        put(side, side, category="clutter", seed=int(rng.integers(2**31)))
    return placed


def draw_scene(scene: Scene) -> Image.Image:
    """RGB image of `grid` cells of `cell_px` pixels."""
    rng = np.random.default_rng(scene.background_seed)
    image = drawing.background(
        rng, width_px=scene.columns * scene.cell_px, height_px=scene.rows * scene.cell_px
    )
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        if thing.category == "shape":
            tile = drawing.shape_tile(
                shape=thing.shape,
                color=thing.color,
                digit=thing.digit,
                side_px=x1 - x0,
                badge_px=scene.cell_px,
            )
        elif thing.category == "sign":
            tile = drawing.sign_tile(
                word=thing.word,
                color=thing.color,
                width_px=x1 - x0,
                height_px=y1 - y0,
                text_px=scene.cell_px,
            )
        else:
            tile = drawing.clutter_tile(np.random.default_rng(thing.seed), side_px=x1 - x0)
        image.paste(tile, (x0, y0), tile)
    if scene.scale < 1:
        rows, columns = scene.grid
        size = (columns * scene.cell_px, rows * scene.cell_px)
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image


def cells_of(scene: Scene, things: tuple[Thing, ...]) -> list[int]:
    """Raster indices of the cells at least 30% covered by one of the things' boxes."""
    return cells_under(scene, [thing.box for thing in things], overlap=0.3)


def cells_under(
    scene: Scene, boxes: list[tuple[int, int, int, int]], *, overlap: float
) -> list[int]:
    """Raster indices of the drawn cells at least `overlap` covered by one of the boxes.

    Of a box smaller than a cell, at least that share of the box lies in the cell; a box that
    straddles cells without filling any so far has the one it covers most.
    """
    cell, (rows, columns) = scene.cell_px, scene.grid
    down, across = rows / scene.rows, columns / scene.columns
    covered: set[int] = set()
    for box in boxes:
        x0, y0, x1, y1 = box[0] * across, box[1] * down, box[2] * across, box[3] * down
        enough = overlap * min(cell * cell, (x1 - x0) * (y1 - y0))
        cover: dict[int, float] = {}
        for row in range(int(y0 // cell), min(rows, math.ceil(y1 / cell))):
            for column in range(int(x0 // cell), min(columns, math.ceil(x1 / cell))):
                wide = min(x1, (column + 1) * cell) - max(x0, column * cell)
                high = min(y1, (row + 1) * cell) - max(y0, row * cell)
                cover[row * columns + column] = wide * high
        covered.update(index for index, area in cover.items() if area >= enough)
        if max(cover.values()) < enough:
            covered.add(max(cover, key=cover.__getitem__))
    return sorted(covered)


def cell_targets(scene: Scene) -> dict[str, list[int]]:
    """Content of every cell in raster order, as class numbers per entry of `CELL_TARGETS`."""
    targets = {name: [0] * (scene.grid[0] * scene.grid[1]) for name in CELL_TARGETS}
    for thing in scene.things:
        body = {
            "category": 1 + ("shape", "sign", "clutter").index(thing.category),
            "shape": 1 + SHAPES.index(thing.shape) if thing.shape else 0,
            "color": 1 + COLORS.index(thing.color) if thing.color else 0,
        }
        glyph = {
            "digit": 1 + thing.digit,
            "word": 1 + WORDS.index(thing.word) if thing.word else 0,
        }
        glyph_box = thing.glyph_box(scene.cell_px)
        legible = scene.scale >= LEGIBLE_SCALE
        for labels, cells in (
            (body, cells_of(scene, (thing,))),
            (glyph, cells_under(scene, [glyph_box], overlap=0.2) if legible else []),
        ):
            for cell in cells:
                for name, label in labels.items():
                    targets[name][cell] = label
    rows, columns = scene.grid
    for cell in (cell for cell, category in enumerate(targets["category"]) if category):
        targets["row"][cell] = 1 + PLACES * (cell // columns) // rows
        targets["column"][cell] = 1 + PLACES * (cell % columns) // columns
    return targets


def vocabulary_texts() -> list[str]:
    """Questions and answers a tokenizer for scenes should know, in a fixed order."""
    source = SceneSource(ScenesSource(scenes=300, questions=12))
    samples = [sample for i in range(300) for sample in source.scene_samples(i)]
    return [text for sample in samples for text in (sample.question, sample.answer)]


def _unique(things: list[Thing], attribute: str) -> list[Thing]:
    """Things that no other thing equals in this attribute: they can be named by it."""
    values = [getattr(thing, attribute) for thing in things]
    return [thing for thing, value in zip(things, values, strict=True) if values.count(value) == 1]


def _attribute_questions(scene: Scene, kind: str) -> list[Question]:
    phrases = {
        ("color", "shape"): "what color is the {}?",
        ("shape", "color"): "which shape is {}?",
        ("digit", "shape"): "which digit is on the {}?",
        ("digit", "color"): "which digit is on the {} shape?",
    }
    return [
        Question(kind, phrase.format(getattr(thing, by)), str(getattr(thing, kind)), (thing,))
        for (asked, by), phrase in phrases.items()
        if asked == kind
        for thing in _unique(scene.shapes, by)
    ]


def _word_questions(scene: Scene) -> list[Question]:
    return [
        Question("word", f"what does the {sign.color} sign say?", sign.word, (sign,))
        for sign in scene.signs
    ]


def _count_questions(scene: Scene) -> list[Question]:
    questions = []
    for shape in SHAPES:
        matching = tuple(thing for thing in scene.shapes if thing.shape == shape)
        if matching:
            text = f"how many {shape}{'es' if shape == 'cross' else 's'} are there?"
            questions.append(Question("count", text, str(len(matching)), matching))
    return questions


def _relation_questions(scene: Scene) -> list[Question]:
    questions = []
    named = _unique(scene.shapes, "shape")
    for a in named:
        for b in named:
            dx, dy = a.center[0] - b.center[0], a.center[1] - b.center[1]
            if a is b or max(abs(dx), abs(dy)) < 2 * scene.cell_px:
                continue
            if abs(dx) > abs(dy):
                text = f"is the {a.shape} left or right of the {b.shape}?"
                questions.append(Question("relation", text, "left" if dx < 0 else "right", (a, b)))
            else:
                text = f"is the {a.shape} above or below the {b.shape}?"
                questions.append(Question("relation", text, "above" if dy < 0 else "below", (a, b)))
    return questions


def _odd_questions(scene: Scene) -> list[Question]:
    """About the one shape that stands out by its colour from three others or more."""
    colors = Counter(thing.color for thing in scene.shapes)
    if len(colors) != 2 or min(colors.values()) > 1 or max(colors.values()) < 3:
        return []
    (odd,) = _unique(scene.shapes, "color")
    return [
        Question("odd", "which digit is on the shape that stands out?", str(odd.digit), (odd,)),
        Question("odd", "what color is the shape that stands out?", odd.color, (odd,)),
        Question("odd", "which shape stands out?", odd.shape, (odd,)),
    ]


_ASKERS: dict[str, Callable[[Scene], list[Question]]] = {
    **{kind: functools.partial(_attribute_questions, kind=kind) for kind in KINDS[:3]},
    "word": _word_questions,
    "count": _count_questions,
    "relation": _relation_questions,
    "odd": _odd_questions,
}


def ask(scene: Scene, *, kinds: tuple[str, ...], count: int, seed: int) -> list[Question]:
    """Draw `count` questions, spread over the kinds the scene can answer; repeats if it must.

    Only some scenes have an odd one out; those ask for it twice as often as for anything else.
    """
    rng = np.random.default_rng(seed)
    pools = {kind: _ASKERS[kind](scene) for kind in kinds}
    pools = {
        kind: [pool[i] for i in rng.permutation(len(pool))] for kind, pool in pools.items() if pool
    }
    turns = [*pools, *(kind for kind in pools if kind == "odd")]
    order = [turns[i] for i in rng.permutation(len(turns))]
    if not order:  # a scene too crowded for any unique name still has things to count
        pools, order = {"count": _count_questions(scene)}, ["count"]
    chosen, asked = [], Counter()
    for turn in range(count):
        kind = order[turn % len(order)]
        chosen.append(pools[kind][asked[kind] % len(pools[kind])])
        asked[kind] += 1
    return chosen


class SceneSource(SceneRows[ScenesSource]):
    """The scenes of one split as samples; item i is question i % Q of scene i // Q."""

    name = "scenes"

    def sample(self, index: int, *, number: int) -> Sample:
        return self.scene_samples(index)[number]

    def scene_samples(self, index: int) -> list[Sample]:
        """All samples of scene `index`, sharing one image."""
        scene = make_scene(self.source, index=index)
        questions = ask(
            scene, kinds=tuple(self.source.kinds),
            count=self.source.questions, seed=scene.background_seed + 1,
        )  # fmt: skip
        return [
            Sample(
                id=f"{scene.key}-q{number}",
                question=question.text,
                answers=(question.answer,),
                images=(functools.partial(draw_scene, scene),),
                kind=question.kind,
                image_key=scene.key,
                facts={
                    "answer_cells": cells_of(scene, question.about),
                    "grid": scene.grid,
                    "scene": scene,
                },
            )
            for number, question in enumerate(questions)
        ]
