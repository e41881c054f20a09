"""The verbs `saccade launch`, `jobs`, `logs`, `watch`, `cancel` and `fetch`.

What was typed flows in; plans, tables and JSON go to stdout, progress to stderr. The launch log on
disk is the only state, so any verb can be killed and called again. What is shown of a launch is
made in `launch/shown.py`; the work is the package `launch`'s. Nothing here loads torch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, ConfigFile, Words, Yes
from saccade.config.errors import InputError, OutsideError, Preempted

if TYPE_CHECKING:
    from saccade.config.resolve import Resolved
    from saccade.launch.drive import Driver
    from saccade.launch.log import Launch
    from saccade.launch.plan import LaunchPlan
    from saccade.launch.view import LaunchView

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
JOBS_LIMIT = 1000


def register(app: typer.Typer) -> None:
    """Give the command line its verbs."""
    app.command("launch")(launch)
    app.command("jobs")(jobs)
    app.command("logs")(logs)
    app.command("watch")(watch)
    app.command("cancel")(cancel)
    app.command("fetch")(fetch)


def launch(
    words: Words = None,
    config: ConfigFile = None,
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
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Bring the run into this folder: its log while it grows, "
                     "everything at the end."),
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", help="A file or folder of this machine that settings name: the job "
                     "gets its content, sent once. Repeatable."),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train somewhere else, or here in the background: plan, price, submit, watch.

    The same command goes on where it was interrupted, and never makes a second job. Examples:

    - `saccade launch --detach`
    - `saccade launch relevance --target fake training.steps=50`
    - `saccade launch relevance --target vertex launch.machine=a2-highgpu-1g --dry-run`
    - `saccade launch relevance -t vertex launch.budget=20 launch.hours=6`
    - `saccade launch sft -t vertex --input runs/pretrain/model model.name=runs/pretrain/model`
    """
    from saccade.cli_inputs import export_dotenv, resolve_words

    export_dotenv()
    typed = [*(words or []), *([f"launch.target={target}"] if target else [])]
    resolved = resolve_words(typed, file=config)
    if detach and to:
        raise InputError("--detach and --to: who leaves brings nothing; use `saccade fetch` later")
    driver = _begin(
        resolved, token=token, dry_run=dry_run, yes=yes, to=to, inputs=inputs or (),
        as_json=as_json,
    )  # fmt: skip
    if driver is None:
        return
    if detach:
        _leave_it(driver, as_json=as_json)
        return
    _stay(driver, to=to, as_json=as_json)


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

    found = launches(runs_root(root))
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
    again: Annotated[
        bool, typer.Option("--again", help="First submit an ended launch again, as it was packed.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Watch over a launch: submit again what was preempted, stop what costs too much.

    Ctrl+C leaves the job running; the same command goes on. `--once` suits cron. Examples:

    - `saccade watch`
    - `saccade watch relevance --once --json`
    - `saccade watch relevance --again`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    found = _find(run, root=root)
    if again:
        from saccade.launch.begin import resubmit

        resubmit(found)
    driver = _driver(found)
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


def fetch(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN", help="A run's name, RUN-TOKEN, or STORE/runs/NAME; default: the newest"
            " launch.", show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The run directory to fill; default: the run's name under "
                     "`run.root`."),
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Bring a launched run here: finished, or as far as its job has got.

    Every file is checked. The same command goes on where it was interrupted, and a folder that
    holds another run is left alone. Examples:

    - `saccade fetch`
    - `saccade fetch relevance --to runs/from-the-cloud`
    - `saccade fetch gs://my-bucket/runs/relevance`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    from saccade.launch import fetch as home

    place = home.parse_address(run) if run else None
    if place is not None:
        store = home.store_of(place[0], env=os.environ)
        target = to or runs_root(root) / place[1]
        found = home.fetch_run(store, name=place[1], to=target, say=out.show_note)
    else:
        driver = _driver(_find(run, root=root))
        found = home.fetch_launch(driver.launch, env=driver.env, say=out.show_note, to=to)
    if as_json:
        out.write_json(found.to_json())
        return
    end = "finished" if found.finished else "not finished"
    step = "no checkpoint yet" if found.step is None else f"step {found.step}"
    out.show_note(f"{found.run}: {end}, {step}: {found.folder}")


def _begin(
    resolved: Resolved, *, token: str | None, dry_run: bool, yes: bool, to: Path | None,
    inputs: Sequence[Path], as_json: bool,
) -> Driver | None:  # fmt: skip
    """Plan and submit; None when there is nothing to watch."""
    from saccade.launch import begin, shown
    from saccade.launch.fetch import check_home
    from saccade.launch.plan import plan_launch

    plan = plan_launch(resolved, env=os.environ, token=token, inputs=inputs)
    if to is not None:
        check_home(plan, to=to)
    known = begin.standing(plan)
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return None
    if known is begin.Standing.DONE:
        driver = begin.driver_of(plan)
        _end(driver, plan.launch.view(), to=to, as_json=as_json)
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


def _stay(driver: Driver, *, as_json: bool, to: Path | None = None) -> None:
    """Watch to the end, and leave with the launch's exit code."""
    from saccade.launch import shown
    from saccade.launch.drive import watch as work
    from saccade.launch.fetch import Follower

    follower = Follower(driver.env, to) if to else None
    console = out.stderr()
    try:
        with shown.live(driver, console=console) as show:

            def look(view: LaunchView) -> None:
                show(view)
                if follower is not None:
                    follower.look(view)

            view = work(driver, show=look)
    except KeyboardInterrupt:
        view = driver.launch.view()
        if view.over:
            _end(driver, view, to=to, as_json=as_json)
        raise Preempted(
            f"{driver.launch.key}: you left; the job goes on ({view.state})"
            f"\n  nobody is watching; run `saccade watch {view.run}`, or stop it:"
            f" `saccade cancel {view.run}`"
        ) from None
    # without a terminal the last line stands there already
    _end(driver, view, to=to, as_json=as_json, again=console.is_terminal)


def _end(
    driver: Driver, view: LaunchView, *, as_json: bool, to: Path | None = None, again: bool = True
) -> None:
    if not view.over:  # planned, and never packed
        raise InputError(
            f"{driver.launch.key}: was planned, but its launch was interrupted before the job was"
            " submitted\n  fix: repeat the `saccade launch` command"
        )
    if to is not None and not view.exit_code:
        from saccade.launch.fetch import fetch_launch

        fetch_launch(driver.launch, env=driver.env, say=out.show_note, to=to)
    if as_json or not view.exit_code:
        _tell(driver, view, as_json=as_json, line=again)
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


def _tell(driver: Driver, view: LaunchView, *, as_json: bool, line: bool = True) -> None:
    from saccade.launch import messages, shown

    now = time.time()
    if as_json:
        out.write_json(shown.row(driver.launch, view, now=now, full=True))
        return
    if line:
        out.show_note(f"{driver.launch.key}: {shown.line(view, now=now)}")
    if view.message:
        out.show_note(view.message)
    known = driver.target.name != "fake" or "SACCADE_FAKE_CLOUD" in os.environ
    home = messages.bring_home(
        view, root=driver.launch.folder.parent.parent,
        fake="" if known else driver.env["SACCADE_FAKE_CLOUD"],
    )  # fmt: skip
    if home:
        out.show_note(home)


def runs_root(given: Path | None = None) -> Path:
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

    folder = runs_root(root)
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
