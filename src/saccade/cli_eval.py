"""The verb `saccade eval`: a run's score, its heat maps, an official harness's score of it, or
whether a file of written code passes its tests.

What was typed flows in; the work is done in `evaluation/`. Tables or JSON go to stdout, progress
and the harness's log to stderr. Left out: comparing selectors (`saccade compare`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, Limit, Overrides, Run
from saccade.config.errors import InputError

if TYPE_CHECKING:
    from saccade.training.rundir import RunDir

Arm = Annotated[str, typer.Option("--arm", help="Selector to use: trained, full, random, ...")]
Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="Score this checkpoint instead.")
]
Rejudge = Annotated[
    bool, typer.Option("--rejudge", help="Judge the kept predictions again; loads no model.")
]
HeatMaps = Annotated[
    bool, typer.Option("--heatmaps", help="Average what each selector keeps instead of answering.")
]
Official = Annotated[
    Literal["lmms-eval"] | None,
    typer.Option("--official", help="Score by this harness, in an environment of its own."),
]
Tasks = Annotated[
    str, typer.Option("--tasks", help="The harness's tasks, with commas, e.g. vqav2_val,gqa.")
]
Python = Annotated[
    Path | None, typer.Option("--python", help="Python of the environment that has the harness.")
]
Include = Annotated[
    Path | None, typer.Option("--include", help="Folder with harness tasks of your own.")
]
Results = Annotated[
    Path | None,
    typer.Option("--results", help="Only import this ..._results.json that the harness wrote."),
]
RunCode = Annotated[
    bool,
    typer.Option("--run-code", help="RUN is a .jsonl of completions: run them, in a sandbox."),
]
Problems = Annotated[
    Path | None, typer.Option("--problems", help="HumanEval-style .jsonl with the tests.")
]


def register(app: typer.Typer) -> None:
    """Give the command line its verb."""
    app.command("eval")(evaluate)


def evaluate(
    run: Run,
    overrides: Overrides = None,
    limit: Limit = None,
    arm: Arm = "trained",
    checkpoint: Checkpoint = None,
    rejudge: Rejudge = False,
    heatmaps: HeatMaps = False,
    official: Official = None,
    tasks: Tasks = "",
    python: Python = None,
    include: Include = None,
    results: Results = None,
    run_code: RunCode = False,
    problems: Problems = None,
    as_json: AsJson = False,
) -> None:
    """Score a run on its held-out samples; every prediction is kept.

    Examples:

    - `saccade eval relevance`
    - `saccade eval relevance selector.keep=0.1 --limit 100`
    - `saccade eval runs/relevance --rejudge --json`
    - `saccade eval relevance --heatmaps`
    - `saccade eval recursion recursion.eval_steps=32`
    - `saccade eval relevance --official lmms-eval --tasks vqav2_val --python env/bin/python`
    - `saccade eval completions.jsonl --problems HumanEval.jsonl --run-code`
    """
    from saccade.cli_inputs import export_dotenv, open_run

    if official is None and (tasks or python or include or results):
        raise InputError("--tasks, --python, --include and --results belong to --official")
    if heatmaps + rejudge + (official is not None) > 1:
        raise InputError("choose one of --heatmaps, --rejudge and --official")
    if run.endswith(".jsonl"):
        result, table = _code(Path(run), problems=problems, run_code=run_code, limit=limit)
        out.write_json(result) if as_json else out.render(table)
        return
    if run_code or problems:
        raise InputError(f"{run}: --run-code and --problems want a .jsonl file of completions")
    export_dotenv()
    opened = open_run(run, overrides or [])
    if official is not None:
        wanted = [task.strip() for task in tasks.split(",") if task.strip()]
        result, table = _official(
            opened, tasks=wanted, python=python, include=include, results=results, arm=arm,
            limit=limit,
        )  # fmt: skip
    elif heatmaps:
        result, table = _heat_maps(opened, arm=arm, limit=limit, checkpoint=checkpoint)
    else:
        keep = opened.config().selector.keep if overrides else None
        result, table = _score(
            opened, rejudge=rejudge, limit=limit, arm=arm, keep=keep, checkpoint=checkpoint
        )
    out.write_json(result) if as_json else out.render(table)


def _score(opened: RunDir, *, rejudge: bool, **wanted: Any) -> tuple[dict[str, Any], Any]:
    from rich.console import Group

    from saccade.evaluation import run as worker
    from saccade.evaluation.dataset_scores import scores_table
    from saccade.evaluation.table import evaluation_table
    from saccade.evaluation.thinking import thinking_table

    if rejudge:
        result = worker.rejudge(opened)
    else:
        with out.progress_bar() as progress:
            result = worker.evaluate_run(opened, progress=progress, **wanted)
    if result.get("recipe") == "thoughts":
        from saccade.evaluation.reasoning import reasoning_table

        return result, reasoning_table(result)
    if result.get("reads") == "stream":
        from saccade.evaluation.reading import reading_table

        return result, reading_table(result)
    if result.get("recipe") == "recursion":
        out.show_note(f"pictures: {opened.figures}/thinking.png, puzzle.png, puzzle.gif")
        return result, thinking_table(result)
    table = evaluation_table(result)
    return result, Group(table, scores_table(result)) if result["scores"] else table


def _code(
    file: Path, *, problems: Path | None, run_code: bool, limit: int | None
) -> tuple[dict[str, Any], Any]:
    from saccade.evaluation.coding import coding_table, judge_file

    with out.progress_bar() as progress:
        result = judge_file(
            file, problems=problems, run_code=run_code, limit=limit, progress=progress
        )
    return result, coding_table(result)


def _heat_maps(opened: RunDir, *, arm: str, **wanted: Any) -> tuple[dict[str, Any], Any]:
    from saccade.evaluation.heatmaps import heat_map_table, heat_maps

    arms = None if arm == "trained" else [arm]
    with out.progress_bar() as progress:
        result = heat_maps(opened, arms=arms, progress=progress, **wanted)
    out.show_note(f"figure: {opened.figures / 'heatmaps.png'}")
    return result, heat_map_table(result)


def _official(
    opened: RunDir, *, results: Path | None, arm: str, **wanted: Any
) -> tuple[dict[str, Any], Any]:
    from saccade.evaluation import official as worker

    if results is not None:
        stored = worker.import_results(opened, results, arm=arm)
    else:
        stored = worker.run_official(opened, arm=arm, tell=_show_line, **wanted)
    return stored, worker.official_table(stored)


def _show_line(line: str) -> None:
    """A line of another program's log, as it is."""
    out.stderr().print(line, markup=False, highlight=False, soft_wrap=True)
