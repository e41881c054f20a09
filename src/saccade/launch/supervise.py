"""What to do about a launch: view, one look at the job, and the time in; a list of actions out.

`decide` is pure, so every failure has a test without a cloud. The rules: a job counts as done only
with DONE in the store; what cannot be read says nothing, so an unreachable service changes no
state; a preempted job is submitted again up to a limit, elsewhere when the place keeps failing,
and not at all when it no longer gets further; waiting has a limit per place; money has one over
all attempts. Left out: reading and doing (`drive.py`), wording (`messages.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saccade.config.errors import InputError, OutsideError, Preempted
from saccade.launch import costs, messages
from saccade.launch.spec import Status
from saccade.launch.states import (
    BILLED,
    ON_PLATFORM,
    TERMINAL,
    WAITING,
    State,
    may_follow,
)
from saccade.launch.view import LaunchView, after

WARN_AT = 0.8
"""Share of the budget at which a warning is given."""
CHECKPOINT_PATIENCE_S = 300.0
"""How long a job over its budget may go on until its next checkpoint."""
CANCEL_AGAIN_S = 60.0
"""After this long without effect, cancelling is asked for again."""
QUOTA_WARN_S = 300.0
"""Queued on quota longer than this is said aloud."""
LONGEST_BACKOFF_S = 600.0
CLOCKS_DIFFER_S = 60.0
"""Clocks of this machine and the job's may differ by so much."""
MOVE_AFTER = 2
"""Preemptions in a row at one place after which the next one is tried."""
STUCK_AFTER = 2
"""Preemptions in a row without a new checkpoint after which the launch stops."""


@dataclass(frozen=True)
class Seen:
    """One look at a job and at the store; an error means that nothing was learned there."""

    status: Status | None = None
    error: str = ""
    beat: Mapping[str, Any] | None = None
    """Fields of a `heartbeat` event."""
    done: Mapping[str, Any] | None = None
    store_error: str = ""
    tail: tuple[str, ...] = ()
    """The end of the log of a job that ended badly."""


@dataclass(frozen=True)
class Record:
    """Append an event to the launch log."""

    type: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submit:
    """Submit this attempt at this offer."""

    attempt: int
    offer: int


@dataclass(frozen=True)
class Cancel:
    """Ask the target to stop the job; the intent is recorded first."""

    reason: str
    message: str


Action = Record | Submit | Cancel


def decide(view: LaunchView, seen: Seen, *, now: float) -> list[Action]:
    """Return what to do now, in order; an empty list means to look again later."""
    if view.over:
        return _late(view, seen)
    if view.pending or (view.handle is None and view.state is not State.RESUBMITTING):
        return _first(view)
    if view.state is State.RESUBMITTING:
        if view.cancelling == "user":
            return [end(State.CANCELLED, "cancelled before it was submitted again", code=143)]
        due = view.not_before is None or now >= view.not_before
        return [Submit(view.attempt, view.offer)] if due else []
    actions: list[Action] = []
    if seen.beat is not None and _is_news(view, seen.beat):
        actions.append(Record("heartbeat", seen.beat))
    if seen.status is None:
        return [*actions, *_unreachable(view, seen)]
    if view.unreachable_since is not None:
        actions.append(Record("reachable"))
    return [*actions, *_of_status(view, seen, seen.status, now=now)]


def end(state: State, message: str, *, code: int, **more: Any) -> Record:
    """The last event of a launch."""
    values = {"state": str(state), "message": message, "exit_code": code, **more}
    return Record("ended", values)


def refused(view: LaunchView, *, quota: bool, message: str, code: int) -> list[Action]:
    """What follows a submission that the target refused: the next place, or the end."""
    following = view.offer + 1
    if quota and following < len(view.offers):
        said = f"{message.splitlines()[0]}; trying {messages.place(view.offers[following])}"
        return [_again(view, attempt=view.attempt, offer=following, at=None, message=said)]
    if quota and len(view.offers) > 1:
        message = f"all {len(view.offers)} places refused the job; the last: {message}"
    return [end(State.FAILED, message, code=code)]


