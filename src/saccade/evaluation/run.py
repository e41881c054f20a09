"""Score a run on its held-out samples: generate, judge, count, write.

In goes a run directory; out come `predictions.jsonl` (every answer with what is needed to judge it
again) and `evaluation.json` (accuracy with 95 % intervals in all and per question kind, beside the
baseline of always giving the kind's commonest training answer, and token counts). Both are written
whole or not at all. `rejudge` repeats the judging alone, without a model. Answers are greedy and
every sample is computed as if alone, so the batch size changes nothing. Left out: other selectors
(`compare.py`).
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.config.schema import Budget, Source
from saccade.config.screens import BoxMeaning
from saccade.config.streams import StreamSource
from saccade.data.samples import DataError
from saccade.data.sources import open_source
from saccade.evaluation import grounding, reading, reasoning, thinking
from saccade.evaluation.dataset_scores import dataset_scores, is_caption, judged_together
from saccade.evaluation.load import (
    LoadedRun,
    Progress,
    load_run,
    model_fingerprint,
    no_progress,
    read_samples,
    select_indices,
)
from saccade.evaluation.records import (
    Prediction,
    accuracy,
    accuracy_by_kind,
    read_predictions,
    rejudged,
    token_counts,
    write_json,
    write_predictions,
)
from saccade.scoring.answers import normalise
from saccade.training.rundir import RunDir

log = logging.getLogger(__name__)
MAJORITY_SAMPLES = 2000
"""Training samples read, spread evenly, to find the commonest answer of each kind."""


def evaluate_run(
    run: RunDir,
    *,
    limit: int | None = None,
    arm: str = "trained",
    keep: Budget | None = None,
    checkpoint: Path | None = None,
    screens: Path | None = None,
    boxes: BoxMeaning = "auto",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score the run's model on `data.eval` and write predictions and summary.

    `keep` defaults to the configured budget, `checkpoint` to the finished model or, before that
    exists, the newest checkpoint; `screens` is a folder that a grounding run is scored on instead,
    whose boxes mean `boxes`.
    Raises InputError for an arm the run has not.
    """
    config = run.config()
    if config.recipe == "grounding":
        return grounding.evaluate_grounding(
            run, limit=limit, checkpoint=checkpoint, screens=screens, boxes=boxes,
            progress=progress,
        )  # fmt: skip
    _refuse_screens(run, screens)
    if isinstance(config.data.eval, StreamSource) and config.recipe == "recursion":
        return reading.evaluate_reading(run, limit=limit, checkpoint=checkpoint, progress=progress)
    if config.recipe == "recursion":
        return thinking.evaluate_thinking(
            run, limit=limit, checkpoint=checkpoint, progress=progress
        )
    if config.recipe == "thoughts":
        return reasoning.evaluate_reasoning(
            run, limit=limit, checkpoint=checkpoint, progress=progress
        )
    loaded = load_run(run, checkpoint=checkpoint)
    arm = loaded.pick_arm(arm)
    keep = 1.0 if arm == "full" else config.selector.keep if keep is None else keep
    source = open_source(config.data.eval)
    indices = select_indices(source, limit=limit)
    predictions, broken = _answer_all(
        loaded, source, indices, arm=arm, keep=keep, progress=progress
    )
    result = {
        "arm": arm,
        "keep": keep,
        "model": model_fingerprint(run, checkpoint=checkpoint),
        "data": source.fingerprint(),
        "skipped": [str(error) for error in broken],
        "majority_answers": majority_answers(config.data.train),
        "tokens": token_counts(predictions),
    }
    return _write(run, predictions, result)


def rejudge(run: RunDir, *, screens: Path | None = None) -> dict[str, Any]:
    """Judge the stored answers again, with the scoring rules as they are now; needs no model."""
    if run.config().recipe == "grounding":
        return grounding.rejudge_grounding(run, screens=screens)
    _refuse_screens(run, screens)
    if run.config().recipe == "thoughts":
        raise InputError(
            f"{run.path}: its answers are single symbols, judged as they are given"
            f"\n  fix: `saccade eval {run.path}` without --rejudge"
        )
    if run.config().recipe == "recursion":
        if isinstance(run.config().data.eval, StreamSource):
            return reading.rejudge_reading(run)
        return thinking.rejudge_thinking(run)
    if not run.predictions_file.is_file():
        raise InputError(
            f"{run.predictions_file}: no stored answers\n  fix: run `saccade eval {run.path}` first"
        )
    metric = run.config().eval.metric
    stored = read_predictions(run.predictions_file)
    predictions = [rejudged(one, metric=metric) for one in stored]
    return _write(run, predictions, read_evaluation(run) or {})


