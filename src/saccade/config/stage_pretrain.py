"""The part of the configuration that only the recipe `pretrain` reads.

Part of `schema.py`. A schedule is a list of phases over shares of the steps: what is learned, which
parts learn, at which resolution and from which data. Names of parts are checked here against a
pattern; whether a model has as many blocks is the model's to say.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from saccade.config.nodes import Fraction, Node, NonNegative

PART = re.compile(r"projector|vision(\.last[1-9]\d*)?|language(\.(first|last)[1-9]\d*)?")


class PhaseData(Node):
    min_quality: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Leave out pairs whose `quality` fact is lower; pairs without one count as 1."""


class PretrainPhase(Node):
    until: Fraction
    """Share of all steps at which this phase ends; the last one's is 1.0."""
    task: Literal["contrastive", "caption"]
    """What is learned: to match pictures and captions, or to write the caption."""
    train: Annotated[list[str], Field(min_length=1)] = ["projector"]
    """Parts that learn: `projector`, `vision`, `vision.lastN`, `language`, `language.firstN`,
    `language.lastN`; all others stay as they are, bit for bit."""
    matching: NonNegative = 0.0
    """Weight of the contrastive loss beside the captions' own (task `caption`)."""
    max_pixels: PositiveInt | None = None
    """Downscale larger images to this area in pixels; default: `model.max_pixels`."""
    data: PhaseData = PhaseData()

    @field_validator("train")
    @classmethod
    def _parts_have_names(cls, parts: list[str]) -> list[str]:
        wrong = [part for part in parts if not PART.fullmatch(part)]
        if wrong:
            raise ValueError(
                f"no part is called {wrong[0]}; there are projector, vision, vision.lastN,"
                " language, language.firstN, language.lastN"
            )
        return parts


STANDARD_SCHEDULE = (
    PretrainPhase(until=0.5, task="contrastive"),
    PretrainPhase(until=1.0, task="caption"),
)


class PretrainConfig(Node):
    """A vision tower and a language model joined by a new projector (recipe `pretrain`)."""

    vision: str | None = None
    """Qwen3-VL whose vision tower is used (`tiny`, folder, hub name); default: `model.name`."""
    language: str | None = None
    """Qwen3-VL or Qwen3 whose language model and tokenizer are used; default: `model.name`."""
    projector: Literal["fresh", "keep"] = "fresh"
    """Start from a newly drawn projector, or `keep` the one of `model.name` (then `vision` and
    `language` must be empty)."""
    schedule: list[PretrainPhase] = []
    """Phases in order, each with until, task, train, max_pixels and data.min_quality; empty = half
    of the steps contrastive, then captioning, the projector alone."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.07
    """Where the learned temperature of the contrastive loss starts."""

    @model_validator(mode="after")
    def _phases_follow_each_other(self) -> PretrainConfig:
        ends = [phase.until for phase in self.schedule]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1.0):
            raise ValueError(
                "the phases' `until` must rise to 1.0 in the last one, not"
                f" {', '.join(map(str, ends))}"
            )
        if self.projector == "keep" and (self.vision or self.language):
            raise ValueError(
                "projector=keep continues model.name; vision and language join two models, whose"
                " projector can only be fresh"
            )
        return self

    def phases(self) -> tuple[PretrainPhase, ...]:
        """The schedule, or the standard one."""
        return tuple(self.schedule) or STANDARD_SCHEDULE
