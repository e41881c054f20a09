"""A memory bank: states that led to right answers, written by training and read by every cycle.

The question and the state flow in, the question with what was remembered flows out:

    share = softmax((y Q) . [nothing, bank K])     read: differentiable in Q, K, V, W and the gate
    x     = x + sigmoid(y g) * (share [0, bank V]) W

After each update of the weights the mean states of slots that were right are written into the bank
(the least read rows make room), so what is read later was really computed. The bank is a buffer and
part of every checkpoint. Left out: gradient through what was written, which is of another step.

Shapes: B slots, S positions, D width, M rows of the bank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import Linear
from saccade.models.recursion.core import Extra, Gather, Moment, State
from saccade.models.recursion.losses import IGNORE_INDEX, right_cells

GATE = -2.0
FADING = 0.99
"""How long reads count when room must be made."""


class MemoryBank(Extra):
    """Rows of remembered states with an attention that reads them."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        width, rows = config.width, config.memory.capacity
        self.writes = config.memory.writes
        self.query, self.key = Linear(width, width), Linear(width, width)
        self.value, self.out = Linear(width, width), Linear(width, width)
        self.nothing = nn.Parameter(torch.zeros(width))
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, GATE)
        self.answers_MD: Tensor
        self.latents_MD: Tensor
        self.read_M: Tensor
        self.filled: Tensor
        self.register_buffer("answers_MD", torch.zeros(rows, width))
        self.register_buffer("latents_MD", torch.zeros(rows, width))
        self.register_buffer("read_M", torch.zeros(rows))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self._found: list[Tensor] = []
        self._reads: list[Tensor] = []

    def inject(self, x_BSD: Tensor, state: State) -> Tensor:
        """The question, and what the bank holds that is like the present answer."""
        rows = int(self.filled)
        keys_MD = torch.cat((self.nothing[None], self.key(self.answers_MD[:rows])))
        values_MD = self.value(self.latents_MD[:rows])
        scores_BSM = self.query(state.y) @ keys_MD.T / math.sqrt(x_BSD.shape[-1])
        share_BSM = scores_BSM.softmax(-1)[..., 1:]
        if self.training and torch.is_grad_enabled():
            self._reads.append(share_BSM.detach().sum((0, 1)))
        return x_BSD + self.gate(state.y).sigmoid() * self.out(share_BSM @ values_MD)

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        """Nothing to pay; right slots are noted for writing."""
        if self.training and torch.is_grad_enabled():
            wanted_B = (moment.labels_BL != IGNORE_INDEX).sum(-1)
            right_B = right_cells(moment.logits_BLV, moment.labels_BL).sum(-1) == wanted_B
            both = torch.stack((moment.after.y.mean(1), moment.after.z.mean(1)), 1)
            self._found.append(both.detach().float()[right_B])
        return {}

    @torch.no_grad()
    def learn(self, gather: Gather, *, step: int) -> None:
        """Write states of right slots, in the order of slots, where the bank was read least."""
        found = [one.cpu() for one in self._found]
        reads = [one.cpu() for one in self._reads]
        self.forget()
        parts = gather((found, reads))
        states = [one for part in parts for one in part[0]]
        read = [one for part in parts for one in part[1]]
        rows = int(self.filled)
        self.read_M.mul_(FADING)
        if read:
            self.read_M[:rows] += torch.stack(read).sum(0).to(self.read_M)
        new = torch.cat(states)[: self.writes] if states else torch.empty(0)
        for one in new.to(self.answers_MD):
            rows = int(self.filled)
            place = rows if rows < len(self.read_M) else int(self.read_M.argmin())
            self.answers_MD[place], self.latents_MD[place] = one[0], one[1]
            # a new row is as good as the average one until it was tried
            self.read_M[place] = self.read_M[: max(rows, 1)].mean()
            self.filled.fill_(max(rows, place + 1))

    def rests(self) -> bool:
        """An empty bank gives no gradient."""
        return not int(self.filled)

    def forget(self) -> None:
        """Drop what was not written."""
        self._found, self._reads = [], []