def _first(view: LaunchView) -> list[Action]:
    if view.cancelling == "user" and not view.pending:
        return [end(State.CANCELLED, "cancelled before it was submitted", code=143)]
    if not view.ready:
        return []  # the launch flow still packs, or died doing so
    return [Submit(max(1, view.attempt), view.offer)]


def _late(view: LaunchView, seen: Seen) -> list[Action]:
    """A result that turns up in the store after the end was recorded still counts."""
    if view.state is State.INCOMPLETE and seen.done is not None:
        return [_succeeded(seen)]
    return []


def _is_news(view: LaunchView, beat: Mapping[str, Any]) -> bool:
    if float(beat["beat_at"]) < view.planned_at - CLOCKS_DIFFER_S:
        return False  # left in the store by an earlier launch of the same run
    return view.beat is None or float(beat["beat_at"]) > view.beat.at


def _unreachable(view: LaunchView, seen: Seen) -> list[Action]:
    if view.unreachable_since is not None or not seen.error:
        return []
    said = f"UNREACHABLE (last known {view.state}): {seen.error.splitlines()[0]}"
    return [Record("unreachable", {"message": said})]


def _of_status(view: LaunchView, seen: Seen, status: Status, *, now: float) -> list[Action]:
    beaten = _with_beat(view, seen)
    if status.state in TERMINAL or status.state is State.PREEMPTED:
        return _over(beaten, seen, status, now=now)
    actions: list[Action] = []
    taken = view.state is State.RUNNING and status.state in WAITING | {State.STARTING}
    restarted = taken or _went_back(view, seen)
    if restarted:
        # the platform took the machine and restarts the same job by itself
        last = beaten if taken else view
        actions.append(_preemption(last, now=now, next_attempt=view.attempt, status=status))
    moved = status.state != view.state or status.detail != view.detail
    if (moved or restarted) and (restarted or may_follow(status.state, after=view.state)):
        actions.append(_state(status))
    if view.cancelling is not None:
        return [*actions, *_cancel_again(view, now=now)]
    if status.state in WAITING and not restarted:
        actions += _waiting(beaten, status, now=now)
    return [*actions, *_budget(beaten, now=now)]


def _went_back(view: LaunchView, seen: Seen) -> bool:
    """A step that falls within one attempt: the job was restarted between two looks."""
    beat = view.beat
    if beat is None or seen.beat is None or view.state is not State.RUNNING:
        return False
    if view.first is None:  # the restart is known already
        return False
    same = seen.beat["attempt"] == beat.attempt == view.attempt and _is_news(view, seen.beat)
    return same and int(seen.beat["step"]) < beat.step


def _with_beat(view: LaunchView, seen: Seen) -> LaunchView:
    """The view as it will be once the new heartbeat is in the log."""
    if seen.beat is None or not _is_news(view, seen.beat):
        return view
    return after(view, {"type": "heartbeat", "time": seen.beat["beat_at"], **seen.beat})


def _state(status: Status) -> Record:
    return Record(
        "state",
        {
            "state": str(status.state), "detail": status.detail, "error_code": status.error_code,
            "started_at": status.started_at, "ended_at": status.ended_at,
        },
    )  # fmt: skip


def _over(view: LaunchView, seen: Seen, status: Status, *, now: float) -> list[Action]:
    """The job is over: decide by what is in the store, then by how it ended."""
    if seen.done is not None and (status.state is State.SUCCEEDED or _is_ours(view, seen.done)):
        return [_succeeded(seen, status)]
    if seen.store_error:
        # without the store nobody can tell success from failure: look again
        return _unreachable(view, Seen(error=seen.store_error))
    if view.cancelling is not None or status.state is State.CANCELLED:
        return _cancelled(view, status, now=now)
    if status.state is State.SUCCEEDED:
        return _incomplete(view, status, now=now)
    if status.started_at is None and status.raw.get("cause") == "stockout":
        return _sold_out(view, now=now)
    resumable = status.error_code == Preempted.exit_code
    if status.state is State.PREEMPTED or resumable:
        return _preempted(view, status, now=now)
    return [_failed(view, seen, status)]


