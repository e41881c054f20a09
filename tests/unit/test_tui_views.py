"""What home says: the next sensible step in every situation, and a disk without room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade.tui import actions, views
from saccade.tui.board import Board
from tests.run_folders import make_local_launch, make_run

ROOMY = 50 << 30
MISSING = {"level": "block", "name": "bucket:b", "message": "does not exist", "fix": "setup"}
CLOUD = {"project": "mine", "fake": False, "region": "us-central1", "findings": [MISSING]}
SICK = [{"name": "torch", "status": "fail", "found": "not installed", "fix": "pip install torch"}]


def board(root: Path, **changes: Any) -> dict[str, Any]:
    """What is in a folder, on a disk with room."""
    return Board(root).look(now=1_700_000_000.0) | {"free_bytes": ROOMY} | changes


def step(found: dict[str, Any] | None, doctor: Any = None, cloud: Any = None) -> tuple[str, str]:
    """Key and text of the next step."""
    made = views.next_step(found, doctor, cloud)
    return made["key"], made["text"]


def test_nothing_there_leads_to_setup_and_then_to_a_launch(tmp_path: Path) -> None:
    assert step(None) == ("", "reading the runs ...")
    assert step(board(tmp_path))[0] == "3"
    assert step(board(tmp_path), cloud=CLOUD) == ("3", "mine lacks 1 thing(s): set it up")
    ready = CLOUD | {"findings": []}
    assert step(board(tmp_path), cloud=ready)[0] == "2"
    assert step(board(tmp_path), doctor=SICK) == (
        "3", "this machine needs a hand: torch: not installed",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "key", "words"),
    [
        ({"last": "failed"}, "1", "mine is failed: look why"),
        ({"last": "preempted"}, "1", "mine is not finished: r continues it"),
        ({}, "1", "mine is not finished: r continues it"),
        ({"done": True}, "6", "mine is done: b writes its report"),
    ],
)
def test_a_run_leads_to_what_it_needs(
    tmp_path: Path, made: dict[str, Any], key: str, words: str
) -> None:
    make_run(tmp_path, "mine", **made)
    assert step(board(tmp_path)) == (key, words)


def test_all_done_leads_to_a_new_launch(tmp_path: Path) -> None:
    (make_run(tmp_path, "mine", done=True) / "report.html").write_text("<p>")
    assert step(board(tmp_path)) == ("2", "all is done here: train something new")


def test_a_launch_that_nobody_watches_comes_before_everything_else(tmp_path: Path) -> None:
    make_run(tmp_path, "other", last="failed")
    make_local_launch(tmp_path, "far")
    assert step(board(tmp_path), doctor=SICK) == (
        "1", "nobody watches over far: open it and press w",
    )  # fmt: skip


def test_a_full_disk_and_a_vanished_folder_are_said_first(tmp_path: Path) -> None:
    make_run(tmp_path, "mine", done=True)
    full = board(tmp_path, free_bytes=1 << 20)
    assert step(full)[1] == f"the disk of {tmp_path} is full: free some space first"
    lines = {one["what"]: one for one in views.home(full, None, None, None, now=0.0)["glance"]}
    assert (lines["disk"]["level"], lines["disk"]["found"][:6]) == ("block", "0.0 GB")
    gone = board(tmp_path, problem=f"{tmp_path}: the folder is not there any more")
    assert step(gone) == ("e", f"{tmp_path}: the folder is not there any more")


def test_where_nothing_can_be_written_a_verb_is_started_without_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file where a folder is wanted")
    monkeypatch.setenv("SACCADE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    started = actions.start(["--version"], title="version")
    assert started.process.wait(120) == 0
    assert (started.log, started.tail(), started.code()) == (None, "", 0)
