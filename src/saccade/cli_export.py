"""The verbs `saccade export wandb-queue`, `skypilot`, `verl` and `hub`: for others to run or read.

Command-line words flow in; a folder or a file flows out, with what the other launcher cannot do on
the screen. Nothing is sent anywhere, but by `hub` (`cli_deploy.py`). What the files say is in
`launch/exports/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import cli_deploy
from saccade import cli_output as out
from saccade.cli_options import AsJson, ConfigFile
from saccade.config.errors import InputError

if TYPE_CHECKING:
    from saccade.cloud.settings import CloudSettings
    from saccade.config.schema import Config
    from saccade.launch.exports.wandb_queue import Vertex
    from saccade.launch.machines import Strategy

export_app = typer.Typer(no_args_is_help=True, help="Write files for other launchers, or publish.")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE KEY=VALUE",
        help="Recipe or a .yaml of yours; then overrides.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there.")]


def register(app: typer.Typer) -> None:
    """Add the group `export` to the command line."""
    export_app.command("hub")(cli_deploy.export_hub)
    app.add_typer(export_app, name="export")


@export_app.command("wandb-queue")
def wandb_queue(
    words: Words = None,
    folder: Annotated[Path, typer.Option("--out", help="The folder to make.")] = Path(
        "wandb-queue"
    ),
    max_jobs: Annotated[
        int, typer.Option("--max-jobs", min=1, help="Submissions the agent makes at a time.")
    ] = 4,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a W&B Launch queue whose jobs call `saccade launch`, and its agent's configuration.

    With a Google Cloud project known, the stock Vertex queue is written for comparison. Examples:

    - `saccade export wandb-queue`
    - `saccade export wandb-queue relevance launch.machine=a2-highgpu-1g --out my-queue`
    """
    from saccade.cli_inputs import export_dotenv, resolve_words
    from saccade.launch.exports.wandb_queue import LIMITS, RESOURCE, STOCK_RESOURCE, render

    export_dotenv()
    config = resolve_words(words).config
    vertex = _stock_vertex(config)
    files = render(
        queue=config.launch.queue,
        entity=config.tracking.entity,
        project=config.tracking.project,
        words=list(words or []),
        max_jobs=max_jobs,
        vertex=vertex,
    )
    written = _write(files, folder=folder, force=force)
    limits = {name: list(LIMITS[name]) for name in (RESOURCE, STOCK_RESOURCE)}
    if vertex is None:
        del limits[STOCK_RESOURCE]
    if as_json:
        out.write_json({"files": written, "limits": limits})
        return
    _tell(written)
    for name, lines in limits.items():
        out.show_note(f"\nWhat stock W&B Launch cannot do ({name}):")
        for line in lines:
            out.show_note(f"- {line}")
    out.show_note(f"\nNext: the four commands in {folder / 'README.md'}")


