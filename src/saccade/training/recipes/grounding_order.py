"""What a grounding run reads: targets that were checked, and which of them when.

A source of pointing samples flows in and a source flows out. Pictures are decoded and boxes checked
when a sample is read, so that a row whose picture cannot be decoded or whose box lies outside is a
broken row like any other: it stops the run, or is counted, named and replaced. Group training
(`Targets`) says itself how an epoch goes: samples of one screenshot do not stay neighbours, because
a step is a handful of questions that should not all be about one page, and easy targets may come
first. Left out: what is learned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property

import numpy as np
from PIL import Image
from torch.utils.data import Sampler

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.boxes import Box
from saccade.data.samples import DataError, ImageRef, Sample
from saccade.data.sources import SampleSource, leave_out_broken, open_source
from saccade.grounding.episodes import Task, task_of, tasks_of
from saccade.training.batches import SampleOrder, Share

log = logging.getLogger(__name__)

FIRST_SHARE = 0.1
"""Share of the targets, the largest ones, that a curriculum begins with."""


class Checked:
    """Samples with their pictures decoded; questions about one picture share it.

    `boxed`: a target that is known by a point alone is a broken row.
    """

    def __init__(self, source: SampleSource, *, boxed: bool = False) -> None:
        self.source, self.boxed = source, boxed
        self._last: tuple[tuple[ImageRef, ...], ImageRef] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int, /) -> Sample:
        """The sample as it is learned from; DataError for a broken picture or box."""
        sample = self.source[position]
        known = None
        if self._last is not None and self._last[0] == sample.images:
            known = self._last[1]
        task = task_of(sample, image=known if isinstance(known, Image.Image) else None)
        if self.boxed and task.box is None:
            raise DataError(
                "the target is a point, and this phase learns from boxes",
                where=sample.id,
                fix="data.on_error=skip leaves such rows out",
            )
        self._last = sample.images, task.image
        facts = sample.facts
        if task.loading is not None:
            facts = {**facts, "loading": task.loading}
        return replace(sample, images=(task.image,), facts=facts)

    def groups(self) -> list[list[int]]:
        return self.source.groups()

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def leave_out_broken(self) -> list[str]:
        """What the source itself knows to be broken."""
        return leave_out_broken(self.source)


class Targets(Checked):
    """Samples in an order of their own; `easy` = positions until even the hardest have come in."""

    def __init__(self, source: SampleSource, *, seed: int, easy: int = 0) -> None:
        super().__init__(source)
        self.seed, self.easy = seed, easy

    def groups(self) -> list[list[int]]:
        return [[one] for group in self.source.groups() for one in group]

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


def open_for_training(config: Config) -> SampleSource:
    """The configured source of a training; InputError for a benchmark that nobody insists on."""
    wanted = config.data.train
    source = open_source(wanted)
    benchmarks = getattr(source, "benchmarks", [])
    if benchmarks and not getattr(wanted, "allow_benchmark", False):
        raise InputError(
            f"data.train: these are the test rows of {benchmarks[0]}, a public benchmark; trained"
            " on, it measures nothing any more"
            "\n  fix: evaluate on it with `saccade eval --screens`, or insist with"
            " data.train.allow_benchmark=true"
        )
    if config.grounding.reward.tool and not _knows_who_needs_zoom(source):
        raise InputError(
            f"grounding.reward.tool={config.grounding.reward.tool:g}: no row of data.train says"
            " whether it needs a zoom\n  fix: grounding.reward.tool=0, or rows with the fact"
            " `needs_zoom`"
        )
    return source


def _knows_who_needs_zoom(source: SampleSource, *, asked: int = 64) -> bool:
    """Whether one of the first whole samples carries the fact."""
    for position in range(min(asked, len(source))):
        with suppress(DataError):
            if source[position].facts.get("needs_zoom") is not None:
                return True
    return False


def held_out(source: SampleSource, *, limit: int, size: int, skip: bool) -> Iterator[list[Task]]:
    """The first `limit` targets in batches of `size`; broken rows are left out where `skip`.

    Raises DataError for a broken row otherwise, and where no row is whole.
    """
    whole, checked = 0, Checked(source)
    for start in range(0, min(limit, len(source)), size):
        samples: list[Sample] = []
        for position in range(start, min(start + size, limit, len(source))):
            try:
                samples.append(checked[position])
            except DataError as error:
                if not skip:
                    raise
                log.warning("not asked, a broken row: %s", error)
        whole += len(samples)
        if samples:
            yield tasks_of(samples)
    if not whole:
        raise DataError(
            "no row is whole", where="data.eval", fix="look at them: saccade data check"
        )


def _area(source: SampleSource, position: int) -> float:
    """Share of the screenshot that the target takes; what cannot be read counts as hard."""
    try:
        sample = source[position]
    except DataError:
        return 0.0
    box = sample.facts.get("box")
    return Box(*box).area if box is not None else 0.0


class FreshBatches(Sampler[list[int]]):
    """Questions for each step that samples episodes, nothing for the steps that use them again."""

    def __init__(
        self,
        order: SampleOrder,
        *,
        share: Share,
        steps: int,
        first_step: Callable[[], int],
        reuse: int,
    ) -> None:
        self.order, self.share, self.steps = order, share, steps
        self.first_step, self.reuse = first_step, reuse

    def __len__(self) -> int:
        return self.steps * self.share.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        share = self.share
        for step in range(self.first_step(), self.steps):
            round_, again = divmod(step, self.reuse)
            start = round_ * share.samples_per_step
            start += share.rank * share.accumulation * share.batch_size
            for micro in range(share.accumulation):
                first = start + micro * share.batch_size
                yield [] if again else self.order.take(first, share.batch_size)
