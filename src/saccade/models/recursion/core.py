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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import Block, Linear, truncated_normal_

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


class Extra(nn.Module):
    """Something that may join the recursion; the methods do nothing until overridden."""

    def inject(self, x_BSD: Tensor, state: State) -> Tensor:
        """The question as the next latent recursion sees it."""
        return x_BSD

    def revise(self, state: State) -> State:
        """The state after a latent recursion."""
        return state

    def losses(self, state: State, labels_BL: Tensor) -> dict[str, Tensor]:
        """Further terms [B] of the loss by name, weighted, after the last cycle."""
        return {}


class Core(nn.Module):
    """The network f with its readings; embeddings are the model's."""

    def __init__(
        self, config: RecursionConfig, *, length: int, vocabulary: int,
        extras: Sequence[Extra] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.prefix = config.puzzle_prefix
        positions = self.prefix + length
        self.blocks = nn.ModuleList([Block(config, length=positions) for _ in range(config.layers)])
        self.answer_head = Linear(config.width, vocabulary)
        self.halt_head = nn.Linear(config.width, 1)
        nn.init.zeros_(self.halt_head.weight)
        nn.init.constant_(self.halt_head.bias, HALT_BIAS)
        self.extras = nn.ModuleList(extras)
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
        for _ in range(self.config.inner_cycles):
            z = self.update(x_BSD + y + z)
        state = State(self.update(y + z), z)
        for extra in self.all_extras():
            state = extra.revise(state)
        return state

    def deep_recursion(self, x_BSD: Tensor, state: State) -> State:
        """T latent recursions of which only the last carries gradient."""
        with torch.no_grad():
            for _ in range(self.config.cycles - 1):
                state = self.latent_recursion(x_BSD, state)
        return self.latent_recursion(x_BSD, state)

    def read(self, state: State) -> tuple[Tensor, Tensor]:
        """Scores of every cell [B, L, V], and halting scores [B] in float32 (float64 stays)."""
        logits_BLV = self.answer_head(state.y[:, self.prefix :])
        first_BD = state.y[:, 0]
        with torch.autocast(first_BD.device.type, enabled=False):
            exact = first_BD if first_BD.dtype == torch.float64 else first_BD.float()
            return logits_BLV, self.halt_head(exact)[:, 0]
