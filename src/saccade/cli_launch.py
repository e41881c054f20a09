"""The verbs `saccade launch`, `jobs`, `logs`, `watch` and `cancel`.

What was typed flows in; plans, tables and JSON go to stdout, progress to stderr. The launch log on
disk is the only state, so any verb can be killed and called again. What is shown of a launch is
made in `launch/shown.py`; the work is the package `launch`'s. Nothing here loads torch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import cli_output as out
from saccade.config.errors import InputError, OutsideError, Preempted

if TYPE_CHECKING:
    from saccade.config.resolve import Resolved
    from saccade.launch.drive import Driver
    from saccade.launch.log import Launch
    from saccade.launch.plan import LaunchPlan
    from saccade.launch.view import LaunchView

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE KEY=VALUE",
        help="Recipe (`relevance`, `tiny-base`, `smoke/...`) or a .yaml of yours; then overrides.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN", help="A run's name, or RUN-TOKEN; default: the newest launch.",
        show_default=False,
    ),
]  # fmt: skip
Root = Annotated[
    Path | None, typer.Option("--root", help="Folder of the runs; default: OUTPUT_DIR, else runs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JOBS_LIMIT = 1000


def register(app: typer.Typer) -> None:
    """Give the command line its verbs."""
    app.command("launch")(launch)
    app.command("jobs")(jobs)
    app.command("logs")(logs)
    app.command("watch")(watch)
    app.command("cancel")(cancel)


def launch(
    words: Words = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Your YAML, on top of the recipe.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="local, docker, vertex, hf-jobs or fake."),
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="Name this launch yourself; same token, same job.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the job, the places, price and findings.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Submit, and do not stay to watch.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Train somewhere else, or here in the background: plan, price, submit, watch.

    The same command goes on where it was interrupted, and never makes a second job. Examples:

    - `saccade launch --detach`
    - `saccade launch relevance --target fake training.steps=50`
    - `saccade launch relevance --target vertex launch.machine=a2-highgpu-1g --dry-run`
    - `saccade launch relevance -t vertex launch.budget=20 launch.hours=6`
    """
    from saccade.cli_inputs import export_dotenv, resolve_words

    export_dotenv()
    typed = [*(words or []), *([f"launch.target={target}"] if target else [])]
    resolved = resolve_words(typed, file=config)
    driver = _begin(resolved, token=token, dry_run=dry_run, yes=yes, as_json=as_json)
    if driver is None:
        return
    if detach:
        _leave_it(driver, as_json=as_json)
        return
    _stay(driver, as_json=as_json)


