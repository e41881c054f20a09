"""When to stop thinking about a sample in training.

Halting scores and step counts flow in; which slots are done flows out. In training a slot is done
after `max_steps`, or as soon as its score is above 0 (it believes to be right), unless exploration
makes it go on: at every step, with a small chance, a minimum is drawn that the steps must have
reached. The draws are a function of (seed, step, slot), so they do not depend on how a step is cut
into batches and processes. Left out: learned Q-values, and where a sample would have stopped when
answering (`scoring/grids.py`); nothing stops there, so that a batch stays aligned.

Shapes: B slots, G slots of all processes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DRAWS = 0x68616C74
"""Keeps these draws apart from others with the same seed."""


def least_steps(slots: int, *, seed: int, step: int, chance: float, max_steps: int) -> Tensor:
    """[G]: steps that each slot must have made before it may halt; mostly 0."""
    rng = np.random.default_rng([DRAWS, seed, step])
    drawn = rng.random(slots) < chance
    least = rng.integers(2, max_steps + 1, size=slots) if max_steps > 1 else np.zeros(slots)
    return torch.from_numpy(np.where(drawn, least, 0).astype(np.int64))


def halted(steps_B: Tensor, halt_B: Tensor, least_B: Tensor, *, max_steps: int) -> Tensor:
    """[B]: slots that are done after this step; `steps_B` counts it already."""
    done_B = steps_B >= max_steps
    if max_steps > 1:
        done_B = (done_B | (halt_B > 0)) & (steps_B >= least_B)
    return done_B
