"""`saccade compare --all`: every selector, placement and budget in one table over training seeds.

A plan (`config/comparisons/`) and a configuration flow in; the selectors that need training are
trained as ordinary runs (`ablate.py`), each run is compared (`evaluation/compare.py`), and
`comparison_all.json|md` flow out. Every selector that needs no training of its own is measured in
the runs of the first variant. Finished runs and answers are not repeated. Left out: what a single
run compares.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from saccade.config.errors import InputError
from saccade.config.layers import CONFIG_DIR
from saccade.config.schema import Budget
from saccade.evaluation.across import across, across_table, verdicts
from saccade.evaluation.compare import compare_run
from saccade.evaluation.load import Progress
from saccade.evaluation.records import write_json
from saccade.pipeline.ablate import Plan, Resolver, plan_ablation, run_ablation
from saccade.pipeline.variants import read_ablation
from saccade.training.provenance import machine
from saccade.training.rundir import write_atomically

FOLDER = CONFIG_DIR / "comparisons"
WIDEST: Budget = 0.5
"""A generous budget beside the configured ones: where methods stop differing."""
OWN_ARMS = ("trained", "full", "resize")
"""What is measured in the runs of the other variants: themselves, and resizing at their cost."""


def plan_comparison(*, resolve: Resolver, seeds: list[int]) -> Plan:
    """What has to be trained; raises InputError for a recipe without a packaged comparison."""
    recipe = resolve(on_top=[]).config.recipe
    path = FOLDER / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in FOLDER.glob("*.yaml")))
        raise InputError(f"{recipe}: nothing to compare in one table\n  fix: use one of {known}")
    comparison = read_ablation(path, shown=f"comparisons/{recipe}.yaml")
    return plan_ablation(comparison, resolve=resolve, seeds=seeds, prefix="compare")


def compare_all(plan: Plan, *, say: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    """Train what is missing, compare every run, write the table after each variant."""
    config = plan.trials[0].resolved.config
    budgets = sorted({*config.eval.keep, WIDEST}, reverse=True)
    found: dict[str, list[dict[str, Any]]] = {}
    table: dict[str, Any] = {}
    first = plan.ablation.variants[0].name
    for variant in plan.ablation.variants:
        trials = tuple(trial for trial in plan.trials if trial.variant.name == variant.name)
        run_ablation(replace(plan, chosen=(variant.name,)), say=say)
        for number, trial in enumerate(trials):
            say(f"comparing {variant.name}, seed {trial.seed}")
            arms = list(OWN_ARMS)
            if variant.name == first:
                # what learns nothing answers alike in every run: once is enough
                arms = every_arm(config.eval.arms, learned_only=number > 0)
            result = compare_run(trial.run, keep=budgets, arms=arms, progress=progress)
            found.setdefault(variant.name, []).append(result)
        table = _write(plan, found)
    return table


def _write(plan: Plan, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The table of what is there so far."""
    rows = across(found)
    result = {
        "seeds": list(plan.seeds),
        "samples": next(iter(found.values()))[0]["samples"],
        "machine": machine(),
        "rows": rows,
        "verdicts": verdicts(rows),
    }
    write_json(plan.folder / "comparison_all.json", result)
    write_atomically(table_file(plan), as_text(result))
    return result


def every_arm(configured: list[str], *, learned_only: bool) -> list[str]:
    """The configured selectors, then every other one that exists."""
    from saccade.models.relevance.baselines import ARMS, find_arm

    names = list(dict.fromkeys([*configured, *ARMS]))
    return [
        name for name in names if not learned_only or find_arm(name).trained or name in OWN_ARMS
    ]


def as_text(result: dict[str, Any]) -> str:
    """The table and the verdicts as a text block that survives in Markdown."""
    console = Console(file=io.StringIO(), width=160)
    console.print(
        across_table(result["rows"], seeds=len(result["seeds"]), samples=result["samples"])
    )
    assert isinstance(console.file, io.StringIO)
    lines = "".join(f"- {line}\n" for line in result["verdicts"])
    return f"```text\n{console.file.getvalue()}```\n\n{lines}"


def table_file(plan: Plan) -> Path:
    """Where the readable table is."""
    return plan.folder / "comparison_all.md"
