"""How much gradient reaches each use of the network within a step of thinking.

Hidden states flow through; after the backward pass one norm per use flows out, `think1` to `thinkN`
and `answer`, summed over micro-batches. A use that gets none, or less than a thousandth of the
largest, is named. It judges, and changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

VANISHING = 1e-3
"""Share of the largest norm below which a use counts as vanishing."""


class GradientFlow:
    """Squared gradient norms of the uses since they were last read."""

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}

    def watch(self, h_BSD: Tensor, name: str) -> None:
        """Measure the gradient of this state in the coming backward pass."""
        if not h_BSD.requires_grad:
            return
        self._squares.setdefault(name, torch.zeros((), device=h_BSD.device))
        h_BSD.register_hook(lambda gradient: self._add(name, gradient))

    def _add(self, name: str, gradient: Tensor) -> None:
        square = gradient.detach().float().square().sum()
        self._squares[name] = self._squares.get(name, torch.zeros_like(square)) + square

    def read(self) -> dict[str, float]:
        """Norm per use in the order of use; starts anew."""
        found = {name: float(square.sqrt()) for name, square in self._squares.items()}
        self._squares = {}
        return found


def verdict(norm: float, *, largest: float) -> str:
    """`ok`, `vanishing` or `dead`."""
    if norm == 0:
        return "dead"
    return "vanishing" if norm < VANISHING * largest else "ok"
