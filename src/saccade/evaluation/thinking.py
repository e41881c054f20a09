"""Score a recursive model: how right it is after each step of thinking, and where it would stop.

In goes a run of recipe `recursion`; out come `predictions.jsonl` (for every held-out sample the
answer, the halting score and the change of state at every step; as text for people, whose letters
may stand for several symbols, and as the symbols themselves) and `evaluation.json` (accuracy per
step, accuracy and mean steps with halting, the halting histogram, all of it per kind of sample).
`rejudge` repeats the judging from the stored symbols, without the model. Left out: pictures.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.data.generate.puzzles import IGNORED, TARGET, as_text
from saccade.data.grids.source import ArcPuzzles
from saccade.data.sources import leave_out_broken, open_source
from saccade.evaluation.load import Progress, fingerprint, no_progress, weights_folder
from saccade.evaluation.records import write_json
from saccade.evaluation.statistics import wilson_interval
from saccade.evaluation.thinking_plot import save_thinking
from saccade.evaluation.voting import vote, voting_line
from saccade.scoring.grids import (
    StepVerdicts,
    by_kind,
    careful_step,
    halting_step,
    summarise,
)
from saccade.training.rundir import RunDir, write_atomically

if TYPE_CHECKING:
    from saccade.data.samples import Sample
    from saccade.models.recursion.model import RecursiveModel
    from saccade.models.recursion.trace import Traced

LOGGER = logging.getLogger(__name__)

DECIMALS = 5
SHOWN_AT = (1, 4)
"""Steps of thinking that an ablation shows, besides the last."""


def evaluate_thinking(
    run: RunDir,
    *,
    limit: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Let the run's model think about its held-out samples; writes predictions and summary."""
    from saccade.training.recipes.reading import asks_ahead
    from saccade.training.recipes.recursion import answer_all, puzzle_source

    config = run.config()
    folder = weights_folder(run, checkpoint=checkpoint)
    model = load_thinker(run, folder)
    source = puzzle_source(open_source(config.data.eval), key="data.eval")
    broken = leave_out_broken(source) if config.data.on_error == "skip" else []
    for problem in broken:
        LOGGER.warning(problem)
    if asks_ahead(source):
        raise InputError(
            "data.eval: text has no answers that are right or wrong, so rules of halting and extras"
            f" cannot be compared by it\n  fix: `saccade eval {run.path}` tells its perplexity"
        )
    count = min(limit or len(source), len(source))
    found = answer_all(
        model, source, count=count, steps=config.recursion.eval_steps,
        batch_size=config.eval.batch_size, data=config.data,
        progress=lambda done, total: progress("thinking", done, total),
    )  # fmt: skip
    rows = [stored(sample, traced) for sample, traced in found]
    details: dict[str, Any] = {
        "recipe": config.recipe, "model": fingerprint(folder), "data": source.fingerprint(),
    }  # fmt: skip
    if broken:
        details["left_out"] = broken
    if isinstance(source, ArcPuzzles):
        details["voting"] = vote(run, source, found)
    return _write(run, rows, details)


def load_thinker(run: RunDir, folder: Path) -> RecursiveModel:
    """The finished model of a run, or the average of the weights in one of its checkpoints."""
    import torch

    from saccade.models.recursion.model import CARD, load_model
    from saccade.training.run import load_recipe
    from saccade.training.state import load_weights
    from saccade.training.threads import choose_threads

    config = run.config()
    earlier = (run.provenance() or {}).get("threads")
    torch.set_num_threads(choose_threads(config.training.threads, earlier=earlier))
    if (folder / CARD).is_file():
        model = load_model(folder)
        # how it answers may differ from how it was trained
        model.config = model.config.model_copy(update={"noise": config.recursion.noise})
        return model
    recipe: Any = load_recipe(config)
    load_weights(recipe.model, checkpoint=folder)
    recipe.restore(folder)
    if config.recursion.ema:
        recipe.model.load_state_dict(recipe.average.tensors, strict=False)
    return recipe.model.eval()


def rejudge_thinking(run: RunDir) -> dict[str, Any]:
    """Judge the stored answers of every step again; needs no model."""
    if not run.predictions_file.is_file():
        raise InputError(
            f"{run.predictions_file}: no stored answers\n  fix: run `saccade eval {run.path}` first"
        )
    lines = run.predictions_file.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    if not all("symbols" in row for row in rows):
        raise InputError(
            f"{run.predictions_file}: these answers were stored as text alone, which may hide what"
            f" was said\n  fix: run `saccade eval {run.path}` again"
        )
    rows = [{**row, **judged(row["symbols"])} for row in rows]
    before = json.loads((run.path / "evaluation.json").read_text("utf-8"))
    kept = ("recipe", "model", "data", "voting")
    return _write(run, rows, {name: before[name] for name in kept if name in before})


