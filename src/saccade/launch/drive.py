"""Watching over a launch: look at the job, decide, do it, write it down; again and again.

A launch log and an open target flow in; events and calls to the target flow out. `tick` is one
round and can be killed at any moment: what it was about to do stands in the log before it is done.
`watch` repeats it under a lock, so that of several watchers one acts and the others only look.
The clock and the pause are passed in. Left out: what to do (`supervise.py`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from saccade.cloud.api.errors import NotFound, ResourceExhausted, Unreachable
from saccade.config.errors import SaccadeError
from saccade.launch import messages
from saccade.launch.log import Launch
from saccade.launch.progress import Progress, read_progress
from saccade.launch.spec import Status
from saccade.launch.states import TERMINAL, State
from saccade.launch.supervise import Action, Cancel, Record, Seen, Submit, decide, refused
from saccade.launch.targets.base import Target
from saccade.launch.view import LaunchView

PAUSE_S: Mapping[str, float] = {"local": 1.0, "docker": 1.0, "fake": 0.5}
"""Seconds between two looks at cheap targets; the others are asked every ten."""
REMOTE_PAUSE_S = 10.0
NEW_JOB_S = 60.0
"""A job younger than this may not be readable yet: its absence says nothing."""


@dataclass(frozen=True)
class Driver:
    """A launch, the target its jobs run at, and the time."""

    launch: Launch
    target: Target
    env: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.time

    @property
    def pause_s(self) -> float:
        """Seconds between two looks."""
        return PAUSE_S.get(self.target.name, REMOTE_PAUSE_S)


def tick(driver: Driver) -> LaunchView:
    """Make one round; returns the view after it."""
    view = driver.launch.view()
    now = driver.clock()
    actions = decide(view, observe(driver, view, now=now), now=now)
    perform(driver, actions)
    return driver.launch.view()


def observe(driver: Driver, view: LaunchView, *, now: float) -> Seen:
    """Look at the job and at the store; what fails to answer is an error text, never a state."""
    progress, store_error = Progress(), ""
    if view.attempt and (not view.over or view.state is State.INCOMPLETE):
        try:
            progress = read_progress(view, env=driver.env)
        except SaccadeError as error:
            store_error = str(error)
    seen = Seen(beat=progress.beat, done=progress.done, store_error=store_error)
    if view.handle is None or view.over or view.state is State.RESUBMITTING:
        return seen
    try:
        status = driver.target.poll(view.handle)
    except NotFound as error:
        if view.submitted_at is not None and now - view.submitted_at < NEW_JOB_S:
            return _with(seen, error=str(error))
        status = Status(State.FAILED, detail=f"the job is gone: {error}")
    except SaccadeError as error:
        return _with(seen, error=str(error))
    if status.state in TERMINAL | {State.PREEMPTED}:
        # the job may have written both between the two looks
        progress, store_error = _last_progress(driver, view)
        seen = Seen(beat=progress.beat, done=progress.done, store_error=store_error)
    tail = _tail(driver, view) if status.state is State.FAILED else ()
    return _with(seen, status=status, tail=tail)


def perform(driver: Driver, actions: list[Action]) -> None:
    """Do the actions in order, each intent in the log before its call."""
    for action in actions:
        if isinstance(action, Record):
            driver.launch.append(action.type, at=driver.clock(), **action.fields)
        elif isinstance(action, Cancel):
            cancel(driver, action)
        else:
            _submit(driver, action)


def cancel(driver: Driver, action: Cancel) -> None:
    """Ask for the end of the job; when nobody answers, the next round asks again."""
    launch = driver.launch
    launch.append("cancelling", at=driver.clock(), reason=action.reason, message=action.message)
    view = launch.view()
    if view.handle is None:
        return
    try:
        driver.target.cancel(view.handle)
    except SaccadeError as error:
        if view.unreachable_since is None:
            launch.append("unreachable", at=driver.clock(), message=_first_line(error))
        return
    launch.append("cancel_sent", at=driver.clock())


def _submit(driver: Driver, action: Submit) -> None:
    launch, now = driver.launch, driver.clock
    view = launch.view()
    if view.spec is None:
        return
    offer = view.offers[action.offer]
    spec = view.spec.at(
        attempt=action.attempt, region=offer.region, machine=offer.machine,
        strategy=type(view.spec.strategy)(offer.strategy),
    )  # fmt: skip
    launch.append("submitting", at=now(), attempt=action.attempt, offer=action.offer)
    try:
        handle = driver.target.submit(spec)
    except Unreachable as error:
        # not known whether the job exists: the submission stays open, and the next round finds out
        if view.unreachable_since is None:
            launch.append("unreachable", at=now(), message=_first_line(error))
        return
    except SaccadeError as error:
        quota = isinstance(error, ResourceExhausted)
        said = f"{messages.place(offer)}: {error}"
        launch.append(
            "refused", at=now(), attempt=action.attempt, offer=action.offer,
            reason="quota" if quota else "error", message=said,
        )  # fmt: skip
        following = refused(launch.view(), quota=quota, message=said, code=error.exit_code)
        perform(driver, following)
        return
    launch.append(
        "submitted", at=now(), attempt=action.attempt, offer=action.offer,
        handle=handle.to_json(),
    )  # fmt: skip


def _last_progress(driver: Driver, view: LaunchView) -> tuple[Progress, str]:
    try:
        return read_progress(view, env=driver.env), ""
    except SaccadeError as error:
        return Progress(), str(error)


def _tail(driver: Driver, view: LaunchView) -> tuple[str, ...]:
    assert view.handle is not None
    try:
        lines, _ = driver.target.logs(view.handle, cursor=None)
    except SaccadeError:  # the end of the job is known; its last words are a courtesy
        return ()
    return tuple(line.text for line in lines[-messages.TAIL_LINES :])


def _with(
    seen: Seen, *, status: Status | None = None, error: str = "", tail: tuple[str, ...] = ()
) -> Seen:  # fmt: skip
    return Seen(status, error, seen.beat, seen.done, seen.store_error, tail)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@contextmanager
def watching(launch: Launch) -> Iterator[bool]:
    """Try to be the one watcher that acts; yields whether this process is."""
    launch.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(launch.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield True
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def watcher(launch: Launch) -> int | None:
    """The process that watches this launch; None when nobody does, whatever the file says."""
    try:
        descriptor = os.open(launch.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def watch(
    driver: Driver,
    *,
    show: Callable[[LaunchView], None],
    pause: Callable[[float], None] = time.sleep,
) -> LaunchView:
    """Make rounds until the launch is over; a launch somebody else watches is only looked at."""
    while True:
        with watching(driver.launch) as acting:
            if acting:
                return _rounds(driver, show=show, pause=pause)
        view = driver.launch.view()
        show(view)
        if view.over:
            return view
        pause(driver.pause_s)


def _rounds(
    driver: Driver, *, show: Callable[[LaunchView], None], pause: Callable[[float], None]
) -> LaunchView:
    driver.launch.append("watching", pid=os.getpid())
    try:
        while True:
            view = tick(driver)
            show(view)
            if view.over or not _moves(view):
                return view
            pause(driver.pause_s)
    finally:
        driver.launch.append("left", pid=os.getpid())


def _moves(view: LaunchView) -> bool:
    """Whether rounds can lead anywhere: a launch that was never packed needs its `launch`."""
    return view.ready or view.handle is not None
