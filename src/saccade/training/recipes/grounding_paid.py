"""A sampled group with what it was paid, and the sums over groups that logs and detectors read.

Episodes of one question flow in; rewards, advantages, what is learned from, and counts that may be
added over micro-batches and processes flow out. Left out: sampling, the loss, and writing rows
down (`grounding_episodes.py`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import pstdev
from typing import Any

from torch import Tensor

from saccade.config.grounding import GroundingConfig
from saccade.grounding.collapse import Seen
from saccade.grounding.coordinates import Convention
from saccade.grounding.episodes import Episode, Facts, before_look, outcome_of, row_of
from saccade.grounding.grpo import Judged, LookWorth, advantages
from saccade.grounding.rewards import Outcome, Rewarded, group_rewards

MASKED = ("truncated", "too many turns")
"""Ends of episodes that are paid and counted, but not learned from."""

FREE = ("inspect", "wait")
"""Tools that show no crop; a call that names none of them, readable or not, is one for a zoom."""


@dataclass(frozen=True)
class Group:
    """Episodes about one question, and what each is worth; `before` are the facts about the answer
    without a look, where it was asked for."""

    episodes: Sequence[Episode]
    outcomes: Sequence[Outcome]
    rewarded: Sequence[Rewarded]
    judged: Judged
    before: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learned(self) -> list[bool]:
        """Which episodes the loss reads, if the group is kept."""
        return [one.finish not in MASKED for one in self.episodes]

    @property
    def looked(self) -> list[bool]:
        """Which episodes called for a zoom, in vain or not."""
        return [any(call.name not in FREE for call in e.screen.calls) for e in self.episodes]

    def deciding(self, call: int) -> list[Tensor]:
        """Per token of each episode: whether to look was still open, up to the mark (token `call`)
        that opens its first zoom. What is written later does not change what was chosen."""
        found = []
        for episode in self.episodes:
            free = sum(1 for _ in takewhile(lambda one: one.name in FREE, episode.screen.calls))
            opens = ((episode.ids == call) & episode.written).long()
            found.append(opens.cumsum(0) - opens <= free)
        return found

    def look_worth(self, *, taught: bool) -> LookWorth:
        """What looking brought, where the group is `taught`; how many looked."""
        learned = [taught and one for one in self.learned]
        return LookWorth.of(self.judged.advantages, looked=self.looked, learned=learned)


def paid_group(
    episodes: Sequence[Episode], *, config: GroundingConfig, first: Episode | None = None
) -> Group:
    """Pay the episodes of one question and judge them among themselves; a single one is not.

    `first` is not paid: it is what a look is measured against.
    """
    outcomes = [outcome_of(one, config=config) for one in episodes]
    rewarded = group_rewards(outcomes, config=config)
    rewards, hits = [one.total for one in rewarded], [one.hit for one in rewarded]
    judged = Judged([0.0] * len(rewards), kept=False, constant=True)
    if len(rewards) > 1:
        judged = advantages(rewards, hits=hits, config=config.grpo)
    return Group(episodes, outcomes, rewarded, judged, before_look(first, config=config))


def rows_of(
    groups: Sequence[Group],
    *,
    run: str,
    step: int,
    convention: Convention,
    extra: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """What `episodes.jsonl` holds of the groups of a step (counted from 1)."""
    return [
        row_of(
            episode,
            facts=Facts(
                run=run, step=step, split="train", rewarded=rewarded, advantage=gain,
                masked=episode.finish in MASKED, after=outcome.confidence,
                **group.before,
                extra={
                    **extra, "group_kept": group.judged.kept,
                    "group_constant": group.judged.constant,
                },
            ),
            convention=convention,
        )
        for group in groups
        for episode, outcome, rewarded, gain in zip(
            group.episodes, group.outcomes, group.rewarded, group.judged.advantages, strict=True
        )
    ]  # fmt: skip


@dataclass
class Tally:
    """Sums over episodes and groups; `counts` of several processes may be added up."""

    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Tally:
        """The sums over some groups."""
        tally = cls()
        for group in groups:
            tally._add(group)
        return tally

    def add(self, other: Tally) -> None:
        """Take in another's sums; unlike `+`, a sum of 0 or less stays."""
        self.counts.update(other.counts)

    def _add(self, group: Group) -> None:
        counts, judged = self.counts, group.judged
        sums: dict[str, float] = {
            "groups": 1,
            "constant": judged.constant,
            "left_out": not judged.kept,
            "taught": judged.teaches,
            "spread": pstdev(judged.advantages),
        }
        for name, value in sums.items():
            counts[name] += value  # type: ignore[assignment]  counters count anything
        for episode, rewarded in zip(group.episodes, group.rewarded, strict=True):
            for name, value in _sums(episode, rewarded).items():
                counts[name] += value  # type: ignore[assignment]

    def signs(self) -> Seen:
        """What the detectors of a collapse look at."""
        counts = self.counts
        episodes = max(1, counts["episodes"])
        return Seen(
            answers=counts["answered"] / episodes,
            taught=counts["taught"] / max(1, counts["groups"]),
            zooms=counts["called"] / episodes,
            entropy=counts["entropy"] / max(1, counts["tokens"]),
        )

    def shares(self, *, episodes: int, groups: int) -> dict[str, float]:
        """Metrics of a step with so many episodes and groups, of which these are a part."""
        counts = self.counts
        per_episode = ("reward", "hit", "zoomed", "answered", "truncated", "over_turns", "calls",
                       "failed_calls", "pixels")  # fmt: skip
        per_group = {
            "groups_constant": "constant", "groups_left_out": "left_out", "groups_taught": "taught",
            "advantage_spread": "spread",
        }  # fmt: skip
        parts = [name for name in counts if name.startswith("reward_")]
        part = counts["episodes"] / episodes
        return {
            **{name: counts[name] / episodes for name in (*per_episode, *parts)},
            **{name: counts[source] / groups for name, source in per_group.items()},
            "tokens_written": counts["tokens"] / episodes,
            "entropy": part * counts["entropy"] / max(1, counts["tokens"]),
        }

    def measured(self, *, boxes: bool) -> dict[str, float]:
        """Metrics of an evaluation; overlaps only where answers are `boxes`."""
        counts = self.counts
        episodes = max(1, counts["episodes"])
        names = {"accuracy": "hit", "zoom_rate": "zoomed", "pixels": "pixels",
                 "answered": "answered", "reward": "reward"}  # fmt: skip
        shown = {name: counts[source] / episodes for name, source in names.items()}
        if boxes and counts["boxes"]:
            shown["iou_50"] = counts["half"] / counts["boxes"]
        return shown


