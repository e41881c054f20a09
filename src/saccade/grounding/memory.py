"""The keys and values of many episodes at once, read once per screenshot.

Rows of different lengths flow in, side by side; each may be repeated for the members of its group,
dropped when its episode is over, and joined with others later. What a row must not see (padding,
tokens of a row that had already finished) are holes: slots that its mask shuts out, while positions
are given explicitly and count on as if there were none. New slots go into room made beforehand, so
that a step copies nothing. Left out: what is fed and what is sampled (`rollouts.py`).

Shapes: N rows, S slots, Q new slots, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Shelf(DynamicLayer):
    """One layer's keys and values [N, H, S, D], with room for what comes."""

    keys: Tensor  # type: ignore[assignment]  the parent has none before the first update
    values: Tensor  # type: ignore[assignment]

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.used = room, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add new slots; returns all that are filled."""
        stop = self.used + key_states.shape[2]
        if not self.is_initialized:
            self.allocate(key_states, rows=key_states.shape[0], slots=stop + self.room)
        if stop > self.keys.shape[2]:
            raise RuntimeError(f"no room for slot {stop} of {self.keys.shape[2]}")
        self.keys[:, :, self.used : stop] = key_states
        self.values[:, :, self.used : stop] = value_states
        self.used = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def allocate(self, like: Tensor, *, rows: int, slots: int) -> None:
        shape = (rows, like.shape[1], slots, like.shape[3])
        self.dtype, self.device = like.dtype, like.device
        # zeros: what is shut out is multiplied by 0, and 0 times a leftover NaN is NaN
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.is_initialized = True

    def get_seq_length(self) -> int:
        return self.used


class Memory(Cache):
    """A cache of N rows; `bias_NS` is 0 where a row sees a slot, the lowest number elsewhere."""

    def __init__(self, *, layers: int, rows: int, room: int, like: Tensor) -> None:
        """`room` slots beyond those of the first tokens read; `like` has dtype and device."""
        super().__init__(layers=[Shelf(room) for _ in range(layers)])
        self.lowest = torch.finfo(like.dtype).min
        self.bias_NS = like.new_full((rows, 0), self.lowest)
        self.seen = 0

    @property
    def shelves(self) -> list[Shelf]:
        return self.layers  # type: ignore[return-value]

    def opened(self, present_NQ: Tensor) -> Tensor:
        """Mask [N, 1, Q, S + Q] for Q new tokens; those not `present` are never seen again."""
        new = present_NQ.shape[1]
        hidden_NQ = torch.zeros_like(present_NQ, dtype=self.bias_NS.dtype)
        hidden_NQ = hidden_NQ.masked_fill(~present_NQ, self.lowest)
        stop = self.seen + new
        if stop > self.bias_NS.shape[1]:
            grown = stop + self.shelves[0].room - self.bias_NS.shape[1]
            self.bias_NS = torch.nn.functional.pad(self.bias_NS, (0, grown), value=self.lowest)
        self.bias_NS[:, self.seen : stop] = hidden_NQ
        self.seen = stop
        mask_NQS = self.bias_NS[:, None, :stop]
        if new == 1:
            return mask_NQS[:, None]
        later_QQ = torch.ones(new, new, dtype=torch.bool, device=present_NQ.device).triu(1)
        mask_NQS = mask_NQS.repeat(1, new, 1)
        mask_NQS[:, :, stop - new :].masked_fill_(later_QQ, self.lowest)
        return mask_NQS[:, None]


def gathered(parts: Sequence[tuple[Memory, Tensor]], *, room: int) -> Memory:
    """A new memory of chosen rows of others, in this order; a row may be named several times."""
    first = parts[0][0]
    rows = sum(len(chosen) for _, chosen in parts)
    slots = max(memory.seen for memory, _ in parts)
    like = first.shelves[0].keys
    made = Memory(layers=len(first.layers), rows=rows, room=room, like=like)
    made.seen = slots
    made.bias_NS = like.new_full((rows, slots + room), made.lowest)
    at = 0
    for memory, chosen in parts:
        here, filled = slice(at, at + len(chosen)), memory.seen
        made.bias_NS[here, :filled] = memory.bias_NS[chosen, :filled]
        for new, old in zip(made.shelves, memory.shelves, strict=True):
            if not new.is_initialized:
                new.allocate(like, rows=rows, slots=slots + room)
                new.used = slots
            new.keys[here, :, :filled] = old.keys[chosen, :, :filled]
            new.values[here, :, :filled] = old.values[chosen, :, :filled]
        at += len(chosen)
    return made
