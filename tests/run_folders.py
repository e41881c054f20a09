"""Run directories as trainings leave them, made in milliseconds: whole, half written, damaged.

A folder and a few wishes flow in; files with the real names and event types flow out. No training
and no torch. Left out: what a test expects of them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from saccade.launch.log import Launch

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


def make_local_launch(
    root: Path, name: str, *, attempts: int = 1, target: str = "local", loss: float | None = 0.5
) -> Launch:
    """Write the log of a launch that goes on, each attempt with a log of its own.

    With a loss there is a run directory too, as on this machine; without one it is elsewhere.
    """
    launch = Launch(root / ".launches" / f"{name}-tok")
    at = time.time() - 600
    spec = {
        "run": name, "token": "tok", "attempt": 1, "recipe": "relevance", "machine": "local",
        "replicas": 1, "strategy": "spot", "region": "local", "image": None, "code": "",
        "config": "", "store": "",
    }  # fmt: skip
    offer = {"region": "local", "machine": "local", "strategy": "spot", "usd_per_hour": 2.0}
    launch.append("planned", at=at, spec=spec, target=target, run_dir=str(root / name),
                  offers=[offer], policy={"max_attempts": 5})  # fmt: skip
    launch.append("ready", at=at, spec=spec)
    for attempt in range(1, attempts + 1):
        job = launch.folder / "jobs" / str(attempt)
        job.mkdir(parents=True)
        (job / "log").write_text(f"line of attempt {attempt}\n")
        handle = {"target": target, "id": str(job), "region": "local", "url": None}
        launch.append("submitted", at=at, attempt=attempt, offer=0, handle=handle)
        launch.append("state", at=at, state="RUNNING", detail="")
    if loss is not None:
        make_run(root, name, steps=20, total=40, at=at)
        launch.append("heartbeat", at=at + 10, attempt=attempts, step=20, beat_at=at + 10,
                      steps=40, loss=loss)  # fmt: skip
    return launch
