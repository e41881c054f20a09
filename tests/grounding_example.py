"""Example episodes of a grounding run, shared by unit tests: rows as they are stored, and splits of
a policy that is right on large targets at once and on small ones after a look."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

from saccade.data.boxes import Box
from saccade.evaluation.grounding_arms import Rolled
from saccade.evaluation.grounding_rows import Scored, scored
from saccade.grounding.episodes import ROW_FIELDS, bucket_of, target_side

FIRST, CROP = (128, 96), (192, 128)
TARGET, NEAR = Box(0.4, 0.4, 0.5, 0.5), Box(0.41, 0.41, 0.49, 0.49)


def row(
    name: str = "page0-0",
    *,
    target: Box | None = TARGET,
    answered: Box | None = NEAR,
    zoomed: bool = False,
    sure: float = 0.8,
    **changes: Any,
) -> dict[str, Any]:
    """One stored episode; `answered` None is a turn that cannot be read."""
    view = {"box": [0, 0, 1, 1], "size": FIRST, "offset": [0, 0], "scale": [1 / 6] * 2,
            "pixels": math.prod(FIRST)}  # fmt: skip
    window = Box(0.3, 0.3, 0.55, 0.55)
    crop = {**view, "box": window, "size": CROP, "pixels": math.prod(CROP)}
    views = [view, crop] if zoomed else [view]
    seen = answered and (answered.seen_in(window) if zoomed else answered)
    said = str([round(1000 * edge) for edge in seen]) if seen else "there"
    call = '<tool_call>\n{"name": "zoom", "arguments": {"box": [300, 300, 550, 550]}}\n</tool_call>'
    side = target_side(target, size=FIRST)
    found = {
        **dict.fromkeys(ROW_FIELDS),
        "v": 1, "run": "toy", "step": 0, "split": "eval", "id": name,
        "image_id": name.rsplit("-", 1)[0], "index": 0, "seed": 0,
        "instruction": "Click the red star.", "platform": "web", "element": "icon",
        "target_box": target, "target_side": side, "bucket": bucket_of(side), "forced": "free",
        "turns": [call, said] if zoomed else [said], "reasoning": ["", ""][: 1 + zoomed],
        "convention": "0-1000", "parse": "ok", "image_size": [768, 576], "views": views,
        "calls": [{"name": "zoom", "ok": True}] if zoomed else [],
        "pixels": sum(one["pixels"] for one in views), "zooms": int(zoomed), "failed_calls": 0,
        "point": answered and answered.center, "box": answered,
        "hit": bool(answered and target and target.contains(*answered.center)),
        "finish": "answered" if answered else "unreadable", "masked": False,
        "tokens_written": 12 + 14 * zoomed, "tokens_given": 40 * zoomed,
        "log_prob": math.log(sure), "answer_log_prob": math.log(sure), "confidence": sure,
        "contradictions": [], "effect": "unknown",
    }  # fmt: skip
    return {**found, **changes}


@functools.cache
def rolled(seed: int, *, targets: int = 240) -> Rolled:
    """A split: the smaller the target, the likelier is a miss at first look, and a look."""
    rng = random.Random(seed)
    never, always, free, sampled = [], [], [], []
    for number in range(targets):
        side = math.exp(rng.uniform(math.log(14), math.log(96)))
        name = f"page{seed}-{number // 6}-{number}"
        target = Box.from_pixels(300, 200, 300 + side, 200 + side, size=(768, 576))
        chance = min(0.95, max(0.2, (side - 10) / 40))
        now, later = rng.random() < chance, rng.random() < 0.93
        looks = rng.random() < 1 / (1 + math.exp((side - 30) / 4))

        def told(
            right: bool, *, zoomed: bool = False, sure: float = 0.5, name: str = name,
            target: Box = target,
        ) -> Scored:  # fmt: skip
            off = 0.0 if right else 0.11
            left, top, wrong_right, bottom = target
            box = Box(left + off, top, wrong_right + off, bottom)
            screen = {"image_id": name.rsplit("-", 1)[0]}
            made = row(name, target=target, answered=box, zoomed=zoomed, sure=sure, **screen)
            return scored(made)

        # too sure of itself, yet surer where it is right
        sure = min(0.99, chance**0.5 + rng.uniform(0, 0.15))
        never.append(told(now, sure=sure))
        always.append(told(later, zoomed=True, sure=0.9))
        free.append(told(later if looks else now, zoomed=looks, sure=0.9))
        sampled.append([told(rng.random() < chance, sure=sure) for _ in range(8)])
    return Rolled(never=never, always=always, free=free, sampled=sampled)
