"""Random keys: whatever is pressed, the interface neither crashes nor stands still."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from saccade.tui.app import SaccadeApp
from tests.run_folders import make_run
from tests.tui_session import QuickSources

KEYS = (
    *"1234567890", *"abcdefghijklmnopqrstuvwxyz", *"RPGD?/[]", "enter", "escape", "tab",
    "shift+tab", "up", "down", "left", "right", "pageup", "pagedown", "home", "end", "space",
    "backspace", "ctrl+o", "ctrl+p", "ctrl+t", "f5",
)  # fmt: skip
NAMES = {"?": "question_mark", "/": "slash", "[": "left_square_bracket",
         "]": "right_square_bracket"}  # fmt: skip
LONGEST_WORK_S = 1.0
"""CPU time of the loop between two rounds: what a busy machine adds is not counted."""
LONGEST_PAUSE_S = 60.0
"""Wall time: something hangs. Other work on the machine may well take seconds."""


class CalmSources(QuickSources):
    """Sources that change nothing outside: no stand-in is started."""

    def has_cloud(self) -> bool:
        """There is no project."""
        return False


class CalmApp(SaccadeApp):
    """An app that starts no verbs; what would be started is counted."""

    wanted = 0
    left = False

    def start(self, words, *, title, env=None) -> None:
        """Count it."""
        self.wanted += 1

    def exit(self, *args: object, **options: object) -> None:
        """Stay: the test decides when it ends."""
        self.left = True


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        (1, 8.0), (2, 8.0),
        pytest.param(3, 300.0, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_random_keys_neither_crash_nor_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, seconds: float
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACCADE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SACCADE_FAKE_CLOUD", raising=False)
    root = tmp_path / "runs"
    for number in range(12):
        make_run(root, f"run-{number}", done=number % 2 == 0)
    seconds = float(os.environ.get("RANDOM_SECONDS", seconds)) if seed == 3 else seconds
    pressed, work, pause = asyncio.run(_press(root, seed=seed, seconds=seconds))
    assert pressed > seconds
    assert work < LONGEST_WORK_S, f"worked for {work:.1f} s without looking at keys"
    assert pause < LONGEST_PAUSE_S, f"stood still for {pause:.1f} s"


async def _press(root: Path, *, seed: int, seconds: float) -> tuple[int, float, float]:
    draw = random.Random(seed)
    app = CalmApp(CalmSources(root=root))
    pressed, gaps = 0, [0.0, 0.0]
    async with app.run_test(size=(100, 30)) as pilot:
        watch = asyncio.create_task(_measure(gaps))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            key = draw.choice(KEYS)
            await pilot.press(NAMES.get(key, key))
            pressed += 1
            assert app._exception is None, app._exception
        watch.cancel()
    return pressed, gaps[0], gaps[1]


async def _measure(gaps: list[float]) -> None:
    """How long the loop of the interface ever took to come round."""
    while True:
        begin, worked = time.monotonic(), time.thread_time()
        await asyncio.sleep(0.02)
        gaps[0] = max(gaps[0], time.thread_time() - worked)
        gaps[1] = max(gaps[1], time.monotonic() - begin)
