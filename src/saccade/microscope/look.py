"""Look at one picture with one question: what was kept, why, and what the model answers.

In go an image file and a question, with a run or without one; out come a PNG panel and plain facts
for the terminal: the answer from the kept cells and from all of them, counts, tensions, times.
Without a run the base model is paired with an untrained selector, and the result says so. Left
out: batches of images (see `report.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.schema import Budget, Config
from saccade.data.samples import Sample
from saccade.evaluation.load import LoadedRun, load_base, load_run
from saccade.evaluation.timing import measure_arms
from saccade.microscope.explain import explain
from saccade.microscope.figures import save_panel
from saccade.training.rundir import RunDir

UNTRAINED = (
    "the selector is untrained: what it keeps is arbitrary"
    "\n  fix: train one with `saccade train`, then add --run runs/relevance"
)


def look(
    image: Path,
    question: str,
    *,
    run: RunDir | None = None,
    config: Config | None = None,
    keep: Budget | None = None,
    arm: str = "trained",
    out: Path,
) -> dict[str, Any]:
    """Answer `question` about `image` after selection and in full; write the panel to `out`.

    `config` (model and selector) is used when there is no run. Raises InputError for a missing
    image or an empty question, DataError for a file that is not an image.
    """
    if not image.is_file():
        raise InputError(f"{image}: no such image\n  fix: give the path of a picture")
    if not question.strip():
        raise InputError("the question is empty\n  fix: ask something about the picture")
    warnings: list[str] = []
    if run is not None:
        loaded = load_run(run)
    else:
        loaded = load_base(config or Config())
        if arm == "trained":
            warnings.append(UNTRAINED)
    if arm not in loaded.arms:
        raise InputError(f"no selector {arm!r} here\n  fix: use one of {', '.join(loaded.arms)}")
    budget = keep if keep is not None else loaded.config.selector.keep
    sample = Sample(id=image.name, question=question, answers=(), images=(image,), kind="look")
    (shown,) = explain(loaded, [sample], arm=arm, keep=budget)
    save_panel(shown, out)
    (view,) = shown.views
    return {
        "question": question,
        "answer": shown.selected.prediction,
        "answer_from_all": shown.everything.prediction if shown.everything else None,
        "arm": arm,
        "keep": budget,
        "kept": view.kept,
        "full": view.full,
        "tokens_into_layer_0": shown.selected.tokens,
        "weights": view.weights,
        "tensions": view.tensions,
        **_times(loaded, sample, arm=arm, keep=budget),
        "panel": str(out),
        "warnings": warnings,
    }


def _times(
    loaded: LoadedRun, sample: Sample, *, arm: str, keep: Budget
) -> dict[str, dict[str, float]]:
    """Milliseconds by part, of reading the kept cells and of reading them all."""
    batch, _ = loaded.batch([sample])
    pairs = {"milliseconds": (arm, keep), "milliseconds_from_all": ("full", 1.0)}
    costs = measure_arms(
        loaded.model, batch.tensors, cells=list(pairs.values()), device=loaded.device
    )
    return {
        name: {
            "encoder": costs[pair].encoder_ms,
            "selector": costs[pair].selector_ms,
            "prefill": costs[pair].prefill_ms,
            "total": costs[pair].total_ms,
        }
        for name, pair in pairs.items()
    }
