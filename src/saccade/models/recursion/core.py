"""The recursion itself: one network f that updates a latent and an answer in turn.

Embedded questions, answers and latents flow in; better answers and latents flow out, with scores
for every cell and a halting score. Exactly as published (arXiv 2510.04871 and its code):

    latent recursion   n times z = f(x + y + z), then y = f(y + z)
    deep recursion     T - 1 latent recursions without gradient, then one with it
    readings           scores = y[:, P:] W_out,   halting = y[:, 0] . w + b in float32

What f is told lies in what is added up: only a latent update sees the question. Left out: when to
stop (`halting.py`), what is carried over (`carry.py`), the loss. Extras join at `Extra`.

Shapes: B slots, L cells, P prefix positions, S = P + L, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import Block, Linear, truncated_normal_
from saccade.models.recursion.extras.flow import GradientFlow

HALT_BIAS = -5.0
"""Nothing halts before it has learned to."""


@dataclass(frozen=True)
class State:
    """Answer and latent, [B, S, D] each: what a step of thinking leaves to the next."""

    y: Tensor
    z: Tensor

    def detach(self) -> State:
        """The same values without their history."""
        return State(self.y.detach(), self.z.detach())


@dataclass(frozen=True)
class Moment:
    """One step of thinking as an extra's loss sees it: question, state before and after, scores."""

    x_BSD: Tensor
    before: State
    after: State
    logits_BLV: Tensor
    halt_B: Tensor
    labels_BL: Tensor
    core: Core
    tokens: nn.Embedding


Gather = Callable[[Any], list[Any]]
"""One value of each process, in order, the same on all."""


class Extra(nn.Module):
    """Something that may join the recursion; the methods do nothing until overridden."""

    def inject(self, x_BSD: Tensor, state: State) -> Tensor:
        """The question as the next latent recursion sees it."""
        return x_BSD

    def revise(self, state: State, *, update: Callable[[Tensor], Tensor]) -> State:
        """The state after a latent recursion; `update` is the network f."""
        return state

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        """Further terms [B] of the loss by name, weighted, after the last cycle."""
        return {}

    def learn(self, gather: Gather, *, step: int) -> None:
        """After an update of the weights: what is learned without a gradient."""

    def rests(self) -> bool:
        """Whether it has nothing to learn from yet, so that it gets no gradient."""
        return False

    def forget(self) -> None:
        """Drop what was collected since the last update."""


class Core(nn.Module):
    """The network f with its readings; embeddings are the model's."""

    def __init__(
        self, config: RecursionConfig, *, length: int, vocabulary: int, front: int | None = None,
        extras: Sequence[Extra] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.prefix = config.puzzle_prefix if front is None else front
        positions = self.prefix + length
        self.blocks = nn.ModuleList([Block(config, length=positions) for _ in range(config.layers)])
        self.answer_head = Linear(config.width, vocabulary)
        self.halt_head = nn.Linear(config.width, 1)
        nn.init.zeros_(self.halt_head.weight)
        nn.init.constant_(self.halt_head.bias, HALT_BIAS)
        self.extras = nn.ModuleList(extras)
        self.flow = GradientFlow() if config.flow.enabled else None
        self.y_init: Tensor
        self.z_init: Tensor
        # fixed starting points, one vector each, that every position begins with
        self.register_buffer("y_init", truncated_normal_(torch.empty(config.width), std=1.0))
        self.register_buffer("z_init", truncated_normal_(torch.empty(config.width), std=1.0))

    def all_extras(self) -> list[Extra]:
        """What has joined the recursion, in order."""
        return [extra for extra in self.extras if isinstance(extra, Extra)]

    def start(self, slots: int, *, positions: int) -> State:
        """The state before the first step, for so many slots."""
        shape = (slots, positions, -1)
        return State(self.y_init.expand(shape), self.z_init.expand(shape))

    def update(self, h_BSD: Tensor) -> Tensor:
        """f: one pass through all blocks."""
        for block in self.blocks:
            h_BSD = block(h_BSD)
        return h_BSD

    def latent_recursion(self, x_BSD: Tensor, state: State) -> State:
        """Think n times, then answer once."""
        y, z = state.y, state.z
        for extra in self.all_extras():
            x_BSD = extra.inject(x_BSD, state)
        for number in range(self.config.inner_cycles):
            with self._history(last=number == self.config.inner_cycles - 1):
                z = self._used(self.update(x_BSD + y + z), f"think{number + 1}")
        state = State(self._used(self.update(y + z), "answer"), z)
        for extra in self.all_extras():
            state = extra.revise(state, update=self.update)
        return state

    def deep_recursion(self, x_BSD: Tensor, state: State, *, cycles: int | None = None) -> State:
        """T (or `cycles`) latent recursions of which only the last carries gradient."""
        with torch.no_grad():
            for _ in range((cycles or self.config.cycles) - 1):
                state = self.latent_recursion(x_BSD, state)
        return self.latent_recursion(x_BSD, state)

    def _history(self, *, last: bool) -> AbstractContextManager[Any]:
        """Cheaper training drops the history of all latent updates but the last."""
        cut = self.config.cheap.enabled and self.training and not last
        return torch.no_grad() if cut else nullcontext()

    def _used(self, h_BSD: Tensor, name: str) -> Tensor:
        if self.flow is not None:
            self.flow.watch(h_BSD, name)
        return h_BSD

    def read(self, state: State) -> tuple[Tensor, Tensor]:
        """Scores of every cell [B, L, V], and halting scores [B] in float32 (float64 stays)."""
        logits_BLV = self.answer_head(state.y[:, self.prefix :])
        first_BD = state.y[:, 0]
        with torch.autocast(first_BD.device.type, enabled=False):
            exact = first_BD if first_BD.dtype == torch.float64 else first_BD.float()
            return logits_BLV, self.halt_head(exact)[:, 0]
