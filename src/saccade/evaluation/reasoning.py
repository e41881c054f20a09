"""Score a run of the recipe `thoughts`: the share of right answers, as trained to the last stage.

In goes a run; out come `predictions.jsonl` (every question with what was said) and
`evaluation.json` (accuracy with its 95 % interval, beside guessing one of the two candidates).
Nothing of the reasoning is told to the model. Left out: other lengths of thought.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saccade.data.sources import open_source
from saccade.evaluation.load import Progress, fingerprint, no_progress, weights_folder
from saccade.evaluation.records import write_json
from saccade.evaluation.statistics import wilson_interval
from saccade.training.rundir import RunDir, write_atomically

CHANCE = 0.5


def evaluate_reasoning(
    run: RunDir,
    *,
    limit: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Answer the held-out questions and write what came of it."""
    from saccade.training.recipes.thoughts import answers, load_thinker

    config = run.config()
    folder = weights_folder(run, checkpoint=checkpoint)
    model = load_thinker(config, folder)
    source = open_source(config.data.eval)
    count = min(limit or len(source), len(source))
    progress("answering", 0, count)
    rows = answers(model, source, count=count)
    right = sum(row["right"] for row in rows)
    result = {
        "recipe": config.recipe, "mode": config.thoughts.mode, "model": fingerprint(folder),
        "data": source.fingerprint(), "samples": count, "accuracy": right / count,
        "interval": list(wilson_interval(right, total=count)), "chance": CHANCE, "scores": {},
    }  # fmt: skip
    write_atomically(run.predictions_file, "".join(json.dumps(row) + "\n" for row in rows))
    write_json(run.path / "evaluation.json", result)
    return result


def reasoning_table(result: Mapping[str, Any]) -> Any:
    """The result as a terminal table."""
    from rich.table import Table

    table = Table(title=f"{result['samples']} held-out questions", title_justify="left")
    for name in ("reasoning", "right %", "95 % interval", "guessing %"):
        table.add_column(name, justify="right")
    low, high = result["interval"]
    table.add_row(
        result["mode"], f"{100 * result['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}",
        f"{100 * result['chance']:.0f}",
    )  # fmt: skip
    return table
