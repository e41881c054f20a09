"""Judge a click on a screenshot: one verdict for rewards, evaluation and published predictions.

In go the predicted point (and box, where there is one) and the target, all as shares of the
screenshot's sides; out come hit, intersection over union and distance. A target box is half-open
(its left and top edge belong to it), as the public judges of the ScreenSpot family have it. Numbers
that are none (NaN, infinities) never hit. Left out: reading them (`grounding/messages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from saccade.data.boxes import Box, iou

NEAR = 0.14
"""How near, as shares of the screen's sides, a click must come to a target known only as a point:
the rule of Android in the Wild (Rawles et al. 2023, arXiv 2307.10088, section 5)."""


@dataclass(frozen=True)
class PointVerdict:
    """`iou` is None where there is no target box or no predicted box; `distance` is to the middle
    of the target, in shares of the screenshot's sides."""

    hit: bool
    iou: float | None
    distance: float


def judge_point(
    *, point: Sequence[float], box: Box, predicted_box: Sequence[float] | None = None
) -> PointVerdict:
    """Whether a point lies in the target box, and how well a predicted box covers it."""
    x, y = point
    if not (math.isfinite(x) and math.isfinite(y)):
        return PointVerdict(hit=False, iou=_overlap(predicted_box, box), distance=math.inf)
    return PointVerdict(
        hit=box.contains(x, y),
        iou=_overlap(predicted_box, box),
        distance=math.dist((x, y), box.center),
    )


def judge_near(
    *, point: Sequence[float], target: Sequence[float], radius: float = NEAR
) -> PointVerdict:
    """Whether a point comes near enough to a target that is known only as a point."""
    distance = math.dist(tuple(point), tuple(target))
    if not math.isfinite(distance):
        return PointVerdict(hit=False, iou=None, distance=math.inf)
    return PointVerdict(hit=distance <= radius, iou=None, distance=distance)


def _overlap(predicted: Sequence[float] | None, box: Box) -> float | None:
    if predicted is None:
        return None
    if not all(math.isfinite(edge) for edge in predicted):
        return 0.0
    one = Box(*predicted)
    # with both sides negative the area would be positive again
    return iou(one, box) if one.width > 0 and one.height > 0 else 0.0
