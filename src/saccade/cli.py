"""The command line: verbs only; each imports its worker when it is called.

Words flow in, exit codes flow out: 0 done, 2 the user's input, 3 something missing outside, 143
preempted and resumable, 130 interrupted, 1 a bug (with a traceback). Results go to stdout,
progress and messages to stderr. `saccade --help` loads neither torch nor the configuration
schema. What words mean is in `cli_inputs.py`, what is shown in `cli_output.py`.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from saccade import (
    cli_ablate,
    cli_app,
    cli_build,
    cli_cloud,
    cli_deploy,
    cli_eval,
    cli_export,
    cli_launch,
    cli_merge,
    cli_pipeline,
    cli_prices,
    cli_shards,
    cli_sweep,
    cli_tui,
)
from saccade import cli_output as out
from saccade.cli_options import AsJson, ConfigFile, Limit, Overrides, Run, Words
from saccade.config.errors import InputError, OutsideError, Preempted, SaccadeError, of_system

if TYPE_CHECKING:
    from saccade.config.schema import Config

app = typer.Typer(
    name="saccade",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
config_app = typer.Typer(no_args_is_help=True, help="Show the configuration and its keys.")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    try:
        _log_to_stderr()
        if not sys.stderr.isatty():
            # bars of other libraries redraw themselves, which litters log files
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        app()
        code = 0
    except SaccadeError as error:
        code = _tell(error)
    except OSError as error:
        expected = of_system(error)
        if expected is None:
            raise
        code = _tell(expected)
    sys.exit(code)


def _tell(error: SaccadeError) -> int:
    """Show an error and give its exit code, which stands even when nothing can be shown."""
    with suppress(OSError):  # stderr may be a file on a full disk
        show = out.show_note if isinstance(error, Preempted) else out.show_error
        show(str(error))
    return error.exit_code


def _log_to_stderr() -> None:
    import logging

    name = os.environ.get("SACCADE_LOG_LEVEL", "warning").upper()
    if name not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise InputError(
            f"environment SACCADE_LOG_LEVEL = {name.lower()}: expected debug, info, warning, error"
        )
    logging.basicConfig(level=name, format="%(levelname)s %(name)s: %(message)s")


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"saccade {version('saccade')}")
        except PackageNotFoundError:
            typer.echo("saccade (a checkout that is not installed)")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train vision-language models that choose where to look.

    Start with `saccade train`, then `saccade compare relevance` and `saccade report relevance`.
    Every value is a `key=value`: see `saccade config keys`.
    """


