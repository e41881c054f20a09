"""The screens of the terminal interface, driven by keys: what they show, ask and refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from textual.widgets import Input

from saccade.launch.log import Launch
from saccade.tui.app import PLACES
from saccade.tui.screens.base import Base
from saccade.tui.screens.boxes import Ask, Errors, Keys
from saccade.tui.screens.run import RunScreen
from saccade.tui.widgets.grid import Grid
from tests.run_folders import make_run
from tests.tui_session import QuickSources, Session, session

pytestmark = pytest.mark.usefixtures("away")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No project, no key and no file of the developer's reaches a session."""
    for name in ("SACCADE_FAKE_CLOUD", "GOOGLE_CLOUD_PROJECT", "NO_COLOR", "SACCADE_OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SACCADE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four runs in four states."""
    runs = tmp_path / "runs"
    make_run(runs, "finished", done=True)
    make_run(runs, "stopped")
    make_run(runs, "taken", last="preempted")
    (make_run(runs, "torn", done=True) / "DONE").write_text("{")
    return runs


def launched(root: Path, *, run: str = "far", nobody: bool = True) -> Launch:
    """A launch whose log says it runs on a rented machine."""
    launch = Launch(root / ".launches" / f"{run}-tok")
    at = time.time() - 600
    spec = {
        "run": run, "token": "tok", "attempt": 1, "recipe": "relevance",
        "machine": "a2-highgpu-1g", "replicas": 1, "strategy": "spot", "region": "us-central1",
        "image": None, "code": "", "config": "", "store": "gs://bucket",
    }  # fmt: skip
    offer = {"region": "us-central1", "machine": "a2-highgpu-1g", "strategy": "spot",
             "usd_per_hour": 6.0, "reason": ""}  # fmt: skip
    policy = {"max_attempts": 5, "wait_s": 60.0, "backoff_s": 1.0, "budget_usd": None}
    launch.append("planned", at=at, spec=spec, target="vertex", run_dir=str(root / run),
                  offers=[offer], policy=policy)  # fmt: skip
    launch.append("ready", at=at, spec=spec)
    handle = {"target": "vertex", "id": "jobs/1", "region": "us-central1", "url": None}
    launch.append("submitting", at=at, attempt=1, offer=0)
    launch.append("submitted", at=at, attempt=1, offer=0, handle=handle)
    launch.append("state", at=at, state="RUNNING", detail="")
    launch.append("heartbeat", at=at + 10, attempt=1, step=10, beat_at=at + 10, steps=100,
                  loss=0.5)  # fmt: skip
    return launch


def test_home_says_what_to_do_next_and_shows_the_runs(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.until("finished", "stopped", "next: torn is broken")
        await it.until("no project: everything runs here")
        await it.press("n")
        await it.until("saccade monitor")

    session(root, steps)


def test_an_empty_folder_leads_to_setup_and_then_to_a_launch(tmp_path: Path) -> None:
    async def steps(it: Session) -> None:
        await it.until("next:", "(press 2)")
        await it.until("no runs yet: 2 trains something")

    session(tmp_path / "none", steps)


def test_number_keys_lead_to_every_screen_and_q_leads_home_and_out(root: Path) -> None:
    async def steps(it: Session) -> None:
        for key, name, _ in PLACES:
            await it.press(key)
            await it.until(f"saccade {name}")
        for key, name, _ in PLACES[:-1]:
            await it.press(key)
            await it.holds(lambda name=name: it.app.current_mode == name)
            await it.press("q")
            await it.holds(lambda: it.app.current_mode == "home")
        await it.press("q")
        assert not it.app.is_running or it.app._exit

    session(root, steps)


def test_every_key_is_in_the_help_with_what_it_does(root: Path) -> None:
    async def steps(it: Session) -> None:
        for key, _, _ in PLACES:
            await it.press(key)
            active = it.app.screen.active_bindings.values()
            mine = [one.binding for one in active if isinstance(one.node, Base | type(it.app))]
            ours = [one for one in mine if not one.system and one.show]
            assert all(one.tooltip for one in ours), [one for one in ours if not one.tooltip]
            await it.press("question_mark")
            await it.holds(lambda: isinstance(it.app.screen, Keys) and it.app.screen.query(Grid))
            shown = {cells["what"][0] for _, cells in it.app.screen.query_one(Grid).rows}
            assert {one.tooltip for one in ours} <= shown
            await it.press("escape")
            await it.holds(lambda: not isinstance(it.app.screen, Keys))

    session(root, steps)


def test_the_monitor_filters_and_shows_faults(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("finished", "torn", "taken")
        await it.press("slash", *"stop", "enter")
        text = await it.until("stopped")
        assert "finished" not in text
        await it.press("escape")
        await it.until("finished")
        await it.press("z")
        await it.until("torn")
        await it.until("finished", gone=True)

    session(root, steps)


def test_a_run_opens_with_facts_curve_events_and_goes_back(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("finished")
        assert it.app.base is not None
        it.app.base.query_one(Grid).select("run:finished")
        await it.press("enter")
        await it.holds(lambda: isinstance(it.app.screen, RunScreen))
        await it.until("20/40", "loss, 40 steps", "accuracy")
        await it.press("v")
        await it.until("checkpoint", "step 20, 0.0 MB")
        await it.press("l")
        await it.until("started in a terminal")
        await it.press("i")
        await it.until("no figures yet")
        await it.press("q")
        await it.until("saccade monitor")

    session(root, steps)


def test_a_launch_shows_cost_age_and_that_nobody_watches(root: Path) -> None:
    launched(root)

    async def steps(it: Session) -> None:
        await it.press("1")
        text = await it.until("far", "nobody", "$1.")
        assert "1 unwatched" in text
        assert "m" in text.partition("0.5")[2].split()[0], "the age of the heartbeat"
        it.app.base.query_one(Grid).select("launch:far-tok")  # type: ignore[union-attr]
        await it.press("c")
        await it.holds(lambda: isinstance(it.app.screen, Ask))
        text = await it.until("Cancel far-tok?", " so far", "step 10/100")
        await it.press("escape")
        assert not it.app.started
        await it.press("w")
        await it.until("Watch over far-tok?")
        await it.press("n")
        await it.press("enter")
        await it.until("attempt", "$6.00/h")
        await it.press("m")
        await it.until("us-central1", "$6.00")

    session(root, steps, size=(200, 40))


def test_read_only_asks_nothing_and_does_nothing(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("stopped")
        it.app.base.query_one(Grid).select("run:stopped")  # type: ignore[union-attr]
        await it.press("r")
        await it.until("read-only: press R")
        assert not isinstance(it.app.screen, Ask)
        await it.press("R", "r")
        await it.until("Continue stopped?", "from checkpoint 20")
        await it.press("escape")
        assert not it.app.started

    session(root, steps, read_only=True)


def test_a_source_that_fails_keeps_its_last_value_and_is_findable(root: Path) -> None:
    class Sick(QuickSources):
        sick = False

        def board(self) -> dict[str, object]:
            if self.sick:
                raise OSError(28, "No space left on device")
            return super().board()

    sources = Sick(root=root)

    async def steps(it: Session) -> None:
        await it.press("1")
        await it.until("finished")
        sources.sick = True
        text = await it.until("! board: OSError", "No space left on device")
        assert "finished" in text
        await it.press("e")
        await it.holds(lambda: isinstance(it.app.screen, Errors))
        await it.until("No space left on device")
        await it.press("escape")
        sources.sick = False
        await it.until("! board", gone=True)

    session(root, steps, sources=sources)


def test_broken_folders_say_so_while_others_go_on(root: Path) -> None:
    (root / "stopped" / "events.jsonl").unlink()
    (root / "stopped" / "events.jsonl").mkdir()

    async def steps(it: Session) -> None:
        await it.press("1")
        text = await it.until("unreadable", "broken", "done")
        assert "DONE is half" in text
        (root / "taken").rename(root.parent / "away")
        await it.until("vanished")

    session(root, steps, size=(200, 40))


def test_the_form_checks_while_typing_and_takes_only_what_is_sound(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.press("2")
        await it.until("training.steps", "meaning", within=120)
        grid = it.app.base.query_one(Grid)  # type: ignore[union-attr]
        grid.select("training.steps")
        await it.until("Optimizer steps in all.")
        await it.press("enter", "ctrl+a", "ctrl+k", *"many")
        await it.until("training.steps = many", "integer")
        await it.press("enter")
        assert it.app.base.editing == "training.steps"  # type: ignore[union-attr]
        await it.press("ctrl+a", "ctrl+k", *"12")
        problem = it.app.base.query_one("#problem")  # type: ignore[union-attr]
        await it.holds(lambda: not problem.has_class("-on"))
        await it.press("enter")
        await it.until("saccade launch relevance training.steps=12")
        grid.select("launch.strategy")
        await it.press("space")
        await it.until("launch.strategy=flex-start")
        grid.select("training.steps")
        await it.press("x")
        await it.until("training.steps=12", gone=True)

    session(root, steps, size=(160, 40))


def test_a_plan_is_shown_asked_about_and_refused(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.press("2")
        await it.until("training.steps", within=120)
        await it.press("p")
        await it.until("this installation", "x: launch relevance on this machine?", within=120)
        await it.press("x")
        await it.until("launch relevance on this machine?", "limits: 5 attempts")
        await it.press("n")
        assert not it.app.started
        await it.press("q", "d")
        await it.until("a2-highgpu-1g: packaged snapshot", "europe-west4")

    session(root, steps, size=(160, 40))


def test_results_pipelines_and_infra_show_what_is_there(root: Path) -> None:
    folder = root / "finished"
    (folder / "report.html").write_text("<p>report")
    (folder / "comparison.json").write_text(json.dumps({"rows": [], "budgets": []}))

    async def steps(it: Session) -> None:
        await it.press("6")
        text = await it.until("finished", "90.0%", "yes")
        assert "DONE: half written or damaged" in text
        it.app.base.query_one("#runs", Grid).select("finished")  # type: ignore[union-attr]
        await it.press("o")
        await it.until("report.html")
        await it.press("b")
        await it.until("Write the report of finished?")
        await it.press("escape", "5")
        await it.until("quickstart", "train", "report", "failed")
        await it.press("4")
        await it.until("no project is configured", "nothing was rented")

    session(root, steps, size=(160, 40))


def test_jump_and_palette_and_themes_work(root: Path) -> None:
    async def steps(it: Session) -> None:
        await it.until("finished")
        await it.press("ctrl+o")
        await it.until("\n a")
        await it.press("a")
        await it.holds(lambda: it.app.focused is not None and it.app.focused.id == "glance")
        for _ in range(4):
            before = it.app.theme
            await it.press("ctrl+t")
            await it.holds(lambda before=before: it.app.theme != before)
            await it.until("finished", f"theme: {it.app.theme}")
        await it.press("ctrl+p")
        await it.holds(lambda: isinstance(it.app.focused, Input))
        await it.press(*"go to mon")
        await it.until("go to monitor")
        await it.press("enter")
        await it.until("saccade monitor")

    session(root, steps)


def test_no_color_leaves_words_and_symbols(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(it: Session) -> None:
        assert it.app.no_color
        await it.press("1")
        await it.until("\u2714 done", "\u25cc stopped", "\u21af preempted", "\u203c broken")

    session(root, steps)
