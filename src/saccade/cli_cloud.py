"""The verbs `saccade cloud ...`: set a project up, look at it, take it down.

What was typed flows in; plans, findings and results go to stdout (tables or JSON), progress to
stderr. The work is `saccade.cloud`'s; here is what a person is asked before it happens. With
`--fake` everything goes to the local stand-in, without an account.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, Yes
from saccade.config.errors import InputError, OutsideError

if TYPE_CHECKING:
    from saccade.cloud.api.transport import Google
    from saccade.cloud.apply import Result
    from saccade.cloud.findings import Finding
    from saccade.cloud.manifest import Manifest
    from saccade.cloud.plan import Plan, Step
    from saccade.cloud.settings import CloudSettings, QuotaNeed
    from saccade.cloud.teardown import Leftover
    from saccade.config.schema import LaunchConfig

cloud_app = typer.Typer(no_args_is_help=True, help="Set up, check and take down a cloud project.")

Fake = Annotated[
    bool, typer.Option("--fake", help="Use the local stand-in of Google Cloud: no account needed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show the plan and its API calls.")]
MachineName = Annotated[
    str | None,
    typer.Option("--machine", help="Machine whose quota is needed; default: launch.machine."),
]
StrategyName = Annotated[
    str | None, typer.Option("--strategy", help="spot, flex-start or on-demand (with --machine).")
]


def register(app: typer.Typer) -> None:
    """Give the command line its group of verbs."""
    app.add_typer(cloud_app, name="cloud")


@cloud_app.command("setup")
def setup(
    only: Annotated[
        str, typer.Option("--only", help="Some of apis, registry, bucket, account, secrets, roles, "
                          "quota, separated by commas.")
    ] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    machine: MachineName = None,
    strategy: StrategyName = None,
    fake: Fake = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make everything a project needs for training jobs; the same command changes nothing twice.

    Needs GOOGLE_CLOUD_PROJECT in `.env` and a login. Examples:

    - `saccade cloud setup --fake --yes`
    - `saccade cloud setup --dry-run`
    - `saccade cloud setup --machine a2-highgpu-1g --strategy spot`
    - `saccade cloud setup --only secrets`
    """
    google, settings, manifest = open_project(fake=fake, machine=machine, strategy=strategy)
    from saccade.cloud.plan import chosen, plan_setup
    from saccade.cloud.resources import desired

    names = [name for name in only.replace(",", " ").split() if name]
    resources = chosen(desired(settings), only=names)
    with _busy("reading the project"):
        plan = plan_setup(google, resources, entries=manifest.entries())
    _carry_out(
        google, plan, manifest, dry_run=dry_run, yes=yes, as_json=as_json,
        question=f"Make these {len(plan.steps)} changes in {settings.project}?",
        after=lambda: {},
    )  # fmt: skip


@cloud_app.command("status")
def status(
    machine: MachineName = None,
    strategy: StrategyName = None,
    fake: Fake = False,
    as_json: AsJson = False,
) -> None:
    """Show every resource, quota, billing and key, and the command that mends what is missing.

    Leaves with exit code 3 when something blocks. Examples:

    - `saccade cloud status`
    - `saccade cloud status --machine g2-standard-8 --strategy spot --json`
    """
    google, settings, manifest = open_project(fake=fake, machine=machine, strategy=strategy)
    from saccade.cloud.checks import blocking

    with _busy("reading the project"):
        found = findings_of(google, settings, manifest)
    out.write_json(status_values(settings, found)) if as_json else _findings_table(found)
    if blocking(found):
        raise typer.Exit(OutsideError.exit_code)


