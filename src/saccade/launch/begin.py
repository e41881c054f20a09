"""Starting, re-entering and stopping a launch: the steps around the supervisor.

A `LaunchPlan` flows in; a `Driver` whose log holds `planned` and `ready` flows out, and the
supervisor submits. Everything may be killed in between and repeated: the plan is logged before
anything is put anywhere, and a launch that is under way is joined, never doubled. Left out: asking
people (`cli_launch`) and what happens after the submission (`supervise.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from enum import StrEnum

from saccade.cloud.findings import Level
from saccade.config.errors import InputError, OutsideError
from saccade.launch.deliver import deliver
from saccade.launch.drive import Driver, perform, tick, watching
from saccade.launch.log import Launch, launches, matching
from saccade.launch.plan import LaunchPlan, connected
from saccade.launch.states import State
from saccade.launch.supervise import Cancel
from saccade.launch.targets import open_target
from saccade.launch.targets.base import Settings
from saccade.launch.view import LaunchView, Policy

STOP_ROUNDS = 20
"""Rounds `stop` waits for the end of a job before it leaves the rest to a later look."""


class Standing(StrEnum):
    """What there is already of a launch that is to be made."""

    NEW = "new"
    ACTIVE = "active"
    ENDED = "ended"
    DONE = "done"


def standing(plan: LaunchPlan) -> Standing:
    """Look whether this launch exists; raises InputError when another one of this run goes on."""
    root = plan.launch.folder.parent.parent
    for other in matching(launches(root), name=plan.spec.run):
        view = other.view()
        busy = not view.over and (view.handle is not None or view.pending)
        if other.key != plan.launch.key and busy:
            raise InputError(
                f"{plan.spec.run}: another launch of this run goes on ({other.key}, {view.state});"
                " it has another configuration or other code"
                f"\n  fix: saccade watch {other.key}, saccade cancel {other.key}, or run.name=NAME"
            )
    if not plan.launch.exists():
        return Standing.NEW
    view = plan.launch.view()
    if view.state is State.SUCCEEDED:
        return Standing.DONE
    if view.over:
        return Standing.ENDED
    under_way = view.handle is not None or view.pending or view.ready
    return Standing.ACTIVE if under_way else Standing.NEW


def refuse_blocked(plan: LaunchPlan) -> None:
    """Stop before anything is spent when a finding blocks."""
    found = [one for one in plan.findings if one.level is Level.BLOCK]
    if not found:
        return
    lines = "".join(f"\n  {one.name}: {one.message}" + (f"\n  fix: {one.fix}" if one.fix else "")
                    for one in found)  # fmt: skip
    raise OutsideError(f"{plan.spec.run}: nothing was launched, because of{lines}")


def begin(plan: LaunchPlan, *, say: Callable[[str], None]) -> Driver:
    """Log the plan, put everything in place, and submit in one round."""
    launch = plan.launch
    before = launch.view()
    launch.append("planned", **plan.planned())
    if not before.over and before.attempt == 0:
        launch.append("state", state=str(State.BUILDING), detail="packing and uploading")
    spec = deliver(plan, say=say)
    launch.append("ready", spec=spec.to_json())
    if before.over:
        _go_on(launch, before, policy=plan.policy)
    return driver_of(plan)


def resubmit(launch: Launch) -> None:
    """Let a launch that ended without its result go on from its checkpoint, as it was packed.

    The next round submits it; a launch that goes on anyway is left alone.
    """
    view = launch.view()
    if not view.over:
        return
    if view.state is State.SUCCEEDED:
        raise InputError(f"{launch.key}: is finished; there is nothing to submit again")
    if not view.ready:
        raise InputError(
            f"{launch.key}: was never packed\n  fix: repeat the `saccade launch` command"
        )
    planned = [event for event in launch.events() if event["type"] == "planned"]
    first = Policy(**planned[-1]["policy"]) if planned else view.policy
    _go_on(launch, view, policy=first)


def _go_on(launch: Launch, before: LaunchView, *, policy: Policy) -> None:
    launch.append(
        "resubmitting", attempt=before.attempt + 1, offer=0, not_before=None,
        message=f"launched again after {before.state}",
    )  # fmt: skip
    more = before.attempt + policy.max_attempts
    launch.append("limits", policy=asdict(replace(policy, max_attempts=more)))


def driver_of(plan: LaunchPlan) -> Driver:
    """The driver of a planned launch."""
    return Driver(plan.launch, plan.target, env=plan.env)


def new_limits(plan: LaunchPlan) -> None:
    """Give a launch under way the limits that were typed now, if they differ."""
    if plan.launch.view().policy != plan.policy:
        plan.launch.append("limits", policy=asdict(plan.policy))


def reopen(launch: Launch, *, env: Mapping[str, str]) -> Driver:
    """Open the target of a launch again, from nothing but its log."""
    planned = [event for event in launch.events() if event["type"] == "planned"]
    if not planned:
        raise InputError(
            f"{launch.folder}: its log has no plan\n  fix: repeat the `saccade launch` command"
        )
    last = planned[-1]
    env = connected(last["target"], env=env)
    settings = Settings(
        env=env, project=last.get("project"), region=env.get("GOOGLE_CLOUD_REGION"),
        home=launch.folder.parent.absolute(),
    )  # fmt: skip
    return Driver(launch, open_target(last["target"], settings=settings), env=env)


def stop(driver: Driver, *, pause: Callable[[float], None] = time.sleep) -> LaunchView:
    """Ask a launch to stop, and follow it to its end for a moment."""
    with watching(driver.launch) as acting:
        perform(driver, [Cancel("user", "asked to stop")])
        if not acting:  # who watches sees it in the log, and the job is asked already
            return driver.launch.view()
        view = driver.launch.view()
        for _ in range(STOP_ROUNDS):
            view = tick(driver)
            if view.over or view.unreachable_since is not None:
                break
            pause(min(driver.pause_s, 1.0))
    return view
