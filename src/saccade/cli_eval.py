"""The verb `saccade eval`: a run's score, its heat maps, an official harness's score of it, whether
a file of written code passes its tests, or a published file of predictions judged again.

What was typed flows in; the work is done in `evaluation/`. Tables or JSON go to stdout, progress
and the harness's log to stderr. Left out: comparing selectors (`saccade compare`).
"""

from __future__ import annotations

from collections.abc import Mapping
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
Screens = Annotated[
    Path | None,
    typer.Option("--screens", help="Score a grounding run on this ScreenSpot-like folder."),
]
Judge = Annotated[
    Literal["screenspot-pro"] | None,
    typer.Option("--judge", help="RUN is a .json of predictions: judge it by these rules."),
]
Boxes = Annotated[
    Literal["auto", "xywh", "xyxy"],
    typer.Option("--boxes", help="With --judge, --screens: what the boxes mean; auto = by format."),
]
IDLE = (("arm", "trained"), ("boxes", "auto"))
"""Options as they are where nobody gave them."""
BESIDE_JUDGE = {"run", "judge", "boxes", "as_json"}


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
    screens: Screens = None,
    judge: Judge = None,
    boxes: Boxes = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a run on its held-out samples; every prediction is kept.

    Examples:

    - `saccade eval relevance selector.keep=0.1 --limit 100`
    - `saccade eval runs/relevance --rejudge`
    - `saccade eval relevance --heatmaps`
    - `saccade eval recursion recursion.eval_steps=32`
    - `saccade eval relevance --official lmms-eval --tasks vqav2_val --python env/bin/python`
    - `saccade eval completions.jsonl --problems HumanEval.jsonl --run-code`
    - `saccade eval grounding --screens ScreenSpot-v2`
    - `saccade eval predictions.json --judge screenspot-pro`
    """
    _refuse_ignored({name: value for name, value in locals().items() if value})
    if judge is not None:
        result, table = _judged(Path(run), boxes=boxes)
    elif run.endswith(".jsonl"):
        result, table = _code(Path(run), problems=problems, run_code=run_code, limit=limit)
    elif run_code or problems:
        raise InputError(f"{run}: --run-code and --problems want a .jsonl file of completions")
    else:
        opened = _opened(run, overrides)
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
                opened, rejudge=rejudge, screens=screens, boxes=boxes, limit=limit, arm=arm,
                keep=keep, checkpoint=checkpoint,
            )  # fmt: skip
    out.write_json(result) if as_json else out.render(table)


def _refuse_ignored(given: Mapping[str, Any]) -> None:
    """Refuse options that would change nothing; `given` are those that are not empty, by name."""
    names = {name for name in given if (name, given[name]) not in IDLE}
    if "official" not in names and names & {"tasks", "python", "include", "results"}:
        raise InputError("--tasks, --python, --include and --results belong to --official")
    if len(names & {"heatmaps", "rejudge", "official"}) > 1:
        raise InputError("choose one of --heatmaps, --rejudge and --official")
    if "judge" in names and (strays := sorted(names - BESIDE_JUDGE)):
        named = [one if one == "overrides" else f"--{one.replace('_', '-')}" for one in strays]
        raise InputError(
            f"--judge: {', '.join(named)} would change nothing: a file of predictions is judged"
            "\n  fix: leave out all but RUN, --boxes and --json"
        )
    if "boxes" in names and not names & {"judge", "screens"}:
        raise InputError("--boxes belongs to --judge or --screens")
    if {"boxes", "rejudge"} <= names:
        raise InputError("--boxes: stored answers are judged by the boxes they were asked for")


def _opened(run: str, overrides: list[str] | None) -> RunDir:
    from saccade.cli_inputs import export_dotenv, open_run

    export_dotenv()
    return open_run(run, overrides or [])


def _score(
    opened: RunDir, *, rejudge: bool, screens: Path | None, **wanted: Any
) -> tuple[dict[str, Any], Any]:
    from saccade.evaluation import run as worker
    from saccade.evaluation.table import scores

    if rejudge:
        result = worker.rejudge(opened, screens=screens)
    else:
        with out.progress_bar() as progress:
            result = worker.evaluate_run(opened, screens=screens, progress=progress, **wanted)
    if result.get("recipe") == "recursion" and "reads" not in result:
        out.show_note(f"pictures: {opened.figures}/thinking.png, puzzle.png, puzzle.gif")
    return result, scores(result)


def _judged(file: Path, *, boxes: Literal["auto", "xywh", "xyxy"]) -> tuple[dict[str, Any], Any]:
    from saccade.scoring.screenspot import judge_screenspot_file, screenspot_table

    result = judge_screenspot_file(file, boxes=boxes)
    return result, screenspot_table(result)


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
