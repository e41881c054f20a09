"""Noise when answering: several rollouts, and the one that believes most to be right is kept.

After arXiv 2605.19943 as its abstract tells it; nothing is trained anew. Token ids flow in; per
step of thinking what the chosen rollout says flows out, as from `RecursiveModel.think`. Before each
step Gaussian noise is added to the latent of every rollout but the first. Rollouts go on apart; the
choice is made anew at each step, by the halting score (or the Q-values, where they are on). Noise
depends on the puzzle, the rollout and the step, so neither batch nor order changes an answer.

Shapes: B samples, R rollouts, L cells, S positions, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from saccade.config.recursion_extras import NoiseConfig

if TYPE_CHECKING:
    from saccade.models.recursion.model import RecursiveModel, Thought


def think_with_noise(
    model: RecursiveModel, input_ids_BL: Tensor, puzzles_B: Tensor,
    capsules_BCE: Tensor | None = None, *, steps: int, noise: NoiseConfig,
) -> Iterator[Thought]:  # fmt: skip
    """What the rollout chosen at each of `steps` steps says."""
    from saccade.models.recursion.core import State

    count, rollouts = len(input_ids_BL), noise.rollouts
    with torch.no_grad():
        x_BSD = model.embed(input_ids_BL, puzzles_B, capsules_BCE).repeat(rollouts, 1, 1)
    generators = [_generator(ids, seed=noise.seed) for ids in input_ids_BL.cpu().numpy()]
    state = model.start(count * rollouts)
    for _ in range(steps):
        with torch.no_grad():
            added = _draws(generators, rollouts=rollouts, shape=tuple(state.z.shape[1:]))
            z = state.z + noise.std * added.to(state.z)
            thought = model.thought(x_BSD, State(state.y, z))
            chosen = _chosen(thought, count=count, rollouts=rollouts)
        state = thought.state
        yield chosen


def _chosen(thought: Thought, *, count: int, rollouts: int) -> Thought:
    from saccade.models.recursion.core import State
    from saccade.models.recursion.model import Thought

    by = thought.halt_B if thought.advantage_B is None else thought.advantage_B
    best_B = by.view(rollouts, count).argmax(0)
    row = best_B * count + torch.arange(count, device=best_B.device)
    advantage = None if thought.advantage_B is None else thought.advantage_B[row]
    state = State(thought.state.y[row], thought.state.z[row])
    return Thought(thought.logits_BLV[row], thought.halt_B[row], state, advantage)


def _generator(ids: np.ndarray, *, seed: int) -> np.random.Generator:
    name = hashlib.blake2b(np.ascontiguousarray(ids).tobytes(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(name, "little")])


def _draws(
    generators: list[np.random.Generator], *, rollouts: int, shape: tuple[int, ...]
) -> Tensor:
    """[R * B, S, D]; nothing for the first rollout."""
    each = [one.standard_normal((rollouts - 1, *shape), dtype=np.float32) for one in generators]
    drawn = torch.from_numpy(np.stack(each, 1))
    return torch.cat((torch.zeros_like(drawn[:1]), drawn)).flatten(0, 1)
