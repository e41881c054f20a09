"""What a run or a launch wrote, line by line, as it grows; and its events as lines.

A launch (or a run directory) and an attempt flow in, new lines flow out of each call. Logs of this
machine are read from the end of their file, so a log of any length costs little; logs elsewhere
come through the launch's target, as `saccade logs` reads them. Left out: showing them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.launch.log import Launch
from saccade.launch.messages import money
from saccade.launch.spec import Handle
from saccade.training.progress import duration
from saccade.tui.tail import Tail

BEGIN_BYTES = 2 << 20
"""How much of a long log is read at first: its end."""
LINES_AT_ONCE = 20_000


class LogReader:
    """New lines of one attempt of a launch."""

    def __init__(self, folder: Path) -> None:
        self.launch = Launch(folder)
        self.attempt: int | None = None
        """The attempt to read; None: the newest."""
        self._shown: int | None = None
        self._tail: Tail | None = None
        self._cursor: str | None = None
        self._driver: Any = None
        self._handles: dict[int, Handle] = {}
        self._size = -1

    @property
    def attempts(self) -> list[int]:
        """Attempts that have a job."""
        return sorted(self._handles)

    @property
    def shown(self) -> int | None:
        """The attempt whose lines come."""
        return self._shown

    def step(self, by: int) -> int | None:
        """Go to the attempt before or after; None when there is none."""
        here = self._shown if self._shown is not None else max(self._handles, default=0)
        near = [one for one in self.attempts if (one < here if by < 0 else one > here)]
        if not near:
            return None
        self.attempt = max(near) if by < 0 else min(near)
        if by > 0 and self.attempt == max(self.attempts):
            self.attempt = None
        return self.attempt or max(self.attempts)

    def read(self) -> tuple[int | None, list[str]]:
        """Return the attempt and its new lines; raises what the target raises."""
        self._look_for_attempts()
        wanted = self.attempt or max(self._handles, default=None)
        if wanted is None or wanted not in self._handles:
            return None, []
        if wanted != self._shown:
            self._shown, self._tail, self._cursor = wanted, None, None
        handle = self._handles[wanted]
        if handle.target in ("local",):
            return wanted, self._of_file(Path(handle.id) / "log")
        return wanted, self._of_target(handle)

    def _look_for_attempts(self) -> None:
        size = self.launch.events_file.stat().st_size
        if size == self._size:
            return
        self._size = size
        for event in self.launch.events():
            if event["type"] == "submitted":
                self._handles[int(event["attempt"])] = Handle.from_json(event["handle"])

    def _of_file(self, path: Path) -> list[str]:
        if self._tail is None:
            if not path.exists():
                return []
            self._tail = Tail(path)
            self._tail.skip_to_end(keep=BEGIN_BYTES)
        found: list[str] = []
        while len(found) < LINES_AT_ONCE:
            lines = self._tail.lines()
            found += [line.decode("utf-8", "replace") for line in lines]
            if not self._tail.behind:
                break
        return found

    def _of_target(self, handle: Handle) -> list[str]:
        if self._driver is None:
            from saccade.cli_inputs import export_dotenv
            from saccade.launch.begin import reopen

            export_dotenv()
            self._driver = reopen(self.launch, env=os.environ)
        lines, self._cursor = self._driver.target.logs(handle, cursor=self._cursor)
        return [line.text for line in lines[-LINES_AT_ONCE:]]


def event_line(event: Mapping[str, Any]) -> str:
    """An event of a run or a launch as one line."""
    moment = time.strftime("%m-%d %H:%M:%S", time.localtime(float(event.get("time") or 0.0)))
    kind = str(event.get("type"))
    return f"{moment}  {kind:<14} {_said(kind, event)}".rstrip()


def _said(kind: str, event: Mapping[str, Any]) -> str:
    get = event.get
    if kind == "run_start":
        return f"{get('recipe')}, {get('steps')} steps on {get('device')}"
    if kind == "checkpoint":
        size = float(get("bytes") or 0) / 1e6
        return f"step {get('step')}, {size:.1f} MB in {duration(get('seconds') or 0)}"
    if kind in ("eval", "done"):
        metrics = get("metrics") or {}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:6])
        return f"step {get('step')}: {shown}"
    if kind == "plan":
        return f"{get('samples')} samples, {get('trainable_parameters')} trainable parameters"
    if kind == "state":
        return f"{get('state')} {get('detail') or ''}"
    if kind == "submitted":
        job = get("handle") or {}
        return f"attempt {get('attempt')} in {job.get('region')}: {job.get('id')}"
    if kind == "heartbeat":
        loss = get("loss")
        said = f", loss {loss:.4g}" if isinstance(loss, int | float) else ""
        return f"step {get('step')}/{get('steps')}{said}"
    if kind == "planned":
        offers = get("offers") or []
        first = offers[0] if offers else {}
        return (
            f"{first.get('machine')} in {first.get('region')}, {money(first.get('usd_per_hour'))}/h"
        )
    message = get("message") or get("reason")
    if message:
        return str(message).splitlines()[0]
    rest = {key: value for key, value in event.items() if key not in ("v", "time", "type")}
    return ", ".join(f"{key} {value}" for key, value in list(rest.items())[:4])[:200]