def _is_ours(view: LaunchView, done: Mapping[str, Any]) -> bool:
    """A run's name may have been finished by an earlier launch: its DONE is older than this one."""
    written = done.get("time")
    return written is None or float(written) >= view.planned_at - CLOCKS_DIFFER_S


def _succeeded(seen: Seen, status: Status | None = None) -> Record:
    step = (seen.done or {}).get("target_step")
    text = "DONE" if step is None else f"DONE at step {step}"
    times = _times(status)
    if status is not None and status.state is not State.SUCCEEDED:
        text += f" (the job itself ended as {status.state} after writing it)"
    return end(State.SUCCEEDED, text, code=0, **times)


def _times(status: Status | None) -> dict[str, Any]:
    if status is None:
        return {}
    return {
        "started_at": status.started_at, "ended_at": status.ended_at,
        "error_code": status.error_code,
    }  # fmt: skip


def _cancelled(view: LaunchView, status: Status, *, now: float) -> list[Action]:
    if view.cancelling == "failover":
        following = view.offer + 1
        said = f"trying {messages.place(view.offers[following])}"
        return [_again(view, attempt=view.attempt + 1, offer=following, at=None, message=said)]
    spent = messages.money(costs.cost(view, now=now))
    if view.cancelling == "budget":
        text = (
            f"cancelled: the budget of {messages.money(view.policy.budget_usd)} is used up"
            f" ({spent})"
            "\n  fix: `saccade launch` again with a larger launch.budget continues from the last"
            " checkpoint"
        )
    elif view.cancelling == "user":
        text = f"cancelled ({spent} so far); `saccade launch` with the same words continues it"
    elif view.cancelling is not None:
        text = f"cancelled: {view.message}"
    else:
        text = (
            f"cancelled, but not from here ({spent} so far): {status.detail or 'no reason given'}"
        )
    code = OutsideError.exit_code if view.cancelling == "capacity" else Preempted.exit_code
    state = State.FAILED if view.cancelling == "capacity" else State.CANCELLED
    return [end(state, text, code=code, **_times(status))]


def _incomplete(view: LaunchView, status: Status, *, now: float) -> list[Action]:
    """Exit 0 without DONE: try again while that gets further, never call it a success."""
    grew = view.mark is not None and (view.safe_step is None or view.mark.step > view.safe_step)
    stop = _may_not_go_on(view, now=now)
    if stop is None and grew:
        said = messages.incomplete(view, why="submitting it again").splitlines()[0]
        again = _again(
            view, attempt=view.attempt + 1, offer=view.offer, at=now + _backoff(view), message=said
        )
        return [Record(again.type, {**again.fields, **_times(status)})]
    why = stop or "no new checkpoint since the last attempt"
    text = messages.incomplete(view, why=why)
    return [end(State.INCOMPLETE, text, code=Preempted.exit_code, **_times(status))]


def _sold_out(view: LaunchView, *, now: float) -> list[Action]:
    """The platform found no machine: nothing ran, so nothing was taken; try the next place."""
    said = f"no capacity for {messages.place(view.here)}: the platform gave up on it"
    stop = _may_not_go_on(view, now=now)
    if stop is not None:
        text = f"{said}; stopped: {stop}\n  fix: {messages.CAPACITY_ADVICE}"
        return [end(State.FAILED, text, code=OutsideError.exit_code)]
    following = (view.offer + 1) % len(view.offers) if view.offers else view.offer
    # a place that was not tried yet needs no pause
    at = None if following > view.offer else now + _backoff(view)
    said += f"; trying {messages.place(view.offers[following])}" if view.offers else ""
    return [_again(view, attempt=view.attempt + 1, offer=following, at=at, message=said)]


