"""What a person sees of a launch: rows of a table, one line, the live line, log lines.

Views, plans and the time flow in; plain text and plain values flow out, the same numbers for
people and for `--json`. Every remote value has an age beside it. Left out: sentences about events
(`messages.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from saccade.launch import costs, messages
from saccade.launch.drive import Driver, watcher
from saccade.launch.log import Launch
from saccade.launch.spec import Handle, LogLine
from saccade.launch.states import TERMINAL, WAITING, State
from saccade.launch.view import LaunchView

if TYPE_CHECKING:
    from rich.console import Console

    from saccade.cloud.findings import Finding
    from saccade.launch.plan import LaunchPlan

COLUMNS = ["launch", "where", "state", "attempt", "step", "loss", "cost", "seen", "watched"]
RECENT_S = 7 * 86400.0
FOLLOW_PAUSE_S = 1.0


def row(launch: Launch, view: LaunchView, *, now: float, full: bool = False) -> dict[str, Any]:
    """A launch as plain values."""
    beat, mark, here = view.beat, view.mark, view.here
    watched = None if view.over else watcher(launch)
    values: dict[str, Any] = {
        "launch": launch.key, "run": view.run, "token": view.token, "target": view.target,
        "state": str(view.state), "state_age_s": _age(view.state_since, now=now),
        "unreachable_s": _age(view.unreachable_since, now=now),
        "attempt": view.attempt, "max_attempts": view.policy.max_attempts,
        "preemptions": view.preemptions, "where": messages.place(here),
        "region": here.region if here else None, "machine": here.machine if here else None,
        "strategy": here.strategy if here else None,
        "step": beat.step if beat else None, "steps": beat.steps if beat else None,
        "loss": beat.loss if beat else None, "steps_per_s": view.steps_per_s,
        "eta_s": costs.remaining_s(view, now=now),
        "heartbeat_age_s": _age(beat.at if beat else None, now=now),
        "checkpoint": asdict(mark) if mark else None,
        "checkpoint_age_s": _age(mark.at if mark else None, now=now),
        "usd": costs.cost(view, now=now), "usd_projected": costs.projected(view, now=now),
        "usd_per_hour": here.usd_per_hour if here else None, "budget": view.policy.budget_usd,
        "watched_by": watched, "over": view.over, "exit_code": view.exit_code,
        "ended_at": view.ended_at, "message": view.message, "detail": view.detail,
        "job": view.handle.to_json() if view.handle else None,
        "fetch": messages.bring_home(view, root=launch.folder.parent.parent) or None,
    }  # fmt: skip
    if full:
        values["attempts"] = costs.attempts(view, now=now)
    return values


def cells(values: Mapping[str, Any]) -> list[str]:
    """One row of the table of launches."""
    step = "" if values["step"] is None else str(values["step"])
    if values["steps"]:
        step += f"/{values['steps']}"
    state = values["state"]
    if values["unreachable_s"] is not None:
        state += f" (UNREACHABLE {messages.span(values['unreachable_s'])})"
    seen = values["heartbeat_age_s"]
    return [
        values["launch"], values["where"], state, f"{values['attempt']}/{values['max_attempts']}",
        step, "" if values["loss"] is None else f"{values['loss']:.3g}",
        messages.money(values["usd"]), "" if seen is None else f"{messages.span(seen)} ago",
        "" if values["over"] else ("yes" if values["watched_by"] is not None else "nobody"),
    ]  # fmt: skip


def is_recent(values: Mapping[str, Any], *, now: float) -> bool:
    """Whether a launch goes on, or ended within the last week."""
    return not values["over"] or now - (values["ended_at"] or 0.0) < RECENT_S


def notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each unfinished launch that nobody watches, and each run that is not here yet."""
    found = []
    for one in rows:
        if not one["over"] and one["watched_by"] is None:
            found.append(f"{one['launch']}: {messages.nobody(one['run'])}")
        elif one["fetch"]:
            found.append(one["fetch"])
    return found


