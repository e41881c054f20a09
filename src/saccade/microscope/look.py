"""Look at one picture with one question: what was kept, why, and what the model answers.

In go an image file and a question, with a run or without one; out come a PNG panel and plain facts
for the terminal: the answer from the kept cells and from all of them, counts, tensions, quality
numbers, times; on request what a second question changes, and the texture channels.
Without a run the base model is paired with an untrained selector, and the result says so. Left
out: batches of images (see `report.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.schema import Budget, Config
from saccade.data.samples import Sample
from saccade.evaluation.load import LoadedRun, load_base, load_run
from saccade.evaluation.timing import measure_arms
from saccade.microscope.differences import difference_strip, texture_strips
from saccade.microscope.explain import Explanation, View, explain
from saccade.microscope.figures import Strip, save_panel
from saccade.microscope.quality import overlap, quality
from saccade.training.rundir import RunDir

UNTRAINED = (
    "the selector is untrained: what it keeps is arbitrary"
    "\n  fix: train one with `saccade train`, then add --run runs/relevance"
)
NOTHING_TRAINED = (
    "a run of recipe {recipe} has no selector: every cell is read"
    "\n  fix: --arm grid (or another selector that needs no training) shows a choice"
)


def look(
    image: Path,
    question: str,
    *,
    run: RunDir | None = None,
    config: Config | None = None,
    keep: Budget | None = None,
    arm: str = "trained",
    versus: str | None = None,
    textures: bool = False,
    out: Path,
) -> dict[str, Any]:
    """Answer `question` about `image` after selection and in full; write the panel to `out`.

    `config` (model and selector) is used when there is no run. `versus` is a second question: the
    panel then shows what changes; `textures` adds every texture channel. Raises InputError for a
    missing image or an empty question, DataError for a file that is not an image.
    """
    _check(image, question, versus)
    loaded = load_base(config or Config()) if run is None else load_run(run)
    warnings = [UNTRAINED] if run is None and arm == "trained" else []
    if arm != (arm := loaded.pick_arm(arm)):
        warnings.append(NOTHING_TRAINED.format(recipe=loaded.config.recipe))
    chosen = loaded.config.selector.keep if keep is None else keep
    budget: Budget = 1.0 if arm == "full" else chosen
    sample = Sample(id=image.name, question=question, answers=(), images=(image,), kind="look")
    samples = [sample] if versus is None else [sample, replace(sample, question=versus)]
    shown, *others = explain(loaded, samples, arm=arm, keep=budget)
    (view,) = shown.views
    found: dict[str, Any] = {}
    strips: list[Strip | None] = []
    for other in others:
        asked = (question, other.sample.question)
        strips.append(difference_strip(view, other.views[0], questions=asked))
        found["versus"] = _versus(view, other)
    save_panel(shown, out, strips=[*filter(None, strips), *(texture_strips(view) * textures)])
    described = quality(view)
    numbers = described.as_dict() if described else {}
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
        "quality": {n: v for n, v in numbers.items() if n != "decay"},
        **found,
        **_times(loaded, sample, arm=arm, keep=budget),
        "decay": numbers.get("decay", {}),
        "panel": str(out),
        "warnings": warnings,
    }


def _check(image: Path, question: str, versus: str | None) -> None:
    if not image.is_file():
        raise InputError(f"{image}: no such image\n  fix: give the path of a picture")
    if not question.strip() or (versus is not None and not versus.strip()):
        raise InputError("the question is empty\n  fix: ask something about the picture")


def _versus(view: View, other: Explanation) -> dict[str, Any]:
    """The second question's answer, and what its choice shares with the first one's."""
    shared = overlap(view, other.views[0])
    return {
        "question": other.sample.question,
        "answer": other.selected.prediction,
        "answer_from_all": other.everything.prediction if other.everything else None,
        "kept": other.views[0].kept,
        "overlap": shared.as_dict() if shared else None,
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
