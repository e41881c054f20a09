"""The verb `saccade sweep`: a file in, trials, and a table out.

What was typed flows in; the work is `pipeline/sweep.py`'s. Progress goes to stderr, the table or
the JSON to stdout. Left out: what a sweep file may say (`pipeline/sweep_file.py` and the guide).
"""

from __future__ import annotations

import functools
import os
from typing import Annotated, Any

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson
from saccade.config.errors import InputError

SHOWN_PARAMETERS = 6


def register(app: typer.Typer) -> None:
    """Give the command line its verb."""
    app.command("sweep")(sweep)


def sweep(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A sweep file (.yaml), or one that ships.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Overrides that hold for all trials.", show_default=False
        ),
    ] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", min=1, help="Trials at a time; default 1.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trials in all, instead of run_cap.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the file and show what is varied.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Search for good settings: a sweep file in W&B's format, run with Optuna.

    The same command continues after an interruption; finished trials stay. Examples:

    - `saccade sweep relevance --dry-run`
    - `saccade sweep mine.yaml --parallel 2`
    - `saccade sweep mine.yaml --trials 60 training.steps=200`
    """
    from saccade.cli_inputs import export_dotenv

    export_dotenv()
    plan = _plan(file, overrides or [], trials=trials)
    for warning in plan.warnings:
        out.show_note(f"note: {warning}")
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return
    from saccade.pipeline.sweep import run_sweep
    from saccade.pipeline.sweep_plots import draw_sweep
    from saccade.training.guards import StopRequest

    out.show_note(f"{plan.folder}: {plan.trials} trials, {plan.sweep.method}")
    with StopRequest().watching() as stop:
        limit = parallel or plan.sweep.parallel
        summary = run_sweep(plan, limit=limit, say=out.show_note, stop=stop)
    drawn = draw_sweep(summary, folder=plan.folder)
    if as_json:
        out.write_json(summary)
        return
    _show(summary)
    names = ", ".join(["sweep.json", *(path.name for path in drawn)])
    out.show_note(f"written: {plan.folder}/: {names}")


def _plan(file: str, overrides: list[str], *, trials: int | None) -> Any:
    from saccade.cli_inputs import TRAINING_FILE, split_words
    from saccade.config.layers import read_overrides
    from saccade.config.resolve import resolve
    from saccade.pipeline.sweep_file import find_sweep
    from saccade.pipeline.sweep_plan import plan_sweep

    recipe, words = split_words(overrides)
    if recipe is not None:
        raise InputError(f"command line: {recipe}: expected key=value, e.g. training.steps=100")
    found = find_sweep(file)
    typed = read_overrides(words)
    swept = {one.key for one in found.parameters} & {*typed.values, *typed.choices}
    if swept:
        raise InputError(f"command line: {', '.join(sorted(swept))}: {found.shown} varies it")
    unused = [key for key in (*typed.values, *typed.choices) if not key.startswith("run.")]
    if found.command and unused:
        raise InputError(
            f"command line: {', '.join(unused)}: {found.place('command')} runs a program, which"
            " has no such keys"
        )
    resolver = functools.partial(
        resolve,
        found.recipe,
        file=found.config,
        training_file=TRAINING_FILE if TRAINING_FILE.exists() else None,
        env=os.environ,
    )

    def with_words(*, on_top: Any) -> Any:
        # the words of this call win over the file, a trial's own values over both
        first, *others = on_top
        return resolver(on_top=[first, typed, *others])

    return plan_sweep(found, resolve=with_words, trials=trials)


def _show_plan(plan: Any, *, as_json: bool) -> None:
    rows = [
        {
            "key": one.key,
            "drawn": "fixed" if one.constant else one.draw,
            "values": list(one.choices) or [one.value(one.low), one.value(one.high)],
            "line": one.where,
        }
        for one in plan.sweep.parameters
    ]
    about = {
        "folder": str(plan.folder), "trials": plan.trials, "reports_per_trial": plan.reports,
        "parameters": rows, "warnings": list(plan.warnings),
    }  # fmt: skip
    if as_json:
        out.write_json(about)
        return
    out.table(["key", "drawn", "values", "where"], [list(row.values()) for row in rows])
    each = "" if plan.reports is None else f", {plan.reports} report(s) each"
    out.show_note(f"{plan.folder}: {plan.trials} trials{each}")


def _show(summary: dict[str, Any]) -> None:
    from saccade.pipeline.sweep_report import ranked

    rows = ranked(summary)
    keys = list(rows[0]["parameters"])[:SHOWN_PARAMETERS] if rows else []
    cells = [
        [row["trial"], row["state"], row["value"], row["reports"], row["seconds"],
         *(row["parameters"].get(key) for key in keys)]
        for row in rows
    ]  # fmt: skip
    out.table(["trial", "state", summary["metric"], "reports", "seconds", *keys], cells, right=[0])
    counts = ", ".join(f"{number} {state}" for state, number in summary["counts"].items() if number)
    shares = ", ".join(f"{key} {share:.2f}" for key, share in summary["importance"].items())
    out.show_note(f"{counts}; {summary['reports']} reports")
    if shares:
        out.show_note(f"importance: {shares}")
    if summary["best"] is not None:
        best = summary["best"]
        out.show_note(f"best: trial {best['trial']}, {summary['metric']} {best['value']:.4g}")
