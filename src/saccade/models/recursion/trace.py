"""What a model says about a batch after each step of thinking, as plain records.

Token ids and labels flow in; one `Traced` per sample flows out: for every step the answer, how
much of it is right, the halting score and how far the answer's state moved. Evaluation, figures
and tests read these. Left out: averages over samples (`scoring/grids.py`).

Shapes: B samples, L cells, N steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from saccade.models.recursion.extras.noise import think_with_noise
from saccade.models.recursion.losses import IGNORE_INDEX, right_cells
from saccade.models.recursion.model import RecursiveModel, Thought


@dataclass(frozen=True)
class Traced:
    """One sample; every field has one entry per step of thinking."""

    answers_NL: np.ndarray
    right: tuple[bool, ...]
    cells: tuple[float, ...]
    halt: tuple[float, ...]
    change: tuple[float, ...]
    advantage: tuple[float, ...] = ()
    """What stopping is worth over going on, where that is learned."""

    @property
    def same(self) -> tuple[bool, ...]:
        """Whether the answer is the one of the step before."""
        answers = self.answers_NL
        return (False, *(bool((a == b).all()) for a, b in itertools.pairwise(answers)))


@torch.no_grad()
def trace(
    model: RecursiveModel, input_ids_BL: Tensor, labels_BL: Tensor, puzzles_B: Tensor,
    capsules_BCE: Tensor | None = None, *, steps: int,
) -> list[Traced]:  # fmt: skip
    """Think for `steps` steps about every sample and note what was said at each."""
    supervised_B = (labels_BL != IGNORE_INDEX).sum(-1)
    answers, hits, halts, changes, values = [], [], [], [], []
    before = model.start(len(input_ids_BL)).y
    for thought in _thoughts(model, input_ids_BL, puzzles_B, capsules_BCE, steps=steps):
        answers.append(thought.logits_BLV.argmax(-1))
        hits.append(right_cells(thought.logits_BLV, labels_BL).sum(-1))
        halts.append(thought.halt_B)
        if thought.advantage_B is not None:
            values.append(thought.advantage_B)
        moved = (thought.state.y - before).float().square().mean((1, 2)).sqrt()
        changes.append(moved)
        before = thought.state.y
    answers_BNL = torch.stack(answers, 1).cpu().numpy().astype(np.int16)
    hits_BN, halts_BN = torch.stack(hits, 1), torch.stack(halts, 1)
    right_BN = (hits_BN == supervised_B[:, None]).tolist()
    cells_BN = (hits_BN.double() / supervised_B.clamp(min=1)[:, None]).tolist()
    changes_BN = torch.stack(changes, 1).tolist()
    values_BN = torch.stack(values, 1).tolist() if values else [[]] * len(right_BN)
    return [
        Traced(answers_BNL[b], tuple(right_BN[b]), tuple(cells_BN[b]), tuple(halts_BN[b].tolist()),
               tuple(changes_BN[b]), tuple(values_BN[b]))
        for b in range(len(right_BN))
    ]  # fmt: skip


def _thoughts(
    model: RecursiveModel, input_ids_BL: Tensor, puzzles_B: Tensor, capsules_BCE: Tensor | None,
    *, steps: int,
) -> Iterator[Thought]:  # fmt: skip
    noise = model.config.noise
    if not noise.enabled:
        return model.think(input_ids_BL, puzzles_B, capsules_BCE, steps=steps)
    return think_with_noise(model, input_ids_BL, puzzles_B, capsules_BCE, steps=steps, noise=noise)