@cloud_app.command("teardown")
def teardown(
    confirm: Annotated[
        list[str] | None,
        typer.Option("--confirm", metavar="BUCKET", help="Name of a bucket whose finished runs "
                     "are deleted with it."),
    ] = None,
    all_labelled: Annotated[
        bool, typer.Option("--all", help="Also what is labelled but neither configured nor "
                           "recorded on this machine.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    fake: Fake = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Delete what saccade made, then prove that nothing is left.

    Things of the same name that saccade did not make are refused. A bucket with finished runs goes
    only when its name is typed. Leaves with exit code 3 until nothing is left. Examples:

    - `saccade cloud teardown --dry-run`
    - `saccade cloud teardown --confirm my-project-saccade-us-central1`
    """
    google, settings, manifest = open_project(fake=fake, machine=None, strategy=None)
    from saccade.cloud.teardown import held_finals, plan_teardown, scan

    with _busy("reading the project"):
        plan = plan_teardown(
            google, settings, entries=manifest.entries(), all_labelled=all_labelled
        )
        held = held_finals(google, plan)
    _confirm_finals(held, given=confirm or [], dry_run=dry_run)
    left: list[Leftover] = []
    unseen: list[Finding] = []

    def after() -> dict[str, Any]:
        with _busy("looking for leftovers"):
            found, unreadable = scan(google, settings, entries=manifest.entries())
        left.extend(found)
        unseen.extend(unreadable)
        return {
            "leftovers": [one.to_json() for one in left],
            "unreadable": [one.to_json() for one in unseen],
        }

    _carry_out(
        google, plan, manifest, dry_run=dry_run, yes=yes, as_json=as_json,
        question=f"Delete these {len(plan.steps)} things in {settings.project}?", after=after,
        show_after=lambda: _leftovers_table(left, unseen), failed=lambda: bool(left or unseen),
    )  # fmt: skip


@cloud_app.command("fake")
def fake_cloud(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 0,
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder that keeps everything between starts.")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option("--scenario", help="YAML: timelines, faults, quotas, lags.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="A new project: APIs are off until setup enables them.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the one in the background.")] = False,
) -> None:
    """Run a local stand-in of Google Cloud: real APIs on loopback, processes as containers.

    Runs until Ctrl+C and says what to export; no account is needed or used. Examples:

    - `saccade cloud fake`
    - `saccade cloud fake --state /tmp/cloud --scenario preempted.yaml`
    """
    from saccade.cloud.fake import background
    from saccade.cloud.fake.foreground import run

    folder = (state or background.default_state()).resolve()
    if stop:
        ended = background.stop(folder)
        out.show_note("the fake cloud has ended" if ended else "no fake cloud was running")
        return
    run(
        folder, port=port, scenario=scenario, fresh=fresh,
        announce=lambda cloud: typer.echo(f"export SACCADE_FAKE_CLOUD={cloud.url}"),
    )  # fmt: skip
    out.show_note("the fake cloud has ended")


def open_cloud(*, fake: bool) -> tuple[Google, CloudSettings]:
    """Read `.env`, start the stand-in if asked to, and connect."""
    google, settings, _ = open_project(fake=fake)
    return google, settings


def open_project(
    *, fake: bool, machine: str | None = None, strategy: str | None = None
) -> tuple[Google, CloudSettings, Manifest]:
    """Read `.env`, connect, and open the record; quota is asked for what a launch would need."""
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    if fake and not os.environ.get("SACCADE_FAKE_CLOUD"):
        use_fake()
    from saccade.cli_inputs import resolve_words
    from saccade.cloud.api.transport import connect
    from saccade.cloud.manifest import Manifest
    from saccade.cloud.settings import read_settings

    launch = resolve_words([]).config.launch
    home = read_settings(os.environ, project=launch.project).region
    quotas = _needs(launch, home, machine=machine, strategy=strategy)
    settings = read_settings(
        os.environ, project=launch.project, regions=launch.regions, quotas=quotas
    )
    google = connect(settings.project, env=os.environ)
    return google, settings, Manifest(settings.manifest_file)


def findings_of(google: Google, settings: CloudSettings, manifest: Manifest) -> list[Finding]:
    """Look at everything a project needs."""
    from saccade.cloud.checks import cloud_status
    from saccade.cloud.resources import desired

    return cloud_status(google, settings, desired(settings), manifest=manifest, env=os.environ)


def status_values(settings: CloudSettings, found: Sequence[Finding]) -> dict[str, Any]:
    """Return what `saccade cloud status --json` writes."""
    return {
        "project": settings.project, "region": settings.region, "store": settings.store,
        "fake": settings.fake, "findings": [one.to_json() for one in found],
    }  # fmt: skip


def use_fake() -> None:
    """Point this process, and those it starts, at the local stand-in; start it if need be."""
    from saccade.cloud.fake.background import ensure_running

    url = ensure_running()
    os.environ["SACCADE_FAKE_CLOUD"] = url
    out.show_note(f"local stand-in of Google Cloud: {url}")


def _needs(
    launch: LaunchConfig, home: str, *, machine: str | None, strategy: str | None
) -> list[QuotaNeed]:
    """Work out the quota a launch would need: options first, then the section `launch`."""
    from saccade.cloud.settings import QuotaNeed
    from saccade.launch.machines import Strategy
    from saccade.launch.machines import machine as find_machine

    if machine is None and launch.target not in ("vertex", "fake"):
        return []
    found = find_machine(machine or launch.machine)
    wanted = strategy or launch.strategy
    known = [str(one) for one in found.strategies]
    if wanted == "cheapest" or (strategy is None and wanted not in known):
        wanted = known[0]
    if wanted not in known:
        raise InputError(f"--strategy {wanted}: {found.name} is rented as {', '.join(known)}")
    metric = found.quota_name(Strategy(wanted))
    need = found.quota_units() * launch.replicas
    return [QuotaNeed(metric, place, need) for place in launch.regions or [home]]


def _carry_out(
    google: Google, plan: Plan, manifest: Manifest, *, dry_run: bool, yes: bool, as_json: bool,
    question: str, after: Callable[[], dict[str, Any]],
    show_after: Callable[[], None] = lambda: None, failed: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Show a plan, ask, apply it, show what became of it; exit 3 unless all of it is done."""
    if dry_run:
        _show_dry_run(google, plan, as_json=as_json)
        return
    if not as_json:
        _plan_table(plan)
    if plan.steps and not (yes or google.fake):
        _ask(question)
    results = _apply(google, plan, manifest)
    more = after()
    if as_json:
        words = {"results": [one.to_json() for one in results], **more}
        out.write_json({"project": google.project, **plan.to_json(), **words})
    else:
        show_after()
    bad = [one for one in results if one.status != "done"]
    if bad:
        out.show_note(f"{len(bad)} of {len(results)} steps not done; the same command continues")
    if bad or failed() or any(one.level == "block" for one in plan.refused):
        raise typer.Exit(OutsideError.exit_code)


def _apply(google: Google, plan: Plan, manifest: Manifest) -> list[Result]:
    from saccade.cloud.apply import apply

    console = out.stderr()
    total, number = len(plan.steps), 0
    live = console.status("") if console.is_terminal else None

    def hear(step: Step, result: Result | None) -> None:
        nonlocal number
        if result is None:
            number += 1
            if live is not None:
                live.update(f"{number}/{total} {step.verb} {step.id}")
            return
        words = result.message.replace("\n  fix: ", "; fix: ")
        line = f"{result.status:7} {step.verb:8} {step.id}  {words} ({result.seconds:.1f} s)"
        console.print(line, soft_wrap=True)

    if live is None:
        return apply(google, plan, manifest=manifest, hear=hear)
    with live:
        return apply(google, plan, manifest=manifest, hear=hear)


def _show_dry_run(google: Google, plan: Plan, *, as_json: bool) -> None:
    from saccade.cloud.rehearsal import rehearse

    with _busy("rehearsing"):
        calls = {step.id: rehearse(google, step) for step in plan.steps}
    if as_json:
        shown = plan.to_json()
        for step in shown["steps"]:
            step["calls"] = calls[step["id"]]
        out.write_json({"project": google.project, "dry_run": True, **shown})
        return
    _plan_table(plan)
    for lines in calls.values():
        for line in lines:
            typer.echo(f"  {line}")


def _plan_table(plan: Plan) -> None:
    if plan.steps:
        rows = [[step.verb, step.resource.group, step.what] for step in plan.steps]
        out.table([plan.purpose, "part", "what"], rows)
    for note in plan.notes:
        out.show_note(f"note: {note}")
    for finding in plan.refused:
        fix = f"\n  fix: {finding.fix}" if finding.fix else ""
        out.show_note(f"refused: {finding.name}: {finding.message}{fix}")
    if not plan.steps:
        out.show_note(f"{plan.purpose}: nothing to do ({len(plan.unchanged)} unchanged)")


def _findings_table(found: Sequence[Finding]) -> None:
    rows = [[str(one.level), one.name, one.message, one.fix] for one in found]
    out.table(["", "what", "found", "to do"], rows)


def _leftovers_table(left: Sequence[Leftover], unseen: Sequence[Finding]) -> None:
    for finding in unseen:
        out.show_note(f"cannot look: {finding.name}: {finding.message}\n  fix: {finding.fix}")
    if not left:
        word = "nothing else found" if unseen else "nothing of saccade's is left"
        out.show_note(word)
        return
    rows = [
        [one.resource.id, one.message,
         "?" if one.usd_per_month is None else f"${one.usd_per_month:.2f}"]
        for one in left
    ]  # fmt: skip
    out.table(["left", "size", "per month"], rows, right=[2])


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise InputError("changes need a yes, and nobody is at the keyboard\n  fix: add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(InputError.exit_code)


def _confirm_finals(held: dict[str, list[str]], *, given: list[str], dry_run: bool) -> None:
    """Ask for the name of every bucket that holds finished runs."""
    for bucket, runs in held.items():
        shown = ", ".join(runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        words = f"gs://{bucket} holds {len(runs)} finished run(s): {shown}"
        if dry_run or bucket in given:
            out.show_note(words)
            continue
        typed = ""
        if sys.stdin.isatty():
            out.show_note(words)
            typed = typer.prompt("Type the bucket's name to delete them", default="", err=True)
        if typed.strip() != bucket:
            raise InputError(
                f"{words}\n  fix: saccade cloud teardown --confirm {bucket}   (deletes them)"
            )


@contextmanager
def _busy(what: str) -> Iterator[None]:
    console = out.stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{what} ..."):
        yield
