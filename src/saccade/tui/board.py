"""Runs and launches in one list: what `saccade tui monitor` shows and writes as JSON.

A folder of runs flows in, rows of plain values flow out, those that need a person first. A launch
and the run directory it fills are one row: what the log of the launch says about money, attempts
and the platform, and what the run directory says about steps. Only files are read, nothing is
asked over a network, and what did not change is not read again. Left out: drawing (`words.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from saccade.launch import shown
from saccade.launch.log import FOLDER, Launch
from saccade.launch.view import LaunchView
from saccade.tui.curve import Curve
from saccade.tui.runs import RunLook, RunReader
from saccade.tui.tail import Tail

LOW_DISK_BYTES = 200 << 20
MOVING = ("RUNNING", "NEW", "BROKEN", "UNREADABLE")
"""States that may be another one a moment later: a run is trained, made, brought here, repaired."""
REST_LOOKS = 4
"""A run that nobody trains is looked at again only after so many looks."""
LAUNCH_KEYS = (
    "launch", "target", "where", "region", "machine", "strategy", "preemptions", "max_attempts",
    "usd", "usd_projected", "usd_per_hour", "budget", "watched_by", "over", "message", "detail",
    "unreachable_s", "heartbeat_age_s", "checkpoint_age_s", "state_age_s", "exit_code", "fetch",
    "attempts", "ended_at", "job",
)  # fmt: skip


@dataclass
class _Known:
    """The view of a launch as of one size of its log."""

    mark: tuple[int, int]
    view: LaunchView
    tail: Tail
    curve: Curve

    def read(self) -> None:
        """Take the losses that new heartbeats tell."""
        while True:
            before = self.tail.position
            for event in self.tail.events():
                if event["type"] == "heartbeat" and isinstance(event.get("step"), int):
                    self.curve.add(event["step"], event.get("loss"))
            if self.tail.position == before or not self.tail.behind:
                return


@dataclass
class Board:
    """Looks at a folder of runs; keeps readers between looks."""

    root: Path
    readers: dict[str, RunReader] = field(default_factory=dict)
    views: dict[str, _Known] = field(default_factory=dict)
    looks: dict[str, RunLook] = field(default_factory=dict)
    count: int = 0

    def look(self, *, now: float) -> dict[str, Any]:
        """Return {root, problem, free_bytes, rows}; never raises for what is on disk."""
        problem, names = "", set()
        try:
            names = {one.name for one in os.scandir(self.root) if one.is_dir(follow_symlinks=True)}
        except FileNotFoundError:
            problem = "" if not self.readers else f"{self.root}: the folder is not there any more"
        except OSError as error:
            problem = f"{self.root}: {error.strerror}"
        names = {name for name in names if not name.startswith(".")}
        looks = self._runs(names, now=now)
        jobs, broken = self._launches(now=now)
        rows = merge(looks, jobs, now=now) + broken
        return {
            "root": str(self.root), "problem": problem, "free_bytes": _free(self.root),
            "read_at": now, "rows": sorted(rows, key=_rank),
        }  # fmt: skip

    def _runs(self, names: set[str], *, now: float) -> dict[str, RunLook]:
        # a run that was shown and whose folder vanished stays, as a row that says so
        for name in names - self.readers.keys():
            self.readers[name] = RunReader(self.root / name)
        self.count += 1
        for number, (name, reader) in enumerate(sorted(self.readers.items())):
            known = self.looks.get(name)
            rests = known is not None and known.state not in MOVING and known.reading >= 1.0
            turn = (number + self.count) % REST_LOOKS == 0
            if (
                turn
                or not rests
                or (name in names) == (known is not None and known.state == "GONE")
            ):
                self.looks[name] = reader.look(now=now)
        for name in [name for name, one in self.looks.items() if one.state == "NO_RUN"]:
            del self.looks[name], self.readers[name]
        return self.looks

    def _launches(self, *, now: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        rows, broken = [], []
        try:
            folders = sorted(one.path for one in os.scandir(self.root / FOLDER) if one.is_dir())
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                broken.append(_broken(FOLDER, "UNREADABLE", str(error.strerror), now=now))
            return rows, broken
        for folder in folders:
            launch = Launch(Path(folder))
            try:
                found = launch.events_file.stat()
                view = self._view(launch, (found.st_mtime_ns, found.st_size))
                curve = tuple(self.views[launch.key].curve.values)
                rows.append(shown.row(launch, view, now=now, full=True) | {"curve": curve})
            except FileNotFoundError:
                broken.append(_broken(launch.key, "BROKEN", "has no launch log", now=now))
            except OSError as error:
                said = f"{error.filename}: {error.strerror}"
                broken.append(_broken(launch.key, "UNREADABLE", said, now=now))
            except (KeyError, ValueError, TypeError) as error:
                said = f"its log cannot be understood: {error}"
                broken.append(_broken(launch.key, "BROKEN", said, now=now))
        return rows, broken

    def _view(self, launch: Launch, mark: tuple[int, int]) -> LaunchView:
        known = self.views.get(launch.key)
        if known is None:
            tail = Tail(launch.events_file)
            known = self.views[launch.key] = _Known(mark, launch.view(), tail, Curve())
            known.read()
        elif known.mark != mark:
            known.mark, known.view = mark, launch.view()
            known.read()
        return known.view


def merge(
    looks: Mapping[str, RunLook], jobs: list[dict[str, Any]], *, now: float
) -> list[dict[str, Any]]:
    """One row per run, with the newest launch that fills it; older launches have their own."""
    newest: dict[str, dict[str, Any]] = {}
    for job in jobs:
        known = newest.get(job["run"])
        if known is None or _newer(job, known):
            newest[job["run"]] = job
    rows = [_row(look, newest.get(name), now=now) for name, look in looks.items()]
    taken = {id(newest[name]) for name in looks if name in newest}
    rows += [_row(None, job, now=now) for job in jobs if id(job) not in taken]
    return rows


def _newer(job: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """An unfinished launch wins, then the one that ended last."""
    ends = [one["ended_at"] if one["over"] else float("inf") for one in (job, other)]
    return (ends[0] or 0.0) >= (ends[1] or 0.0)


def _row(
    look: RunLook | None, job: Mapping[str, Any] | None, *, now: float
) -> dict[str, Any]:  # fmt: skip
    row = _of_run(look, now=now) if look is not None else _empty(now=now)
    if job is None:
        return row
    row |= {key: job.get(key) for key in LAUNCH_KEYS}
    row["attempt"] = job["attempt"]
    if look is None:
        row["key"], row["run"] = f"launch:{job['launch']}", job["run"]
    behind = look is None or (job["step"] or 0) > (look.step or 0)
    if behind:
        for key in ("step", "steps", "loss"):
            row[key] = job[key] if job[key] is not None else row[key]
        row["curve"] = row["curve"] or job["curve"]
        row["checkpoint_step"] = (job["checkpoint"] or {}).get("step") or row["checkpoint_step"]
    if row["steps_per_s"] is None and not job["over"]:
        row["steps_per_s"], row["eta_s"] = job["steps_per_s"], job["eta_s"]
    finished_here = look is not None and look.state in ("DONE", "RUNNING")
    damaged = look is not None and look.state in ("BROKEN", "UNREADABLE")
    if not (job["over"] and finished_here) and not damaged:
        detail = "" if str(job["detail"]).startswith("JOB_STATE_") else job["detail"]
        row["state"], row["reason"] = job["state"], job["message"] or detail
    beat = job["heartbeat_age_s"]
    if beat is not None:
        row["seen_at"] = max(row["seen_at"] or 0.0, now - beat)
    return row


def _of_run(look: RunLook, *, now: float) -> dict[str, Any]:
    values = asdict(look)
    values |= dict.fromkeys(LAUNCH_KEYS)
    values |= {
        "key": f"run:{look.name}", "run": look.name, "where": "this machine",
        "attempt": look.attempts, "preemptions": look.preemptions, "read_at": now,
        "over": look.state != "RUNNING",
    }  # fmt: skip
    if look.host and look.host != os.uname().nodename:
        values["where"] = look.host
    return values


def _empty(*, now: float) -> dict[str, Any]:
    return _of_run(RunLook(name="", path="", state="PLANNED"), now=now)


def _broken(name: str, state: str, reason: str, *, now: float) -> dict[str, Any]:
    row = _empty(now=now)
    return row | {
        "key": f"launch:{name}", "run": name, "launch": name, "state": state, "reason": reason,
        "over": True,
    }  # fmt: skip


def _rank(row: Mapping[str, Any]) -> tuple[int, float, str]:
    # whatever goes on first, running before waiting, then the newest
    place = 2 if row["over"] else int(row["state"] != "RUNNING")
    return place, -(row["started_at"] or 0.0), row["run"]


def _free(root: Path) -> int | None:
    here = root.absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    try:
        return shutil.disk_usage(here).free
    except OSError:
        return None
