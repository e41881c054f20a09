"""Preference pairs from generated scenes: the right answer, and a plausible wrong one.

A scene and its questions are those of `scenes.py`; each question gains a wrong answer of the same
kind, drawn by (scene, question): another colour, shape, digit or word that is in the picture where
there is one, a count that is off by one, the opposite side. What is wrong can be seen only by
looking, since both answers are of a kind that fits the question. Left out: answers in sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saccade.config.schema import PreferenceSource
from saccade.data.generate.scenes import COLORS, SHAPES, WORDS, Scene, SceneSource
from saccade.data.preferences import REJECTED
from saccade.data.samples import Sample

OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
DIGITS = tuple(str(digit) for digit in range(10))


def plausible_wrong(scene: Scene, *, kind: str, answer: str, seed: int) -> str:
    """A wrong answer of the same kind; equal arguments give equal answers."""
    if answer in OPPOSITES:
        return OPPOSITES[answer]
    rng = np.random.default_rng(seed)
    if kind == "count":
        return str(max(0, int(answer) + int(rng.choice((-1, 1)))))
    seen, known = _alike(scene, answer, kind=kind)
    pool = [one for one in seen if one != answer] or [one for one in known if one != answer]
    return str(pool[int(rng.integers(len(pool)))])


class PreferenceScenes(SceneSource):
    """The scenes of one split as samples with a rejected answer each."""

    source: PreferenceSource
    name = "preferences"

    def scene_samples(self, index: int) -> list[Sample]:
        """All samples of scene `index`, sharing one image."""
        samples = super().scene_samples(index)
        return [self._with_rejected(one, number=i) for i, one in enumerate(samples)]

    def _with_rejected(self, sample: Sample, *, number: int) -> Sample:
        scene: Scene = sample.facts["scene"]
        wrong = plausible_wrong(
            scene, kind=sample.kind, answer=sample.answer,
            seed=scene.background_seed + 3 + number,
        )  # fmt: skip
        return replace(sample, facts={**sample.facts, REJECTED: wrong})


def _alike(scene: Scene, answer: str, *, kind: str) -> tuple[list[str], Sequence[str]]:
    """What the scene shows of the answer's sort, in a fixed order, and all there is of it."""
    if kind == "word":  # first, because some words are also names of shapes
        return sorted({sign.word for sign in scene.signs}), WORDS
    if answer in COLORS:
        return sorted({thing.color for thing in scene.shapes}), COLORS
    if answer in SHAPES:
        return sorted({thing.shape for thing in scene.shapes}), SHAPES
    return sorted({str(thing.digit) for thing in scene.shapes}), DIGITS
