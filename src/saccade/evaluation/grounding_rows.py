"""One judged answer to "where is it", and the scores made of many.

In go the rows of `predictions.jsonl` (one episode each, as `grounding/episodes.py` writes them);
out come `Scored` records and the content of `evaluation.json`: point-in-box accuracy with its 95 %
interval, IoU, looks, pixels and tokens, in all and by platform, kind of element and size of target.
Beside every accuracy stands that of clicking at random, exactly: the mean share of the screen that
the boxes cover. Targets known by a click point alone have no box to hit; they are told apart, by
whether the answer comes near.
Left out: rolling out (`grounding.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade.data.boxes import Box
from saccade.evaluation.grounding_gates import in_order
from saccade.evaluation.statistics import wilson_interval
from saccade.grounding.episodes import answer_of_row, target_side, verdict_of_row
from saccade.scoring.points import NEAR

IOU_BAR = 0.5
GRID = 100
"""Clicks per side that stand for clicking anywhere, where the chance has no simple formula."""
UNKNOWN = "unknown"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """What came of one episode.

    `hit` is for targets with a box, `near` for those that are a point; `chance` is that of a random
    click to be right. `side` is that of a square with the target's area and `answer_side` that of
    the answer's box, both in pixels of the first look; `distance` is from the target's middle (or
    its point), in shares of the sides. `confidence` is the geometric mean of the probabilities of
    the answer's tokens under the policy at temperature 1. None where there is no such thing.
    """

    id: str
    screen: str
    platform: str
    element: str
    bucket: str
    hit: bool | None
    near: bool | None
    iou: float | None
    distance: float | None
    chance: float
    side: float | None
    answer_side: float | None
    zoomed: bool
    looks: int
    pixels: int
    first_pixels: int
    visual_tokens: int | None
    tokens: int
    confidence: float | None
    finish: str
    failed_calls: int
    point: tuple[float, float] | None
    box: Box | None

    @property
    def right(self) -> bool:
        """Whether the point lies in the box; a target without a box cannot be hit."""
        return bool(self.hit)


def scored(row: Row) -> Scored:
    """Judge one stored episode, from the text it wrote; DataError for a row that is none."""
    answer, verdict = answer_of_row(row), verdict_of_row(row)
    target = row["target_box"]
    boxed = target is not None
    right = verdict is not None and verdict.hit
    first = row["views"][0]
    log_prob = row["answer_log_prob"]
    return Scored(
        id=row["id"], screen=row["image_id"], platform=row["platform"] or UNKNOWN,
        element=row["element"] or UNKNOWN, bucket=row["bucket"],
        hit=right if boxed else None, near=None if boxed else right,
        iou=verdict.iou if verdict else None,
        distance=verdict.distance if verdict else None,
        chance=Box(*target).clamped().area if boxed else chance_near(row["target_point"]),
        side=row["target_side"],
        answer_side=target_side(answer.box, size=first["size"]) if answer else None,
        zoomed=row["zooms"] > 0, looks=len(row["views"]), pixels=row["pixels"],
        first_pixels=first["pixels"], visual_tokens=row["tokens_visual"],
        tokens=row["tokens_written"],
        confidence=math.exp(log_prob) if answer and log_prob is not None else None,
        finish=row["finish"], failed_calls=row["failed_calls"],
        point=answer.point if answer else None, box=answer.box if answer else None,
    )  # fmt: skip


def share(values: Sequence[bool]) -> dict[str, Any]:
    """A share with its 95 % Wilson interval and its count."""
    low, high = wilson_interval(sum(values), total=len(values))
    return {"share": sum(values) / max(1, len(values)), "low": low, "high": high,
            "samples": len(values)}  # fmt: skip


def summarise(scored: Sequence[Scored]) -> dict[str, Any]:
    """Everything `evaluation.json` says about the answers themselves."""
    parts = {
        name: _by(scored, of)
        for name, of in (("platform", _platform), ("element", _element), ("size", _bucket))
    }
    return {
        **score(scored),
        "finishes": dict(sorted(Counter(one.finish for one in scored).items())),
        "failed_calls": sum(one.failed_calls for one in scored),
        "points": _points(scored),
        "parts": parts,
        # what other recipes call kinds of questions
        "kinds": {name: one for name, one in parts["element"].items() if one["samples_boxed"]},
    }


def score(scored: Sequence[Scored]) -> dict[str, Any]:
    """Accuracy, IoU, looks and cost of some answers; no accuracy where no target has a box."""
    boxed = [one for one in scored if one.hit is not None]
    found = share([one.right for one in boxed])
    # where answers are boxes, one that cannot be read overlaps nothing
    boxes = any(one.iou is not None for one in boxed)
    overlaps = [one.iou or 0.0 for one in boxed] if boxes else []
    over = [value >= IOU_BAR for value in overlaps]
    return {
        "samples": len(scored),
        "samples_boxed": len(boxed),
        "accuracy": found["share"] if boxed else None,
        "low": found["low"],
        "high": found["high"],
        "random": mean([one.chance for one in boxed]),
        "iou": {**share(over), "mean": mean(overlaps)} if overlaps else None,
        "zoom_rate": share([one.zoomed for one in scored]),
        "looks": mean([one.looks for one in scored]),
        "pixels": mean([one.pixels for one in scored]),
        "visual_tokens": mean(
            [one.visual_tokens for one in scored if one.visual_tokens is not None]
        ),
        "tokens": mean([one.tokens for one in scored]),
    }


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


def _points(scored: Sequence[Scored]) -> dict[str, Any] | None:
    """Targets known by a click point alone: how far off, and how often near."""
    mine = [one for one in scored if one.hit is None]
    if not mine:
        return None
    distances = sorted(one.distance for one in mine if one.distance is not None)
    return {
        **share([bool(one.near) for one in mine]),
        "near": NEAR,
        "median_distance": distances[len(distances) // 2] if distances else None,
        "random": mean([one.chance for one in mine]),
    }


def chance_near(target: Sequence[float]) -> float:
    """Chance that a click anywhere on the screen comes near `target`, on a grid of clicks."""
    clicks_G = (np.arange(GRID) + 0.5) / GRID
    across_G, down_G = clicks_G - target[0], clicks_G - target[1]
    return float((np.hypot(across_G[:, None], down_G[None, :]) <= NEAR).mean())


def _by(scored: Sequence[Scored], of: Callable[[Scored], str]) -> dict[str, dict[str, Any]]:
    names = [of(one) for one in scored]
    order = in_order(names) if of is _bucket else sorted(set(names))
    return {name: score([one for one in scored if of(one) == name]) for name in order}


def _platform(one: Scored) -> str:
    return one.platform


def _element(one: Scored) -> str:
    return one.element


def _bucket(one: Scored) -> str:
    return one.bucket
