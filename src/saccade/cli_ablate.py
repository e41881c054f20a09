"""The verb `saccade ablate`: words in, a plan, progress, and a table out.

What was typed flows in; the work is `pipeline/ablate.py`'s. Progress and the plan go to stderr, the
table or the JSON to stdout. Left out: what an ablation file may say (`pipeline/variants.py`).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saccade import cli_output as out
from saccade.cli_options import AsJson, ConfigFile
from saccade.config.errors import InputError

if TYPE_CHECKING:
    from saccade.config.resolve import Resolved
    from saccade.pipeline.ablate import Plan, Trial

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE KEY=VALUE",
        help="Recipe (`relevance`, `smoke/relevance`) or a .yaml of yours; then overrides that "
        "hold for all variants.",
        show_default=False,
    ),
]
Seeds = Annotated[
    list[str] | None,
    typer.Option("--seeds", help="Seeds, as `0,1,2` or `0 1 2`; default: run.seed."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", help="Train only these variants or groups (`noise,thirds`)."),
]
File = Annotated[
    Path | None, typer.Option("--file", "-f", help="Your ablation file, instead of the recipe's.")
]


def register(app: typer.Typer) -> None:
    """Give the command line its verb."""
    app.command("ablate")(ablate)


def ablate(
    words: Words = None,
    seeds: Seeds = None,
    only: Only = None,
    file: File = None,
    config: ConfigFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the variants, what is done and the cost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train and score every variant of a recipe with the same data, seeds and steps; one table.

    The same command continues after an interruption and skips what is finished. Examples:

    - `saccade ablate relevance --dry-run`
    - `saccade ablate relevance --seeds 0,1,2`
    - `saccade ablate relevance training.steps=100 run.name=short --only learning --only thirds`
    - `saccade ablate --file mine.yaml --json`
    """
    from saccade.cli_inputs import export_dotenv, split_words

    words, seeds = _loose_seeds(list(words or []), seeds or [])
    recipe, overrides = split_words(words)
    export_dotenv()
    from saccade.pipeline import ablate as worker

    plan = _plan(
        recipe, overrides, seeds=_numbers(seeds), only=_split(only), file=file, config=config
    )
    out.show_note(f"{plan.folder}: {worker.describe(plan)}")
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return
    summary = worker.run_ablation(plan, say=out.show_note)
    if as_json:
        out.write_json(summary)
        return
    from saccade.pipeline.ablation_table import ablation_table

    out.render(ablation_table(summary))
    out.show_note(f"written: {plan.folder / 'ablation.md'}, ablation.csv, ablation.json")


def compare_everything(recipe: str, overrides: list[str], *, seeds: str, as_json: bool) -> None:
    """`saccade compare --all`: train what is missing, compare it all, print one table."""
    from saccade.cli_inputs import split_words
    from saccade.pipeline import compare_all as worker
    from saccade.pipeline.ablate import describe

    first, more = split_words([recipe, *overrides])
    plan = worker.plan_comparison(resolve=_resolver(first, more), seeds=_numbers([seeds]))
    out.show_note(f"{plan.folder}: {describe(plan)}; then every run is compared")
    with out.progress_bar() as progress:
        result = worker.compare_all(plan, say=out.show_note, progress=progress)
    if as_json:
        out.write_json(result)
        return
    from saccade.evaluation.across import across_table

    out.render(across_table(result["rows"], seeds=len(result["seeds"]), samples=result["samples"]))
    for line in result["verdicts"]:
        out.show_note(line)
    out.show_note(f"written: {worker.table_file(plan)}")


def _resolver(
    recipe: str | None, overrides: list[str], *, config: Path | None = None
) -> functools.partial[Resolved]:
    from saccade.cli_inputs import TRAINING_FILE
    from saccade.config.resolve import resolve

    return functools.partial(
        resolve,
        recipe,
        overrides=overrides,
        file=config,
        training_file=TRAINING_FILE if TRAINING_FILE.exists() else None,
        env=os.environ,
    )


def _plan(
    recipe: str | None,
    overrides: list[str],
    *,
    seeds: list[int],
    only: list[str],
    file: Path | None,
    config: Path | None,
) -> Plan:
    from saccade.pipeline.ablate import plan_ablation
    from saccade.pipeline.variants import find_ablation, read_ablation

    ablation = read_ablation(file) if file is not None else None
    if recipe is None and ablation is not None:
        recipe = ablation.recipe
    resolver = _resolver(recipe, overrides, config=config)
    if ablation is None:
        ablation = find_ablation(resolver().config.recipe)
    return plan_ablation(ablation, resolve=resolver, seeds=seeds, only=only)


def _loose_seeds(words: list[str], seeds: list[str]) -> tuple[list[str], list[str]]:
    """`--seeds 0 1 2`: bare numbers among the words belong to the option."""
    if not seeds:
        return words, seeds
    return [word for word in words if not word.isdigit()], [
        *seeds, *(word for word in words if word.isdigit()),
    ]  # fmt: skip


def _split(texts: list[str] | None) -> list[str]:
    return [part for text in texts or [] for part in text.replace(",", " ").split()]


def _numbers(texts: list[str]) -> list[int]:
    for part in _split(texts):
        if not part.isdigit():
            raise InputError(f"--seeds {part}: expected whole numbers, for example --seeds 0,1,2")
    return [int(part) for part in _split(texts)]


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    rows = [
        {
            "variant": trial.variant.name,
            "seed": trial.seed,
            "state": _state(plan, trial),
            "set": trial.variant.settings(),
            "run": str(trial.run.path),
        }
        for trial in plan.trials
    ]
    if as_json:
        out.write_json(rows)
        return
    cells = [
        [row["variant"], row["seed"], row["state"],
         ", ".join(f"{key}={out.number(value)}" for key, value in row["set"].items()), row["run"]]
        for row in rows
    ]  # fmt: skip
    out.table(["variant", "seed", "state", "sets", "run"], cells, right=[1])


def _state(plan: Plan, trial: Trial) -> str:
    if trial.result() is not None:
        return "finished"
    if trial.variant.name not in plan.chosen:
        return "left out"
    return "started" if trial.run.config_file.is_file() else "to do"
