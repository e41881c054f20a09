"""The configuration of continuous thoughts: the recipe `thoughts` and its task of logic.

Part of `schema.py`. Imports pydantic only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.nodes import Node, NonNegativeInt

MOST_THINGS = 36
"""Letters and digits that things are called by."""


class ThoughtsConfig(Node):
    """A small causal model whose hidden states are fed back as its next inputs."""

    mode: Literal["thoughts", "none", "pause", "written"] = "thoughts"
    """What replaces written steps: fed-back states, nothing, a learned pause each (two controls),
    or nothing is replaced and every step stays written."""
    curriculum: bool = True
    """Replace one more written step per stage, from none to all; else all of them from the start.
    """
    per_step: PositiveInt = 1
    """Thoughts for each replaced step."""
    width: PositiveInt = 64
    """Width of the model."""
    layers: PositiveInt = 2
    """Blocks."""
    heads: PositiveInt = 4
    """Attention heads."""
    last_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4
    """Share of the training that the last stage gets; the others share the rest evenly."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ThoughtsConfig:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} does not split into {self.heads} heads of an even width;"
                f" say heads={_heads_below(self.width, most=self.heads)}"
            )
        return self


def _heads_below(width: int, *, most: int) -> int:
    """Most heads, up to `most`, that a width splits into; 1 where it does not split at all."""
    return next((n for n in range(most, 0, -1) if width % (2 * n) == 0), 1)


class LogicSource(Node):
    """Which of two things follows from the start? Chains of rules among distractors, drawn anew."""

    type: Literal["logic"]
    """Kind of source."""
    split: Literal["train", "validation", "test"] = "train"
    """Disjoint streams: no set of rules of one split occurs in another."""
    things: Annotated[int, Field(ge=6, le=MOST_THINGS)] = 12
    """Things that rules are about, a letter or digit each."""
    steps: PositiveInt = 3
    """Rules between the start and what follows."""
    rules: PositiveInt = 12
    """Rules shown, those of the chain included."""
    samples: PositiveInt = 20_000
    """Questions."""
    seed: NonNegativeInt = 0
    """Seed of the stream."""

    @model_validator(mode="after")
    def _there_is_room(self) -> LogicSource:
        if self.rules < 2 * self.steps or self.things < 2 * self.steps + 2:
            raise ValueError(
                f"steps={self.steps} needs at least {2 * self.steps} rules and"
                f" {2 * self.steps + 2} things"
            )
        pairs = self.things * (self.things - 1)
        if self.rules > pairs:
            raise ValueError(
                f"things={self.things} has only {pairs} different rules; say rules={pairs // 4} or"
                " more things"
            )
        return self
