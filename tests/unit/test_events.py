"""The event log: append-only, torn lines tolerated, repeated steps resolved. No training here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from saccade.training.events import VERSION, EventLog, read_events, step_series


def test_an_appended_event_reads_back_with_version_time_and_type(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("warning", message="a\nb")
    (event,) = read_events(log.path)
    assert event["v"] == VERSION
    assert event["type"] == "warning"
    assert event["message"] == "a\nb"
    assert event["time"] > 0


def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append("preempted", step=1)
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        EventLog(path).append("preempted", step=3)
        steps = [event["step"] for event in read_events(path)]
        # a cut that only lost the line break lost nothing
        assert steps in ([1, 3], [1, 1, 3])
        assert steps == [1, 3] or cut == len(whole) - 1


def test_the_last_record_of_a_repeated_step_counts(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step, accuracy in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.25), (3, 0.35)):
        log.append("eval", step=step, metrics={"accuracy": accuracy})
    series = step_series(read_events(log.path), type="eval")
    assert [event["step"] for event in series] == [1, 2, 3]
    assert [event["metrics"]["accuracy"] for event in series] == [0.1, 0.25, 0.35]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("eval", step=1, metrics={"a": float("nan"), "b": float("inf"), "c": 1.5})
    (event,) = read_events(log.path)
    assert event["metrics"] == {"a": None, "b": None, "c": 1.5}
    assert "NaN" not in json.dumps(event)


def test_an_event_without_its_fields_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="step"):
        EventLog(tmp_path / "events.jsonl").append("eval", metrics={})


def test_two_writers_never_tear_each_others_lines(tmp_path: Path) -> None:
    first, second = EventLog(tmp_path / "e.jsonl"), EventLog(tmp_path / "e.jsonl")
    for step in range(50):
        (first if step % 2 else second).append("preempted", step=step)
    assert [event["step"] for event in read_events(first.path)] == list(range(50))
