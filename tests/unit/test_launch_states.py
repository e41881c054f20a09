"""The table of states: complete, without dead ends, and what it says about money."""

from __future__ import annotations

import json

import pytest

from saccade.launch.machines import Strategy
from saccade.launch.spec import Handle, JobSpec, label_text
from saccade.launch.states import BILLED, TERMINAL, TRANSITIONS, WAITING, State, may_follow


def test_every_state_has_a_row_and_every_row_names_states() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(following <= set(State) for following in TRANSITIONS.values())


def test_every_state_but_the_first_can_be_reached_and_every_open_one_can_end() -> None:
    reached, edge = {State.PLANNED}, {State.PLANNED}
    while edge:
        edge = {after for state in edge for after in TRANSITIONS[state]} - reached
        reached |= edge
    assert reached == set(State)
    for state in set(State) - TERMINAL:
        assert TRANSITIONS[state] & TERMINAL, state


def test_a_success_is_final_and_other_ends_only_lead_to_a_new_try() -> None:
    assert TRANSITIONS[State.SUCCEEDED] == frozenset()
    for state in (State.FAILED, State.CANCELLED):
        assert TRANSITIONS[state] == {State.RESUBMITTING}
    assert TRANSITIONS[State.INCOMPLETE] == {State.RESUBMITTING, State.SUCCEEDED}


def test_staying_is_always_allowed_and_going_back_to_planned_never() -> None:
    assert all(may_follow(state, after=state) for state in State)
    assert not any(may_follow(State.PLANNED, after=state) for state in set(State) - {State.PLANNED})


def test_waiting_and_queued_jobs_are_not_billed() -> None:
    assert not BILLED & WAITING
    assert not BILLED & TERMINAL
    assert {"QUEUED_QUOTA", "WAITING_CAPACITY"} == {str(state) for state in WAITING}


def test_unreachable_is_no_state() -> None:
    assert "UNREACHABLE" not in [str(state) for state in State]


def spec() -> JobSpec:
    return JobSpec(
        run="My run", token="abc", attempt=1, recipe="relevance", machine="a2-highgpu-1g",
        replicas=1, strategy=Strategy.SPOT, region="us-central1", image=None, code="", config="c",
        store="s",
    )  # fmt: skip


def test_a_spec_survives_json_and_later_versions_fields() -> None:
    stored = json.loads(json.dumps(spec().to_json() | {"of_a_later_version": 1}))
    assert JobSpec.from_json(stored) == spec()


def test_another_attempt_has_labels_that_find_it() -> None:
    second = spec().at(attempt=2, region="us-east5")
    assert (second.attempt, second.region) == (2, "us-east5")
    assert second.labels == {"app": "saccade", "run": "my-run", "token": "abc", "attempt": "2"}


@pytest.mark.parametrize(
    ("text", "label"), [("A b/c", "a-b-c"), ("x" * 99, "x" * 63), ("ok_1-2", "ok_1-2")]
)
def test_labels_are_written_as_google_allows(text: str, label: str) -> None:
    assert label_text(text) == label


def test_a_handle_survives_json() -> None:
    handle = Handle("vertex", "projects/p/locations/r/customJobs/1", "r", "https://x")
    assert Handle.from_json(json.loads(json.dumps(handle.to_json()))) == handle
