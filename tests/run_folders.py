"""Run directories as trainings leave them, made in milliseconds: whole, half written, damaged.

A folder and a few wishes flow in; files with the real names and event types flow out. No training
and no torch. Left out: what a test expects of them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

CONFIG = "recipe: relevance\n"


def event(type: str, *, at: float, **fields: Any) -> str:
    """One line of an event log."""
    return json.dumps({"v": 1, "time": at, "type": type, **fields}) + "\n"


def steps_of(count: int, *, total: int, at: float, first: int = 1) -> str:
    """Events of `count` steps, two a second."""
    return "".join(
        event(
            "step", at=at + number * 0.5, step=first + number, loss=2.0 / (first + number),
            metrics={}, learning_rate=1e-3, grad_norm=1.0, samples_per_s=8.0, tokens_per_s=100.0,
            sample_ids=[number],
        )
        for number in range(count)
    )  # fmt: skip


def make_run(
    root: Path, name: str, *, steps: int = 20, total: int = 40, done: bool = False,
    last: str = "", at: float | None = None,
) -> Path:  # fmt: skip
    """Write a run directory; `last` is one more event type at the end of its log."""
    folder = root / name
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    at = time.time() - 60 if at is None else at
    text = event("run_start", at=at, recipe="relevance", steps=total, world_size=1, threads=1,
                 device="cpu")  # fmt: skip
    text += steps_of(steps, total=total, at=at)
    text += event("checkpoint", at=at + steps / 2, step=steps, seconds=0.1, bytes=1000)
    if last == "preempted":
        text += event("preempted", at=at + steps, step=steps)
    if last == "failed":
        text += event("failed", at=at + steps, message="No space left on device")
    (folder / "events.jsonl").write_text(text)
    if done:
        content = {"target_step": total, "metrics": {"loss": 0.1, "accuracy": 0.9}, "time": at}
        (folder / "DONE").write_text(json.dumps(content))
    return folder