@app.command()
def train(
    words: Words = None,
    config: ConfigFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the resolved values and their sources.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show tokens, memory and the largest batch.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Afterwards score the run and write its report.html.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train or resume; without a recipe, `relevance` on the tiny base and generated scenes.

    The same command continues an unfinished run. Examples:

    - `saccade train`
    - `saccade train relevance training.steps=400 run.name=longer`
    - `saccade train model=qwen3-vl-2b data=scenes-32px training.batch_size=4`
    - `saccade train --config my.yaml data.train.type=folder data.train.path=photos`
    - `saccade train training.batch_size=64 --plan`
    - `saccade train grounding --report`
    """
    from saccade.cli_inputs import export_dotenv, resolve_words

    resolved = resolve_words(words, file=config)
    if dry_run:
        _show_config(resolved, as_json=as_json)
        return
    export_dotenv()
    if plan:
        from saccade.training.run import plan_training

        values, lines = plan_training(resolved)
        out.write_json(values) if as_json else typer.echo("\n".join(lines))
        return
    from saccade.training.run import train as work

    metrics = work(resolved, console=out.stderr())
    if os.environ.get("RANK", "0") == "0":  # of several processes under torchrun, one speaks
        out.write_json(metrics) if as_json else out.metrics_table(metrics)
        if report:
            _score_and_report(resolved.config)


def _score_and_report(config: Config) -> None:
    """Score a finished run and write its report, whose path ends the output of `train`."""
    from saccade.evaluation.run import evaluate_run
    from saccade.microscope.report import write_report
    from saccade.training.rundir import RunDir

    run = RunDir.of(config)
    with out.progress_bar() as progress:
        evaluate_run(run, progress=progress)
    with out.progress_bar() as progress:
        path = write_report(run, progress=progress)
    out.show_note(f"report: {path}")


cli_eval.register(app)


@app.command()
def compare(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="Run directory or name; with --all, a recipe."),
    ] = "relevance",
    overrides: Overrides = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Train what is missing and compare everything in one table."),
    ] = False,
    seeds: Annotated[
        str, typer.Option("--seeds", help="With --all: training seeds, as `0,1,2`.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Measure the trained selector and every baseline at equal numbers of visual tokens.

    Writes comparison.json and figures/comparison.png into the run. With --all: every selector,
    placement and budget over training seeds, into runs/compare-RECIPE. A grounding run compares
    ways to look again instead: never, always, as learned, and by gates. Examples:

    - `saccade compare relevance`
    - `saccade compare grounding`
    - `saccade compare --all --seeds 0,1,2`
    - `saccade compare relevance eval.samples=100 "eval.keep=[0.25,0.1]"`
    - `saccade compare relevance "eval.arms=[trained,resize,random]" --json`
    """
    from saccade.cli_inputs import export_dotenv, open_run

    export_dotenv()
    if everything:
        from saccade.cli_ablate import compare_everything

        compare_everything(run, overrides or [], seeds=seeds, as_json=as_json)
        return
    opened = open_run(run, overrides or [])
    from saccade.evaluation.compare import compare_run

    with out.progress_bar() as progress:
        result = compare_run(opened, progress=progress)
    if as_json:
        out.write_json(result)
    else:
        from saccade.evaluation.table import compared, compared_plots

        out.render(compared(result))
        out.show_note(compared_plots(result, folder=opened.figures))


@app.command()
def look(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    question: Annotated[str, typer.Argument(help="Question about the image, in quotes.")],
    overrides: Overrides = None,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Run that looks: path or name; default: `relevance`, if there."),
    ] = None,
    arm: Annotated[str, typer.Option("--arm", help="Selector: trained, grid, ...")] = "trained",
    versus: Annotated[
        str | None, typer.Option("--versus", help="Second question: show what it changes.")
    ] = None,
    textures: Annotated[
        bool, typer.Option("--textures", help="Draw all 13 texture channels, too.")
    ] = False,
    output: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("look.png"),
    as_json: AsJson = False,
) -> None:
    """Show what the model keeps of one image for one question, why, and what it answers.

    Examples:

    - `saccade look photo.jpg "What colour is the car?"`
    - `saccade look photo.jpg "Where is the cat?" --versus "Where is the dog?" --textures`
    - `saccade look scan.png "Which word?" --run runs/longer selector.keep=0.05 --out seen.png`
    """
    from saccade.cli_inputs import export_dotenv, looking_run

    export_dotenv()
    opened, config = looking_run(run, overrides or [])
    from saccade.microscope.look import look as work

    keep = config.selector.keep
    result = work(
        image, question, run=opened, config=config, keep=keep, arm=arm, versus=versus,
        textures=textures, out=output,
    )  # fmt: skip
    out.write_json(result) if as_json else out.look_table(result)


@app.command()
def report(run: Run, as_json: AsJson = False) -> None:
    """Write the run's self-contained report.html: curves, comparison, what was kept.

    Example: `saccade report relevance`
    """
    from saccade.cli_inputs import open_run

    opened = open_run(run)
    from saccade.microscope.report import write_report

    with out.progress_bar() as progress:
        path = write_report(opened, progress=progress)
    out.write_json({"report": str(path)}) if as_json else typer.echo(path)


cli_ablate.register(app)
cli_pipeline.register(app)
cli_sweep.register(app)
cli_deploy.register(app)


app.command("app")(cli_app.open_app)
app.command("merge")(cli_merge.merge)
cli_prices.register(app)
cli_launch.register(app)
cli_cloud.register(app)
cli_export.register(app)
cli_shards.register(cli_build.register(data_app))
cli_tui.register(app)


