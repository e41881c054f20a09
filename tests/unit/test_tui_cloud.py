"""Setup, Infra and Teardown of the terminal interface against a fake cloud served right here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saccade import cli_cloud
from saccade.tui.screens.boxes import Ask
from saccade.tui.screens.setup import Setup
from saccade.tui.screens.teardown import Teardown
from saccade.tui.widgets.grid import Grid
from tests.cloud_project import CANARY, QUICK, Project, environment, project
from tests.fake_cloud_calls import good
from tests.tui_session import QuickSources, Session, session


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A fresh project that this process is pointed at; an outage is believed soon."""
    opened = cli_cloud.open_project

    def open_soon(**options: Any) -> Any:
        google, settings, manifest = opened(**options)
        return google.patient(QUICK), settings, manifest

    monkeypatch.setattr(cli_cloud, "open_project", open_soon)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with project(tmp_path) as made:
        for name, value in environment(made.cloud, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield made


async def planned(it: Session) -> None:
    """Go to Setup and plan."""
    await it.press("3")
    await it.until("Python", "cloud")
    await it.press("p")
    await it.until("my-project (fake):", "a makes them")


async def set_up(it: Session) -> None:
    """Go to Setup and make everything."""
    await planned(it)
    await it.press("a", "y")
    await it.until("everything is made")


def states(it: Session) -> set[str]:
    """The states of the steps that are shown."""
    assert it.app.base is not None
    rows = it.app.base.query_one("#steps", Grid).rows
    return {cells["state"][0] for _, cells in rows}


def test_setup_plans_asks_makes_and_shows_each_step(cloud: Project, tmp_path: Path) -> None:
    async def steps(it: Session) -> None:
        await planned(it)
        assert cloud.changes() == [], "a plan changes nothing"
        await it.press("a")
        await it.holds(lambda: isinstance(it.app.screen, Ask))
        text = await it.until("changes in my-project?", "enable aiplatform")
        assert CANARY not in text
        await it.press("n")
        assert cloud.changes() == []
        await it.press("a", "y")
        await it.until("everything is made")
        assert states(it) == {"\u2714 done"}
        await it.press("p")
        await it.until("0 change(s)")
        await it.press("a")
        await it.until("nothing to do: everything is there")
        await it.press("4")
        await it.until("my-project-saccade-us-central1", "what is there:")

    session(tmp_path / "runs", steps, size=(160, 50))
    assert not cloud.plan().steps


def test_a_second_press_plans_first_and_a_step_that_fails_can_be_repeated(
    cloud: Project, tmp_path: Path
) -> None:
    async def steps(it: Session) -> None:
        await it.press("3")
        await it.until("Python")
        await it.press("a")
        await it.until("a makes them")
        assert cloud.changes() == []
        cloud.cloud.add_fault(r"^POST /storage/v1/b\?", status=403, times="always")
        await it.press("a", "y")
        await it.until("not done; a continues", "\u2718 failed")
        cloud.cloud.world.faults.clear()
        await it.press("p")
        await it.until("a makes them")
        await it.press("a", "y")
        await it.until("everything is made")

    session(tmp_path / "runs", steps, size=(160, 50))
    assert not cloud.plan().steps


def test_teardown_needs_the_typed_name_and_proves_that_nothing_is_left(
    cloud: Project, tmp_path: Path
) -> None:
    async def steps(it: Session) -> None:
        await set_up(it)
        await it.press("7")
        await it.until("thing(s) would be deleted; D deletes")
        before = len(cloud.changes())
        await it.press("D")
        await it.until("things in my-project?", "type my-project to go on")
        await it.press(*"my-projec", "enter")
        assert isinstance(it.app.screen, Ask), "half a word opens nothing"
        await it.press("escape")
        assert len(cloud.changes()) == before
        await it.press("D", *"my-project", "enter")
        await it.until("nothing of saccade's is left", "nothing of saccade's was found")
        assert states(it) == {"\u2714 done"}
        await it.press("p")
        await it.until("0 thing(s) would be deleted")
        await it.press("D")
        await it.until("nothing to delete")

    session(tmp_path / "runs", steps, size=(160, 50))
    assert cloud.left() == []


def test_teardown_of_a_bucket_with_finished_runs_needs_its_name(
    cloud: Project, tmp_path: Path
) -> None:
    cloud.setup()
    bucket = "my-project-saccade-us-central1"
    path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name=runs/mine/DONE"
    good(cloud.cloud, "POST", path, {"target_step": 1})

    async def steps(it: Session) -> None:
        await it.press("7")
        await it.until("with 1 finished run(s)")
        await it.press("D")
        await it.until(f"gs://{bucket} holds 1 finished run(s): mine", f"type {bucket}")
        await it.press(*"my-project", "enter")
        assert isinstance(it.app.screen, Ask)
        await it.press("escape")

    session(tmp_path / "runs", steps, size=(160, 50))
    assert cloud.left()


def test_read_only_neither_sets_up_nor_tears_down(cloud: Project, tmp_path: Path) -> None:
    cloud.setup()
    before = cloud.changes()

    async def steps(it: Session) -> None:
        await it.press("7")
        await it.until("D deletes")
        await it.press("D")
        await it.until("read-only: press R")
        assert not isinstance(it.app.screen, Ask)

    session(tmp_path / "runs", steps, size=(160, 50), read_only=True)
    assert cloud.changes() == before


def test_leaving_in_the_middle_of_a_setup_leaves_what_the_next_one_completes(
    cloud: Project, tmp_path: Path
) -> None:
    async def steps(it: Session) -> None:
        await planned(it)
        await it.press("a", "y")
        await it.until("\u2714 done")

    session(tmp_path / "runs", steps, size=(160, 50))
    cloud.setup()
    for thread in threading.enumerate():  # in a process of its own it would have ended with it
        if thread.name.startswith("do "):
            thread.join(100)
    assert not cloud.plan().steps


def test_a_cloud_that_does_not_answer_is_said_with_its_age(cloud: Project, tmp_path: Path) -> None:
    async def steps(it: Session) -> None:
        await it.press("4")
        await it.until("resources and quotas of my-project", "ago)")
        cloud.cloud.add_fault(".", status=503, times="always")
        await it.press("u")
        await it.until("resources and quotas of my-project", "currently unavailable")
        await it.press("7", "p")
        await it.until("! ", "unavailable")

    session(tmp_path / "runs", steps, size=(160, 50))


def test_keys_of_the_cloud_screens_without_a_project_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    async def steps(it: Session) -> None:
        await it.press("3")
        await it.until("Python")
        await it.holds(lambda: isinstance(it.app.base, Setup))
        await it.press("p")
        await it.until("no project: GOOGLE_CLOUD_PROJECT in .env, or f for the fake cloud")
        await it.press("d")
        await it.until("checking this machine again")
        await it.press("y")
        await it.press("7")
        await it.holds(lambda: isinstance(it.app.base, Teardown))
        await it.press("D")
        await it.until("nothing is planned: p plans")
        await it.press("p")
        await it.until("no project is configured: there is nothing to take down")

    session(tmp_path / "runs", steps, sources=QuickSources(root=tmp_path / "runs"))


def test_f_goes_to_the_stand_in_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    from saccade.cloud.fake import background

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SACCADE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SACCADE_FAKE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    for name in ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    async def steps(it: Session) -> None:
        await it.press("3", "f")
        await it.until("fake-project (fake)", within=120)
        await it.press("f")
        await it.until("the fake cloud is left")
        await it.until("fake-project (fake)", gone=True)

    try:
        session(tmp_path / "runs", steps, size=(160, 40))
    finally:
        background.stop()
