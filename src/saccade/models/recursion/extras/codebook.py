"""A vector-quantised codebook: the answer's state, told again in one of K words per cell.

The state after an answer flows in, a revised answer flows out (arXiv 1711.00937 with moving
averages):

    h = y A,   k = nearest code,   q = h + stop(code_k - h)       gradients pass straight through
    y = RMS(y + q B),              loss = commitment * mean (h - stop(code_k))^2

Codes are averages of the states that chose them: count = d count + (1 - d) n, sum likewise, code =
sum / count, once per update over all micro-batches and processes. A code that nobody chose for
`dead_after` updates starts anew at a state of the batch. Left out: several codes per cell.

Shapes: B slots, S positions, D width, K codes, C width of a code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import Linear, rms_norm, truncated_normal_
from saccade.models.recursion.core import Extra, Gather, Moment, State

DRAWS = 0x636F6465
SMOOTHING = 1e-5


class Codebook(Extra):
    """Codes, their averages, and the way to them and back."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        self.settings = settings = config.codebook
        self.into = Linear(config.width, settings.width)
        self.back = Linear(settings.width, config.width)
        self.codes_KC: Tensor
        self.sums_KC: Tensor
        self.counts_K: Tensor
        self.unused_K: Tensor
        codes = truncated_normal_(torch.empty(settings.codes, settings.width), std=1.0)
        self.register_buffer("codes_KC", codes)
        self.register_buffer("sums_KC", codes.clone())
        self.register_buffer("counts_K", torch.ones(settings.codes))
        self.register_buffer("unused_K", torch.zeros(settings.codes, dtype=torch.long))
        self._seen: list[Tensor] = []
        self._last: tuple[Tensor, Tensor] | None = None

    def revise(self, state: State, *, update: Callable[[Tensor], Tensor]) -> State:
        """Add each cell's code to the answer."""
        h_BSC = self.into(state.y)
        code_BSC = self.codes_KC[self.nearest(h_BSC)].to(h_BSC.dtype)
        if self.training and torch.is_grad_enabled():
            self._last = (h_BSC, code_BSC)
            self._seen.append(h_BSC.detach().flatten(0, 1))
        through_BSC = h_BSC + (code_BSC - h_BSC).detach()
        return State(rms_norm(state.y + self.back(through_BSC)), state.z)

    def nearest(self, h: Tensor) -> Tensor:
        """Number of the nearest code."""
        codes_KC = self.codes_KC.to(h.dtype)
        far = codes_KC.square().sum(-1) - 2 * h.detach() @ codes_KC.T
        return far.argmin(-1)

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        """How far states are from their codes."""
        if self._last is None:
            return {}
        (h_BSC, code_BSC), self._last = self._last, None
        far_B = (h_BSC - code_BSC.detach()).square().mean((1, 2))
        return {"commitment": self.settings.commitment * far_B}

    @torch.no_grad()
    def learn(self, gather: Gather, *, step: int) -> None:
        """Move the codes to the states that chose them; wake dead ones."""
        seen = self._seen
        self.forget()
        parts = [one for part in gather([h.cpu() for h in seen]) for one in part]
        if not parts:
            return
        h_NC, decay = torch.cat(parts).to(self.codes_KC), self.settings.decay
        chosen_N = self.nearest(h_NC)
        counts_K = torch.bincount(chosen_N, minlength=len(self.codes_KC)).to(h_NC)
        sums_KC = torch.zeros_like(self.sums_KC).index_add_(0, chosen_N, h_NC)
        self.counts_K.mul_(decay).add_(counts_K, alpha=1 - decay)
        self.sums_KC.mul_(decay).add_(sums_KC, alpha=1 - decay)
        self.codes_KC.copy_(self.sums_KC / (self.counts_K[:, None] + SMOOTHING))
        self.unused_K.add_(1).masked_fill_(counts_K > 0, 0)
        self._wake(h_NC, step=step)

    def _wake(self, h_NC: Tensor, *, step: int) -> None:
        dead = (self.unused_K >= self.settings.dead_after).nonzero()[:, 0]
        rng = np.random.default_rng([DRAWS, step])
        for place in dead.tolist():
            state = h_NC[int(rng.integers(len(h_NC)))]
            self.codes_KC[place], self.sums_KC[place] = state, state
            self.counts_K[place], self.unused_K[place] = 1.0, 0

    def forget(self) -> None:
        """Drop what was collected."""
        self._seen, self._last = [], None
