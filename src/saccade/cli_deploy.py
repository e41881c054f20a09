"""The verb `saccade deploy`: a run becomes a Space folder that answers in a browser.

Words flow in; a folder that needs neither the run nor a checkout flows out, with how closely it was
checked. Loads neither torch nor gradio before it is called. Left out: the work
(`pipeline/deploy.py`) and publishing (`saccade export hub`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, Compared, Overrides, Tolerance

if TYPE_CHECKING:
    from saccade.pipeline.deploy import Deployed

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Run directory, a run's name, or a model folder."),
]
Adapter = Annotated[
    Path | None, typer.Option("--adapter", help="A PEFT adapter to merge in; default: the run's.")
]


def register(app: typer.Typer) -> None:
    """Give the command line its verb."""
    app.command("deploy")(deploy_run)


def deploy_run(
    run: Run,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to make.", show_default="RUN-space"),
    ] = None,
    adapter: Adapter = None,
    limit: Compared = 16,
    tolerance: Tolerance = None,
    as_json: AsJson = False,
) -> None:
    """Write a Gradio Space: the merged model, a page that answers, pinned requirements, a card.

    The written model is loaded anew and compared with the run's; if a logit drifts, nothing is
    written. The card holds measured numbers only. Examples:

    - `saccade deploy relevance --out space`, then `python space/app.py`
    - `saccade deploy sft --adapter lora-out/checkpoint-500`
    - `saccade deploy exported-model data.eval.type=jsonl data.eval.path=held-out.jsonl`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    made = make_space(
        run, overrides or [], folder=folder, adapter=adapter, limit=limit, tolerance=tolerance
    )
    result: dict[str, Any] = {
        "folder": str(made.folder), "files": made.files, "bytes": made.bytes, **vars(made.parity)
    }  # fmt: skip
    if as_json:
        out.write_json(result)
        return
    out.metrics_table(result)
    out.show_note(f"start it: python {made.folder / 'app.py'}")


def make_space(
    name: str,
    overrides: list[str],
    *,
    folder: Path | None = None,
    adapter: Path | None = None,
    limit: int = 16,
    tolerance: float | None = None,
) -> Deployed:
    """Open what was named and write its Space folder, with a progress bar."""
    from saccade.cli_inputs import open_run, resolve_words
    from saccade.launch.package import secret_values
    from saccade.pipeline.deploy import deploy

    source, run, config = Path(name), None, None
    if source.is_dir() and not (source / "config.yaml").is_file() and _is_model(source):
        config = resolve_words(overrides).config
    else:
        run = open_run(name, overrides)
        source = run.path
    with out.progress_bar() as progress:
        return deploy(
            source,
            folder or source.parent / f"{source.resolve().name}-space",
            run=run,
            config=config,
            adapter=adapter,
            limit=limit,
            tolerance=tolerance,
            secrets=secret_values(Path.cwd(), env=os.environ),
            progress=progress,
        )


def _is_model(folder: Path) -> bool:
    return any(
        (folder / card).is_file()
        for card in ("relevance.json", "config.json", "adapter_config.json")
    )


def export_hub(
    run: Run,
    overrides: Overrides = None,
    repo: Annotated[
        str, typer.Option("--repo", help="NAME or OWNER/NAME on the hub.", show_default=False)
    ] = "",
    space: Annotated[
        bool, typer.Option("--space", help="Publish the page with the model, not the model alone.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody read it; default: only you.")
    ] = False,
    adapter: Adapter = None,
    as_json: AsJson = False,
) -> None:
    """Publish a run's model, or its Space, on the Hugging Face hub; needs a token.

    A Space folder that `saccade deploy` wrote is published as it is; a run is deployed first.
    Examples:

    - `saccade export hub relevance --repo my-model`
    - `saccade export hub runs/relevance-space --repo me/my-demo --space --public`
    """
    from dataclasses import asdict

    from saccade.cli_inputs import export_dotenv
    from saccade.config.errors import InputError
    from saccade.launch.package import secret_values
    from saccade.pipeline.deploy import is_space, refuse_secrets
    from saccade.pipeline.deploy_hub import open_hub, publish

    if not repo:
        raise InputError("--repo is missing\n  fix: --repo NAME, or --repo OWNER/NAME")
    export_dotenv()
    hub = open_hub(repo, kind="space" if space else "model", private=not public, env=os.environ)
    with tempfile.TemporaryDirectory(prefix="saccade-hub-") as scratch:
        folder = Path(run)
        if is_space(folder):
            refuse_secrets(folder, secrets=secret_values(Path.cwd(), env=os.environ))
        else:
            out.show_note(f"{run}: writing the model and checking it")
            place = Path(scratch) / "space"
            folder = make_space(run, overrides or [], folder=place, adapter=adapter).folder
        done = publish(hub, folder)
    if as_json:
        out.write_json(asdict(done))
        return
    typer.echo(done.url)
    out.show_note("everybody can read it" if not done.private else "only you can read it")
