"""Yes/no questions about what a generated scene shows, in the manner of POPE.

A scene is a function of (seed, split, index) as in `scenes.py`, so what it shows is known. An
object is a shape of a colour ("a red star"). Half of a scene's questions, rounded down, are about
objects that are there, the others about absent ones: drawn at random, or `adversarial` = those that
look most like the scene, whose colour and whose shape are both there but never together. Left out:
POPE's "popular" objects; the generator draws all objects equally often, so none is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saccade.config.schema import ProbingSource
from saccade.data.generate.scene_rows import SceneRows
from saccade.data.generate.scenes import (
    COLORS,
    SHAPES,
    Scene,
    Thing,
    cells_of,
    draw_scene,
    make_scene,
)
from saccade.data.samples import Sample

KIND = "presence"


@dataclass(frozen=True)
class Probe:
    """One question; `about` are the things that make it true, none where it is false."""

    text: str
    answer: str
    about: tuple[Thing, ...]


def present_objects(scene: Scene) -> dict[tuple[str, str], tuple[Thing, ...]]:
    """The (colour, shape) pairs of a scene with the things that are one."""
    found: dict[tuple[str, str], tuple[Thing, ...]] = {}
    for thing in scene.shapes:
        pair = (thing.color, thing.shape)
        found[pair] = (*found.get(pair, ()), thing)
    return found


def absent_objects(scene: Scene, *, adversarial: bool) -> list[tuple[str, str]]:
    """Pairs that the scene has not, in a fixed order; the most misleading ones, or all.

    Where no absent pair has both its colour and its shape in the scene, one of the two is enough.
    """
    here = present_objects(scene)
    everything: list[tuple[str, str]] = list(itertools.product(COLORS, SHAPES))
    absent = [pair for pair in everything if pair not in here]
    if not adversarial:
        return absent
    colors, shapes = {color for color, _ in here}, {shape for _, shape in here}
    alike = [(color in colors) + (shape in shapes) for color, shape in absent]
    most = max(alike, default=0)
    return [pair for pair, score in zip(absent, alike, strict=True) if score == most]


def probe(scene: Scene, *, count: int, adversarial: bool, seed: int) -> list[Probe]:
    """Draw `count` questions, half of them true, in random order.

    Fewer things than questions: true ones repeat no object, false ones fill the rest.
    """
    rng = np.random.default_rng(seed)
    here = present_objects(scene)
    true = _draw(sorted(here), count // 2, rng)
    likely = absent_objects(scene, adversarial=adversarial)
    false = _draw(likely, count - len(true), rng)
    if len(true) + len(false) < count:  # a tiny scene has few look-alikes
        rest = [p for p in absent_objects(scene, adversarial=False) if p not in likely]
        false += _draw(rest, count - len(true) - len(false), rng)
    made = [Probe(_question(*pair), "yes", here[pair]) for pair in true]
    made += [Probe(_question(*pair), "no", ()) for pair in false]
    return [made[i] for i in rng.permutation(len(made))]


class ProbingScenes(SceneRows[ProbingSource]):
    """Probing questions of one split as samples; item i is question i % Q of scene i // Q."""

    name = "probing"

    def sample(self, index: int, *, number: int) -> Sample:
        return self.scene_samples(index)[number]

    def scene_samples(self, index: int) -> list[Sample]:
        """All questions about scene `index`, sharing one image."""
        scene = make_scene(self.source, index=index)
        probes = probe(
            scene, count=self.source.questions, seed=scene.background_seed + 2,
            adversarial=self.source.negatives == "adversarial",
        )  # fmt: skip
        return [self._sample(scene, one, number=number) for number, one in enumerate(probes)]

    def _sample(self, scene: Scene, one: Probe, *, number: int) -> Sample:
        facts = {"scene": scene, "grid": scene.grid}
        if one.about:
            facts["answer_cells"] = cells_of(scene, one.about)
        return Sample(
            id=f"{scene.key}-p{number}",
            question=one.text,
            answers=(one.answer,),
            images=(functools.partial(draw_scene, scene),),
            kind=KIND,
            image_key=scene.key,
            facts=facts,
        )


def _draw(
    pool: Sequence[tuple[str, str]], count: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    return [pool[i] for i in rng.permutation(len(pool))[:count]]


def _question(color: str, shape: str) -> str:
    article = "an" if color[0] in "aeiou" else "a"
    return f"is there {article} {color} {shape}?"
