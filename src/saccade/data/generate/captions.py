"""Captions of generated scenes: what a picture shows, in several phrasings, written from its facts.

A scene is a function of (seed, split, index) as in `scenes.py`; so are its captions. A caption
names up to `mentions` things in reading order: shapes with colour and digit, signs with colour and
word ("a red star with digit 4 and a blue sign reading map"). With `noise`, part of the captions
are wrong about some of what they name, as captions from the web are; `facts["quality"]` is the
share they are right about, which a data-quality curriculum reads. Clutter is never named.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from saccade.config.schema import CaptionsSource
from saccade.data.generate.scene_rows import SceneRows
from saccade.data.generate.scenes import (
    COLORS,
    SHAPES,
    SPLIT_CODES,
    WORDS,
    Scene,
    Thing,
    cells_of,
    draw_scene,
    make_scene,
)
from saccade.data.samples import Sample

KIND = "caption"
PROMPTS = ("what does the picture show?", "describe the picture.", "what is there?")
OPENINGS = ("", "there is ", "the picture shows ")
SHAPE_PHRASES = (
    "{a} {color} {shape} with digit {digit}",
    "{a} {color} {shape} marked {digit}",
    "a {shape} in {color} with a {digit} on it",
)
SIGN_PHRASES = (
    "{a} {color} sign reading {word}",
    "{a} {color} sign that says {word}",
    "a sign in {color} with the word {word}",
)
PHRASINGS = len(OPENINGS) * len(SHAPE_PHRASES)


def mentioned(scene: Scene, *, most: int) -> tuple[Thing, ...]:
    """The things a caption names: shapes and signs by rows of cells, each from left to right.

    Of more than `most` things the largest stay; equal sizes keep reading order.
    """
    things = [thing for thing in scene.things if thing.category in ("shape", "sign")]
    things.sort(key=lambda thing: (thing.center[1] // scene.cell_px, thing.center[0]))
    by_size = sorted(range(len(things)), key=lambda i: -_area(things[i]))
    return tuple(things[i] for i in sorted(by_size[:most]))


def caption(things: Sequence[Thing], *, phrasing: int) -> str:
    """One sentence about the things, in one of `PHRASINGS` ways."""
    opening, phrase = divmod(phrasing % PHRASINGS, len(SHAPE_PHRASES))
    parts = [_phrase(thing, phrase) for thing in things]
    listed = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
    return OPENINGS[opening] + (listed or "nothing with a name")


def blurred(things: Sequence[Thing], rng: np.random.Generator) -> tuple[tuple[Thing, ...], float]:
    """The things with one to all of them misnamed, and the share that is still right."""
    wrong = set(rng.permutation(len(things))[: int(rng.integers(1, len(things) + 1))].tolist())
    told = [_misnamed(thing, rng) if i in wrong else thing for i, thing in enumerate(things)]
    return tuple(told), 1 - len(wrong) / len(things)


class CaptionScenes(SceneRows[CaptionsSource]):
    """Captions of one split's scenes as samples; item i is caption i % Q of scene i // Q."""

    name = "captions"

    def sample(self, index: int, *, number: int) -> Sample:
        position = index * self.source.questions + number
        scene = make_scene(self.source, index=index)
        things = mentioned(scene, most=self.source.mentions)
        told, quality = self._told(things, position=position)
        # every phrasing is a reference, the drawn one first
        first = int(self._rng(position, 1).integers(PHRASINGS)) + number
        texts = [caption(told, phrasing=first + step) for step in range(PHRASINGS)]
        return Sample(
            id=f"{scene.key}-c{number}",
            question=PROMPTS[first % len(PROMPTS)],
            answers=tuple(dict.fromkeys(texts)),
            images=(functools.partial(draw_scene, scene),),
            kind=KIND,
            image_key=scene.key,
            facts={
                "answer_cells": cells_of(scene, things),
                "grid": scene.grid,
                "scene": scene,
                "quality": quality,
                "objects": tuple(thing.shape or "sign" for thing in things),
            },
        )

    def qualities(self) -> Iterator[float]:
        """Quality of every pair by position, without drawing anything."""
        for position in range(len(self)):
            if self.source.noise == 0:
                yield 1.0
            else:
                yield self[position].facts["quality"]

    def _told(self, things: tuple[Thing, ...], *, position: int) -> tuple[tuple[Thing, ...], float]:
        rng = self._rng(position, 0)
        if not things or rng.random() >= self.source.noise:
            return things, 1.0
        return blurred(things, rng)

    def _rng(self, position: int, use: int) -> np.random.Generator:
        split = SPLIT_CODES[self.source.split]
        return np.random.default_rng([self.source.seed, split, position, 7, use])


def _area(thing: Thing) -> int:
    x0, y0, x1, y1 = thing.box
    return (x1 - x0) * (y1 - y0)


def _phrase(thing: Thing, number: int) -> str:
    phrases = SIGN_PHRASES if thing.category == "sign" else SHAPE_PHRASES
    article = "an" if thing.color[0] in "aeiou" else "a"
    return phrases[number].format(
        a=article, color=thing.color, shape=thing.shape, digit=thing.digit, word=thing.word
    )


def _misnamed(thing: Thing, rng: np.random.Generator) -> Thing:
    color = _other(COLORS, thing.color, rng)
    if thing.category == "sign":
        return replace(thing, color=color, word=_other(WORDS, thing.word, rng))
    digit = (thing.digit + int(rng.integers(1, 10))) % 10
    return replace(thing, color=color, shape=_other(SHAPES, thing.shape, rng), digit=digit)


def _other(names: Sequence[str], name: str, rng: np.random.Generator) -> str:
    return names[(names.index(name) + int(rng.integers(1, len(names)))) % len(names)]
