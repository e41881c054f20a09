"""The states of a launch, and which state may follow which.

One launch (one token) passes through these states over all its attempts; the log records each
change and the supervisor decides on it. Left out: UNREACHABLE. That the status interface does not
answer says nothing about the job, so it is an overlay with an age (`log.LaunchView`), never a
state. What each back end calls its own states is the target's business.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a launch stands."""

    PLANNED = "PLANNED"
    BUILDING = "BUILDING"
    SUBMITTED = "SUBMITTED"
    QUEUED_QUOTA = "QUEUED_QUOTA"
    WAITING_CAPACITY = "WAITING_CAPACITY"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PREEMPTED = "PREEMPTED"
    RESUBMITTING = "RESUBMITTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INCOMPLETE = "INCOMPLETE"


TERMINAL: frozenset[State] = frozenset(
    {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.INCOMPLETE}
)
"""States nothing follows by itself; INCOMPLETE is left again only by a person's `launch`."""

BILLED: frozenset[State] = frozenset({State.STARTING, State.RUNNING})
"""States in which a machine is held and paid for; queued and waiting jobs cost nothing."""

WAITING: frozenset[State] = frozenset({State.QUEUED_QUOTA, State.WAITING_CAPACITY})
"""States in which the back end holds the job without a machine."""

ON_PLATFORM: frozenset[State] = frozenset(
    {
        State.SUBMITTED, State.QUEUED_QUOTA, State.WAITING_CAPACITY, State.STARTING, State.RUNNING,
    }
)  # fmt: skip
"""States in which the back end has a job of ours that is not over."""

# a refused submission goes on at the next place: RESUBMITTING without a job before it
_BEFORE_SUBMIT = {
    State.BUILDING, State.SUBMITTED, State.RESUBMITTING, State.FAILED, State.CANCELLED,
}  # fmt: skip
_FROM_PLATFORM = (ON_PLATFORM | TERMINAL | {State.PREEMPTED, State.RESUBMITTING}) - {
    State.SUBMITTED
}

TRANSITIONS: dict[State, frozenset[State]] = {
    State.PLANNED: frozenset(_BEFORE_SUBMIT),
    State.BUILDING: frozenset(_BEFORE_SUBMIT - {State.BUILDING}),
    **{state: frozenset(_FROM_PLATFORM - {state}) for state in ON_PLATFORM},
    # a platform that retries in place leads straight back to waiting, starting or running
    State.PREEMPTED: frozenset(_FROM_PLATFORM - {State.PREEMPTED}),
    State.RESUBMITTING: frozenset({State.SUBMITTED, *TERMINAL}),
    State.SUCCEEDED: frozenset(),
    # a person may start a launch again that ended without its result
    State.FAILED: frozenset({State.RESUBMITTING}),
    State.CANCELLED: frozenset({State.RESUBMITTING}),
    State.INCOMPLETE: frozenset({State.RESUBMITTING, State.SUCCEEDED}),
}
"""What may follow each state; nothing else is ever recorded."""


def may_follow(state: State, *, after: State) -> bool:
    """Tell whether `state` may come after `after`; staying is always allowed."""
    return state == after or state in TRANSITIONS[after]
