"""The verbs `saccade pipeline run` and `saccade pipeline show`.

What was typed flows in; the work is done in `pipeline/`. The graph or the JSON goes to stdout,
progress and messages to stderr. Left out: what a pipeline file may say (`pipeline/pipeline_file.py`
and the guide to pipelines).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson
from saccade.config.errors import InputError, Preempted, SaccadeError, of_system

if TYPE_CHECKING:
    from saccade.pipeline.execute import Runner
    from saccade.pipeline.plan import Plan

pipeline_app = typer.Typer(
    no_args_is_help=True, help="Run several stages from one file; nothing is computed twice."
)

File = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A .yaml file, or a pipeline that ships: `quickstart`."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Overrides for every stage that trains.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    """Give the command line its verbs."""
    app.add_typer(pipeline_app, name="pipeline")


@pipeline_app.command("run")
def run(
    file: File,
    overrides: Overrides = None,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", min=1, help="Stages at a time; above 1, each in a process."),
    ] = None,
    from_stage: Annotated[
        str, typer.Option("--from", help="Run this stage and all that follow it again.")
    ] = "",
    only: Annotated[
        str, typer.Option("--only", help="Run this stage alone; what it needs must be finished.")
    ] = "",
    attached: Annotated[bool, typer.Option("--attached", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Run a pipeline; the same command continues it and skips every stage that is finished.

    Mistakes in the file are named with their lines before anything runs. Examples:

    - `saccade pipeline run quickstart`
    - `saccade pipeline run mine.yaml --parallel 2`
    - `saccade pipeline run quickstart training.steps=100 run.root=elsewhere`
    - `saccade pipeline run mine.yaml --from evaluate`
    """
    from saccade.cli_inputs import export_dotenv

    if attached:
        threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    if only and (from_stage or (parallel or 1) > 1):
        raise InputError("--only runs one stage; leave out --from and --parallel")
    export_dotenv()
    try:
        name, rows = _run(
            file, overrides or [], parallel=parallel, from_stage=from_stage, only=only
        )
    except (SaccadeError, OSError) as error:
        if attached:
            _answer(error)
        raise
    if as_json and not attached:
        out.write_json(rows)
    elif not as_json:
        _draw(name, rows)


@pipeline_app.command("show")
def show(file: File, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Draw the stages with their states, durations, costs and artifacts; starts nothing.

    Examples: `saccade pipeline show quickstart`, `saccade pipeline show mine.yaml --json`
    """
    from saccade.pipeline.show import pipeline_rows

    plan = plan_pipeline(file, overrides or [])
    rows = pipeline_rows(plan)
    out.write_json(rows) if as_json else _draw(plan.pipeline.name, rows)


def _run(
    file: str, overrides: list[str], *, parallel: int | None, from_stage: str, only: str
) -> tuple[str, list[dict[str, Any]]]:
    from saccade.pipeline.execute import Runner, run_only, run_serially
    from saccade.pipeline.parallel import run_in_parallel
    from saccade.pipeline.show import pipeline_rows
    from saccade.training.guards import StopRequest

    plan = plan_pipeline(file, overrides)
    for name in filter(None, (from_stage, only)):
        _refuse_unknown(plan, name)
    limit = parallel or plan.pipeline.parallel
    with StopRequest().watching() as stop, out.progress_bar() as progress:
        runner = Runner(
            plan, stop, say=out.show_note, progress=progress, console=out.stderr()
        )  # fmt: skip
        runner.forced = plan.pipeline.descendants(from_stage) if from_stage else set()
        if only:
            run_only(runner, only)
        elif limit > 1:
            run_in_parallel(runner, limit=limit, file=file)
        else:
            run_serially(runner)
    return plan.pipeline.name, _marked(pipeline_rows(plan), runner)


def _marked(rows: list[dict[str, Any]], runner: Runner) -> list[dict[str, Any]]:
    return [{**row, "ran": row["stage"] in runner.ran} for row in rows]


def plan_pipeline(file: str, overrides: list[str]) -> Plan:
    """Read a pipeline and plan its stages; starts nothing."""
    from saccade.cli_inputs import TRAINING_FILE, split_words
    from saccade.pipeline.pipeline_file import find_pipeline
    from saccade.pipeline.plan import make_plan

    recipe, words = split_words(overrides)
    if recipe is not None:
        raise InputError(f"command line: {recipe}: expected key=value, e.g. training.steps=100")
    pipeline, problems = find_pipeline(file)
    return make_plan(
        pipeline,
        problems=problems,
        overrides=words,
        training_file=TRAINING_FILE if TRAINING_FILE.exists() else None,
        env=os.environ,
    )


def _refuse_unknown(plan: Plan, name: str) -> None:
    from saccade.pipeline.pipeline_file import hint_for

    if name not in plan.pipeline.stages:
        hint = hint_for(name, plan.pipeline.stages)
        raise InputError(f"{plan.pipeline.shown} has no stage {name}; {hint}")


def _draw(name: str, rows: list[dict[str, Any]]) -> None:
    from saccade.pipeline.show import pipeline_tree

    out.render(pipeline_tree(name, rows))


def _answer(error: SaccadeError | OSError) -> None:
    """Tell the process that started this one; what this one may say elsewhere goes to a log."""
    found = of_system(error) if isinstance(error, OSError) else error
    if found is not None:
        answer = {"error": str(found), "exit_code": found.exit_code}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _leave_with_the_parent() -> None:
    # not sys.stdin.read(): its lock would be held when the interpreter shuts down
    while os.read(0, 1):
        pass
    os._exit(Preempted.exit_code)
