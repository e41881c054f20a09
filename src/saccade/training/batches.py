"""Which samples each step sees, and how they reach the model.

A sample source and a seed flow in, micro-batches flow out. The order is a pure function of
(seed, position): epochs are shuffles of the source's groups, so samples that share an image stay
neighbours, and step `s` takes positions `s * samples_per_step` onward, across epoch borders.
Hence resuming jumps there without reading what came before, and one process with a large batch,
accumulation, and several processes all see the same samples in the same step. Loading and
tokenising belong to the source and the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource

Collate = Callable[[list[Sample]], dict[str, Any]]

MAX_REPLACEMENTS = 100
"""Broken rows in a row before skipping gives up: the whole source is broken then."""


class SampleOrder:
    """The endless order of sample indices.

    `keep_order` plays the groups as they come in every epoch, `own` makes an epoch's order.
    """

    def __init__(
        self,
        groups: list[list[int]],
        *,
        seed: int,
        keep_order: bool,
        own: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.groups = [np.asarray(group, dtype=np.int64) for group in groups]
        self.size = sum(len(group) for group in self.groups)
        self.seed = seed
        self.keep_order = keep_order
        self.own = own
        self._epoch: tuple[int, np.ndarray] | None = None

    def epoch(self, number: int) -> np.ndarray:
        """All indices in the order of one epoch."""
        if self._epoch is None or self._epoch[0] != number:
            if self.own is not None:
                self._epoch = number, self.own(number)
                return self._epoch[1]
            turns = range(len(self.groups))
            if not self.keep_order:
                turns = np.random.default_rng([self.seed, number]).permutation(len(self.groups))
            self._epoch = number, np.concatenate([self.groups[turn] for turn in turns])
        return self._epoch[1]

    def take(self, start: int, count: int) -> list[int]:
        """Indices at positions [start, start + count)."""
        taken: list[int] = []
        while len(taken) < count:
            number, offset = divmod(start + len(taken), self.size)
            taken += self.epoch(number)[offset : offset + count - len(taken)].tolist()
        return taken


def order_of(source: SampleSource, *, seed: int) -> SampleOrder:
    """The order in which a source is trained on.

    A source with `epoch_order` says itself how an epoch goes, one with `ordered = True` is played
    as it is, and all others are shuffled.
    """
    return SampleOrder(
        source.groups(),
        seed=seed,
        keep_order=getattr(source, "ordered", False),
        own=getattr(source, "epoch_order", None),
    )


@dataclass(frozen=True)
class Share:
    """How a step's samples are dealt out: micro-batches per process, processes, and this one."""

    batch_size: int
    accumulation: int
    world_size: int
    rank: int

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step, over all processes."""
        return self.batch_size * self.accumulation * self.world_size


class StepBatches(Sampler[list[int]]):
    """Micro-batches of this process from the step that `first_step` names when iteration begins."""

    def __init__(
        self, order: SampleOrder, *, share: Share, steps: int, first_step: Callable[[], int]
    ) -> None:
        self.order = order
        self.share = share
        self.steps = steps
        self.first_step = first_step

    def __len__(self) -> int:
        return self.steps * self.share.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        share = self.share
        for step in range(self.first_step(), self.steps):
            start = step * share.samples_per_step
            # each process takes one contiguous part, so its image groups stay whole
            start += share.rank * share.accumulation * share.batch_size
            for micro in range(share.accumulation):
                yield self.order.take(start + micro * share.batch_size, share.batch_size)


@dataclass(frozen=True)
class Loaded:
    """A sample, and what was wrong with the row it replaces, if any."""

    sample: Sample
    problem: str | None = None


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass gets, and what the log wants to know about it."""

    inputs: dict[str, Any]
    sample_ids: list[str]
    problems: list[str]


class LoadedSamples(Dataset[Loaded]):
    """Map-style view of a source; a broken row stops, or is replaced by the next whole one."""

    def __init__(self, source: SampleSource, *, skip_broken: bool) -> None:
        self.source = source
        self.skip_broken = skip_broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Loaded:
        first: DataError | None = None
        for ahead in range(MAX_REPLACEMENTS):
            try:
                sample = self.source[(index + ahead) % len(self.source)]
            except DataError as error:
                if not self.skip_broken:
                    raise
                first = first or error
            else:
                return Loaded(sample, None if first is None else f"{first.where}: {first.problem}")
        assert first is not None
        raise first


@dataclass(frozen=True)
class CollateLoaded:
    """A recipe's collate, with ids and problems carried past it (picklable for workers)."""

    collate: Collate

    def __call__(self, loaded: list[Loaded]) -> MicroBatch:
        samples = [one.sample for one in loaded]
        return MicroBatch(
            inputs=self.collate(samples),
            sample_ids=[sample.id for sample in samples],
            problems=[one.problem for one in loaded if one.problem],
        )


def make_loader(
    source: SampleSource,
    *,
    batches: StepBatches,
    collate: Collate,
    skip_broken: bool,
    workers: int,
    seed: int,
) -> DataLoader[Any]:
    """The loader of one process; it draws nothing from the global random state."""
    return DataLoader(
        LoadedSamples(source, skip_broken=skip_broken),
        batch_sampler=batches,
        collate_fn=CollateLoaded(collate),
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
    )


def count_supervised(inputs: dict[str, Any]) -> int:
    """Supervised tokens of a micro-batch: labels that are not -100."""
    return int((inputs["labels"] != -100).sum())


def count_tokens(inputs: dict[str, Any]) -> int:
    """Tokens entering the model, padding left out where a 2-D mask tells."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return int((mask != 0).sum())
    ids = inputs.get("input_ids")
    return ids.numel() if isinstance(ids, torch.Tensor) else inputs["labels"].numel()