def _refuse_screens(run: RunDir, screens: Path | None) -> None:
    if screens is not None:
        raise InputError(
            f"{run.path}: recipe {run.config().recipe} clicks on no screens"
            "\n  fix: leave --screens out, or name a run of recipe grounding"
        )


def read_evaluation(run: RunDir) -> dict[str, Any] | None:
    """What `evaluation.json` says, or None before the run was scored."""
    found = _stored(run)
    return found if "accuracy" in found else None


def add_official(run: RunDir, harness: str, results: dict[str, Any]) -> None:
    """Put an official harness's results beside the run's own scores."""
    stored = _stored(run)
    official = {**stored.get("official", {}), harness: results}
    write_json(evaluation_file(run), {**stored, "official": official})


def _stored(run: RunDir) -> dict[str, Any]:
    path = evaluation_file(run)
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def evaluation_file(run: RunDir) -> Path:
    return run.path / "evaluation.json"


def majority_answers(train: Source, *, limit: int = MAJORITY_SAMPLES) -> dict[str, str]:
    """The commonest training answer of each question kind; ties go to the one seen first.

    Answers are counted in normal form and told as first written: a caption needs its articles.
    """
    source = open_source(train)
    samples, _ = read_samples(source, select_indices(source, limit=limit), skip_broken=True)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    spelled: dict[str, str] = {}
    for sample in samples:
        counts[sample.kind][normalise(sample.answer)] += 1
        spelled.setdefault(normalise(sample.answer), sample.answer)
    return {kind: spelled[counts[kind].most_common(1)[0][0]] for kind in sorted(counts)}


def majority_accuracy(
    predictions: Sequence[Prediction], *, majority: Mapping[str, str]
) -> dict[str, float]:
    """Accuracy of always giving the kind's commonest training answer: per kind, and `all`."""
    hits: dict[str, list[float]] = defaultdict(list)
    blind = [rejudged(replace(one, prediction=majority.get(one.kind, ""))) for one in predictions]
    for one in judged_together(blind):
        hits[one.kind].append(one.value)
        hits["all"].append(one.value)
    return {kind: sum(values) / len(values) for kind, values in sorted(hits.items())}


def set_scores(run: RunDir, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """`scores` of the whole set, and the `vocabulary` they read objects with."""
    vocabulary = run.config().eval.vocabulary
    captions = any(is_caption(one) for one in predictions)
    named: dict[str, Any] = {"vocabulary": vocabulary} if captions else {}
    return {"scores": dataset_scores(predictions, vocabulary=vocabulary), **named}


def _answer_all(
    loaded: LoadedRun,
    source: Any,
    indices: Sequence[int],
    *,
    arm: str,
    keep: Budget | None,
    progress: Progress,
) -> tuple[list[Prediction], list[DataError]]:
    predictions: list[Prediction] = []
    broken: list[DataError] = []
    size = loaded.config.eval.batch_size
    skip = loaded.config.data.on_error == "skip"
    for start in range(0, len(indices), size):
        progress(f"answering ({arm})", start, len(indices))
        samples, unread = read_samples(source, indices[start : start + size], skip_broken=skip)
        batch, unseen = loaded.batch(samples, skip_broken=skip)
        for error in [*unread, *unseen]:
            log.warning("skipped: %s", error)
            broken.append(error)
        if batch.samples:
            features = loaded.features(batch)
            predictions += loaded.answer(batch, arm=arm, keep=keep, seed=0, features=features)
    progress(f"answering ({arm})", len(indices), len(indices))
    if not predictions:
        raise InputError(
            "no sample could be scored\n  fix: check data.eval with `saccade data check`"
        )
    return predictions, broken


def _write(run: RunDir, predictions: list[Prediction], details: dict[str, Any]) -> dict[str, Any]:
    predictions = judged_together(predictions)
    majority = majority_accuracy(predictions, majority=details.get("majority_answers", {}))
    kinds = accuracy_by_kind(predictions)
    stored = _stored(run)
    result = {
        **({"official": stored["official"]} if "official" in stored else {}),
        **details,
        **set_scores(run, predictions),
        "metrics": sorted({one.metric for one in predictions}),
        **accuracy(predictions),
        "majority": majority["all"],
        "kinds": {kind: {**score, "majority": majority[kind]} for kind, score in kinds.items()},
    }
    write_predictions(run.predictions_file, predictions)
    write_json(evaluation_file(run), result)
    return result
