"""Cheaper training: less history, and a loss on the last of several steps of thinking only.

The idea of arXiv 2603.15641 as its abstract tells it: detach all history but the last update, draw
a random depth, and take the loss at its end. A seed and a step of training flow in, a depth flows
out; a state flows in, and flows out some steps of thinking later, without gradient. The history
itself is cut in `core.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from saccade.models.recursion.core import Core, State

DRAWS = 0x63686561


def steps_ahead(*, seed: int, step: int, most: int) -> int:
    """Steps of thinking before the one with the loss: 0 ... most - 1, the same in all slots."""
    return int(np.random.default_rng([DRAWS, seed, step]).integers(0, most))


def run_ahead(core: Core, x_BSD: Tensor, state: State, *, steps: int) -> State:
    """The state some steps of thinking later; nothing learns from them."""
    with torch.no_grad():
        for _ in range(steps):
            state = core.deep_recursion(x_BSD.detach(), state)
    return state
