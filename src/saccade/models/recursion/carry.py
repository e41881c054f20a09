"""The persistent batch: slots that each think about one sample until they are done with it.

Fresh samples flow into the slots that are done; their state starts anew, the others keep theirs.
The carry is part of a checkpoint: it goes out and comes back as plain tensors, in the order of all
slots of all processes, so a run may continue with another cut of the same number of slots. Which
sample a slot takes next is the recipe's to say; `taken` counts them.

Shapes: B slots, L cells, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from saccade.models.recursion.core import State


@dataclass(frozen=True)
class Carry:
    """What the slots of one batch hold between two steps of training."""

    y: Tensor
    z: Tensor
    steps: Tensor
    halted: Tensor
    taken: Tensor
    input_ids: Tensor
    labels: Tensor
    puzzles: Tensor
    capsules: Tensor

    @classmethod
    def empty(
        cls, slots: int, *, start: State, length: int, capsules: tuple[int, int] = (0, 0)
    ) -> Carry:
        """All slots done, so that the first thing they do is to take a sample."""
        device = start.y.device
        zeros = torch.zeros(slots, dtype=torch.long, device=device)
        cells = torch.zeros(slots, length, dtype=torch.long, device=device)
        return cls(
            y=start.y.clone(), z=start.z.clone(), steps=zeros, halted=zeros == 0, taken=zeros,
            input_ids=cells, labels=cells, puzzles=zeros,
            capsules=torch.zeros(slots, *capsules, device=device),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def state(self) -> State:
        """Answer and latent of all slots."""
        return State(self.y, self.z)

    def refilled(self, fresh: Mapping[str, Tensor], *, start: State) -> Carry:
        """The k-th done slot takes the k-th fresh sample; `start` is the first state of all."""
        done_B = self.halted
        place_B = (done_B.cumsum(0) - 1).clamp(min=0)

        def renewed(name: str) -> Tensor:
            old = getattr(self, name)
            if not old[:1].numel() or not len(fresh[name]):
                return old
            new = fresh[name].to(old)
            shape = (-1,) + (1,) * (old.dim() - 1)
            return torch.where(done_B.view(shape), new[place_B.clamp(max=len(new) - 1)], old)

        if len(fresh["input_ids"]) != int(done_B.sum()):
            raise ValueError("there must be one fresh sample for each slot that is done")
        anew = done_B[:, None, None]
        return Carry(
            y=torch.where(anew, start.y, self.y),
            z=torch.where(anew, start.z, self.z),
            steps=self.steps.where(~done_B, torch.zeros_like(self.steps)),
            halted=torch.zeros_like(done_B),
            taken=self.taken + done_B,
            input_ids=renewed("input_ids"),
            labels=renewed("labels"),
            puzzles=renewed("puzzles"),
            capsules=renewed("capsules"),
        )

    def after(self, state: State, *, steps: Tensor, halted: Tensor) -> Carry:
        """The carry after a step of thinking; `state` without history, in the carry's format."""
        return Carry(
            y=state.y.to(self.y.dtype), z=state.z.to(self.z.dtype), steps=steps, halted=halted,
            taken=self.taken, input_ids=self.input_ids, labels=self.labels, puzzles=self.puzzles,
            capsules=self.capsules,
        )  # fmt: skip

    def saved(self) -> dict[str, Tensor]:
        """Plain tensors for a checkpoint."""
        return {one.name: getattr(self, one.name).cpu() for one in fields(self)}


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The saved slots of several batches or processes, in order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def restored(saved: Mapping[str, Tensor], *, first: int, slots: int, device: torch.device) -> Carry:
    """The slots [first, first + slots) of what was saved."""
    return Carry(**{k: v[first : first + slots].clone().to(device) for k, v in saved.items()})
