"""What the terminal interface reads: growing logs, run directories in every state, the board."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from saccade.launch import fetch
from saccade.tui.board import Board
from saccade.tui.curve import Curve, bar, plot, spark
from saccade.tui.runs import FETCHING, RunReader
from saccade.tui.tail import Tail
from tests.run_folders import event, make_run, steps_of


def states(root: Path) -> dict[str, str]:
    return {row["run"]: row["state"] for row in Board(root).look(now=time.time())["rows"]}


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    file = tmp_path / "log"
    tail = Tail(file)
    assert tail.lines() == []
    file.write_bytes(b"one\ntwo\nthr")
    assert tail.lines() == [b"one", b"two"]
    with file.open("ab") as stream:
        stream.write(b"ee\n")
    assert tail.lines() == [b"three"]
    assert tail.lines() == []


def test_a_tail_reads_a_replaced_or_cut_file_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"one\ntwo\n")
    tail = Tail(file)
    tail.lines()
    file.write_bytes(b"new\n")
    assert tail.lines() == [b"new"]
    aside = tmp_path / "aside"
    aside.write_bytes(b"other file, longer than before\n")
    aside.replace(file)
    assert tail.lines() == [b"other file, longer than before"]
    assert tail.restarts == 2


def test_a_tail_takes_a_large_file_in_pieces_and_can_begin_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"".join(b"line %06d\n" % number for number in range(10_000)))
    tail = Tail(file, chunk=1000)
    first = tail.lines()
    assert 80 < len(first) < 100
    assert tail.behind > 0
    late = Tail(file)
    late.skip_to_end(keep=105)
    assert late.lines() == [b"line %06d" % number for number in range(9992, 10_000)]


def test_what_is_no_event_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text('{"type": "step"}\nnonsense\n[1]\n{"kind": 1}\n{"type": 3}\n')
    assert Tail(file).events() == [{"type": "step"}]


def test_a_curve_stays_short_and_a_repeated_step_replaces_what_followed() -> None:
    curve = Curve(limit=100)
    for step in range(100_000):
        curve.add(step, 1.0 / (step + 1))
    assert len(curve.steps) <= 101
    assert curve.steps == sorted(curve.steps)
    curve.add(10, 5.0)
    assert max(curve.steps) <= 10
    curve.add(11, float("nan"))
    assert all(value == value for value in curve.values)


def test_pictures_of_numbers_have_the_asked_width() -> None:
    values = [float(number) for number in range(1000)]
    assert len(spark(values, width=12)) == 12
    assert spark([], width=12) == ""
    assert spark([1.0, 1.0], width=5) == "\u2584\u2584"
    assert len(bar(0.5, width=8)) == 8
    assert bar(2.0, width=4) == "\u2588" * 4
    lines = plot(values, width=40, height=5)
    assert len(lines) == 5
    assert {len(line) for line in lines} == {40}


@pytest.mark.parametrize(
    ("made", "state"),
    [
        ({"done": True}, "DONE"),
        ({"last": "preempted"}, "PREEMPTED"),
        ({"last": "failed"}, "FAILED"),
        ({}, "STOPPED"),
    ],
)
def test_the_state_of_a_run_comes_from_its_files(
    tmp_path: Path, made: dict[str, object], state: str
) -> None:
    make_run(tmp_path, "mine", **made)  # type: ignore[arg-type]
    assert states(tmp_path) == {"mine": state}


def test_a_run_whose_lock_is_held_is_running_with_rate_and_time_left(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", steps=20, total=40, at=time.time() - 10)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()} training into\n")
        lock.flush()
        look = RunReader(folder).look(now=time.time())
    assert look.state == "RUNNING"
    assert look.steps_per_s == pytest.approx(2.0)
    assert look.eta_s is not None
    assert 0 <= look.eta_s <= 10
    assert look.curve[0] == 2.0
    assert RunReader(folder).look(now=time.time()).state == "STOPPED"


def test_a_run_that_is_brought_here_is_neither_broken_nor_running(tmp_path: Path) -> None:
    assert FETCHING in fetch.FETCHING, "the word that fetching writes into the lock"
    folder = make_run(tmp_path, "mine")
    (folder / "config.yaml").unlink()
    board = Board(tmp_path)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()} {fetch.FETCHING}\n")
        lock.flush()
        row = board.look(now=0.0)["rows"][0]
        assert (row["state"], row["reason"]) == ("NEW", "is being brought here")
    assert board.look(now=0.0)["rows"][0]["state"] == "BROKEN", "looked at again at once"


def test_broken_run_directories_are_rows_with_a_reason(tmp_path: Path) -> None:
    (make_run(tmp_path, "torn", done=True) / "DONE").write_text('{"target_st')
    (make_run(tmp_path, "headless") / "config.yaml").unlink()
    (make_run(tmp_path, "odd", done=True) / "DONE").write_text("[]")
    (make_run(tmp_path, "half") / "events.jsonl").write_text('{"v": 1, "time"')
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "notes").mkdir()
    rows = {row["run"]: row for row in Board(tmp_path).look(now=0.0)["rows"]}
    assert set(rows) == {"torn", "headless", "odd", "half"}
    assert "half written or damaged" in rows["torn"]["reason"]
    assert "no config.yaml" in rows["headless"]["reason"]
    assert rows["odd"]["state"] == "BROKEN"
    assert rows["half"]["state"] == "NEW"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    make_run(tmp_path, "mine").chmod(0)
    try:
        assert states(tmp_path) == {"mine": "UNREADABLE"}
    finally:
        (tmp_path / "mine").chmod(0o755)


def test_an_unreadable_file_and_a_vanished_folder_are_states(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine")
    (folder / "events.jsonl").unlink()
    (folder / "events.jsonl").mkdir()  # cannot be read as a file, even by root
    make_run(tmp_path, "other")
    board = Board(tmp_path)
    rows = {row["run"]: row for row in board.look(now=0.0)["rows"]}
    assert rows["mine"]["state"] == "UNREADABLE"
    assert "directory" in rows["mine"]["reason"]
    shutil.rmtree(tmp_path / "other")
    rows = {row["run"]: row for row in board.look(now=0.0)["rows"]}
    assert rows["other"]["state"] == "GONE"
    shutil.rmtree(tmp_path)
    found = board.look(now=0.0)
    assert "not there any more" in found["problem"]


def test_a_look_reads_only_what_is_new(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", steps=10)
    reader = RunReader(folder)
    reader.look(now=0.0)
    before = reader.tail.position
    with (folder / "events.jsonl").open("a") as log:
        log.write(steps_of(5, total=40, at=0.0, first=11))
    look = reader.look(now=0.0)
    assert look.step == 15
    assert reader.tail.position > before
    (folder / "events.jsonl").write_text(event("run_start", at=1.0, recipe="sft", steps=7,
                                               world_size=1, threads=1, device="cpu"))  # fmt: skip
    look = reader.look(now=0.0)
    assert (look.recipe, look.step, look.attempts) == ("sft", None, 1)


def test_a_preempted_and_resumed_run_counts_both(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "mine", steps=10, last="preempted")
    with (folder / "events.jsonl").open("a") as log:
        log.write(event("run_start", at=1.0, recipe="relevance", steps=40, world_size=1, threads=1,
                        device="cpu"))  # fmt: skip
        log.write(event("resume", at=1.0, step=10, checkpoint="step-10", changed={}))
    look = RunReader(folder).look(now=0.0)
    assert (look.attempts, look.preemptions, look.step) == (2, 1, 10)


def test_launches_that_cannot_be_read_stand_on_the_board(tmp_path: Path) -> None:
    (tmp_path / ".launches" / "mine-1").mkdir(parents=True)
    odd = tmp_path / ".launches" / "odd-1"
    (odd / "events.jsonl").mkdir(parents=True)
    rows = {row["run"]: row for row in Board(tmp_path).look(now=0.0)["rows"]}
    assert rows["mine-1"]["state"] == "BROKEN"
    assert rows["odd-1"]["state"] in ("UNREADABLE", "PLANNED")


def test_the_board_is_plain_json(tmp_path: Path) -> None:
    make_run(tmp_path, "mine", done=True)
    text = json.dumps(Board(tmp_path).look(now=time.time()))
    assert json.loads(text)["rows"][0]["metrics"] == {"loss": 0.1, "accuracy": 0.9}
