"""The verb `saccade app`: the microscope in a browser.

Words flow in; a local page is served until Ctrl+C. Says the address on stdout. Loads neither torch
nor gradio before it is called. Left out: the page itself (`microscope/app.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from saccade import cli_output as out
from saccade.cli_options import Overrides

if TYPE_CHECKING:
    from saccade.config.schema import Config
    from saccade.microscope.workbench import Workbench
    from saccade.training.rundir import RunDir

Run = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN",
        help="Run directory or name; default: `relevance`, if there.",
        show_default=False,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", min=1, max=65535, help="Port to serve on; default: the first free from 7860."
    ),
]
Host = Annotated[
    str, typer.Option("--host", help="Address to serve on; the default is this machine alone.")
]
Share = Annotated[
    bool, typer.Option("--share", help="Also open a public address through gradio.live. Off.")
]


UNTRAINED = (
    "The selector is untrained: what it keeps is arbitrary"
    "\nfix: train one with `saccade train`, then `saccade app relevance`"
)


def open_app(
    run: Run = None,
    overrides: Overrides = None,
    port: Port = None,
    host: Host = "127.0.0.1",
    share: Share = False,
) -> None:
    """Look through a run in the browser: ask, move the budget, compare questions and selectors.

    Without a run, an untrained selector on the configured base looks. Needs the extra `app`.
    Examples:

    - `saccade app`
    - `saccade app runs/longer --port 8000`
    """
    from saccade.cli_inputs import export_dotenv, looking_run

    words = list(overrides or [])
    if run is not None and "=" in run:  # `saccade app key=value`: no run was named
        words, run = [run, *words], None
    export_dotenv()
    opened, config = looking_run(run, words)
    from saccade.microscope.app import serve

    if opened is not None:
        from saccade.evaluation.load import weights_folder

        weights_folder(opened)  # a run without weights is said here, not after the page is up
    serve(
        lambda: _load(opened, config),
        facts={
            "run": opened.path.name if opened is not None else "none",
            "base": config.model.name,
            "placement": config.selector.placement,
            "budget": config.selector.keep,
        },
        note="" if opened is not None else UNTRAINED,
        host=host,
        port=port,
        share=share,
        announce=_announce,
    )


def _load(opened: RunDir | None, config: Config) -> Workbench:
    from saccade.evaluation.load import load_base, load_run
    from saccade.microscope.workbench import Workbench

    return Workbench(load_run(opened) if opened is not None else load_base(config), run=opened)


def _announce(address: str) -> None:
    typer.echo(address)
    out.show_note("loading the model; the page says when it is ready (Ctrl+C ends)")