def line(view: LaunchView, *, now: float) -> str:
    """A launch in one line: state, age, attempt, progress, money, checkpoint."""
    parts = [str(view.state)]
    if view.unreachable_since is not None:
        parts[0] = (
            f"UNREACHABLE {messages.span(now - view.unreachable_since)} (last known {view.state})"
        )
    elif not view.over:
        parts[0] += f" {messages.span(now - view.state_since)}"
    if view.state is State.RESUBMITTING and view.not_before is not None:
        parts.append(f"next try in {messages.span(view.not_before - now)}")
    if view.state in WAITING and view.unreachable_since is None:
        parts.append(_waiting(view, now=now))
    parts.append(f"attempt {max(1, view.attempt)}/{view.policy.max_attempts}")
    if view.preemptions:
        parts.append(f"preempted {view.preemptions}x")
    parts += _progress(view, now=now)
    parts.append(_money(view, now=now))
    if view.mark is not None:
        age = f" {messages.span(now - view.mark.at)} ago" if view.mark.at else ""
        parts.append(f"checkpoint {view.mark.step}{'' if view.over else age}")
    return " | ".join(parts)


def _waiting(view: LaunchView, *, now: float) -> str:
    """What waiting costs, and what follows when."""
    left = messages.span(view.policy.wait_s - (now - view.state_since))
    following = view.offer + 1
    more = following < len(view.offers) and view.attempt < view.policy.max_attempts
    then = f"trying {messages.place(view.offers[following])}" if more else "giving up"
    return f"costs $0, {then} in {left}"


def _progress(view: LaunchView, *, now: float) -> list[str]:
    beat, parts = view.beat, []
    if beat is None:
        return parts
    parts.append(f"step {beat.step}" + (f"/{beat.steps}" if beat.steps else ""))
    if beat.loss is not None:
        parts.append(f"loss {beat.loss:.3g}")
    if view.over:
        return parts
    rate, left = view.steps_per_s, costs.remaining_s(view, now=now)
    if rate:
        parts.append(f"{rate:.2g} it/s")
    if left is not None:
        parts.append(f"ETA {messages.span(left)}")
    if now - beat.at > 90:
        parts.append(f"heartbeat {messages.span(now - beat.at)} ago")
    return parts


def _money(view: LaunchView, *, now: float) -> str:
    spent, later = costs.cost(view, now=now), costs.projected(view, now=now)
    text = messages.money(spent)
    if later is not None and later > 0:
        text += f" of about {messages.money(later)}"
    if view.policy.budget_usd is not None:
        text += f" (budget {messages.money(view.policy.budget_usd)})"
    return text


@contextmanager
def live(driver: Driver, *, console: Console) -> Iterator[Callable[[LaunchView], None]]:
    """Show a view again and again: one line that changes on a terminal, rare lines elsewhere."""
    said: list[str] = []

    def news(view: LaunchView) -> str | None:
        """A new message is kept above the live line."""
        if view.message and not view.over and (not said or said[-1] != view.message):
            said.append(view.message)
            return view.message
        return None

    if not console.is_terminal:
        yield _plain(driver, console, news)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, refresh_per_second=4, transient=True) as shown:

        def show(view: LaunchView) -> None:
            text = news(view)
            if text is not None:
                console.print(text, soft_wrap=True, highlight=False, markup=False)
            shown.update(Text(f"{driver.launch.key}: {line(view, now=time.time())}"))

        yield show


def _plain(
    driver: Driver, console: Console, news: Callable[[LaunchView], str | None]
) -> Callable[[LaunchView], None]:
    last: dict[str, Any] = {"state": None, "at": 0.0}

    def show(view: LaunchView) -> None:
        text, now = news(view), time.time()
        if text is not None:
            console.print(text, soft_wrap=True, highlight=False, markup=False)
        changed = (view.state, view.attempt, view.unreachable_since) != last["state"]
        if changed or now - last["at"] >= 30.0:
            last.update(state=(view.state, view.attempt, view.unreachable_since), at=now)
            said = f"{driver.launch.key}: {line(view, now=now)}"
            console.print(said, soft_wrap=True, highlight=False, markup=False)

    return show