@export_app.command("skypilot")
def skypilot(
    words: Words = None,
    file: Annotated[Path, typer.Option("--out", help="The task file.")] = Path("skypilot.yaml"),
    secret: Annotated[
        list[str] | None,
        typer.Option("--secret", help="A variable the job needs; its value is never written."),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a SkyPilot task that trains, is preempted, and continues; checked against its schema.

    Examples:

    - `saccade export skypilot`
    - `saccade export skypilot relevance launch.machine=a2-ultragpu-1g --secret HF_TOKEN`
    """
    from saccade.cli_inputs import export_dotenv, resolve_words
    from saccade.launch.exports.skypilot import NOTES, Task, render

    export_dotenv()
    resolved = resolve_words(words)
    config = resolved.config
    secrets = dict.fromkeys(secret or [])
    if config.tracking.wandb == "online":
        secrets["WANDB_API_KEY"] = None
    task = Task(
        run=config.run.name or config.recipe,
        machine=config.launch.machine,
        replicas=config.launch.replicas,
        strategy=_strategy(config),
        regions=config.launch.regions,
        disk_gb=config.launch.disk_gb,
        bucket=_bucket(config),
        secrets=sorted(secrets),
    )
    files = render(task, config=resolved.to_yaml(), file=file)
    written = _write(files, folder=file.parent, force=force)
    if as_json:
        out.write_json({"files": written, "notes": list(NOTES)})
        return
    _tell(written)
    for line in NOTES:
        out.show_note(f"- {line}")
    asked = "".join(f" --secret {name}" for name in sorted(secrets))
    out.show_note(f"\nNext: sky jobs launch {file}{asked}")


@export_app.command("verl")
def verl(
    words: Words = None,
    file: ConfigFile = None,
    folder: Annotated[Path, typer.Option("--out", help="The folder to make.")] = Path(
        "verl-grounding"
    ),
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Training rows at most.", show_default="all"),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a verl experiment: rows, tools, reward and launch script of a grounding run.

    Everything is checked that can be without verl; nothing is trained here. Examples:

    - `saccade export verl grounding-24gb grounding.grpo.curiosity=0 --out my-verl`
    - `saccade export verl grounding grounding.grpo.budget=null --samples 500`
    - `saccade export verl --config runs/my-24gb/config.yaml grounding.grpo.group=16`
    """
    from saccade.cli_inputs import pixel_rules, resolve_words, split_words
    from saccade.launch.exports.verl import Sees, export_verl

    recipe, overrides = split_words(words)
    named = [recipe or "grounding"] if file is None else [recipe] if recipe else []
    config = resolve_words([*named, *overrides], file=file).config
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise InputError(f"{folder}: is not empty\n  fix: --force, or another --out")
    own = pixel_rules(config.model.model_copy(update={"min_pixels": None, "max_pixels": None}))
    sees = Sees(cell=own.cell_pixels, least=own.min_pixels, most=own.max_pixels)
    with out.progress_bar() as progress:
        made = export_verl(config, folder=folder, sees=sees, samples=samples, progress=progress)
    written = [str(folder / name) for name in made.files]
    rows = {"train": made.train.rows, "validation": made.validation.rows}
    broken = [*made.train.left_out, *made.validation.left_out]
    if as_json:
        out.write_json({"files": written, "rows": rows, "left_out": broken, "notes": made.notes})
        return
    _tell(written)
    for line in [*(f"left out: {one}" for one in broken), *made.notes]:
        out.show_note(f"- {line}")
    out.show_note(f"\nNext, on a machine with a GPU: the commands in {folder / 'README.md'}")


def _strategy(config: Config) -> Strategy:
    from saccade.launch.machines import Strategy

    if config.launch.strategy == "flex-start":
        raise InputError(
            "launch.strategy = flex-start: SkyPilot rents spot or on-demand machines"
            "\n  fix: launch.strategy=spot"
        )
    # SkyPilot ranks prices itself; the cheapest is what may be taken back
    return Strategy.ON_DEMAND if config.launch.strategy == "on-demand" else Strategy.SPOT


def _bucket(config: Config) -> str | None:
    """The store's bucket: `run.store`, else the project's own where one is known."""
    store = str(getattr(config.run, "store", None) or "")
    if store.startswith("gs://"):
        bucket, _, prefix = store.removeprefix("gs://").partition("/")
        if prefix:
            raise InputError(f"run.store = {store}: SkyPilot mounts whole buckets")
        return bucket
    settings = _settings(config)
    return settings.bucket if settings is not None else None


def _stock_vertex(config: Config) -> Vertex | None:
    from saccade.launch.exports.wandb_queue import Vertex

    settings = _settings(config)
    if settings is None:
        return None
    return Vertex(
        machine=config.launch.machine,
        replicas=config.launch.replicas,
        region=settings.region,
        bucket=settings.bucket,
        service_account=settings.account_email,
        timeout_s=int(config.launch.timeout_hours * 3600),
        disk_gb=config.launch.disk_gb,
    )


def _settings(config: Config) -> CloudSettings | None:
    import os

    from saccade.cloud.settings import read_settings

    env = dict(os.environ)
    if config.launch.project:
        env["GOOGLE_CLOUD_PROJECT"] = config.launch.project
    if not (env.get("GOOGLE_CLOUD_PROJECT") or env.get("SACCADE_FAKE_CLOUD")):
        return None
    return read_settings(env)


def _write(files: Mapping[str, str], *, folder: Path, force: bool) -> list[str]:
    there = [name for name in files if (folder / name).exists()]
    changed = [name for name in there if (folder / name).read_text("utf-8") != files[name]]
    if changed and not force:
        raise InputError(
            f"{folder}: {', '.join(changed)} would be replaced\n  fix: --force, or another --out"
        )
    written = []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(str(path))
    return written


def _tell(written: list[str]) -> None:
    for path in written:
        typer.echo(path)
