"""Learned Q-halting: whether one more step of thinking is worth its cost, learned from reward.

The first position of the answer's state flows in, two values flow out: what going on is worth, and
what stopping is worth. Stopping ends an episode with 1 for a right answer and 0 for a wrong one;
going on costs `step_cost`. Double DQN (arXiv 1509.06461) on replayed steps:

    go on   target = -cost + gamma * Q_slow(s', argmax_a Q(s', a))
    stop    target = 1 if the answer is right else 0
    loss    = weight * huber(Q(s, a), target);   Q_slow moves `target_rate` of the way per step

The states are read without gradient: the values never move the network. Replay holds what the slots
really did, in the order of slots, the same on all processes; each slot learns from one kept step
per training step, drawn by (seed, step, slot). Left out: priorities, curiosity, other actions.

Shapes: B slots, G slots of all processes, D width, N kept steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.core import Extra, Gather, Moment, State

GO_ON, STOP = 0, 1
DRAWS, FLIPS = 0x7265706C, 0x666C6970


class Replay:
    """A ring of steps: state, action, reward, next state, whether the episode ended."""

    def __init__(self, capacity: int, *, width: int) -> None:
        self.capacity, self.added = capacity, 0
        self.parts: dict[str, Tensor] = {
            "state": torch.zeros(capacity, width, dtype=torch.float16),
            "after": torch.zeros(capacity, width, dtype=torch.float16),
            "action": torch.zeros(capacity, dtype=torch.long),
            "reward": torch.zeros(capacity),
            "ended": torch.zeros(capacity, dtype=torch.bool),
        }

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, steps: Mapping[str, Tensor]) -> None:
        """Keep these steps; the oldest make room."""
        count = len(steps["action"])
        place = (torch.arange(count) + self.added) % self.capacity
        for name, kept in self.parts.items():
            kept[place] = steps[name].to(kept)
        self.added += count

    def take(self, places: Tensor) -> dict[str, Tensor]:
        """The steps at these places."""
        return {name: kept[places] for name, kept in self.parts.items()}

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the part that is in use."""
        parts = {name: kept[: len(self)].clone() for name, kept in self.parts.items()}
        return {**parts, "added": torch.tensor(self.added)}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Take up what was saved."""
        self.added = int(saved["added"])
        for name, kept in self.parts.items():
            kept[: len(self)] = saved[name]


class QHalting(Extra):
    """The values of going on and of stopping, and how they are learned."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        self.settings = config.q_halting
        self.values = nn.Sequential(
            nn.Linear(config.width, self.settings.hidden), nn.GELU(),
            nn.Linear(self.settings.hidden, 2),
        )  # fmt: skip
        # moved by hand, and part of every checkpoint: buffers, not parameters
        for name, one in self.values.named_parameters():
            self.register_buffer(_slow(name), one.detach().clone())
        self.replay = Replay(self.settings.capacity, width=config.width)
        self.places: Tensor | None = None
        self._noted: list[dict[str, Tensor]] = []

    def advantage(self, state: State) -> Tensor:
        """[B]: what stopping is worth over going on."""
        own = next(self.values.parameters()).dtype
        with torch.no_grad():
            value_B2 = self.values(state.y[:, 0].detach().to(own))
        return value_B2[:, STOP] - value_B2[:, GO_ON]

    def slow_values(self, state_BD: Tensor) -> Tensor:
        """What the slowly following copy says."""
        names = [name for name, _ in self.values.named_parameters()]
        weights = {name: self.get_buffer(_slow(name)) for name in names}
        return functional_call(self.values, weights, (state_BD,))

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        """The Double-DQN loss of the kept steps at `places`, one per slot."""
        size = len(moment.labels_BL)
        if self.places is None or not len(self.replay):
            # nothing kept yet: the weights still take part, so that every process has gradients
            nothing = self.values(moment.after.y[:, 0].detach()).sum(-1) * 0
            return {"q": nothing}
        took = {k: v.to(moment.labels_BL.device) for k, v in self.replay.take(self.places).items()}
        places, self.places = self.places, None
        assert len(places) == size
        state_BD, after_BD = took["state"].float(), took["after"].float()
        with torch.no_grad():
            best_B = self.values(after_BD).argmax(-1, keepdim=True)
            later_B = self.slow_values(after_BD).gather(-1, best_B)[:, 0]
            gamma = self.settings.gamma
            target_B = took["reward"] + gamma * later_B * (~took["ended"]).float()
        said_B = self.values(state_BD).gather(-1, took["action"][:, None])[:, 0]
        far_B = functional.smooth_l1_loss(said_B, target_B, reduction="none")
        return {"q": self.settings.weight * far_B}

    def practise(self, *, seed: int, step: int, slots: int, first: int, count: int) -> None:
        """Choose which kept steps the slots [first, first + count) of all learn from next."""
        if len(self.replay):
            rng = np.random.default_rng([DRAWS, seed, step])
            drawn = rng.integers(0, len(self.replay), size=slots)
            self.places = torch.from_numpy(drawn[first : first + count])

    def note(
        self, before: State, after: State, *, went_on_B: Tensor, halted_B: Tensor, right_B: Tensor
    ) -> None:
        """Keep what the slots did: those that came from a step before, and those that stop now."""
        old, new = before.y[:, 0].detach().cpu(), after.y[:, 0].detach().cpu()
        on, off = went_on_B.cpu(), halted_B.cpu()
        cost = -self.settings.step_cost
        rewards = torch.cat((torch.full((int(on.sum()),), cost), right_B.cpu()[off].float()))
        actions = torch.cat((torch.full_like(on[on], GO_ON, dtype=torch.long),
                             torch.full_like(off[off], STOP, dtype=torch.long)))  # fmt: skip
        steps = {
            "state": torch.cat((old[on], new[off])), "after": torch.cat((new[on], new[off])),
            "action": actions, "reward": rewards, "ended": actions == STOP,
        }  # fmt: skip
        # slot by slot, so that the order does not depend on how slots are cut into batches
        slots = torch.cat((on.nonzero()[:, 0], off.nonzero()[:, 0]))
        order = torch.argsort(slots, stable=True)
        self._noted.append({name: one[order] for name, one in steps.items()})

    @torch.no_grad()
    def learn(self, gather: Gather, *, step: int) -> None:
        """Keep what all slots did; the slow values follow."""
        noted, self._noted = self._noted, []
        for part in gather(noted):
            for steps in part:
                self.replay.add(steps)
        for name, fast in self.values.named_parameters():
            self.get_buffer(_slow(name)).lerp_(fast, self.settings.target_rate)

    def rests(self) -> bool:
        """Nothing was kept yet."""
        return not len(self.replay)

    def forget(self) -> None:
        """Drop what was noted since the last update."""
        self._noted, self.places = [], None


def _slow(name: str) -> str:
    return "slow_" + name.replace(".", "_")


def turned_round(
    slots: int, *, seed: int, step: int, start: float, end: float, over: int
) -> Tensor:
    """[G]: slots that do the opposite of what their values say, drawn by (seed, step, slot)."""
    chance = start + (end - start) * min(1.0, step / over)
    drawn = np.random.default_rng([FLIPS, seed, step]).random(slots)
    return torch.from_numpy(drawn < chance)
