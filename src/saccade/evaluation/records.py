"""One scored answer, its JSON line, and the summaries made of many.

A `Prediction` holds everything needed to judge an answer again without the model: the question,
the accepted answers, what the model said, and how many visual tokens it was shown. In go samples,
texts and selections; out come records, files of them, and accuracies with intervals. Left out:
producing the answers (`run.py`, `compare.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from saccade.data.samples import Sample
from saccade.evaluation.statistics import normal_interval, wilson_interval
from saccade.scoring.answers import score_answer
from saccade.scoring.captions import UNBOUNDED
from saccade.training.events import plain
from saccade.training.rundir import write_atomically


@dataclass(frozen=True)
class Prediction:
    """What a model answered to one sample under one selector and budget."""

    id: str
    group: str
    kind: str
    question: str
    answers: tuple[str, ...]
    prediction: str
    correct: bool
    full: tuple[int, ...]  # visual tokens of each image before selection
    kept: tuple[int, ...]  # visual tokens of each image that the language model read
    tokens: int  # tokens that entered layer 0, text included
    answer_cells_kept: float | None  # share of the answer-carrying cells kept, where known
    arm: str
    keep: int | float | None  # None: the budget the model was configured with
    encoded: tuple[int, ...] = ()  # cells of each pass of the vision tower, over all images
    late_tokens: int | None = None  # tokens that the later layers read, where some drop inside
    metric: str = "accuracy"  # how the answer was scored
    score: float | None = None  # partial credit, where the metric gives any
    people: tuple[str, ...] = ()  # every person's answer, where a metric counts them
    objects: tuple[str, ...] = ()  # what the pictures are known to show, where the data say so

    @property
    def value(self) -> float:
        """What the answer is worth: its score, or 1 for right and 0 for wrong."""
        return float(self.correct) if self.score is None else self.score

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Prediction:
        names = ("answers", "full", "kept", "encoded", "people", "objects")
        lists = {name: tuple(row.get(name, ())) for name in names}
        # a newer version may have written more than this one knows
        known = {field.name for field in fields(cls)}
        return cls(**{**{name: row[name] for name in row if name in known}, **lists})


def make_prediction(
    sample: Sample,
    text: str,
    *,
    selections: Sequence[Any],
    tokens: int,
    arm: str,
    keep: int | float | None,
    late_tokens: int | None = None,
    metric: str = "auto",
) -> Prediction:
    """Judge one answer. `selections` are the sample's images as the model's `reduce` tells them.

    Metric `auto` is the one the sample's benchmark names, else `accuracy`.
    """
    made = Prediction(
        id=sample.id,
        group=sample.image_key or sample.id,
        kind=sample.kind,
        question=sample.question,
        answers=tuple(sample.answers),
        prediction=text,
        correct=False,
        full=tuple(int(one.full) for one in selections),
        kept=tuple(int(one.kept) for one in selections),
        tokens=int(tokens),
        answer_cells_kept=answer_cells_kept(sample, selections),
        arm=arm,
        keep=keep,
        encoded=tuple(int(cells) for one in selections for cells in one.encoded),
        late_tokens=late_tokens,
        metric=sample.facts.get("metric", "accuracy") if metric == "auto" else metric,
        people=tuple(sample.facts.get("human_answers", ())),
        objects=tuple(sample.facts.get("objects", ())),
    )
    return rejudged(made)


def answer_cells_kept(sample: Sample, selections: Sequence[Any]) -> float | None:
    """Share of the cells that carry the answer and were kept.

    None when the sample does not know its cells, when cells were merged or resized rather than
    chosen, or when the processor rescaled the image to another grid.
    """
    cells, grid = sample.facts.get("answer_cells"), sample.facts.get("grid")
    if not cells or grid is None or len(selections) != 1:
        return None
    (selection,) = selections
    if selection.keep_HW is None or tuple(selection.keep_HW.shape) != tuple(grid):
        return None
    kept_N = selection.keep_HW.flatten().tolist()
    return sum(bool(kept_N[cell]) for cell in cells) / len(cells)


def rejudged(prediction: Prediction, *, metric: str = "auto") -> Prediction:
    """The same answer, judged by the scoring rules as they are now, `auto` = by its own metric."""
    name = prediction.metric if metric == "auto" else metric
    worth = worth_of(prediction.prediction, to=prediction, metric=name)
    whole = name == "accuracy"
    return replace(
        prediction, metric=name, correct=worth >= 0.5, score=None if whole else worth
    )  # fmt: skip


def worth_of(text: str, *, to: Prediction, metric: str | None = None) -> float:
    """What `text` would be worth as an answer to the same question."""
    return score_answer(
        text, to.answers, kind=to.kind, metric=metric or to.metric, people=to.people
    )  # fmt: skip


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write one line per prediction; readers see the whole file or none of it."""
    write_atomically(path, "".join(one.as_json() + "\n" for one in predictions))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, NaN and infinities as null; readers see the whole file or none of it."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Read a predictions file; a torn last line (a killed writer) is dropped."""
    rows = path.read_text(encoding="utf-8").split("\n")
    complete = rows[:-1] if rows[-1] else rows
    return [Prediction.from_json(json.loads(row)) for row in complete if row.strip()]


def accuracy(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Mean worth of the answers with its 95 % interval and the sample count."""
    share = sum(p.value for p in predictions) / max(1, len(predictions))
    low, high = worth_interval(share, of=predictions)
    return {"accuracy": share, "low": low, "high": high, "samples": len(predictions)}


def worth_interval(mean: float, *, of: Sequence[Prediction]) -> tuple[float, float]:
    """95 % interval of the mean worth: Wilson's, or a normal one where worth is no share.

    With partial credit Wilson's is a little too wide: scores between 0 and 1 spread less than the
    coin flips it assumes.
    """
    if any(one.metric in UNBOUNDED for one in of):
        return normal_interval(mean, values=[one.value for one in of])
    return wilson_interval(mean * len(of), total=len(of))


def accuracy_by_kind(predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """`accuracy` of each question kind, in alphabetical order."""
    kinds: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        kinds[prediction.kind].append(prediction)
    return {kind: accuracy(kinds[kind]) for kind in sorted(kinds)}


def token_counts(predictions: Sequence[Prediction]) -> dict[str, float | None]:
    """Mean token counts per sample.

    Dropping happens before the language model, so the KV cache after prefill holds exactly the
    tokens that entered layer 0; both are stated because methods that drop later differ.
    """
    count = max(1, len(predictions))
    recalls = [p.answer_cells_kept for p in predictions if p.answer_cells_kept is not None]
    tokens = sum(p.tokens for p in predictions) / count
    return {
        "visual_tokens_full": sum(sum(p.full) for p in predictions) / count,
        "visual_tokens_kept": sum(sum(p.kept) for p in predictions) / count,
        "tokens_into_layer_0": tokens,
        "kv_tokens_after_prefill": tokens,
        "answer_cells_kept": sum(recalls) / len(recalls) if recalls else None,
    }
