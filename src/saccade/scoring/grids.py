"""How right answers in grids are, per step of thinking, and what halting makes of it.

Per sample and step flow in: whether every cell is right, the share of right cells, and the halting
score; shares over samples flow out. Three readings:

    accuracy_step_k    samples right in every supervised cell after k steps (exact accuracy)
    cells_step_k       mean share of right cells after k steps
    halting            each sample stops as soon as its answer is right with the probability
                       `confidence`, or more likely right than not and the same as one step
                       before; else at the last step: accuracy there, the mean of these steps, and
                       how many stopped at each
    published          the same, stopping at the first step whose score is above 0
    tradeoff           accuracy and mean steps for several confidences, and for equal steps for all

A score above 0 means no more than "right rather than not", so `published` is wrong about as often
as a calibrated score says. "Overthinking" is the share that was right at some step and is wrong at
the last. Left out: voting over variants of a task (`evaluation/voting.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
SHOWN_STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps whose accuracy a training reports, besides the last."""


@dataclass(frozen=True)
class StepVerdicts:
    """One sample, one entry per step of thinking."""

    right: Sequence[bool]
    cells: Sequence[float]
    halt: Sequence[float]
    kind: str = ""
    same: Sequence[bool] = ()
    """Whether the answer is the one of the step before; empty = unknown, never."""
    advantage: Sequence[float] = ()
    """What stopping is worth over going on, where that is learned."""


def halting_step(scores: Sequence[float]) -> int:
    """The step, from 1, at which a sample stops: its first score above 0, else the last."""
    return next((step for step, score in enumerate(scores, start=1) if score > 0), len(scores))


def careful_step(one: StepVerdicts, *, confidence: float) -> int:
    """The step at which a sample stops that is careful: sure enough, or settled."""
    sure = math.log(confidence / (1 - confidence)) if confidence < 1 else math.inf
    same = one.same or [False] * len(one.halt)
    for step, (score, settled) in enumerate(zip(one.halt, same, strict=True), start=1):
        if score >= sure or (score > 0 and settled):
            return step
    return len(one.halt)


def stopped_at(verdicts: Sequence[StepVerdicts], halts: Sequence[int]) -> dict[str, Any]:
    """Accuracy, mean steps and histogram, when each sample stops at its own step."""
    right = [one.right[step - 1] for one, step in zip(verdicts, halts, strict=True)]
    histogram, steps = Counter(halts), range(1, len(verdicts[0].right) + 1)
    return {
        "accuracy": sum(right) / len(verdicts),
        "mean_steps": sum(halts) / len(verdicts),
        "histogram": {str(step): histogram[step] for step in steps},
    }


def tradeoff(verdicts: Sequence[StepVerdicts]) -> list[dict[str, float]]:
    """Accuracy against mean steps, for several confidences."""
    rows = []
    for confidence in CONFIDENCES:
        halts = [careful_step(one, confidence=confidence) for one in verdicts]
        found = stopped_at(verdicts, halts)
        rows.append({"confidence": confidence, **{k: found[k] for k in ("accuracy", "mean_steps")}})
    return rows


def summarise(verdicts: Sequence[StepVerdicts], *, confidence: float = 0.95) -> dict[str, Any]:
    """All readings over a set of samples with equally many steps."""
    count, steps = len(verdicts), range(len(verdicts[0].right))
    careful = [careful_step(one, confidence=confidence) for one in verdicts]
    published = [halting_step(one.halt) for one in verdicts]
    learned = {}
    if all(one.advantage for one in verdicts):
        by_value = [halting_step(one.advantage) for one in verdicts]
        learned = {"q_halting": stopped_at(verdicts, by_value)}
    return {
        "samples": count,
        "accuracy": sum(one.right[-1] for one in verdicts) / count,
        "accuracy_by_step": [sum(one.right[n] for one in verdicts) / count for n in steps],
        "cells_by_step": [sum(one.cells[n] for one in verdicts) / count for n in steps],
        "halting": {
            "confidence": confidence,
            **stopped_at(verdicts, careful),
            "sure": sum(max(one.halt) > 0 for one in verdicts) / count,
        },
        "published": stopped_at(verdicts, published),
        **learned,
        "tradeoff": tradeoff(verdicts),
        "overthinking": sum(any(one.right) and not one.right[-1] for one in verdicts) / count,
    }


def by_kind(
    verdicts: Sequence[StepVerdicts], *, confidence: float = 0.95
) -> dict[str, dict[str, Any]]:
    """The same for every kind of sample."""
    kinds: dict[str, list[StepVerdicts]] = defaultdict(list)
    for one in verdicts:
        kinds[one.kind].append(one)
    return {kind: summarise(kinds[kind], confidence=confidence) for kind in sorted(kinds)}


def metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers that a training tells of itself."""
    by_step = summary["accuracy_by_step"]
    shown = {
        f"accuracy_step_{n}": by_step[n - 1] for n in SHOWN_STEPS if n < len(by_step)
    }  # fmt: skip
    return {
        "accuracy": summary["accuracy"],
        **shown,
        "cell_accuracy": summary["cells_by_step"][-1],
        "halting_accuracy": summary["halting"]["accuracy"],
        "mean_steps": summary["halting"]["mean_steps"],
    }
