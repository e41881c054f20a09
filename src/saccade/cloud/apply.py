"""Does what a plan says: record the intent, change, look, record the result.

A plan, a connection and the manifest flow in; one `Result` per step flows out, and a callback hears
of each as it happens. A step that fails stops only the steps that need it; the same command
continues where it stopped, because the next plan starts from what is there. Left out: what the
steps are (`plan.py`, `teardown.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from saccade.cloud.api.transport import (
    AlreadyExists,
    ApiError,
    Google,
    NotFound,
    PreconditionFailed,
    ServiceDisabled,
    Unreachable,
)
from saccade.cloud.manifest import DELETING, DONE, Manifest
from saccade.cloud.plan import Observed, Plan, State, Step
from saccade.config.errors import OutsideError

SETTLE_S = 90.0
"""How long a switched-on API or a new account may take to be known everywhere."""
RACE_S = 10.0
"""How long a step is repeated after a lost answer or a concurrent change."""
SILENT_STEPS = 2
"""After so many steps without any answer the rest is not tried: each would wait its full time."""
FAKE_SHARE = 0.2
"""The local stand-in is waited for this much as long."""


@dataclass(frozen=True)
class Result:
    """What became of one step: done, failed or skipped."""

    id: str
    verb: str
    what: str
    status: str
    message: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return the result as plain values."""
        return {**vars(self), "seconds": round(self.seconds, 2)}


Hear = Callable[[Step, Result | None], None]
"""Called with a step when it starts (None) and when it ended."""


def apply(google: Google, plan: Plan, *, manifest: Manifest, hear: Hear) -> list[Result]:
    """Take every step whose needs were met; never raises for a step that fails."""
    for id_ in plan.settled:
        manifest.mark(id_, DONE)
    for id_ in plan.gone:
        manifest.forget(id_)
    results: list[Result] = []
    broken: dict[str, str] = {}
    silent = 0
    for step in plan.steps:
        hear(step, None)
        start = time.monotonic()
        cause = _obstacle(step, plan, broken=broken)
        if cause is not None:
            status, message = "skipped", f"waits for {cause}, which failed"
        elif silent >= SILENT_STEPS:
            status, message = "skipped", "not tried: no answer to the steps before"
        else:
            status, message = _attempt(google, step, manifest=manifest)
        if status == "skipped":
            broken[step.id] = message
        silent = silent + 1 if status == "unreachable" else silent
        if status in ("failed", "unreachable"):
            status = "failed"
            broken[step.id] = message
            manifest.failed(step.id, message)
        seconds = time.monotonic() - start
        results.append(Result(step.id, step.verb, step.what, status, message, seconds))
        hear(step, results[-1])
    _clear_error(manifest, plan, broken=broken)
    return results


def _obstacle(step: Step, plan: Plan, *, broken: Mapping[str, str]) -> str | None:
    """Name the failed step that this one waits for: what it needs, or (removal) what needs it.

    An account deleted before its roles would leave them in the policy under another name.
    """
    if not step.removal:
        return next((need for need in step.resource.needs if need in broken), None)
    users = (one for one in plan.steps if one.id in broken and step.id in one.resource.needs)
    return next((one.id for one in users), None)


def _clear_error(manifest: Manifest, plan: Plan, *, broken: Mapping[str, str]) -> None:
    """Forget the last error once a clean pass has covered the step that failed."""
    error = manifest.last_error()
    if error is None or broken:
        return
    covered = {step.id for step in plan.steps} | {resource.id for resource in plan.unchanged}
    if plan.purpose == "teardown" or error["step"] in covered:
        manifest.succeeded()


def _attempt(google: Google, step: Step, *, manifest: Manifest) -> tuple[str, str]:
    resource = step.resource
    if step.removal:
        manifest.mark(step.id, DELETING)
    else:
        manifest.intend(
            step.id, kind=resource.kind, name=resource.name, region=resource.region, what=step.what
        )
    try:
        seen = _persist(google, step)
    except Unreachable as error:
        return "unreachable", str(error)
    except OutsideError as error:
        return "failed", str(error)
    if step.removal:
        manifest.forget(step.id)
        return "done", "gone"
    manifest.mark(step.id, DONE)
    return "done", seen.message


def _persist(google: Google, step: Step) -> Observed:
    """Take the step and look until it shows; after a race, look again and take what is left."""
    start, tries, observed = time.monotonic(), 0, step.observed
    while True:
        tries += 1
        try:
            if tries > 1:
                observed = step.resource.observe(google)
                if _reached(observed, step):
                    return observed
            step.take(google, observed)
            return _verified(google, step)
        except ApiError as error:
            limit = _patience(error, step) * (FAKE_SHARE if google.fake else 1.0)
            if time.monotonic() - start >= limit:
                raise
            time.sleep(google.patience.pause(tries))


def _verified(google: Google, step: Step) -> Observed:
    """Look at the resource until it is as it should be: lists and policies lag."""
    end = time.monotonic() + SETTLE_S * (FAKE_SHARE if google.fake else 1.0)
    tries = 0
    while True:
        tries += 1
        observed = step.resource.observe(google)
        if _reached(observed, step):
            return observed
        if time.monotonic() > end:
            words = "; ".join(observed.differences) or observed.message
            raise ApiError(
                f"{step.verb} {step.id}: accepted, but not seen yet ({words})\n"
                "  fix: repeat the command in a minute"
            )
        time.sleep(google.patience.pause(tries))


def _reached(observed: Observed, step: Step) -> bool:
    if step.removal:
        return observed.state in (State.ABSENT, State.FOREIGN)
    unlisted = step.resource.kind == "quota" and observed.state is State.UNKNOWN
    return unlisted or observed.state in (State.CURRENT, State.PENDING)


def _patience(error: ApiError, step: Step) -> float:
    """Return for how many seconds repeating the step may help."""
    if isinstance(error, ServiceDisabled):
        return SETTLE_S
    # A new service account is unknown to policies for some seconds.
    fresh = isinstance(error, NotFound) or "does not exist" in str(error)
    if fresh and step.resource.kind == "role" and not step.removal:
        return SETTLE_S
    raced = isinstance(error, AlreadyExists | PreconditionFailed | Unreachable)
    return RACE_S if raced else 0.0
