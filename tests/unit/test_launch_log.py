"""The launch log: appended by several processes, killed in the middle, read fast."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from saccade.launch.drive import watcher, watching
from saccade.launch.log import Launch, launch_of, launches, matching
from saccade.launch.machines import Strategy
from saccade.launch.spec import JobSpec
from saccade.launch.states import State
from saccade.launch.view import FIELDS, fold, view_from_json, view_to_json


def spec(run: str = "mine", token: str = "abc") -> dict[str, Any]:
    return JobSpec(
        run=run, token=token, attempt=1, recipe="relevance", machine="a2-highgpu-1g", replicas=1,
        strategy=Strategy.SPOT, region="us-central1", image=None, code="", config="c", store="s",
    ).to_json()  # fmt: skip


def planned(launch: Launch, *, run: str = "mine", at: float = 1000.0) -> Launch:
    offer = {"region": "us-east5", "machine": "m", "strategy": "spot", "usd_per_hour": 3.6}
    launch.append(
        "planned", at=at, spec=spec(run), target="vertex", run_dir="r", offers=[offer], policy={}
    )
    launch.append("ready", at=at, spec=spec(run))
    launch.append("submitting", at=at, attempt=1, offer=0)
    handle = {"target": "vertex", "id": "1", "region": "us-east5", "url": None}
    launch.append("submitted", at=at, attempt=1, offer=0, handle=handle)
    launch.append("state", at=at + 1, state="RUNNING", detail="")
    return launch


def beats(launch: Launch, *, steps: range) -> None:
    for step in steps:
        launch.append("heartbeat", at=1000.0 + step, attempt=1, step=step, beat_at=1000.0 + step)


def test_a_view_is_what_the_events_say(tmp_path: Path) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    beats(launch, steps=range(10, 30, 10))
    view = launch.view()
    assert (view.run, view.state, view.attempt) == ("mine", State.RUNNING, 1)
    assert (view.beat and view.beat.step, view.steps_per_s) == (20, 1.0)
    assert view == fold(launch.events(), key=launch.key)


def test_a_view_survives_json(tmp_path: Path) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    beats(launch, steps=range(10, 30, 10))
    view = launch.view()
    assert view_from_json(json.loads(json.dumps(view_to_json(view)))) == view


def test_a_torn_line_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    with launch.events_file.open("ab") as file:
        file.write(b'{"v": 1, "type": "ended", "sta')
    assert launch.view().state is State.RUNNING
    launch.append("state", at=2000.0, state="WAITING_CAPACITY", detail="")
    assert launch.view().state is State.WAITING_CAPACITY


@pytest.mark.parametrize("cut", range(0, 900, 61))
def test_a_log_that_ends_anywhere_can_be_read_and_continued(tmp_path: Path, cut: int) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    content = launch.events_file.read_bytes()
    launch.events_file.write_bytes(content[:cut])
    before = len(launch.events())
    launch.append("warning", name="quota", message="")
    assert len(launch.events()) == before + 1


def test_events_of_a_later_version_change_nothing(tmp_path: Path) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    before = launch.view()
    with launch.events_file.open("a") as file:
        file.write('{"v": 9, "time": 1, "type": "of a later version"}\n')
        file.write('{"v": 9, "time": 1, "type": "state", "state": "NEW", "detail": ""}\n[1]\nx\n')
    assert launch.view() == before


def test_a_kept_view_is_used_only_while_the_log_has_not_grown(tmp_path: Path) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    launch.view()
    assert launch.cache_file.exists()
    launch.append("warning", name="quota", message="held")
    assert launch.view().message == "held"
    launch.cache_file.write_text("{broken")
    assert launch.view().message == "held"


def test_an_event_must_have_its_fields(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, run="mine", token="abc")
    with pytest.raises(KeyError, match="checkpoint"):
        launch.append("preempted", attempt=1, step=1, lost_steps=0, lost_usd=0, message="")
    assert "left" in FIELDS


def _write(folder: Path, number: int) -> None:
    launch = Launch(folder)
    for step in range(50):
        launch.append("heartbeat", attempt=number, step=step, beat_at=float(step))


def test_several_processes_append_whole_lines(tmp_path: Path) -> None:
    folder = tmp_path / "mine-abc"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write, args=(folder, number)) for number in range(4)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    events = Launch(folder).events()
    assert len(events) == 200
    for number in range(4):
        mine = [event["step"] for event in events if event["attempt"] == number]
        assert mine == list(range(50))


def test_launches_are_found_by_run_and_by_key_and_never_by_a_prefix(tmp_path: Path) -> None:
    planned(launch_of(tmp_path, run="mine", token="abc"))
    planned(launch_of(tmp_path, run="mine-too", token="abc"), run="mine-too")
    found = launches(tmp_path)
    assert [one.key for one in matching(found, name="mine")] == ["mine-abc"]
    assert [one.key for one in matching(found, name="mine-too-abc")] == ["mine-too-abc"]
    assert launches(tmp_path / "nowhere") == []


def test_two_hundred_launches_are_listed_in_well_under_a_second(tmp_path: Path) -> None:
    one = planned(launch_of(tmp_path, run="run0", token="abc"), run="run0")
    beats(one, steps=range(300))
    for number in range(1, 200):
        other = launch_of(tmp_path, run=f"run{number}", token="abc")
        other.folder.mkdir(parents=True)
        other.events_file.write_bytes(one.events_file.read_bytes())
    first = [launch.view() for launch in launches(tmp_path)]
    started = time.process_time()
    again = [launch.view() for launch in launches(tmp_path)]
    assert time.process_time() - started < 0.5
    assert len(first) == len(again) == 200


def test_one_of_several_watchers_acts_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    launch = planned(launch_of(tmp_path, run="mine", token="abc"))
    assert watcher(launch) is None
    with watching(launch) as first, watching(launch) as second:
        assert (first, second) == (True, False)
        assert watcher(launch) is not None
    assert watcher(launch) is None
    launch.lock_file.write_text("12345\n")  # what a killed watcher leaves behind
    assert watcher(launch) is None
