"""How right answers in grids are, per step of thinking, and what halting makes of it.

Per sample and step flow in: whether every cell is right, the share of right cells, and the halting
score; shares over samples flow out. Three readings:

    accuracy_step_k    samples right in every supervised cell after k steps (exact accuracy)
    cells_step_k       mean share of right cells after k steps
    halting            each sample stops at the first step whose score is above 0, else at the last:
                       accuracy there, the mean of these steps, and how many stopped at each

"Overthinking" is the share that was right at some step and is wrong at the last. Left out: voting
over variants of a task.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHOWN_STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Steps whose accuracy a training reports, besides the last."""


@dataclass(frozen=True)
class StepVerdicts:
    """One sample, one entry per step of thinking."""

    right: Sequence[bool]
    cells: Sequence[float]
    halt: Sequence[float]
    kind: str = ""


def halting_step(scores: Sequence[float]) -> int:
    """The step, from 1, at which a sample stops: its first score above 0, else the last."""
    return next((step for step, score in enumerate(scores, start=1) if score > 0), len(scores))


def summarise(verdicts: Sequence[StepVerdicts]) -> dict[str, Any]:
    """All readings over a set of samples with equally many steps."""
    count, steps = len(verdicts), range(len(verdicts[0].right))
    halts = [halting_step(one.halt) for one in verdicts]
    stopped = [one.right[step - 1] for one, step in zip(verdicts, halts, strict=True)]
    histogram = Counter(halts)
    return {
        "samples": count,
        "accuracy": sum(one.right[-1] for one in verdicts) / count,
        "accuracy_by_step": [sum(one.right[n] for one in verdicts) / count for n in steps],
        "cells_by_step": [sum(one.cells[n] for one in verdicts) / count for n in steps],
        "halting": {
            "accuracy": sum(stopped) / count,
            "mean_steps": sum(halts) / count,
            "sure": sum(max(one.halt) > 0 for one in verdicts) / count,
            "histogram": {str(n + 1): histogram[n + 1] for n in steps},
        },
        "overthinking": sum(any(one.right) and not one.right[-1] for one in verdicts) / count,
    }


def by_kind(verdicts: Sequence[StepVerdicts]) -> dict[str, dict[str, Any]]:
    """The same for every kind of sample."""
    kinds: dict[str, list[StepVerdicts]] = defaultdict(list)
    for one in verdicts:
        kinds[one.kind].append(one)
    return {kind: summarise(kinds[kind]) for kind in sorted(kinds)}


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
