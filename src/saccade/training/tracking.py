"""Where metrics go besides `events.jsonl`: W&B, or nowhere.

Tracking settings and the run's configuration flow in, a `Sink` flows out; the loop logs to it
without asking which it is. wandb is imported only when used, and no failure of it (no network, a
full disk, a wrong key) ever stops a run: it becomes one warning and the sink goes quiet.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from saccade.config.schema import Config
from saccade.training.rundir import RunDir, write_atomically

Warn = Callable[[str], None]


class Sink(Protocol):
    """Receives what a run measures."""

    def log(self, values: dict[str, float], *, step: int) -> None: ...

    def close(self, *, exit_code: int) -> None: ...


class NullSink:
    """Keeps nothing."""

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Do nothing."""

    def close(self, *, exit_code: int) -> None:
        """Do nothing."""


class WandbSink:
    """Forwards to one W&B run; its id lives in the run directory, so resuming continues it."""

    def __init__(self, config: Config, *, run: RunDir, mode: str, warn: Warn) -> None:
        self.warn = warn
        self.run: Any = None
        self._guarded(self._start, config, run, mode)

    def _start(self, config: Config, run: RunDir, mode: str) -> None:
        import wandb

        self.run = wandb.init(
            project=config.tracking.project,
            entity=config.tracking.entity,
            name=run.path.name,
            id=wandb_id(run),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=str(run.path),
            config=config.model_dump(mode="json"),
            # stdout stays ours, and nothing of the code is uploaded
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        # resumed runs repeat steps; W&B drops steps that go back unless the axis is ours
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], *, step: int) -> None:
        """Log one row of metrics."""
        if self.run is not None:
            self._guarded(self.run.log, {**values, "step": step})

    def close(self, *, exit_code: int) -> None:
        """Finish the W&B run."""
        if self.run is not None:
            self._guarded(self.run.finish, exit_code)

    def _guarded(self, action: Callable[..., Any], *arguments: Any) -> None:
        try:
            action(*arguments)
        except Exception as error:  # a third party's failure of any kind is not the run's
            self.run = None
            self.warn(f"W&B is off from here on: {error.__class__.__name__}: {error}")


def wandb_id(run: RunDir) -> str:
    """The run's W&B id: read from `wandb.json`, or made once."""
    path = run.path / "wandb.json"
    if path.is_file():
        return json.loads(path.read_text("utf-8"))["id"]
    # a launched job is told its id, so that all its attempts are one W&B run
    new = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
    write_atomically(path, json.dumps({"id": new}) + "\n")
    return new


def open_sink(config: Config, *, run: RunDir, warn: Warn) -> Sink:
    """Choose the sink: `auto` is online with WANDB_API_KEY and off without."""
    mode = config.tracking.wandb
    if mode == "auto":
        mode = "online" if os.environ.get("WANDB_API_KEY") else "off"
    if mode == "off":
        return NullSink()
    return WandbSink(config, run=run, mode=mode, warn=warn)