def plan_rows(plan: LaunchPlan) -> list[list[str]]:
    """A plan as rows of what and value."""
    spec, first = plan.spec, plan.offers[0] if plan.offers else None
    price = messages.money(first.usd_per_hour) + "/h" if first else "no place is usable"
    if first and first.usd_per_hour and plan.target.name in ("vertex", "fake"):
        price += f" with fee and disk, {spec.replicas} machine(s); {plan.choice.source}"
    elif plan.choice.source:
        price += f" ({plan.choice.source})"
    rows = [
        ["launch", f"{plan.launch.key} ({plan.target.name})"],
        ["where", messages.place(first)],
        ["price", price],
        ["estimate", _estimate(plan)],
        ["limits", f"{plan.policy.max_attempts} attempts, {messages.span(spec.timeout_s)} each,"
                   f" {messages.span(plan.policy.wait_s)} of waiting per place, "
                   + (f"budget {messages.money(plan.policy.budget_usd)}"
                      if plan.policy.budget_usd else "no budget")],
        ["store", spec.store or f"{plan.run_dir} (the run directory)"],
        ["code", f"{plan.archive.name[:16]}... {plan.archive.size_bytes / 1e6:.1f} MB,"
                 f" {len(plan.archive.files)} files" if plan.archive else "this installation"],
        ["image", spec.image or "none"],
    ]  # fmt: skip
    for one in plan.inputs:
        size = f"{one.manifest.bytes / 1e6:.1f} MB, {len(one.manifest.files)} file(s)"
        rows.append(["input", f"{one.path}: {size}, {one.place[:19]}..."])
    return rows


def _estimate(plan: LaunchPlan) -> str:
    made = plan.choice.estimate
    if made is None:
        priced = plan.offers and plan.offers[0].usd_per_hour
        return "give launch.hours=HOURS for one" if priced else ""
    low, mid, high = (made[level]["total"] for level in ("low", "expected", "high"))
    text = f"{messages.money(low)} / {messages.money(mid)} / {messages.money(high)}"
    return f"{text} (low / expected / high)"


def ranking_table(plan: LaunchPlan) -> tuple[list[str], list[list[str]]]:
    """The places in the order they would be tried, and why others are not."""
    rows = [
        [
            str(number) if one["usable"] else "-", one["region"], one["machine"], one["strategy"],
            messages.money(one["usd_per_hour"]) if one["usd_per_hour"] is not None else "",
            "unknown" if one["quota"] is None else str(one["quota"]), one["reason"],
        ]
        for number, one in enumerate(plan.choice.ranking, start=1)
    ]  # fmt: skip
    return ["", "region", "machine", "strategy", "machine per hour", "quota", "why"], rows


def finding_rows(findings: Sequence[Finding]) -> list[list[str]]:
    """Findings as rows."""
    return [[str(one.level), one.name, one.message, one.fix] for one in findings]


def question(plan: LaunchPlan, *, again: bool) -> str:
    """What is asked before money is spent."""
    first = plan.offers[0] if plan.offers else None
    rate = f" at {messages.money(first.usd_per_hour)}/h" if first and first.usd_per_hour else ""
    verb = "launch again" if again else "launch"
    return f"{verb} {plan.spec.run} on {messages.place(first)}{rate}?"


def log_lines(
    driver: Driver, *, attempt: int | None, follow: bool, last: int
) -> Iterator[LogLine]:  # fmt: skip
    """Yield what an attempt wrote; with `follow` on and on, over later attempts, to the end."""
    number = attempt or driver.launch.view().attempt
    cursor: str | None = None
    first = True
    while True:
        view = driver.launch.view()
        handle = _handle(driver.launch, number)
        if handle is not None:
            lines, cursor = driver.target.logs(handle, cursor=cursor)
            yield from lines[-last:] if last and first else lines
            first = False
        if not follow:
            return
        if attempt is None and view.attempt > number and _handle(driver.launch, number + 1):
            number, cursor = number + 1, None
            continue
        ended = handle is not None and driver.target.poll(handle).state in TERMINAL
        if view.over or (ended and attempt is not None):
            lines, cursor = driver.target.logs(handle, cursor=cursor) if handle else ([], cursor)
            yield from lines
            return
        time.sleep(FOLLOW_PAUSE_S)


def _handle(launch: Launch, attempt: int) -> Handle | None:
    found = [
        Handle.from_json(event["handle"])
        for event in launch.events()
        if event["type"] == "submitted" and event["attempt"] == attempt
    ]
    return found[-1] if found else None


def as_json_line(one: LogLine) -> str:
    """A log line as one line of JSON."""
    return json.dumps(asdict(one), ensure_ascii=False) + "\n"


def _age(moment: float | None, *, now: float) -> float | None:
    return None if not moment else round(max(0.0, now - moment), 1)
