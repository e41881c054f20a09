"""Signs that a policy has stopped answering, and when they have lasted long enough to stop.

What was seen of a step's episodes flows in; streaks of bad steps, and at last one sentence that
says what collapsed and what to do, flow out. An earlier system of this kind was found to emit
nothing but one tool call for a constant reward; these four rules would have ended it (answers,
rewards, tools, entropy). The state is plain values and belongs into checkpoints. Left out: who
stops what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from saccade.config.errors import SaccadeError
from saccade.config.grounding import GrpoConfig

ADVICE = {
    "answers": (
        "the policy no longer answers",
        "more grounding.warm.steps, a lower training.learning_rate, or grounding.grpo.beta=0.004;"
        " an episode too long to end needs more grounding.grpo.max_tokens",
    ),
    "rewards": (
        "nobody in a group was right, or all were paid the same, so there is nothing to learn from",
        "a larger grounding.grpo.group, a higher grounding.grpo.temperature, more"
        " grounding.warm.steps, easier screens or more kinds of them, or another"
        " grounding.coordinates where no answer is ever right",
    ),
    "tools": (
        "the policy has lost the choice of looking again",
        "another price grounding.reward.call, grounding.grpo.curiosity > 0, or"
        " grounding.grpo.stop_on_tool_rate=false where all screens are equally hard",
    ),
    "entropy": (
        "the policy always writes the same, so nothing new is tried",
        "grounding.grpo.entropy > 0, a lower training.learning_rate, or grounding.grpo.beta=0.004",
    ),
}
"""What each sign means, and which keys help."""


class PolicyCollapsed(SaccadeError):
    """The policy has collapsed; going on would train on nothing."""


@dataclass(frozen=True)
class Seen:
    """One step's episodes, of all processes together."""

    answers: float
    """Share of the episodes that ended in an answer that can be read."""
    taught: float
    """Share of the groups that teach anything: not left out, and not paid all the same."""
    zooms: float
    """Share of the episodes that called a tool, or tried to."""
    entropy: float
    """Mean entropy per written token in nats."""


@dataclass
class Detectors:
    """Counts for each sign the steps in a row that showed it."""

    config: GrpoConfig
    streaks: dict[str, int] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)

    def note(self, seen: Seen) -> None:
        """Take in one step."""
        config = self.config
        signs = {
            "answers": (
                seen.answers < config.min_answers,
                f"{seen.answers:.0%} of the episodes answered (least: {config.min_answers:.0%})",
            ),
            "rewards": (seen.taught == 0, "no group teaches anything"),
            "tools": (
                config.stop_on_tool_rate and seen.zooms in (0.0, 1.0),
                f"{seen.zooms:.0%} of the episodes call a tool",
            ),
            "entropy": (
                seen.entropy < config.min_entropy,
                f"entropy is {seen.entropy:.2g} nats per token (least: {config.min_entropy:g})",
            ),
        }
        for name, (bad, words) in signs.items():
            self.streaks[name] = self.streaks.get(name, 0) + 1 if bad else 0
            self.last[name] = words

    def collapsed(self) -> list[str]:
        """Signs that have lasted `patience` steps, in the order of `ADVICE`."""
        return [name for name in ADVICE if self.streaks.get(name, 0) >= self.config.patience]

    def stop(self, *, step: int, saved: str) -> None:
        """Raise PolicyCollapsed if there is a reason to; `saved` says what is on disk."""
        found = self.collapsed()
        if not found:
            return
        what = "; ".join(
            f"{self.last[name]}: {ADVICE[name][0]} ({self.streaks[name]} steps in a row)"
            for name in found
        )
        raise PolicyCollapsed(
            f"step {step}: {what}; {saved}"
            f"\n  fix: {ADVICE[found[0]][1]}; then start another run with run.name=NAME"
        )

    def saved(self) -> dict[str, dict[str, int] | dict[str, str]]:
        """The state as plain values."""
        return {"streaks": dict(self.streaks), "last": dict(self.last)}

    def restore(self, saved: Mapping[str, Mapping]) -> None:
        """Take up what `saved` returned."""
        self.streaks, self.last = dict(saved["streaks"]), dict(saved["last"])