@data_app.command("check")
def data_check(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH|RECIPE KEY=VALUE",
            help="A folder or file to check, or a recipe whose data is checked.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, eval or both (default both).")
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Read every row, name each broken one with its fix, and sum up the rest.

    Leaves with exit code 2 when a row is broken. Examples:

    - `saccade data check photos/`
    - `saccade data check questions.jsonl data.train.columns.answer=label`
    - `saccade data check --config my.yaml --split eval --json`
    """
    from saccade.cli_inputs import pixel_rules, resolve_words, source_words, sources_of
    from saccade.data.check import check_source, render_report

    words, is_path = source_words(words)
    resolved = resolve_words(words, file=config).config
    rules = pixel_rules(resolved.model)
    split = split or ("train" if is_path else "both")
    reports = {}
    for name, source in sources_of(resolved, split=split).items():
        with out.progress_bar() as progress:
            reports[name] = check_source(
                source,
                limit=limit,
                min_pixels=rules.min_pixels,
                max_pixels=rules.max_pixels,
                cell_pixels=rules.cell_pixels,
                progress=lambda done, rows, name=name: progress(f"checking {name}", done, rows),
            )
    if as_json:
        out.write_json({name: one.to_json() for name, one in reports.items()})
    else:
        for one in reports.values():
            out.render(render_report(one))
    if not all(one.ok for one in reports.values()):
        raise typer.Exit(InputError.exit_code)


@data_app.command("show")
def data_show(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH|RECIPE KEY=VALUE",
            help="A folder or file to show, or a recipe whose data is shown.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    split: Annotated[str, typer.Option("--split", help="train or eval.")] = "train",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many samples.")] = 12,
    output: Annotated[
        Path | None, typer.Option("--out", help="Also draw them into this PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show samples, spread evenly over the data.

    Examples:

    - `saccade data show --out scenes.png`
    - `saccade data show photos/ --limit 4 --json`
    """
    from saccade.cli_inputs import resolve_words, source_words, sources_of
    from saccade.data.show import show_samples

    words, _ = source_words(words)
    resolved = resolve_words(words, file=config).config
    rows = []
    for source in sources_of(resolved, split=split).values():
        rows += show_samples(source, limit=limit, out=output)
    if as_json:
        out.write_json(rows)
    else:
        out.samples_table(rows)
        if output is not None:
            out.show_note(f"drawn: {output}")


@config_app.command("show")
def config_show(words: Words = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Show every value a run would have, and where it comes from.

    Examples:

    - `saccade config show`
    - `saccade config show tiny-base training.steps=10`
    - `saccade config show --config my.yaml --json`
    """
    from saccade.cli_inputs import resolve_words

    _show_config(resolve_words(words, file=config), as_json=as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Write the JSON schema of the configuration, for editors and forms."""
    from saccade.config.schema import Config

    out.write_json(Config.model_json_schema())


@config_app.command("keys")
def config_keys(
    part: Annotated[
        str, typer.Argument(help="Only keys that contain this text.", show_default=False)
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List all keys with type, default and meaning.

    Examples: `saccade config keys`, `saccade config keys learning`
    """
    from saccade.config.keys import all_keys

    rows = [key for key in all_keys() if part in key.name]
    if as_json:
        names = ("name", "type", "default", "sentence", "branch")
        out.write_json([{name: getattr(key, name) for name in names} for key in rows])
        return
    out.table(
        ["key", "type", "default", "meaning"],
        [
            [f"{key.name} ({key.branch})" if key.branch else key.name, key.type, key.default,
             key.sentence]
            for key in rows
        ],
    )  # fmt: skip


@app.command()
def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also ask the Hugging Face hub for an answer.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine: versions, memory, disk, CUDA, the tiny base, keys, permissions.

    Leaves with exit code 3 when something must be mended; each such line says how.
    """
    from saccade.cli_doctor import examine
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    checks = examine(online=online)
    if as_json:
        out.write_json([vars(check) for check in checks])
    else:
        rows = [[check.status, check.name, check.found, check.fix] for check in checks]
        out.table(["", "what", "found", "to do"], rows)
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(OutsideError.exit_code)


def _show_config(resolved: object, *, as_json: bool) -> None:
    from saccade.config.resolve import Resolved

    assert isinstance(resolved, Resolved)
    values = resolved.values()
    if as_json:
        sources = resolved.sources
        out.write_json({key: {"value": values[key], "source": sources[key]} for key in values})
        return
    out.table(
        ["key", "value", "source"],
        [[key, value, resolved.sources[key]] for key, value in values.items()],
    )


if __name__ == "__main__":
    main()