def jobs(
    root: Root = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Ask the targets about unfinished launches now.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also launches that ended more than a week ago.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the launches: state, attempt, step, cost, and whether anybody is watching.

    Examples: `saccade jobs`, `saccade jobs --refresh --json`
    """
    from saccade.launch import shown
    from saccade.launch.log import launches

    found = launches(_root(root))
    if refresh:
        _refresh(found)
    now = time.time()
    rows = [shown.row(one, one.view(), now=now) for one in found]
    kept = rows if everything or as_json else [row for row in rows if shown.is_recent(row, now=now)]
    if as_json:
        out.write_json(kept)
        return
    if not kept:
        out.show_note("no launches here; start one with `saccade launch`")
        return
    out.table(shown.COLUMNS, [shown.cells(row) for row in kept[:JOBS_LIMIT]])
    for line in shown.notes(kept):
        out.show_note(line)


def watch(
    run: Name = None,
    once: Annotated[
        bool, typer.Option("--once", help="Make one round (submit, resume, stop) and leave.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Watch over a launch: submit again what was preempted, stop what costs too much.

    Ctrl+C leaves the job running; the same command goes on. `--once` suits cron. Examples:

    - `saccade watch`
    - `saccade watch relevance --once --json`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    driver = _driver(_find(run, root=root))
    if not once:
        _stay(driver, as_json=as_json)
        return
    from saccade.launch import drive

    with drive.watching(driver.launch) as acting:
        view = drive.tick(driver) if acting else driver.launch.view()
    _tell(driver, view, as_json=as_json)
    if view.over and view.exit_code:
        raise typer.Exit(view.exit_code)


def logs(
    run: Name = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the launch is over.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, help="Which attempt; default: the newest.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Only the last lines; 0: all.")
                     ] = 0,
    root: Root = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show what a job wrote.

    Examples: `saccade logs`, `saccade logs relevance --follow`, `saccade logs --attempt 1 -n 50`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    from saccade.launch import shown

    driver = _driver(_find(run, root=root))
    for line in shown.log_lines(driver, attempt=attempt, follow=follow, last=lines):
        if as_json:
            sys.stdout.write(shown.as_json_line(line))
        else:
            typer.echo(line.text)


def cancel(
    run: Name = None,
    yes: Yes = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Stop a launch; the training saves itself where it can, and a new launch continues it.

    Examples: `saccade cancel relevance`, `saccade cancel relevance --yes`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    from saccade.launch import costs, messages, shown
    from saccade.launch.begin import stop

    found = _find(run, root=root)
    view = found.view()
    if view.over:
        out.show_note(f"{found.key}: is over already ({view.state})")
        _tell(_driver(found), view, as_json=as_json)
        return
    spent = messages.money(costs.cost(view, now=time.time()))
    _ask(f"cancel {found.key} ({messages.place(view.here)}, {view.state}, {spent} so far)?",
         yes=yes)  # fmt: skip
    driver = _driver(found)
    view = stop(driver)
    if as_json:
        out.write_json(shown.row(found, view, now=time.time()))
    else:
        out.show_note(view.message or f"{found.key}: asked to stop ({view.state})")


def _begin(
    resolved: Resolved, *, token: str | None, dry_run: bool, yes: bool, as_json: bool
) -> Driver | None:
    """Plan and submit; None when there is nothing to watch."""
    from saccade.launch import begin, shown
    from saccade.launch.plan import plan_launch

    plan = plan_launch(resolved, env=os.environ, token=token)
    known = begin.standing(plan)
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return None
    if known is begin.Standing.DONE:
        driver = begin.driver_of(plan)
        _tell(driver, plan.launch.view(), as_json=as_json)
        return None
    if known is begin.Standing.ACTIVE:
        out.show_note(f"{plan.launch.key}: is launched already; going on with it")
        begin.new_limits(plan)
        return begin.driver_of(plan)
    if not as_json:
        _show_plan(plan, as_json=False)
    begin.refuse_blocked(plan)
    _ask(shown.question(plan, again=known is begin.Standing.ENDED), yes=yes)
    return begin.begin(plan, say=out.show_note)


def _show_plan(plan: LaunchPlan, *, as_json: bool) -> None:
    from saccade.launch import shown

    if as_json:
        out.write_json(plan.to_json())
        return
    out.table(["what", "value"], shown.plan_rows(plan))
    if plan.choice.ranking:
        out.table(*shown.ranking_table(plan))
    out.table(["", "check", "found", "to do"], shown.finding_rows(plan.findings))


def _ask(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} nobody can be asked here\n  fix: add --yes")
    if not typer.confirm(question, err=True):
        raise InputError("stopped before anything was done")


def _stay(driver: Driver, *, as_json: bool) -> None:
    """Watch to the end, and leave with the launch's exit code."""
    from saccade.launch import shown
    from saccade.launch.drive import watch as work

    try:
        with shown.live(driver, console=out.stderr()) as show:
            view = work(driver, show=show)
    except KeyboardInterrupt:
        view = driver.launch.view()
        if view.over:
            _end(driver, view, as_json=as_json)
        raise Preempted(
            f"{driver.launch.key}: you left; the job goes on ({view.state})"
            f"\n  nobody is watching; run `saccade watch {view.run}`, or stop it:"
            f" `saccade cancel {view.run}`"
        ) from None
    _end(driver, view, as_json=as_json)


def _end(driver: Driver, view: LaunchView, *, as_json: bool) -> None:
    if not view.over:  # planned, and never packed
        raise InputError(
            f"{driver.launch.key}: was planned, but its launch was interrupted before the job was"
            " submitted\n  fix: repeat the `saccade launch` command"
        )
    if as_json or not view.exit_code:
        _tell(driver, view, as_json=as_json)
        if view.exit_code:
            raise typer.Exit(view.exit_code)
        return
    text = f"{driver.launch.key}: {view.message}"
    if view.exit_code == Preempted.exit_code:
        raise Preempted(text)
    out.show_error(text)
    raise typer.Exit(view.exit_code)


def _leave_it(driver: Driver, *, as_json: bool) -> None:
    """Make the first round, then say who goes on: nobody."""
    from saccade.launch import messages
    from saccade.launch.drive import tick, watching

    with watching(driver.launch) as acting:
        view = tick(driver) if acting else driver.launch.view()
    if view.over and view.exit_code:
        _end(driver, view, as_json=as_json)
    _tell(driver, view, as_json=as_json)
    if not as_json:
        out.show_note(messages.nobody(view.run))


def _tell(driver: Driver, view: LaunchView, *, as_json: bool) -> None:
    from saccade.launch import messages, shown

    now = time.time()
    if as_json:
        out.write_json(shown.row(driver.launch, view, now=now, full=True))
        return
    out.show_note(f"{driver.launch.key}: {shown.line(view, now=now)}")
    if view.message:
        out.show_note(view.message)
    known = driver.target.name != "fake" or "SACCADE_FAKE_CLOUD" in os.environ
    home = messages.bring_home(
        view, config=driver.launch.config_file, root=driver.launch.folder.parent.parent,
        fake="" if known else driver.env["SACCADE_FAKE_CLOUD"],
    )  # fmt: skip
    if home:
        out.show_note(home)


def _root(given: Path | None) -> Path:
    """Find the folder of the runs without loading the configuration, which costs half a second."""
    if given is not None:
        return given
    named = os.environ.get("SACCADE_OUTPUT_DIR")
    file = Path(".training")
    if not named and file.is_file():
        from dotenv import dotenv_values

        named = dotenv_values(file, interpolate=False).get("OUTPUT_DIR")
    return Path(named or "runs")


def _find(name: str | None, *, root: Path | None) -> Launch:
    from saccade.launch.log import launches, matching

    folder = _root(root)
    found = launches(folder)
    chosen = found[:1] if name is None else matching(found, name=name)
    if chosen:
        unfinished = [one for one in chosen if not one.view().over]
        return (unfinished or chosen)[0]
    runs = sorted({one.view().run for one in found})
    hint = f"there is {', '.join(runs[:8])}" if runs else "start one with `saccade launch`"
    what = f"{name}: no such launch" if name else "no launches"
    raise InputError(f"{what} in {folder}/; {hint}")


def _driver(found: Launch) -> Driver:
    from saccade.launch.begin import reopen

    return reopen(found, env=os.environ)


def _refresh(found: list[Launch]) -> None:
    """Make one round for every unfinished launch that nobody watches; errors are only shown."""
    from saccade.cli_inputs import export_dotenv
    from saccade.launch import drive

    export_dotenv()
    for one in found:
        if one.view().over:
            continue
        try:
            with drive.watching(one) as acting:
                if acting:
                    drive.tick(_driver(one))
        except (InputError, OutsideError) as error:
            out.show_note(f"{one.key}: {str(error).splitlines()[0]}")