def _preempted(view: LaunchView, status: Status, *, now: float) -> list[Action]:
    record = _preemption(view, now=now, next_attempt=view.attempt + 1, status=status)
    if view.state is State.PREEMPTED:  # logged already; what should follow was not
        following, first = view, []
    else:
        following, first = (
            after(view, {"type": record.type, "time": now, **record.fields}),
            [record],
        )
    if following.stuck >= STUCK_AFTER:
        others = [one for one in (*view.offers, *view.kept) if one.strategy != "spot"]
        text = messages.loop(following, cheaper=others)
        return [*first, end(State.FAILED, text, code=Preempted.exit_code)]
    stop = _may_not_go_on(following, now=now)
    if stop is not None:
        text = (
            f"{record.fields['message']}; stopped: {stop}"
            "\n  fix: `saccade launch` again with the same words continues from the checkpoint"
        )
        state = State.CANCELLED if "budget" in stop else State.FAILED
        return [*first, end(state, text, code=Preempted.exit_code)]
    offer = _next_offer(following, status)
    at = now + _backoff(following)
    moved = offer != view.offer
    # one sentence: a message that follows at once would hide the one about the preemption
    said = f"{record.fields['message']}; moving to {messages.place(view.offers[offer])}"
    said = said if moved else ""
    return [*first, _again(view, attempt=view.attempt + 1, offer=offer, at=at, message=said)]


def _preemption(
    view: LaunchView, *, now: float, next_attempt: int, status: Status
) -> Record:  # fmt: skip
    step = view.beat.step if view.beat else 0
    safe = view.mark.step if view.mark else 0
    steps, usd = costs.lost(view, step=step, checkpoint=safe)
    said = messages.preempted(
        view, now=now, lost_steps=steps, lost_usd=usd, next_attempt=next_attempt
    )
    return Record(
        "preempted",
        {
            "attempt": view.attempt, "step": step,
            "checkpoint": view.mark.step if view.mark else None,
            "lost_steps": steps, "lost_usd": usd, "message": said, "platform": status.detail,
            "error_code": status.error_code, "started_at": status.started_at,
            "ended_at": status.ended_at,
        },
    )  # fmt: skip


def _may_not_go_on(view: LaunchView, *, now: float) -> str | None:
    """Why no further attempt may be made; None when one may."""
    if view.attempt >= view.policy.max_attempts:
        return f"all {view.policy.max_attempts} attempts are used (launch.max_attempts)"
    budget, spent = view.policy.budget_usd, costs.cost(view, now=now)
    if budget is not None and spent is not None and spent >= budget:
        return f"the budget of {messages.money(budget)} is used up ({messages.money(spent)})"
    return None


def _next_offer(view: LaunchView, status: Status) -> int:
    """Stay where the image and the checkpoints are near, until the place proves bad."""
    leave = view.in_place >= MOVE_AFTER or messages.is_capacity(status.detail)
    return (view.offer + 1) % len(view.offers) if leave and view.offers else view.offer


def _backoff(view: LaunchView) -> float:
    return min(LONGEST_BACKOFF_S, view.policy.backoff_s * 2 ** max(0, view.preemptions - 1))


def _again(
    view: LaunchView, *, attempt: int, offer: int, at: float | None, message: str
) -> Record:  # fmt: skip
    return Record(
        "resubmitting",
        {
            "attempt": attempt, "offer": offer, "not_before": at, "message": message,
            "checkpoint": view.mark.step if view.mark else view.safe_step,
        },
    )  # fmt: skip


