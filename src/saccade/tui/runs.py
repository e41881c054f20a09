"""One run directory, looked at again and again: where the run stands, from its files alone.

A folder flows in, a `RunLook` flows out: state, reason, step, loss curve, rate, checkpoint,
attempts, last words. Everything that can be wrong with a folder (half written, unreadable,
vanished, damaged, no space left) is a state with its reason, never an exception. Files that did not
change are not read again and the event log is read from where the last look ended. Nothing is
written. Left out: launches (`board.py`) and words for people (`words.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.tui.curve import Curve
from saccade.tui.tail import Tail

FETCHING = "bringing"
"""Word in the lock of a run that is filled from its store just now, not trained."""
SILENT_AFTER_S = 120.0
"""A run of another machine that sent no heartbeat for so long is called silent."""
RATE_STEPS = 24
LOOK_BYTES = 8 << 20
"""Bytes of an event log that one look takes in at most."""
NEWS = 20


@dataclass(frozen=True)
class RunLook:
    """What one look at a run directory found; times are seconds since 1970."""

    name: str
    path: str
    state: str
    reason: str = ""
    recipe: str = ""
    device: str = ""
    phase: str = ""
    host: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    curve: tuple[float, ...] = ()
    steps_per_s: float | None = None
    eta_s: float | None = None
    attempts: int = 0
    preemptions: int = 0
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    checkpoint_bytes: int | None = None
    started_at: float | None = None
    seen_at: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    warnings: int = 0
    reading: float = 1.0
    """Share of the event log that was read so far."""
    figures: int = 0
    report: bool = False
    comparison: bool = False


@dataclass
class _Facts:
    """What the events said so far."""

    recipe: str = ""
    device: str = ""
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    starts: int = 0
    preemptions: int = 0
    warnings: int = 0
    checkpoint: Mapping[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    started_at: float | None = None
    seen_at: float | None = None
    last: str = ""
    message: str = ""
    curve: Curve = field(default_factory=Curve)
    pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_STEPS))


class RunReader:
    """Looks at one run directory; keeps what was read."""

    def __init__(self, path: Path, *, news: int = NEWS) -> None:
        self.path = path
        self.tail = Tail(path / "events.jsonl")
        self.facts = _Facts()
        self.news: deque[dict[str, Any]] = deque(maxlen=news)
        """The last events that are no steps."""
        self._files: dict[str, tuple[tuple[int, int], Any]] = {}

    def look(self, *, now: float) -> RunLook:
        """Look once."""
        try:
            names = set(os.listdir(self.path))  # noqa: PTH208  names only, of 500 folders a second
        except FileNotFoundError:
            return self._made("GONE", "the folder is not there any more")
        except NotADirectoryError:
            return self._made("BROKEN", "is a file, not a folder")
        except OSError as error:
            return self._made("UNREADABLE", f"{error.filename}: {error.strerror}")
        try:
            self._read_events()
            done = self._json("DONE", names)
            beat = self._json("heartbeat.json", names)
        except OSError as error:
            return self._made("UNREADABLE", f"{error.filename}: {error.strerror}", names=names)
        except ValueError as error:
            return self._made("BROKEN", str(error), names=names)
        state, reason = self._state(names, done, beat, now=now)
        return self._made(state, reason, names=names, beat=beat, done=done, now=now)

    def _read_events(self) -> None:
        taken, restarts = 0, self.tail.restarts
        while taken < LOOK_BYTES:
            before = self.tail.position
            for event in self.tail.events():
                if self.tail.restarts != restarts:
                    self.facts, restarts = _Facts(), self.tail.restarts
                self._take(event)
            taken += self.tail.position - before
            if self.tail.position == before or not self.tail.behind:
                return

    def _take(self, event: dict[str, Any]) -> None:
        handler = _HANDLERS.get(event["type"])
        try:
            if handler is not None:
                handler(self.facts, event)
            moment = event.get("time")
            if isinstance(moment, int | float):
                self.facts.seen_at = float(moment)
        except (KeyError, TypeError, ValueError):
            return  # an event of another version says nothing
        if event["type"] not in ("step", "gradients"):
            self.news.append(event)
            self.facts.last = event["type"]

    def _json(self, name: str, names: set[str]) -> dict[str, Any] | None:
        """Read a small JSON file when it changed; ValueError when it holds something else."""
        if name not in names:
            return None
        path = self.path / name
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        mark = (found.st_mtime_ns, found.st_size)
        kept = self._files.get(name)
        if kept is None or kept[0] != mark:
            kept = self._files[name] = (mark, _parse(path, name))
        if isinstance(kept[1], ValueError):
            raise kept[1]
        return kept[1]

    def _state(
        self, names: set[str], done: Mapping[str, Any] | None, beat: Mapping[str, Any] | None,
        *, now: float,
    ) -> tuple[str, str]:  # fmt: skip
        facts = self.facts
        locked = is_locked(self.path / ".lock")
        if locked and FETCHING in _text(self.path / ".lock"):
            return "NEW", "is being brought here"
        if "config.yaml" not in names and not locked:
            if not names & {"events.jsonl", "checkpoints", "DONE", "heartbeat.json"}:
                return "NO_RUN", "no run was started here"
            return "BROKEN", "has no config.yaml, so nothing can continue it"
        if locked:
            return "RUNNING", ""
        if done is not None:
            return "DONE", ""
        if beat is not None and str(beat.get("phase")) not in ("done", "preempted", "failed"):
            age = now - float(beat.get("time") or 0.0)
            if beat.get("host") != os.uname().nodename and age < SILENT_AFTER_S:
                return "RUNNING", f"on {beat.get('host')}"
        if facts.last == "failed":
            return "FAILED", facts.message
        if facts.last == "preempted":
            return "PREEMPTED", "saved and stopped; the same command continues it"
        if facts.step is None and facts.starts == 0:
            return "NEW", "nothing was trained yet"
        return "STOPPED", "its process is gone without DONE; the same command continues it"

    def _made(
        self, state: str, reason: str, *, names: set[str] | None = None,
        beat: Mapping[str, Any] | None = None, done: Mapping[str, Any] | None = None,
        now: float = 0.0,
    ) -> RunLook:  # fmt: skip
        facts, names, beat = self.facts, names or set(), beat or {}
        rate = _rate(facts.pace)
        left = (facts.steps or 0) - (facts.step or 0)
        mark = facts.checkpoint or {}
        seen = max(facts.seen_at or 0.0, _number(beat.get("time")) or 0.0) or None
        size = self.tail.size
        running = state == "RUNNING"
        eta = max(0.0, left / rate - (now - (facts.seen_at or now))) if rate else None
        return RunLook(
            name=self.path.name, path=str(self.path), state=state, reason=reason,
            recipe=facts.recipe, device=facts.device, phase=str(beat.get("phase") or ""),
            host=str(beat.get("host") or ""), step=facts.step, steps=facts.steps, loss=facts.loss,
            curve=tuple(facts.curve.values), steps_per_s=rate if running else None,
            eta_s=eta if running else None, attempts=facts.starts, preemptions=facts.preemptions,
            checkpoint_step=mark.get("step"), checkpoint_at=mark.get("time"),
            checkpoint_bytes=mark.get("bytes"), started_at=facts.started_at, seen_at=seen,
            metrics=_numbers((done or {}).get("metrics")) or dict(facts.metrics),
            warnings=facts.warnings, reading=self.tail.position / size if size else 1.0,
            figures=int("figures" in names), report="report.html" in names,
            comparison="comparison.json" in names,
        )  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds a run's lock; makes and changes nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        owner = os.pread(descriptor, 32, 0).split(b" ")[0].strip()
        if (
            owner.isdigit()
            and not Path(f"/proc/{int(owner)}").exists()
            and Path("/proc/1").exists()
        ):
            return False  # asked first, so that a process that just starts is rarely in its way
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _parse(path: Path, name: str) -> dict[str, Any] | ValueError:
    try:
        value = json.loads(path.read_bytes())
    except UnicodeDecodeError:
        return ValueError(f"{name} is not text")
    except ValueError:
        return ValueError(f"{name} is half written or damaged: not JSON")
    if not isinstance(value, dict):
        return ValueError(f"{name} holds no JSON object")
    return value


def _rate(pace: deque[tuple[float, int]]) -> float | None:
    if len(pace) < 2:
        return None
    (first, low), (last, high) = pace[0], pace[-1]
    return (high - low) / (last - first) if last > first and high > low else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    return {str(name): float(one) for name, one in values.items() if isinstance(one, int | float)}


def _start(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.starts += 1
    facts.steps = int(event["steps"])
    facts.recipe, facts.device = str(event["recipe"]), str(event.get("device") or "")
    facts.started_at = facts.started_at or float(event["time"])
    facts.pace.clear()


def _step(facts: _Facts, event: Mapping[str, Any]) -> None:
    step, moment = int(event["step"]), float(event["time"])
    facts.step, facts.loss = step, _number(event.get("loss"))
    facts.curve.add(step, facts.loss)
    facts.pace.append((moment, step))


def _resume(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.step = int(event["step"])
    facts.pace.clear()


def _eval(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.metrics = _numbers(event["metrics"])


def _checkpoint(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.checkpoint = event


def _warning(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.warnings += 1
    facts.message = str(event["message"])


def _preempted(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.preemptions += 1


def _failed(facts: _Facts, event: Mapping[str, Any]) -> None:
    facts.message = str(event["message"])


_HANDLERS: dict[str, Callable[[_Facts, Mapping[str, Any]], None]] = {
    "run_start": _start, "step": _step, "resume": _resume, "eval": _eval, "done": _eval,
    "checkpoint": _checkpoint, "warning": _warning, "preempted": _preempted, "failed": _failed,
}  # fmt: skip
