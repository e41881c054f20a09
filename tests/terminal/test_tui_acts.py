"""Cancel, continue and watch from the monitor: real verbs in processes, on a fake cloud of toys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.launch.states import State
from saccade.tui.widgets.grid import Grid
from tests.toy_jobs import Toys, toys
from tests.tui_session import Session, session

SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toys]:
    """A fake cloud, for this process and the verbs it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    with toys(tmp_path) as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        yield made


def test_a_launch_is_cancelled_and_continued_from_the_monitor(tmp_path: Path, cloud: Toys) -> None:
    cloud.script(("beat", [1840, 1800]), ("sleep", 600), attempt=1)
    cloud.script(("beat", [1801, 1800]), ("say", "goes on"), ("done", 4000), ("exit", 0))
    driver = cloud.launch()
    cloud.until(driver, lambda view: view.beat is not None)

    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("mine", "1840/4000", "nobody")
        assert it.app.base is not None
        it.app.base.query_one(Grid).select("launch:mine-t")
        await it.press("c")
        await it.until("Cancel mine-t?", "step 1840/4000")
        await it.press("y")
        await it.until("cancelled", "done: cancel mine", within=120)
        assert not cloud.open_jobs(), "the job is over"
        await it.press("r")
        await it.until("Continue mine?", "from checkpoint 1800", "Spent so far: $")
        await it.press("y")
        await it.until("succeeded", "done: continue mine", within=120)
        await it.press("l")
        await it.until("attempt 2 of 2", "goes on")

    session(tmp_path / "runs", steps, size=(200, 40))
    view = driver.launch.view()
    assert (view.state, view.attempt, view.preemptions) == (State.SUCCEEDED, 2, 0)


def test_what_was_started_goes_on_when_the_interface_is_left(tmp_path: Path, cloud: Toys) -> None:
    cloud.script(("beat", [10, 10]), ("sleep", 600), attempt=1)
    cloud.script(("beat", [11, 10]), ("done", 4000), ("exit", 0))
    driver = cloud.launch()
    cloud.until(driver, lambda view: view.beat is not None)

    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("mine", "nobody")
        await it.press("w")
        await it.until("Watch over mine-t?")
        await it.press("y")
        await it.until("nobody", gone=True, within=120)

    app = session(tmp_path / "runs", steps, size=(200, 40))
    cloud.cloud.preempt(cloud.job_id(driver))
    assert app.started[0].process.wait(120) == 0, app.started[0].tail()
    view = driver.launch.view()
    assert (view.state, view.attempt, view.preemptions) == (State.SUCCEEDED, 2, 1)
