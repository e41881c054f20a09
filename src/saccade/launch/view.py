"""What a launch log says: events in, one frozen `LaunchView` out.

The fold is a pure function of the events, so the supervisor, the command line and tests read the
same truth from the same log. An event that this version does not know, or whose fields are of
another shape, changes nothing. Left out: files (`log.py`) and decisions (`supervise.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from saccade.launch.spec import Handle, JobSpec
from saccade.launch.states import BILLED, TERMINAL, State

FIELDS: dict[str, tuple[str, ...]] = {
    "planned": ("spec", "target", "run_dir", "offers", "policy"),
    "ready": ("spec",),
    "limits": ("policy",),
    "submitting": ("attempt", "offer"),
    "submitted": ("attempt", "offer", "handle"),
    "refused": ("attempt", "offer", "reason", "message"),
    "state": ("state", "detail"),
    "heartbeat": ("attempt", "step", "beat_at"),
    "preempted": ("attempt", "step", "checkpoint", "lost_steps", "lost_usd", "message"),
    "resubmitting": ("attempt", "offer", "not_before", "message"),
    "unreachable": ("message",),
    "reachable": (),
    "warning": ("name", "message"),
    "cancelling": ("reason", "message"),
    "cancel_sent": (),
    "ended": ("state", "message", "exit_code"),
    "watching": ("pid",),
    "left": ("pid",),
    "fetched": ("folder",),
}
"""Event types and the fields each one has beside `v`, `time` and `type`."""


@dataclass(frozen=True)
class Offer:
    """One place to run, in the order they are tried; the price is for all replicas, with fees."""

    region: str
    machine: str
    strategy: str
    usd_per_hour: float | None
    reason: str = ""


@dataclass(frozen=True)
class Policy:
    """What the launch may do by itself."""

    max_attempts: int = 5
    wait_s: float = 3600.0
    backoff_s: float = 30.0
    budget_usd: float | None = None


@dataclass(frozen=True)
class Held:
    """A time in which a machine was held, and its price; without an end it still is."""

    attempt: int
    started_at: float
    ended_at: float | None
    usd_per_hour: float | None


@dataclass(frozen=True)
class Mark:
    """The newest checkpoint in the store."""

    step: int
    at: float | None
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Beat:
    """The last heartbeat of the training."""

    attempt: int
    step: int
    at: float
    steps: int | None = None
    loss: float | None = None
    phase: str = ""
    samples_per_s: float | None = None


@dataclass(frozen=True)
class LaunchView:
    """Where a launch stands, as far as its log says."""

    key: str
    run: str = ""
    token: str = ""
    target: str = ""
    run_dir: str = ""
    home: str = ""
    """Another folder that the finished run was brought into."""
    spec: JobSpec | None = None
    ready: bool = False
    """Code and configuration are where the job will look for them."""
    offers: tuple[Offer, ...] = ()
    kept: tuple[Offer, ...] = ()
    """Places where the machine is not taken back, for the price difference."""
    policy: Policy = Policy()
    state: State = State.PLANNED
    state_since: float = 0.0
    detail: str = ""
    error_code: int | None = None
    planned_at: float = 0.0
    attempt: int = 0
    offer: int = 0
    """Which offer the current attempt uses."""
    pending: bool = False
    """A submission was begun and its outcome is not known."""
    handle: Handle | None = None
    held: tuple[Held, ...] = ()
    preemptions: int = 0
    stuck: int = 0
    """Preemptions in a row without a new checkpoint."""
    in_place: int = 0
    """Preemptions in a row at the current offer."""
    safe_step: int | None = None
    """The newest checkpoint at the last preemption."""
    beat: Beat | None = None
    first: Beat | None = None
    """The attempt's first heartbeat: the rate is measured from it."""
    mark: Mark | None = None
    warned: frozenset[str] = frozenset()
    unreachable_since: float | None = None
    cancelling: str | None = None
    cancelling_since: float | None = None
    """When the back end was last asked to stop the job; None: not yet."""
    submitted_at: float | None = None
    """When the present job was made."""
    not_before: float | None = None
    message: str = ""
    exit_code: int | None = None
    ended_at: float | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in TERMINAL

    @property
    def here(self) -> Offer | None:
        """The offer in use."""
        return self.offers[self.offer] if self.offer < len(self.offers) else None

    @property
    def steps_per_s(self) -> float | None:
        """Training steps per second of this attempt, from its heartbeats."""
        if self.beat is None or self.first is None or self.beat.at <= self.first.at:
            return None
        if self.first.step == 0:
            return None
        gained = self.beat.step - self.first.step
        return gained / (self.beat.at - self.first.at) if gained > 0 else None


