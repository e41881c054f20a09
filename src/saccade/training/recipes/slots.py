"""The slots of a persistent batch over a whole run: which sample each takes, and their carries.

The share of a process and an order of samples flow in; batches of fresh positions and refilled
carries flow out. Slot g of all G takes the positions g, g + G, g + 2G, ... of the endless order of
samples, one whenever it is done with the last. So every sample is used once per epoch, nothing is
read and thrown away, and neither the cut into micro-batches nor the number of processes changes
what a slot sees. The slots of all processes are saved in one order. Left out: the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import Sampler

from saccade.models.recursion.carry import Carry, joined, restored
from saccade.models.recursion.model import RecursiveModel
from saccade.training.batches import SampleOrder, Share


class Slots:
    """The carries of one process, one for each micro-batch of a step."""

    def __init__(self, model: RecursiveModel, *, share: Share) -> None:
        self.model, self.share = model, share
        self.total = share.samples_per_step
        self._carries: list[Carry] = []
        self._saved: dict[str, Tensor] | None = None

    @property
    def carries(self) -> list[Carry]:
        """Made when first asked for, on the device where the model is by then."""
        if not self._carries:
            micro = range(self.share.accumulation)
            self._carries = [self._first(number) for number in micro]
        return self._carries

    def first_slot(self, micro: int) -> int:
        """The number, over all processes, of a micro-batch's first slot."""
        share = self.share
        return (share.rank * share.accumulation + micro) * share.batch_size

    def _first(self, micro: int) -> Carry:
        slots, device = self.share.batch_size, next(self.model.parameters()).device
        if self._saved is None:
            return self.model.empty_carry(slots)
        return restored(self._saved, first=self.first_slot(micro), slots=slots, device=device)

    def positions(self, micro: int) -> list[int]:
        """Positions of the samples that this micro-batch's done slots take next."""
        carry = self.carries[micro]
        first = self.first_slot(micro)
        wanted = zip(carry.halted.tolist(), carry.taken.tolist(), strict=True)
        return [
            first + slot + self.total * taken for slot, (done, taken) in enumerate(wanted) if done
        ]

    def refill(self, micro: int, fresh: Mapping[str, Tensor]) -> Carry:
        """Put fresh samples into the done slots of a micro-batch."""
        start = self.model.start(self.share.batch_size)
        self.carries[micro] = self.carries[micro].refilled(fresh, start=start)
        return self.carries[micro]

    def saved(self) -> dict[str, Tensor]:
        """All slots of this process, in order."""
        return joined([carry.saved() for carry in self.carries])

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take up the slots of all processes as they were saved."""
        self._saved, self._carries = dict(saved), []


class SlotBatches(Sampler[list[int]]):
    """For every step and micro-batch the samples that its done slots take: read it step by step."""

    def __init__(
        self, order: SampleOrder, *, slots: Slots, steps: int, first_step: Callable[[], int]
    ) -> None:
        # slots stand in different epochs near a border; an order remembers one epoch at a time
        self.orders = (order, copy.copy(order))
        self.slots = slots
        self.steps = steps
        self.first_step = first_step

    def __len__(self) -> int:
        return self.steps * self.slots.share.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.first_step(), self.steps):
            for micro in range(self.slots.share.accumulation):
                yield [self._sample(position) for position in self.slots.positions(micro)]

    def _sample(self, position: int) -> int:
        order = self.orders[position // self.orders[0].size % 2]
        return order.take(position, 1)[0]


def no_samples(length: int) -> dict[str, Tensor]:
    """A batch of nothing, for a step in which every slot goes on."""
    cells = torch.zeros(0, length, dtype=torch.long)
    puzzles = torch.zeros(0, dtype=torch.long)
    return {"input_ids": cells, "labels": cells, "puzzles": puzzles, "capsules": cells.float()}