def stored(sample: Sample, traced: Traced) -> dict[str, Any]:
    """What is kept of a sample: what was said at every step, and the model's own verdicts."""
    columns, letters = sample.facts["columns"], sample.facts["letters"]
    row = {
        "id": sample.id,
        "kind": sample.kind,
        "question": sample.question,
        "target": sample.answer,
        "answers": [as_text(one, letters=letters, columns=columns) for one in traced.answers_NL],
        # not rounded: a score is compared with a threshold, and told as in training
        "halt": list(traced.halt),
        "change": [round(one, DECIMALS) for one in traced.change],
        "right": list(traced.right),
        "cells": list(traced.cells),
        "symbols": {
            "target": sample.facts[TARGET].tolist(), "answers": traced.answers_NL.tolist(),
        },
    }  # fmt: skip
    if traced.advantage:
        row["advantage"] = list(traced.advantage)
    return row


def judged(symbols: Mapping[str, Any]) -> dict[str, Any]:
    """`right` and `cells` of every step, as the model's own verdict has them."""
    wanted = [one for one in enumerate(symbols["target"]) if one[1] != IGNORED]
    hits = [sum(said[place] == one for place, one in wanted) for said in symbols["answers"]]
    return {
        "right": [one == len(wanted) for one in hits],
        "cells": [one / max(1, len(wanted)) for one in hits],
    }


def _write(
    run: RunDir, rows: Sequence[Mapping[str, Any]], details: dict[str, Any]
) -> dict[str, Any]:
    confidence = run.config().recursion.halt_confidence
    verdicts = [_verdicts(row) for row in rows]
    summary = summarise(verdicts, confidence=confidence)
    right = round(summary["accuracy"] * summary["samples"])
    low, high = wilson_interval(right, total=summary["samples"])
    result = {
        **details, **summary, "interval": [low, high], "scores": {},
        "kinds": by_kind(verdicts, confidence=confidence),
    }  # fmt: skip
    write_atomically(run.predictions_file, "".join(json.dumps(row) + "\n" for row in rows))
    write_json(run.path / "evaluation.json", result)
    save_thinking(result, rows, folder=run.figures)
    return result


def right_at(run: RunDir, result: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """For some steps, and for halting: which stored puzzles are right, by their id."""
    rows = [json.loads(line) for line in run.predictions_file.read_text("utf-8").splitlines()]
    last = len(rows[0]["right"])
    confidence = result["halting"]["confidence"]
    chosen = {f"step {n}": [n] * len(rows) for n in SHOWN_AT if n < last}
    chosen[f"step {last}"] = [last] * len(rows)
    verdicts = [_verdicts(row) for row in rows]
    chosen["halting"] = [careful_step(one, confidence=confidence) for one in verdicts]
    if "q_halting" in result:
        chosen["halting"] = [halting_step(row["advantage"]) for row in rows]
    return {
        name: {row["id"]: int(row["right"][n - 1]) for row, n in zip(rows, steps, strict=True)}
        for name, steps in chosen.items()
    }


def _verdicts(row: Mapping[str, Any]) -> StepVerdicts:
    return StepVerdicts(
        row["right"], row["cells"], row["halt"], row["kind"],
        same=_same(row["symbols"]["answers"]),
        advantage=row.get("advantage", ()),
    )  # fmt: skip


def _same(answers: Sequence[Sequence[int]]) -> list[bool]:
    return [False, *(a == b for a, b in itertools.pairwise(answers))]


def thinking_table(result: Mapping[str, Any]) -> Any:
    """The result as a terminal table: one line per step, then halting and kinds."""
    from rich.table import Table

    table = Table(title=f"{result['samples']} held-out puzzles", title_justify="left")
    for name in ("step of thinking", "exact %", "cells %", "halt here"):
        table.add_column(name, justify="right")
    histogram, seen = result["halting"]["histogram"], None
    steps = zip(result["accuracy_by_step"], result["cells_by_step"], strict=True)
    for number, values in enumerate(steps, start=1):
        shown = [f"{100 * value:.1f}" for value in values]
        halts = histogram[str(number)]
        if shown != seen or halts or number == len(histogram):
            table.add_row(str(number), *shown, str(halts) if halts else "")
        seen = shown
    table.caption = _caption(result)
    table.caption_justify = "left"
    return table


def _stopped(found: Mapping[str, Any]) -> str:
    return f"{100 * found['accuracy']:.1f} % exact in {found['mean_steps']:.2f} steps"


def _caption(result: Mapping[str, Any]) -> str:
    halting, (low, high) = result["halting"], result["interval"]
    lines = [
        f"all steps: {100 * result['accuracy']:.1f} % exact [{100 * low:.1f}, {100 * high:.1f}]",
        f"with halting: {_stopped(halting)} on average (at {100 * halting['confidence']:g} %"
        " confidence, or settled)",
        f"stopping when more likely right than not, as published: {_stopped(result['published'])}",
        f"right at some step and wrong at the last: {100 * result['overthinking']:.1f} %",
    ]
    if "q_halting" in result:
        lines.insert(3, f"stopping by learned values: {_stopped(result['q_halting'])}")
    if "voting" in result:
        lines.insert(0, voting_line(result["voting"]))
    for kind, part in result["kinds"].items():
        lines.append(
            f"{kind}: {100 * part['accuracy']:.1f} % of {part['samples']},"
            f" {part['halting']['mean_steps']:.2f} steps"
        )
    return "\n".join(lines)
