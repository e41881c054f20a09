"""What a row of the board says to a person: state as word, symbol and role; cells of the table.

Rows (plain values) and the present time flow in, short texts flow out. Every remote value carries
its age; an age is counted on from when the row was read, so a view that stands still says so. A
role names a meaning (good, busy, wait, warn, bad, dim), which a theme gives a colour; symbol and
word say the same without one. Left out: colours (`themes.py`) and reading (`board.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saccade.launch.messages import money, span
from saccade.training.progress import duration
from saccade.tui.curve import bar, spark

STATES: dict[str, tuple[str, str, str]] = {
    "RUNNING": ("\u25cf", "busy", "running"),
    "STARTING": ("\u25d4", "busy", "starting"),
    "SUBMITTED": ("\u25b7", "wait", "submitted"),
    "BUILDING": ("\u25b7", "wait", "building"),
    "PLANNED": ("\u25cb", "wait", "planned"),
    "QUEUED_QUOTA": ("\u2026", "wait", "held: quota"),
    "WAITING_CAPACITY": ("\u2026", "wait", "no machine"),
    "PREEMPTED": ("\u21af", "warn", "preempted"),
    "RESUBMITTING": ("\u21bb", "warn", "resubmits"),
    "DONE": ("\u2714", "good", "done"),
    "SUCCEEDED": ("\u2714", "good", "succeeded"),
    "FAILED": ("\u2718", "bad", "failed"),
    "CANCELLED": ("\u25a0", "dim", "cancelled"),
    "INCOMPLETE": ("\u25d1", "bad", "incomplete"),
    "STOPPED": ("\u25cc", "warn", "stopped"),
    "NEW": ("\u00b7", "dim", "new"),
    "BROKEN": ("\u203c", "bad", "broken"),
    "UNREADABLE": ("?", "bad", "unreadable"),
    "GONE": ("\u2205", "bad", "vanished"),
}
"""State -> symbol, role, word."""

Cell = tuple[str, str]
"""Text and role."""


def state_cell(row: Mapping[str, Any], *, now: float) -> Cell:
    """Symbol and word of a state; UNREACHABLE is shown over it, with its age."""
    symbol, role, word = STATES.get(row["state"], ("?", "warn", str(row["state"]).lower()))
    if row.get("unreachable_s") is not None:
        age = span(row["unreachable_s"] + now - row["read_at"])
        return f"! no answer {age}", "warn"
    if row.get("reading", 1.0) < 1.0:
        word += f" (reading {row['reading']:.0%})"
    return f"{symbol} {word}", role


def age_of(moment: float | None, *, now: float) -> str:
    """How long ago, shortly: 5s, 3m10s, 2h05m, 4d."""
    if not moment:
        return ""
    age = max(0.0, now - moment)
    return f"{age / 86400:.0f}d" if age > 2 * 86400 else duration(age)


def step_text(row: Mapping[str, Any]) -> str:
    """Step of steps."""
    if row["step"] is None:
        return ""
    return f"{row['step']}/{row['steps']}" if row["steps"] else str(row["step"])


def step_bar(row: Mapping[str, Any], *, width: int) -> str:
    """The share of the steps as a bar."""
    if row["step"] is None or not row["steps"]:
        return ""
    return bar(row["step"] / row["steps"], width=width)


def rate_text(rate: float | None) -> str:
    """Iterations per second, or seconds per iteration where that reads better."""
    if not rate:
        return ""
    return f"{rate:.2g}/s" if rate >= 0.5 else f"{1 / rate:.2g} s/it"


def attempt_text(row: Mapping[str, Any]) -> str:
    """Attempt of attempts, and how often the machine was taken."""
    if not row["attempt"]:
        return ""
    most = f"/{row['max_attempts']}" if row.get("max_attempts") else ""
    lost = row.get("preemptions") or 0
    return f"{row['attempt']}{most}" + (f" \u21af{lost}" if lost else "")


def cost_text(row: Mapping[str, Any]) -> str:
    """Dollars so far and what they will come to; empty where nothing is paid for."""
    if row.get("launch") is None or row.get("target") in ("local", "docker"):
        return ""
    text = "?" if row["usd"] is None else money(row["usd"])
    later = row.get("usd_projected")
    return f"{text}>{money(later)}" if later else text


def watched_text(row: Mapping[str, Any]) -> Cell:
    """Whether somebody watches over a launch that goes on."""
    if row.get("launch") is None or row["over"]:
        return "", "dim"
    return ("yes", "dim") if row["watched_by"] is not None else ("nobody", "warn")


def row_cells(row: Mapping[str, Any], *, now: float, curve: int = 12) -> dict[str, Cell]:
    """Every cell that a table of runs may show."""
    loss = row["loss"]
    return {
        "run": (row["run"] or row.get("launch") or "?", "strong"),
        "state": state_cell(row, now=now),
        "where": (row["where"] or "", "dim"),
        "attempt": (attempt_text(row), "warn" if row.get("preemptions") else "plain"),
        "step": (step_text(row), "plain"),
        "bar": (step_bar(row, width=8), "busy"),
        "curve": (spark(row["curve"], width=curve), "busy"),
        "loss": ("" if loss is None else f"{loss:.3g}", "plain"),
        "rate": (rate_text(row["steps_per_s"]), "plain"),
        "eta": (duration(row["eta_s"]) if row["eta_s"] else "", "plain"),
        "cost": (cost_text(row), "plain"),
        "saved": (saved_text(row, now=now), "dim"),
        "seen": (age_of(row["seen_at"], now=now), "dim"),
        "watch": watched_text(row),
        "why": ((row["reason"] or "").splitlines()[0] if row["reason"] else "", "dim"),
    }


def saved_text(row: Mapping[str, Any], *, now: float) -> str:
    """The newest checkpoint and its age."""
    if row["checkpoint_step"] is None:
        return ""
    age = age_of(row["checkpoint_at"], now=now)
    return f"{row['checkpoint_step']}" + (f" ({age})" if age and not row["over"] else "")


def facts(row: Mapping[str, Any], *, now: float) -> list[tuple[str, str]]:
    """Everything about one row, name by name, for the detail view."""
    seen, saved = age_of(row["seen_at"], now=now), row["checkpoint_step"]
    pairs = [
        ("state", f"{state_cell(row, now=now)[0]}"),
        ("why", row["reason"] or ""),
        ("where", f"{row['where']}" + (f" ({row['target']})" if row.get("target") else "")),
        ("folder", row["path"] or ""),
        ("launch", row.get("launch") or ""),
        ("recipe", " on ".join(one for one in (row["recipe"], row["device"]) if one)),
        ("step", step_text(row)),
        ("loss", "" if row["loss"] is None else f"{row['loss']:.4g}"),
        ("speed", rate_text(row["steps_per_s"])),
        ("time left", duration(row["eta_s"]) if row["eta_s"] else ""),
        ("attempt", attempt_text(row)),
        ("checkpoint", "" if saved is None else saved_text(row, now=now)),
        ("last sign", f"{seen} ago" if seen else ""),
        ("cost", cost_text(row)),
        ("price", f"{money(row['usd_per_hour'])}/h" if row.get("usd_per_hour") else ""),
        ("budget", money(row["budget"]) if row.get("budget") else ""),
        ("watched", watched_text(row)[0]),
        ("warnings", str(row["warnings"] or "")),
        ("bring home", row.get("fetch") or ""),
    ]
    return [(name, text) for name, text in pairs if text]
