"""How the terminal interface bears load: 500 runs, 50 live launches, 100,000 log lines.

Nothing flows in: run directories and launch logs are made in a temporary folder, 50 of them grow
while keys are pressed, and a job's log streams into its pane. Out come the time from a key to the
painted screen (median, 95th percentile, worst), memory over the session, and the time from the
start of a process to its first paint. Beside each wall time stands the CPU time of the thread (or
process), which other work on the machine does not lengthen. Keys go through the library's pilot,
which paints as on a terminal but writes nowhere; first paint is measured in a real pseudo-terminal.

    python benchmarks/tui.py
    python benchmarks/tui.py --runs 100 --live 10 --lines 20000 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pty
import random
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from textual.widgets import TabbedContent

from saccade.cli_tui import collect_rarely
from saccade.launch.log import Launch
from saccade.tui.app import SaccadeApp
from saccade.tui.sources import Sources
from saccade.tui.widgets.grid import Grid
from tests.run_folders import event, make_local_launch, make_run

KEYS = ("down", "down", "down", "up", "pagedown", "pageup", "end", "home")
BAR_MS = 100.0
POLL_S = 0.001
PATIENCE_S = 20.0


class PaintedApp(SaccadeApp):
    """An app that knows which state it painted last."""

    state: Callable[[], Any] = staticmethod(lambda: None)
    painted: Any = None

    def _display(self, screen: Any, renderable: Any) -> None:
        super()._display(screen, renderable)
        self.painted = self.state()


def make_world(root: Path, *, runs: int, live: int) -> list[Launch]:
    """Make finished and unfinished runs, and launches that go on here."""
    for number in range(runs):
        make_run(root, f"run-{number:04d}", steps=60, total=60, done=number % 3 != 0)
    return [_launch(root, number) for number in range(live)]


def _launch(root: Path, number: int) -> Launch:
    name = f"live-{number:02d}"
    launch = make_local_launch(root, name, loss=None)
    make_run(root, name, steps=20, total=100_000)
    (launch.folder / "jobs" / "1" / "log").write_bytes(b"")
    return launch


class Writers:
    """Threads that let the live runs grow and one log stream."""

    def __init__(self, root: Path, launches: list[Launch], *, lines: int, seconds: float) -> None:
        self.root, self.launches, self.lines, self.seconds = root, launches, lines, seconds
        self.stop = threading.Event()
        self.written = 0

    def start(self) -> None:
        """Begin both."""
        for work in (self._grow, self._stream):
            threading.Thread(target=work, daemon=True).start()

    def _grow(self) -> None:
        step = 21
        rest = {"metrics": {}, "learning_rate": 0.1, "grad_norm": 1.0, "sample_ids": []}
        while not self.stop.wait(1.0):
            for launch in self.launches:
                name = launch.key.removesuffix("-tok")
                with (self.root / name / "events.jsonl").open("a") as log:
                    loss = random.random()
                    log.write(event("step", at=time.time(), step=step, loss=loss, **rest))
            step += 1

    def _stream(self) -> None:
        log = self.launches[0].folder / "jobs" / "1" / "log"
        batch = max(1, int(self.lines / self.seconds / 20))
        while self.written < self.lines and not self.stop.wait(0.05):
            with log.open("ab") as file:
                text = "".join(
                    f"{self.written + one:07d} step {one} loss 0.123 | samples/s 12.3 | memory ok\n"
                    for one in range(batch)
                )
                file.write(text.encode())
            self.written += batch


def memory_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def measure(app: PaintedApp, writers: Writers, *, seconds: float) -> dict[str, Any]:
    """Press keys in the table and in the streaming log; time each to its paint."""
    times: dict[str, list[tuple[float, float]]] = {"table": [], "log": []}
    async with app.run_test(size=(200, 60)) as pilot:
        begin = time.perf_counter()
        while app.store.get("board").value is None:
            await pilot.pause(0.02)
        board_s = time.perf_counter() - begin
        await pilot.press("1")
        await pilot.pause(1.0)
        memory = [memory_mb()]
        writers.start()
        grid = app.screen.query_one(Grid)
        until = time.perf_counter() + seconds / 2
        app.state = lambda: grid.cursor
        await _press(app, KEYS, times["table"], until=until)
        memory.append(memory_mb())
        app.open_run("run:live-00", tab="log")
        await pilot.pause(1.0)
        tabs = app.screen.query_one(TabbedContent)
        until = time.perf_counter() + seconds / 2
        app.state = lambda: tabs.active
        await _press(app, ("v", "l"), times["log"], until=until)
        while writers.written < writers.lines:
            await pilot.pause(0.2)
        await pilot.pause(1.0)
        memory.append(memory_mb())
        lines = len(app.screen.query_one("#lines").lines)  # type: ignore[attr-defined]
    writers.stop.set()
    return {
        "first_board_s": round(board_s, 2), "memory_mb": [round(one) for one in memory],
        "lines_written": writers.written, "lines_kept": lines,
        **{name: summary(found) for name, found in times.items()},
    }  # fmt: skip


async def _press(
    app: PaintedApp,
    keys: tuple[str, ...],
    times: list[tuple[float, float]],
    *,
    until: float,
) -> None:
    """Press keys ten times a second; a key is done with the first paint after its effect."""
    number, app.painted = 0, app.state()
    while time.perf_counter() < until:
        before, begin, worked = app.state(), time.perf_counter(), time.thread_time()
        app.simulate_key(keys[number % len(keys)])
        number += 1
        while app.state() == before or app.painted == before:
            await asyncio.sleep(POLL_S)
            if time.perf_counter() - begin > PATIENCE_S:
                raise SystemExit(f"{keys[(number - 1) % len(keys)]} had no effect")
        spent = time.thread_time() - worked
        times.append(((time.perf_counter() - begin) * 1000, spent * 1000))
        await asyncio.sleep(0.1)


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    """Median, 95th percentile and worst, in milliseconds of wall and of CPU time."""
    found: dict[str, float] = {"keys": len(times)}
    for name, ordered in (("", sorted(one for one, _ in times)),
                          ("cpu_", sorted(one for _, one in times))):  # fmt: skip
        found |= {
            f"{name}median_ms": round(statistics.median(ordered), 1),
            f"{name}p95_ms": round(ordered[int(0.95 * (len(ordered) - 1))], 1),
            f"{name}worst_ms": round(ordered[-1], 1),
        }
    return found


def first_paint_s(root: Path) -> dict[str, float]:
    """Seconds from the start of `saccade tui` to its first line on a pseudo-terminal."""
    master, slave = pty.openpty()
    source = str(Path(__file__).resolve().parents[1] / "src")
    env = {**os.environ, "PYTHONPATH": source, "TERM": "xterm-256color", "COLUMNS": "80"}
    begin = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", "tui", "--root", str(root)],
        stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while b"next: " not in seen and time.perf_counter() - begin < 60:
        if select.select([master], [], [], 0.05)[0]:
            seen += os.read(master, 65536)
    took = time.perf_counter() - begin
    child.kill()
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = -9  # waited for already
    os.close(master)
    return {"wall": round(took, 2), "cpu": round(usage.ru_utime + usage.ru_stime, 2)}


def main() -> int:
    """Measure and print; 1 when the 95th percentile is above the bar."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=int, default=450)
    parser.add_argument("--live", type=int, default=50)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--starts", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        launches = make_world(root, runs=given.runs, live=given.live)
        paints = [first_paint_s(root) for _ in range(given.starts)]
        writers = Writers(root, launches, lines=given.lines, seconds=given.seconds)
        app = PaintedApp(Sources(root=root))
        collect_rarely()  # as the verb does
        found = asyncio.run(measure(app, writers, seconds=given.seconds))
    load = os.getloadavg()[0]
    found |= {"first_paint_s": paints, "load": round(load, 1), "cores": os.cpu_count()}
    print(json.dumps(found, indent=2))
    return int(max(found["table"]["p95_ms"], found["log"]["p95_ms"]) > BAR_MS)


if __name__ == "__main__":
    sys.exit(main())
