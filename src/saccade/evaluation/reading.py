"""Score a recursive model on text or code: perplexity after each step of thinking.

In goes a run of recipe `recursion` whose `data.eval` is a stream; out come `predictions.jsonl` (for
every window what it cost in nats, per step) and `evaluation.json` (perplexity, nats and bits per
token and byte for every step, beside a unigram model of the training text and beside chance). Every
window is read anew, so its first bytes are guessed from little: texts cost more than they would in
one piece. `rejudge` adds up the stored windows, without the model. Left out: writing text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.data.generate.puzzles import TARGET
from saccade.data.reading import StreamWindows
from saccade.data.sources import open_source
from saccade.data.streams import FIRST_BYTE, VOCABULARY
from saccade.evaluation.load import Progress, fingerprint, no_progress, weights_folder
from saccade.evaluation.records import write_json
from saccade.scoring.perplexity import Surprise, added, unigram_nats, unigram_surprise
from saccade.training.rundir import RunDir, write_atomically

READS = "stream"


def evaluate_reading(
    run: RunDir,
    *,
    limit: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Let the run's model read its held-out text; writes predictions and summary."""
    from saccade.evaluation.thinking import load_thinker
    from saccade.training.recipes.reading import read_all, refuse_unless_causal

    config = run.config()
    source, seen = open_source(config.data.eval), open_source(config.data.train)
    folder = weights_folder(run, checkpoint=checkpoint)
    model = load_thinker(run, folder)
    refuse_unless_causal(model.config, source)
    count = min(limit or len(source), len(source))
    found = read_all(
        model, source, count=count, steps=config.recursion.eval_steps,
        batch_size=config.eval.batch_size,
        progress=lambda done, total: progress("reading", done, total),
    )  # fmt: skip
    plain = unigram_nats(seen.counts()) if isinstance(seen, StreamWindows) else None
    rows = []
    for sample, costs in found:
        row: dict[str, Any] = {
            "id": sample.id, "kind": sample.kind, "tokens": costs[0].tokens,
            "bytes": costs[0].bytes, "nats": [one.nats for one in costs],
        }  # fmt: skip
        if plain is not None:
            target = sample.facts[TARGET]
            row["unigram"] = unigram_surprise(plain, target, first_byte=FIRST_BYTE).nats
        rows.append(row)
    details = {
        "recipe": config.recipe, "model": fingerprint(folder), "data": source.fingerprint(),
    }  # fmt: skip
    return _write(run, rows, details)


def rejudge_reading(run: RunDir) -> dict[str, Any]:
    """Add up the stored windows again; needs no model."""
    if not run.predictions_file.is_file():
        raise InputError(
            f"{run.predictions_file}: nothing was read\n  fix: run `saccade eval {run.path}` first"
        )
    rows = [json.loads(line) for line in run.predictions_file.read_text("utf-8").splitlines()]
    stored = json.loads((run.path / "evaluation.json").read_text("utf-8"))
    return _write(run, rows, {name: stored[name] for name in ("recipe", "model", "data")})


def _write(
    run: RunDir, rows: Sequence[Mapping[str, Any]], details: Mapping[str, Any]
) -> dict[str, Any]:
    steps = range(len(rows[0]["nats"]))
    by_step = [added(_cost(row, row["nats"][n]) for row in rows) for n in steps]
    last = by_step[-1]
    alike = Surprise(last.tokens * math.log(VOCABULARY), last.tokens, last.bytes)
    baselines = {"chance": alike.readings()}
    if all("unigram" in row for row in rows):
        plain = added(_cost(row, row["unigram"]) for row in rows)
        baselines = {"unigram": plain.readings(), **baselines}
    result = {
        **details, "reads": READS, "samples": len(rows), "tokens": last.tokens,
        "bytes": last.bytes, **last.readings(), "by_step": [one.readings() for one in by_step],
        "baselines": baselines, "scores": {},
    }  # fmt: skip
    write_atomically(run.predictions_file, "".join(json.dumps(row) + "\n" for row in rows))
    write_json(run.path / "evaluation.json", result)
    return result


def _cost(row: Mapping[str, Any], nats: float) -> Surprise:
    return Surprise(nats, row["tokens"], row["bytes"])


def reading_table(result: Mapping[str, Any]) -> Any:
    """The result as a terminal table: one line per step, then what needs no model."""
    from rich.table import Table

    table = Table(
        title=f"{result['tokens']} held-out tokens in {result['samples']} windows",
        title_justify="left",
    )
    names = ("perplexity", "nats_per_token", "bits_per_token", "bits_per_byte")
    for name in ("step of thinking", *(name.replace("_", " ") for name in names)):
        table.add_column(name, justify="right")
    lines = [(str(n), one) for n, one in enumerate(result["by_step"], start=1)]
    for label, one in [*lines, *result["baselines"].items()]:
        table.add_row(label, *(f"{one[name]:.3f}" for name in names))
    return table
