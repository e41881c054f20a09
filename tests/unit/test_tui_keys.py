"""Every key of every screen is pressed, and what it promises stands on the screen afterwards.

The tables below name keys as the bindings do; a binding that no table names fails a test, so a new
key cannot come without its press. What would start a verb is noted here instead of started.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.screen import ModalScreen, Screen

from saccade.tui.app import SaccadeApp
from saccade.tui.screens.base import Base
from saccade.tui.screens.boxes import Ask, Listing
from saccade.tui.screens.home import Home
from saccade.tui.screens.infra import Infra
from saccade.tui.screens.launch import Launch
from saccade.tui.screens.monitor import Monitor
from saccade.tui.screens.pipelines import Pipelines
from saccade.tui.screens.plan import MemoryScreen, PlanScreen, PricesScreen
from saccade.tui.screens.results import Results
from saccade.tui.screens.run import RunScreen
from saccade.tui.screens.setup import Setup
from saccade.tui.screens.teardown import Teardown
from saccade.tui.widgets.grid import Grid
from tests.run_folders import make_local_launch, make_run
from tests.tui_session import QuickSources, Session, session

Press = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A key, the words that stand on the screen after it, and the keys that lead back."""

ESCAPE, BACK = ("escape",), ("q",)
MONITOR: tuple[Press, ...] = (
    ("enter", ("saccade run far", "far-tok", "2/5"), BACK),
    ("l", ("saccade run", "line of attempt 2"), BACK),
    ("c", ("Cancel far-tok?", "step 20/40"), ESCAPE),
    ("r", ("Watch over far-tok?",), ESCAPE),
    ("w", ("Watch over far-tok?", "submits it again"), ESCAPE),
    ("h", ("far: is here already",), ()),
    ("o", ("far: no report yet",), ()),
    ("z", ("only what needs a person",), ("z",)),
)
RUN: tuple[Press, ...] = (
    ("v", ("attempt 2 in local",), ()),
    ("m", ("$2.00",), ()),
    ("i", ("no figures yet",), ()),
    ("right_square_bracket", ("state ", "running"), ()),
    ("left_square_bracket", ("no figures yet",), ()),
    ("l", ("--- attempt 2 of 2 ---", "line of attempt 2"), ()),
    ("p", ("--- attempt 1 of 2 ---", "line of attempt 1"), ()),
    ("P", ("--- attempt 2 of 2 ---", "line of attempt 2"), ()),
    ("c", ("Cancel far-tok?",), ESCAPE),
    ("r", ("Watch over far-tok?",), ESCAPE),
    ("w", ("Watch over far-tok?",), ESCAPE),
    ("h", ("far: is here already",), ()),
    ("o", ("far: no report yet",), ()),
)
RESULTS: tuple[Press, ...] = (
    ("enter", ("saccade run finished",), BACK),
    ("o", ("report.html",), ()),
    ("b", ("Write the report of finished?",), ESCAPE),
    ("v", ("Compare finished?", "some minutes"), ESCAPE),
    ("right_square_bracket", ("accuracy", "0.9"), ()),
    ("left_square_bracket", ("not compared yet",), ()),
)
PIPELINES: tuple[Press, ...] = (
    ("x", ("Run quickstart?", "1 of 2 stages are to do: report"), ESCAPE),
    ("u", ("train: finished", "(read 0s ago)"), ()),
)
PAGE = 23
"""Rows that `pagedown` goes on in a terminal of 28 lines."""
GRID: tuple[tuple[str, str], ...] = (
    ("down", "r01"), ("j", "r02"), ("up", "r01"), ("k", "r00"), ("end", "r59"), ("home", "r00"),
    ("G", "r59"), ("g", "r00"), ("pagedown", f"r{PAGE}"), ("pageup", "r00"),
)  # fmt: skip
"""A key and the row it leads to, of sixty."""
ELSEWHERE: dict[type[Any], set[str]] = {
    SaccadeApp: {*"01234567", "question_mark", "e", "R", "ctrl+o", "ctrl+t", "q"},
    Base: {"slash", "escape", "f5", "y"},
    Home: {"n"},
    Launch: {"enter", "space", "x", "p", "m", "d"},
    PlanScreen: {"x"},
    Infra: {"u"},
    Setup: {"p", "a", "f", "d"},
    Teardown: {"p", "D"},
    Ask: {"escape", "n", "y", "down", "pagedown", "up", "pageup"},
    Listing: {"escape", "q", "question_mark", "e", "y"},
    PricesScreen: set(),
    MemoryScreen: set(),
    Grid: {"enter", *(key for key, _ in GRID)},
    Monitor: {key for key, _, _ in MONITOR},
    RunScreen: {key for key, _, _ in RUN},
    Results: {key for key, _, _ in RESULTS},
    Pipelines: {key for key, _, _ in PIPELINES},
}  # fmt: skip
"""Keys by the class that binds them; those without a table here have tests of their own."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run with a report, a stopped one, and a launch on its second attempt."""
    for name in ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT", "NO_COLOR", "DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SACCADE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    (make_run(runs, "finished", done=True) / "report.html").write_text("<p>report")
    make_run(runs, "stopped")
    make_local_launch(runs, "far", attempts=2)
    return runs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Verbs that were started; a test of keys starts none."""
    found: list[list[str]] = []

    class Ended:
        title, log = "verb", None

        def code(self) -> int:
            return 0

    def start(words: list[str], **rest: Any) -> Ended:
        found.append(list(words))
        return Ended()

    monkeypatch.setattr("saccade.tui.actions.start", start)
    return found


async def press_all(it: Session, presses: tuple[Press, ...], *, on: type[Screen]) -> None:
    """Press each key, wait for what it promises, go back."""
    for key, words, back in presses:
        await it.holds(lambda: isinstance(it.app.screen, on))
        await it.press(key)
        await it.until(*words)
        await it.press(*back)


def test_every_binding_has_a_press() -> None:
    known: list[type] = [SaccadeApp, Base, Grid]
    for kind in (Base, ModalScreen, Listing):
        known += [one for one in kind.__subclasses__() if one.__module__.startswith("saccade.")]
    for kind in set(known):
        own = kind.__dict__.get("BINDINGS", [])
        keys = {key for one in own if isinstance(one, Binding) for key in one.key.split(",")}
        if keys or kind in ELSEWHERE:
            assert keys == ELSEWHERE.get(kind, set()), kind


def test_the_keys_of_the_monitor(root: Path, started: list[list[str]]) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("finished", "far")
        await press_all(it, MONITOR, on=Monitor)

    session(root, steps, size=(140, 32))
    assert started == []


def test_the_keys_of_a_run(root: Path, started: list[list[str]]) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("far")
        await it.press("enter")
        await it.until("far-tok")
        await press_all(it, RUN, on=RunScreen)

    session(root, steps, size=(140, 32))
    assert started == []


def test_the_keys_of_the_results(root: Path, started: list[list[str]]) -> None:
    async def steps(it: Session) -> None:
        await it.press("6")
        await it.until("finished", "90.0%")
        await press_all(it, RESULTS, on=Results)
        for key, verb in (("b", "report"), ("v", "compare")):
            await it.press(key, "y")
            await it.until("done: verb")
            await it.holds(lambda verb=verb: started[-1] == [verb, str(root / "finished")])

    session(root, steps, size=(140, 32))


def test_the_keys_of_the_pipelines(root: Path, started: list[list[str]]) -> None:
    async def steps(it: Session) -> None:
        await it.press("5")
        await it.until("quickstart", "train", "failed")
        it.app.screen.query_one("#names", Grid).select("quickstart")
        await press_all(it, PIPELINES, on=Pipelines)
        await it.press("x", "y")
        await it.holds(lambda: started == [["pipeline", "run", "quickstart"]])
        await it.press("enter")
        await it.holds(lambda: it.app.focused is not None and it.app.focused.id == "stages")
        await it.press("down")
        await it.until("report: failed; needs train; run = train.run", "no disk left")

    session(root, steps, size=(140, 32))


def test_the_keys_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        make_run(tmp_path / "runs", f"r{number:02d}", done=True, at=1_700_000_000.0)

    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("r00", "r20")
        grid = it.app.screen.query_one(Grid)
        assert grid.size.height == PAGE + 2
        for key, row in GRID:
            await it.press(key)
            await it.holds(lambda row=row: grid.key == f"run:{row}")
            await it.until(f"\u25b8 {row}")
        await it.press("end", "enter")
        await it.until("saccade run r59", "runs/r59")

    session(Path("runs"), steps, size=(110, 28))


def test_asking_is_answered_by_keys_buttons_and_the_mouse(
    root: Path, started: list[list[str]]
) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("stopped")
        it.app.screen.query_one(Grid).select("run:stopped")
        for no in (("n",), ("escape",), ("enter",), ("tab", "tab", "enter")):
            await it.press("r")
            await it.until("Continue stopped?")
            await it.press("down", "pagedown", "up", "pageup", *no)
            await it.holds(lambda: isinstance(it.app.screen, Monitor))
        assert started == []
        await it.press("r")
        await it.until("Continue stopped?")
        await it.pilot.click("#yes")
        await it.holds(lambda: started)
        assert started == [["train", str(root / "stopped" / "config.yaml")]]

    session(root, steps)


def test_launches_are_cancelled_watched_continued_and_fetched_as_verbs(
    root: Path, started: list[list[str]]
) -> None:
    ended = make_local_launch(root, "lost", attempts=1)
    ended.append("ended", state="FAILED", message="exit code 9", exit_code=9)
    away = make_local_launch(root, "away", attempts=1, target="vertex", loss=None)
    away.append("ended", state="SUCCEEDED", message="DONE at step 40", exit_code=0)
    end = ["--root", str(root)]

    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("far", "lost", "away")
        grid = it.app.screen.query_one(Grid)
        for key, row, words in (
            ("c", "run:far", ["cancel", "far-tok", "--yes", *end]),
            ("w", "run:far", ["watch", "far-tok", *end]),
            ("r", "run:lost", ["watch", "lost-tok", "--again", *end]),
            ("h", "launch:away-tok", ["fetch", "away-tok", *end]),
        ):
            assert grid.select(row), (row, grid.keys)
            await it.press(key, "y")
            await it.holds(lambda words=words: started and started[-1] == words)
            await it.until("done: verb")
        assert not it.app.started
        grid.select("run:lost")
        await it.press("c")
        await it.until("lost-tok: is over already")
        await it.press("w")
        await it.until("there is nothing to watch")
        grid.select("launch:away-tok")
        await it.press("r")
        await it.until("away: is done; there is nothing to continue")
        grid.select("run:stopped")
        await it.press("c")
        await it.until("was not launched from here")

    session(root, steps, size=(140, 32))


def test_a_plan_that_is_agreed_to_starts_the_launch_and_leads_to_the_monitor(
    root: Path, started: list[list[str]]
) -> None:
    async def steps(it: Session) -> None:
        await it.press("2")
        await it.until("training.steps", within=120)
        await it.press("p")
        await it.until("x: launch relevance on this machine?", within=120)
        await it.press("x", "y")
        await it.until("saccade monitor")
        assert started == [["launch", "relevance", "--yes"]]

    session(root, steps, size=(140, 40))


def test_memory_is_what_the_verb_says(
    root: Path, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def plan(words: list[str]) -> dict[str, Any]:
        asked.append(words)
        return {"memory": {"total_mb": 512.25}, "largest_batch": 32}

    monkeypatch.setattr("saccade.tui.launching.memory_values", plan)

    async def steps(it: Session) -> None:
        await it.press("2")
        await it.until("training.steps", within=120)
        await it.press("m")
        await it.until("memory total mb", "512.2", "largest batch", "32")
        await it.press("q")
        await it.until("saccade launch")

    session(root, steps, size=(140, 40))
    assert asked == [["relevance"]]


def test_copy_takes_what_the_cursor_is_on(root: Path, started: list[list[str]]) -> None:
    (root / "finished" / "comparison.json").write_text(json.dumps({"rows": [], "budgets": []}))

    async def steps(it: Session) -> None:
        for key, word, copied in (
            ("1", "far", "far-tok"), ("6", "90.0%", str(root / "finished" / "report.html")),
        ):  # fmt: skip
            await it.press(key)
            await it.until(word)
            await it.press("y")
            await it.holds(lambda copied=copied: it.app.clipboard == copied)
        await it.press("f5")
        await it.until("reading results")
        await it.press("e")
        await it.until("errors and notes")
        await it.press("y")
        await it.holds(lambda: it.app.clipboard.startswith("reading results"))
        for key in ("q", "escape", "e", "question_mark"):
            await it.press(key)
            await it.holds(lambda: not isinstance(it.app.screen, Listing))
            await it.press("e")
            await it.holds(lambda: isinstance(it.app.screen, Listing))

    session(root, steps, size=(140, 32), sources=QuickSources(root=root))