def _sums(episode: Episode, rewarded: Rewarded) -> dict[str, float]:
    """What one episode adds."""
    screen, verdict = episode.screen, rewarded.verdict
    asks_box = episode.task.box is not None
    return {
        "episodes": 1,
        "reward": rewarded.total,
        **{f"reward_{name}": value for name, value in rewarded.parts.items()},
        "hit": rewarded.hit,
        "zoomed": screen.zooms > 0,
        "called": len(screen.calls) > 0,
        "calls": sum(call.ok for call in screen.calls),
        "failed_calls": sum(not call.ok for call in screen.calls),
        "answered": episode.finish == "answered",
        "truncated": episode.finish == "truncated",
        "over_turns": episode.finish == "too many turns",
        "tokens": int(episode.written.sum()),
        "pixels": screen.pixels,
        "entropy": float(episode.entropies.double().sum()),
        "boxes": asks_box,
        "half": asks_box and verdict is not None and (verdict.iou or 0.0) >= 0.5,
    }


def episode_seeds(run_seed: int, *, step: int, place: int, sample: str, group: int) -> list[int]:
    """A seed for each episode of a group, by what it is and nothing else.

    `place` counts the questions of the step, however it is cut: one may come twice in a step.
    """
    words = (f"{run_seed}/{step}/{place}/{sample}/{index}" for index in range(group))
    return [int.from_bytes(hashlib.sha256(w.encode()).digest()[:8]) >> 1 for w in words]
