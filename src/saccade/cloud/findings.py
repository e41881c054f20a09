"""What a check found: one value, its level, and the command that mends it.

Checks of the cloud (`checks.py`), of a launch target and of the planner all speak in `Finding`s, so
that one table and one JSON shape show them. Left out: how anything is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters; `unknown` is never counted as good or bad."""

    OK = "ok"
    WARN = "warn"
    BLOCK = "block"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `fix` is an exact command, empty when nothing is to be done."""

    name: str
    level: Level
    message: str
    have: str | int | float | None = None
    need: str | int | float | None = None
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain values."""
        return asdict(self) | {"level": str(self.level)}


def blocking(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings that stop the work."""
    return [finding for finding in findings if finding.level is Level.BLOCK]
