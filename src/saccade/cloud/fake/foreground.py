"""Run the fake cloud until a signal, Ctrl+C or long idleness ends it.

A state folder, a port and a scenario file flow in; the server's address is announced once it
answers. Used by `saccade cloud fake` and by the background server.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from saccade.cloud.fake.scenario import Scenario, load
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.errors import OutsideError

FIRST_CALL_SECONDS = 60.0
"""How long whoever started a server may take to call it; until then it is not idle."""


def run(
    state: Path,
    *,
    port: int,
    scenario: Path | None,
    announce: Callable[[FakeCloud], None],
    fresh: bool = False,
    idle: float | None = None,
) -> None:
    """Serve in this process; returns when it was asked to end and every container has ended."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = load(scenario) if scenario is not None else Scenario()
    if fresh:
        wanted = wanted.model_copy(update={"apis": "fresh"})
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    with _serve(state, port=port, scenario=wanted) as cloud:
        announce(cloud)
        begun = cloud.last_request
        while not ended.wait(1.0):
            if idle is None:
                continue
            longest = idle if cloud.last_request > begun else max(idle, FIRST_CALL_SECONDS)
            if time.time() - cloud.last_request > longest and not cloud.jobs.busy():
                return


def _serve(state: Path, *, port: int, scenario: Scenario) -> FakeCloud:
    """On the port asked for; without one, on the port of last time if it is free."""
    if port:
        return serve(state, port=port, scenario=scenario)
    try:
        last = int((state / "port").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = 0
    if last:
        try:
            return serve(state, port=last, scenario=scenario)
        except OutsideError as error:
            if "already runs" in str(error):
                raise
    return serve(state, port=0, scenario=scenario)
