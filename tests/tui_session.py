"""Sessions of the terminal interface without a terminal: keys in, the text of the screen out.

A folder of runs flows in; a running app under the library's pilot flows out. Sources that would
load torch (`doctor`, `pipeline show`) answer from here; everything else is real. Left out: what a
test expects.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from saccade.tui.app import SaccadeApp
from saccade.tui.sources import Sources

DOCTOR = [
    {"name": "Python", "status": "ok", "found": "3.11.2 on Linux", "fix": ""},
    {"name": "memory", "status": "note", "found": "3.0 GB", "fix": "a larger machine"},
]
STAGES = [
    {
        "stage": "train", "uses": "train", "state": "finished", "needs": [], "target": "local",
        "seconds": 75.0, "cost_usd": None, "metrics": {"accuracy": 0.9}, "inputs": {},
        "outputs": {"model": "selector:v1"}, "folder": "runs/x", "problem": None, "where": "f:3",
    },
    {
        "stage": "report", "uses": "report", "state": "failed", "needs": ["train"],
        "target": "local", "seconds": None, "cost_usd": 0.5, "metrics": {},
        "inputs": {"run": "train.run"}, "outputs": {}, "folder": None, "problem": "no disk left",
        "where": "f:9",
    },
]  # fmt: skip


HOPS = 8
"""Queues that a key may go through: more than any screen here is deep."""


class QuickSources(Sources):
    """Sources whose slow verbs answer at once."""

    def doctor(self) -> list[dict[str, Any]]:
        """A machine with one note."""
        return DOCTOR

    def pipeline(self, name: str) -> dict[str, Any]:
        """Two stages."""
        return {"file": name, "problem": "", "stages": STAGES}


@dataclass
class Session:
    """An app under a pilot."""

    app: SaccadeApp
    pilot: Pilot[None]

    def text(self) -> str:
        """What stands on the screen, line by line."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    async def press(self, *keys: str) -> None:
        """Press keys and let the app take each before the next."""
        for key in keys:
            await self.pilot.press(key)
            await self.taken()
        await self.pilot.pause()

    async def taken(self) -> None:
        """Wait until what was pressed has gone all its way.

        A key goes from the app to the widget that has the focus and from there up again, through
        one queue after the other. The pilot waits for one of them, and for a process that rests;
        a machine without time for this process looks the same.
        """
        for _ in range(HOPS):
            if not self.app.is_running:
                return
            await self.pilot._wait_for_screen(timeout=100.0)

    async def holds(self, true: Callable[[], object], *, within: float = 100.0) -> None:
        """Wait until something is true that no word on the screen tells of."""
        end = time.monotonic() + within
        while not true():
            assert time.monotonic() < end, self.text()
            await self.pilot.pause(0.02)

    async def until(self, *words: str, within: float = 100.0, gone: bool = False) -> str:
        """Wait until all words stand on the screen (or none of them does)."""
        end = time.monotonic() + within
        while True:
            text = self.text()
            there = [word in text for word in words]
            if not any(there) if gone else all(there):
                return text
            assert time.monotonic() < end, f"waited for {words}, gone={gone}:\n{text}"
            await self.pilot.pause(0.05)


Steps = Callable[[Session], Awaitable[None]]


def session(
    root: Path, steps: Steps, *, size: tuple[int, int] = (110, 32), sources: Sources | None = None,
    **options: Any,
) -> SaccadeApp:  # fmt: skip
    """Run steps in a session; whatever an exception of the app, the test fails with it."""

    async def work() -> SaccadeApp:
        app = SaccadeApp(sources or QuickSources(root=root), **options)
        async with app.run_test(size=size) as pilot:
            await steps(Session(app, pilot))
        return app

    return asyncio.run(work())