def fold(events: Iterable[Mapping[str, Any]], *, key: str) -> LaunchView:
    """Fold a log into its view; events that cannot be understood change nothing."""
    view = LaunchView(key=key)
    for event in events:
        view = after(view, event)
    return view


def after(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    """Return the view after one more event."""
    handler = _HANDLERS.get(str(event.get("type")))
    if handler is None:
        return view
    try:
        return handler(view, event)
    except (KeyError, TypeError, ValueError):
        return view


def _planned(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    spec = JobSpec.from_json(event["spec"])
    changes: dict[str, Any] = {
        "run": spec.run, "token": spec.token, "target": event["target"], "spec": spec,
        "run_dir": event["run_dir"], "ready": False, "policy": Policy(**event["policy"]),
        "offers": tuple(Offer(**offer) for offer in event["offers"]),
        "kept": tuple(Offer(**offer) for offer in event.get("kept", ())),
    }  # fmt: skip
    if view.planned_at:  # planned again: what happened stays, limits and offers are new
        # offers may stand in another order now, so the one in use is looked up again
        changes["offer"] = _same_place(view, changes["offers"])
        return replace(view, warned=frozenset(), **changes)
    return replace(view, planned_at=event["time"], state_since=event["time"], **changes)


def _same_place(view: LaunchView, offers: tuple[Offer, ...]) -> int:
    here = view.here
    places = [(one.region, one.machine, one.strategy) for one in offers]
    place = (here.region, here.machine, here.strategy) if here else None
    return places.index(place) if place in places else 0


def _ready(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, spec=JobSpec.from_json(event["spec"]), ready=True)


def _limits(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(
        view, policy=Policy(**event["policy"]), warned=view.warned - {"budget", "over-budget"}
    )


def _submitting(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    new = event["attempt"] != view.attempt
    return replace(
        view, attempt=event["attempt"], offer=event["offer"], pending=True,
        handle=None if new else view.handle, first=None if new else view.first,
        beat=view.beat,
    )  # fmt: skip


def _submitted(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    view = replace(
        view, attempt=event["attempt"], offer=event["offer"], pending=False,
        handle=Handle.from_json(event["handle"]), submitted_at=event["time"],
        # a person's wish to stop outlives a submission that was under way
        cancelling=view.cancelling if view.cancelling == "user" else None, cancelling_since=None,
        unreachable_since=None, exit_code=None, message="", ended_at=None,
    )  # fmt: skip
    return _moved(view, State.SUBMITTED, event)


def _refused(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, pending=False, detail=event["message"])


def _state(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return _moved(view, State(event["state"]), event)


def _moved(view: LaunchView, state: State, event: Mapping[str, Any]) -> LaunchView:
    """Change the state, and open or close the time in which a machine is held."""
    since = view.state_since if state == view.state else event["time"]
    return replace(
        view, state=state, state_since=since, detail=event.get("detail", ""),
        error_code=event.get("error_code"), held=_held(view, state, event),
    )  # fmt: skip


def _held(view: LaunchView, state: State, event: Mapping[str, Any]) -> tuple[Held, ...]:
    started, ended, now = event.get("started_at"), event.get("ended_at"), event["time"]
    last = view.held[-1] if view.held else None
    floor = (last.ended_at or last.started_at) if last else 0.0
    price = view.here.usd_per_hour if view.here else None
    is_open = last is not None and last.ended_at is None
    if state in BILLED:
        if is_open:
            return view.held
        # a job that is restarted in place keeps its first start time: then now is what counts
        began = started if started is not None and started > floor else now
        return (*view.held, Held(view.attempt, began, None, price))
    if is_open and last is not None:
        end = max(min(ended or now, now), last.started_at)
        return (*view.held[:-1], replace(last, ended_at=end))
    unseen = last is None or last.attempt != view.attempt
    if unseen and started is not None and ended is not None and ended > started:
        # nobody watched while it ran: the back end's own times count
        return (*view.held, Held(view.attempt, max(started, floor), ended, price))
    return view.held


def _heartbeat(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    beat = Beat(
        attempt=event["attempt"], step=event["step"], at=event["beat_at"],
        steps=event.get("steps"), loss=event.get("loss"), phase=event.get("phase") or "",
        samples_per_s=event.get("samples_per_s"),
    )  # fmt: skip
    kept = view.first
    # before its first step a job loads, and then it may continue at any step: no rate in that
    first = kept if kept and kept.attempt == beat.attempt and kept.step > 0 else beat
    mark = Mark(**event["checkpoint"]) if event.get("checkpoint") else view.mark
    if mark and view.mark and mark.step < view.mark.step:
        mark = view.mark
    return replace(view, beat=beat, first=first, mark=mark)


def _preempted(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    safe = event["checkpoint"]
    grew = safe is not None and (view.safe_step is None or safe > view.safe_step)
    view = replace(
        view, preemptions=view.preemptions + 1, stuck=0 if grew else view.stuck + 1,
        safe_step=safe if grew else view.safe_step, in_place=view.in_place + 1,
        message=event["message"], first=None,
    )  # fmt: skip
    return _moved(view, State.PREEMPTED, {**event, "detail": event["message"]})


def _resubmitting(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    moved = event["offer"] != view.offer
    cancelling = view.cancelling if view.cancelling == "user" and not view.over else None
    view = replace(
        view, not_before=event["not_before"], attempt=event["attempt"], handle=None,
        safe_step=event.get("checkpoint", view.safe_step),
        message=event["message"] or view.message, pending=False, first=None,
        stuck=0 if view.over else view.stuck,
        in_place=0 if moved else view.in_place, cancelling=cancelling, cancelling_since=None,
        unreachable_since=None, exit_code=None, ended_at=None,
        warned=frozenset(name for name in view.warned if name == "budget"),
    )  # fmt: skip
    view = _moved(view, State.RESUBMITTING, event)
    return replace(view, offer=event["offer"])


def _ended(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    view = _moved(view, State(event["state"]), event)
    return replace(
        view, message=event["message"], exit_code=event["exit_code"], ended_at=event["time"],
        pending=False, unreachable_since=None, cancelling=None, cancelling_since=None,
    )  # fmt: skip


def _cancelling(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, cancelling=event["reason"], message=event["message"])


def _cancel_sent(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, cancelling_since=event["time"])


def _unreachable(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, unreachable_since=view.unreachable_since or event["time"])


def _reachable(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, unreachable_since=None)


def _fetched(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, home=event["folder"])


def _warning(view: LaunchView, event: Mapping[str, Any]) -> LaunchView:
    return replace(view, warned=view.warned | {event["name"]}, message=event["message"])


_HANDLERS: dict[str, Callable[[LaunchView, Mapping[str, Any]], LaunchView]] = {
    "planned": _planned, "ready": _ready, "limits": _limits, "submitting": _submitting,
    "submitted": _submitted,
    "refused": _refused, "state": _state, "heartbeat": _heartbeat, "preempted": _preempted,
    "resubmitting": _resubmitting, "unreachable": _unreachable, "reachable": _reachable,
    "warning": _warning, "cancelling": _cancelling,
    "cancel_sent": _cancel_sent, "ended": _ended, "fetched": _fetched,
}  # fmt: skip


def view_to_json(view: LaunchView) -> dict[str, Any]:
    """Return plain values, for the kept view and for `--json`."""
    return asdict(view) | {
        "spec": view.spec.to_json() if view.spec else None, "warned": sorted(view.warned),
        "state": str(view.state),
    }  # fmt: skip


def view_from_json(values: Mapping[str, Any]) -> LaunchView:
    """Read what `view_to_json` wrote; raises for a view of another version."""
    if set(values) != {one.name for one in fields(LaunchView)}:
        raise ValueError("a view of another version")
    made = dict(values)
    made["spec"] = JobSpec.from_json(values["spec"]) if values["spec"] else None
    made["offers"] = tuple(Offer(**one) for one in values["offers"])
    made["kept"] = tuple(Offer(**one) for one in values["kept"])
    made["policy"] = Policy(**values["policy"])
    made["held"] = tuple(Held(**one) for one in values["held"])
    made["handle"] = Handle.from_json(values["handle"]) if values["handle"] else None
    for name, kind in (("beat", Beat), ("first", Beat), ("mark", Mark)):
        made[name] = kind(**values[name]) if values[name] else None
    made["warned"] = frozenset(values["warned"])
    made["state"] = State(values["state"])
    return LaunchView(**made)