def _failed(view: LaunchView, seen: Seen, status: Status) -> Record:
    code = status.error_code
    cause = messages.cause_of(seen.tail, detail=status.detail, code=code)
    silent = view.beat is None or view.beat.attempt != view.attempt
    if silent:
        text = messages.early_death(code=code, detail=status.detail, tail=seen.tail)
    else:
        step = view.beat.step if view.beat else 0
        text = f"FAILED at step {step}: {status.detail or f'exit code {code}'}"
    if cause is not None:
        text = f"{cause.name}: {text}\n  fix: {cause.advice}"
        exit_code = cause.exit_code
    else:
        known = (1, InputError.exit_code, OutsideError.exit_code)
        exit_code = code if code in known else OutsideError.exit_code
        text += f"\n  fix: read its log: saccade logs {view.run}"
    more = {"detail": "STARTING" if silent else "", "cause": cause.name if cause else None}
    return end(State.FAILED, text, code=exit_code or 1, **(_times(status) | more))


def _waiting(view: LaunchView, status: Status, *, now: float) -> list[Action]:
    """Waiting costs nothing but time: say why, and move on when the limit is reached."""
    since = view.state_since if view.state in WAITING else now
    waited, actions = now - since, []
    on_quota = status.state is State.QUEUED_QUOTA
    aloud = min(QUOTA_WARN_S, view.policy.wait_s)
    if on_quota and waited >= aloud and "quota" not in view.warned:
        why = status.detail or messages.place(view.here)
        said = f"held by Vertex: quota ({why}); waiting costs $0"
        actions.append(Record("warning", {"name": "quota", "message": said}))
    if waited < view.policy.wait_s:
        return actions
    what = "quota" if on_quota else "capacity"
    where = messages.place(view.here)
    if view.offer + 1 < len(view.offers) and view.attempt < view.policy.max_attempts:
        following = messages.place(view.offers[view.offer + 1])
        said = f"no {what} for {where} in {messages.span(waited)}; trying {following}"
        return [*actions, Cancel("failover", said)]
    said = (
        f"no {what} for {where} in {messages.span(waited)}, and no other place is left"
        f"\n  fix: {messages.CAPACITY_ADVICE}"
    )
    return [*actions, Cancel("capacity", said)]


def _budget(view: LaunchView, *, now: float) -> list[Action]:
    budget, spent = view.policy.budget_usd, costs.cost(view, now=now)
    if budget is None or spent is None or view.state not in BILLED:
        return []
    if spent < WARN_AT * budget:
        return []
    if "budget" not in view.warned and spent < budget:
        said = f"{messages.money(spent)} of the budget of {messages.money(budget)} is spent"
        return [Record("warning", {"name": "budget", "message": said})]
    if spent < budget:
        return []
    return _over_budget(view, budget=budget, spent=spent, now=now)


def _over_budget(
    view: LaunchView, *, budget: float, spent: float, now: float
) -> list[Action]:  # fmt: skip
    """Cancel once the work is safe: after a new checkpoint, or when patience ends."""
    limit = view.policy.budget_usd or budget
    price = view.here.usd_per_hour if view.here else None
    over_s = (spent - limit) / price * costs.HOUR_S if price else CHECKPOINT_PATIENCE_S
    reached = now - over_s
    saved = view.mark is not None and (
        (view.mark.at is not None and view.mark.at >= reached)
        or (view.beat is not None and view.mark.step >= view.beat.step)
    )
    said = f"the budget of {messages.money(budget)} is used up ({messages.money(spent)})"
    if saved or over_s >= CHECKPOINT_PATIENCE_S:
        return [Cancel("budget", f"{said}; cancelling")]
    if "over-budget" in view.warned:
        return []
    said += "; cancelling after the next checkpoint"
    return [Record("warning", {"name": "over-budget", "message": said})]


def _cancel_again(view: LaunchView, *, now: float) -> list[Action]:
    since = view.cancelling_since
    if view.state in ON_PLATFORM and (since is None or now - since >= CANCEL_AGAIN_S):
        return [Cancel(view.cancelling or "user", view.message)]
    return []
