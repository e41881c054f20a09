"""What an episode is paid, part by part.

In goes an `Outcome` (what came of an episode, free of any library) and the weights of
`config.grounding.reward`; out come the named parts and their sum. With p the point clicked, g and
(w, h) the target's middle and sides, B the predicted box:

    hit         p lies in the target (half-open)
    point       exp(-1/2 [((p_x - g_x) / (w/2))^2 + ((p_y - g_y) / (h/2))^2])         (GUI-G2)
    coverage    exp(-D_B) of the boxes as Gaussians with sigma = half a side, where
                D_B = sum over axes of d^2 / (4 (s1^2 + s2^2)) + 1/2 ln((s1^2 + s2^2) / (2 s1 s2))
    iou         intersection over union
    format      there is an answer that can be read
    call        minus the price of every call, valid or not
    tool        a hit after a zoom on a row known to need one
    confidence  1 - (confidence - hit)^2, a proper scoring rule (Brier)
    silence     without answer: minus what the most calls of an answered episode would cost

The last part keeps silence from paying under any weights: an answer is worth at least nothing
before its calls, so no answer, however wrong, ends below an episode that gives none. An episode
with more calls than it may make counts as silent. Left out: advantages (`grpo.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from saccade.config.grounding import GroundingConfig, RewardConfig
from saccade.data.boxes import Box, Size
from saccade.grounding.environment import Answer
from saccade.scoring.points import PointVerdict, judge_near, judge_point

PARTS = (
    "hit", "point", "coverage", "iou", "format", "call", "tool", "confidence", "silence",
    "curiosity",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What came of an episode; `answer` is None where there is none that can be read.

    `calls` counts all calls, `zooms` those that showed a crop, `most_calls` is how many an episode
    may make. `confidence` is in 0..1. Boxes and points are shares of a screenshot of `size` pixels.
    """

    answer: Answer | None
    box: Box | None
    size: Size
    point: tuple[float, float] | None = None
    calls: int = 0
    zooms: int = 0
    most_calls: int = 2
    confidence: float | None = None
    needs_zoom: bool | None = None


@dataclass(frozen=True)
class Rewarded:
    """Every part, weighed (`PARTS`), and their sum."""

    parts: dict[str, float]
    total: float
    verdict: PointVerdict | None

    @property
    def hit(self) -> bool:
        """Whether the answer was right: what groups are filtered by."""
        return self.verdict is not None and self.verdict.hit


def reward_of(outcome: Outcome, *, config: RewardConfig) -> Rewarded:
    """Pay one episode."""
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    parts["call"] = -config.call * outcome.calls
    answer = outcome.answer if outcome.calls <= outcome.most_calls else None
    if answer is None:
        parts["silence"] = -config.call * outcome.most_calls
        return _summed(parts, verdict=None)
    verdict = _verdict(answer, outcome=outcome)
    parts["hit"] = config.hit * verdict.hit
    parts["point"] = config.point * _nearness(answer, outcome=outcome)
    if answer.box is not None and outcome.box is not None:
        parts["coverage"] = config.coverage * coverage(answer.box, outcome.box, size=outcome.size)
        parts["iou"] = config.iou * (verdict.iou or 0.0)
    parts["format"] = config.format
    if verdict.hit and outcome.zooms and outcome.needs_zoom:
        parts["tool"] = config.tool
    if outcome.confidence is not None and 0 <= outcome.confidence <= 1:
        parts["confidence"] = config.confidence * (1 - (outcome.confidence - verdict.hit) ** 2)
    return _summed(parts, verdict=verdict)


def group_rewards(outcomes: Sequence[Outcome], *, config: GroundingConfig) -> list[Rewarded]:
    """Pay a group: each episode for itself, then the curiosity floor."""
    paid = [reward_of(outcome, config=config.reward) for outcome in outcomes]
    return with_curiosity(paid, outcomes, least=config.grpo.curiosity)


def with_curiosity(
    paid: Sequence[Rewarded], outcomes: Sequence[Outcome], *, least: float
) -> list[Rewarded]:
    """Where less than a share `least` of a group looked again, pay the difference for looking.

    Only to right answers after a zoom: looking alone earns nothing (after Pixel Reasoner's
    max(least - rate, 0), gated on the outcome).
    """
    if not paid:
        return []
    rate = sum(outcome.zooms > 0 for outcome in outcomes) / len(outcomes)
    lacking = max(0.0, least - rate)
    return [
        _summed({**one.parts, "curiosity": lacking}, verdict=one.verdict)
        if one.hit and outcome.zooms
        else replace(one)
        for one, outcome in zip(paid, outcomes, strict=True)
    ]


def nearness(point: Sequence[float], box: Box, *, size: Size) -> float:
    """Gaussian of the distance to the target's middle, in half sides of the target; 1 = middle."""
    width, height = _sides(box, size=size)
    (x, y), (middle_x, middle_y) = point, box.center
    across, down = (x - middle_x) / (width / 2), (y - middle_y) / (height / 2)
    return math.exp(-(across**2 + down**2) / 2)


def coverage(one: Box, other: Box, *, size: Size) -> float:
    """exp of minus the Bhattacharyya distance of two boxes as Gaussians; 1 = the same box."""
    distance = 0.0
    sides = zip(_sides(one, size=size), _sides(other, size=size), strict=True)
    for (mine, theirs), a, b in zip(sides, one.center, other.center, strict=True):
        first, second = mine / 2, theirs / 2
        both = first**2 + second**2
        distance += (a - b) ** 2 / (4 * both) + math.log(both / (2 * first * second)) / 2
    return math.exp(-distance)


def _sides(box: Box, *, size: Size) -> tuple[float, float]:
    """Sides of a box, at least one pixel of the screenshot: a box without area has no sigma."""
    return max(box.width, 1 / size[0]), max(box.height, 1 / size[1])


def _nearness(answer: Answer, *, outcome: Outcome) -> float:
    return 0.0 if outcome.box is None else nearness(answer.point, outcome.box, size=outcome.size)


def _verdict(answer: Answer, *, outcome: Outcome) -> PointVerdict:
    if outcome.box is not None:
        return judge_point(point=answer.point, box=outcome.box, predicted_box=answer.box)
    if outcome.point is None:
        raise ValueError("an outcome without a target cannot be paid")
    return judge_near(point=answer.point, target=outcome.point)


def _summed(parts: dict[str, float], *, verdict: PointVerdict | None) -> Rewarded:
    return Rewarded(parts=parts, total=sum(parts.values()), verdict=verdict)
