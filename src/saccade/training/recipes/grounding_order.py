"""Which screenshots a group training sees when: mixed, and easy targets first where that is asked.

A source of pointing samples flows in and a source flows out that says itself how an epoch goes.
Samples of one screenshot do not stay neighbours: a step is a handful of questions, and they should
not all be about one page. Pictures are decoded when a sample is read, so that a picture which
cannot be is a broken row like any other. Left out: what is learned.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from saccade.data.boxes import Box
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource, leave_out_broken
from saccade.grounding.episodes import task_of

FIRST_SHARE = 0.1
"""Share of the targets, the largest ones, that a curriculum begins with."""


class Targets:
    """Samples in an order of their own; `easy` = positions until even the hardest have come in."""

    def __init__(self, source: SampleSource, *, seed: int, easy: int = 0) -> None:
        self.source, self.seed, self.easy = source, seed, easy

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int, /) -> Sample:
        """The sample with its picture decoded; DataError for a broken picture or box."""
        sample = self.source[position]
        return replace(sample, images=(task_of(sample).image,))

    def groups(self) -> list[list[int]]:
        return [[one] for group in self.source.groups() for one in group]

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def leave_out_broken(self) -> list[str]:
        """What the source itself knows to be broken."""
        return leave_out_broken(self.source)

    def epoch_order(self, number: int) -> np.ndarray:
        """Positions of an epoch: a shuffle, squeezed into the easy end while that is growing."""
        there = np.array([one for group in self.source.groups() for one in group], dtype=np.int64)
        size = len(there)
        drawn = np.random.default_rng([self.seed, number]).permutation(size)
        if number * size >= self.easy:
            return there[drawn]
        ranked = there[self._ranks]
        progress = np.minimum(1.0, (number * size + np.arange(size)) / self.easy)
        known = np.ceil(size * (FIRST_SHARE + (1 - FIRST_SHARE) * progress))
        return ranked[(drawn * known / size).astype(np.int64)]

    @cached_property
    def _ranks(self) -> np.ndarray:
        """Places in the list of all samples, the largest target first."""
        there = [one for group in self.source.groups() for one in group]
        areas = [_area(self.source, position) for position in there]
        return np.argsort(-np.asarray(areas), kind="stable")


def _area(source: SampleSource, position: int) -> float:
    """Share of the screenshot that the target takes; what cannot be read counts as hard."""
    try:
        sample = source[position]
    except DataError:
        return 0.0
    box = sample.facts.get("box")
    return Box(*box).area if box is not None else 0.0
