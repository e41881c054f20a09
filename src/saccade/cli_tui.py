"""The verb `saccade tui`: the terminal interface, and what its screens say as JSON.

What was typed flows in; a session in the terminal, or one screen's values on stdout, flow out.
Textual is loaded only here. Left out: the interface itself (`tui/`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson
from saccade.config.errors import InputError, OutsideError

SCREENS = (
    "home", "monitor", "launch", "setup", "infra", "pipelines", "results", "teardown",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    """Give the command line its verb."""
    app.command("tui")(tui)


def tui(
    screen: Annotated[
        str, typer.Argument(metavar="SCREEN", help=f"The first screen: {', '.join(SCREENS)}.")
    ] = "home",
    root: Annotated[
        Path | None,
        typer.Option("--root", help="Folder of the runs; default: OUTPUT_DIR, else runs."),
    ] = None,
    fake: Annotated[
        bool, typer.Option("--fake", help="Use the local stand-in of Google Cloud.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Look only; R allows changes.")
    ] = False,
    theme: Annotated[
        str | None, typer.Option("--theme", help="saccade-dark, -light, -colour-blind; ansi-dark.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Everything on one screen: setup, launch, monitor, results, teardown.

    It reads run directories and the launch log and owns nothing: leave it, or kill it, at any
    time. `?` lists the keys. Examples:

    - `saccade tui`
    - `saccade tui monitor --root runs --read-only`
    - `saccade tui --fake`
    - `saccade tui monitor --json`
    """
    from saccade.cli_launch import runs_root

    if screen not in SCREENS:
        raise InputError(f"{screen}: no such screen; there is {', '.join(SCREENS)}")
    if fake:
        from saccade.cli_cloud import use_fake

        use_fake()
    if as_json:
        out.write_json(screen_values(screen, root=runs_root(root), fake=fake))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "the terminal interface needs a terminal\n  fix: saccade tui SCREEN --json"
        )
    try:
        from saccade.tui.app import SaccadeApp
        from saccade.tui.sources import Sources
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("textual"):
            raise
        raise OutsideError("textual is not installed\n  fix: pip install 'saccade[tui]'") from error
    sources = Sources(root=runs_root(root), fake=fake)
    collect_rarely()
    SaccadeApp(sources, read_only=read_only, theme=theme, first=screen).run()


def collect_rarely() -> None:
    """Keep the collector of cycles from looking at everything that was imported, again and again.

    With hundreds of runs on the screen each of its looks would cost a tenth of a second, which is
    the time a key may take.
    """
    import gc

    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def screen_values(screen: str, *, root: Path, fake: bool) -> Any:
    """What a screen says, read now; the same functions as the interface's."""
    import time

    from saccade.tui import views
    from saccade.tui.sources import Sources

    read = Sources(root=root, fake=fake)
    if screen == "home":
        return views.home(read.board(), None, read.cloud(), read.prices(), now=time.time())
    if screen == "setup":
        return views.checks(read.doctor(), read.cloud())
    if screen == "launch":
        from saccade.tui.form import Form

        return Form().check().to_json()
    if screen == "infra":
        return {**read.cloud(), **read.costs()}
    if screen == "teardown":
        from saccade.tui.cloud_work import plan_down

        return plan_down(fake=fake).to_json()
    if screen == "pipelines":
        return [read.pipeline(name) for name in read.pipelines()]
    return {"monitor": read.board, "results": read.results}[screen]()
