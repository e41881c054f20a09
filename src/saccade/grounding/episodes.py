"""One attempt at one instruction, and the row that keeps it.

A `Sample` of kind `point` becomes a `Task` (pixels decoded, target checked); a rollout fills an
`Episode`; `outcome_of` is what rewards see of it; `row_of` is the JSON object that `episodes.jsonl`
and `predictions.jsonl` keep of it (`ROW_FIELDS`). A row holds what the policy wrote and where each
picture lay, so `answer_of_row` and `verdict_of_row` judge it again without a model or pixels. Left
out: how episodes are made (`rollouts.py`) and what is drawn of them (`microscope/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from saccade.config.grounding import GroundingConfig
from saccade.data.boxes import Box, Size
from saccade.data.images import load_image
from saccade.data.samples import DataError, Sample
from saccade.grounding.coordinates import Convention, CoordinateError
from saccade.grounding.environment import (
    Answer,
    Fit,
    Screen,
    ToolCall,
    View,
    most_calls,
    place_on,
)
from saccade.grounding.messages import Turn, read_turn
from saccade.grounding.rewards import Outcome, Rewarded
from saccade.scoring.points import PointVerdict, judge_near, judge_point

if TYPE_CHECKING:
    import torch

Finish = Literal["answered", "unreadable", "truncated", "too many turns"]
Look = Literal["free", "never", "always"]

BUCKETS = (4.0, 8.0, 16.0, 32.0)
"""Upper ends of the target sizes that reports tell apart, in pixels of the first look."""
SURE, UNSURE = 0.75, 0.25
"""Confidence from which a wrong answer is over-confident, up to which a right one is under-."""


@dataclass(frozen=True)
class Task:
    """What is asked of which picture. `image` is the finished page and `tree` its elements;
    `loading` and `loading_tree` are both before that, where it still loads. `point` is the target
    of rows that have no box. `kept` is set where the image is itself a crop, shown as it is: the
    part of the page that it shows."""

    sample: Sample
    image: Image.Image
    instruction: str
    box: Box | None
    tree: tuple[Mapping[str, Any], ...] = ()
    loading: Image.Image | None = None
    loading_tree: tuple[Mapping[str, Any], ...] = ()
    point: tuple[float, float] | None = None
    kept: Box | None = None


@dataclass
class Episode:
    """One attempt. `ids` are all tokens after the prompt, written and given; `written` (bool),
    `log_probs` and `entropies` (float) are 1-D of the same length: which tokens the policy sampled
    (end marks included), and under which distribution at temperature 1 (0 for given tokens)."""

    task: Task
    index: int
    seed: int
    turns: list[str]
    ids: torch.Tensor
    written: torch.Tensor
    log_probs: torch.Tensor
    entropies: torch.Tensor
    screen: Screen
    answer: Answer | None
    finish: Finish
    forced: Look = "free"


@dataclass(frozen=True)
class Facts:
    """What a row says beside the episode itself: where it belongs and what it earned.

    `before` is the probability of the first answer the policy would have given without a look and
    `hit_before` whether that was right; None where nobody asked. `after` is the confidence in the
    answer it gave, `calibrated` the same after calibration, `dispersion` what sampled answers say.
    `visual_tokens` are those of all pictures; who knows the model counts them.
    """

    run: str
    step: int
    split: str
    rewarded: Rewarded | None = None
    advantage: float | None = None
    masked: bool = False
    before: float | None = None
    hit_before: bool | None = None
    after: float | None = None
    calibrated: float | None = None
    dispersion: float | None = None
    visual_tokens: int | None = None
    gate: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def tasks_of(samples: Sequence[Sample]) -> list[Task]:
    """`task_of` each sample; neighbours that show the same file are decoded once and share it."""
    tasks: list[Task] = []
    for sample in samples:
        last = tasks[-1] if tasks else None
        same = last is not None and last.sample.images == sample.images
        tasks.append(task_of(sample, image=last.image if last is not None and same else None))
    return tasks


def task_of(sample: Sample, *, image: Image.Image | None = None) -> Task:
    """Decode a sample of kind `point` and check its target; `image` is its picture, if known.

    Raises DataError for a picture that cannot be decoded, a target outside the picture, and a row
    without target.
    """
    facts = sample.facts
    if len(sample.images) != 1:
        raise DataError(f"{len(sample.images)} pictures instead of one", where=sample.id)
    box, point = facts.get("box"), facts.get("point")
    if box is not None:
        left, top, right, bottom = box
        # files round: a box may stick out by a rounding error
        inside = -1e-6 <= left < right <= 1 + 1e-6 and -1e-6 <= top < bottom <= 1 + 1e-6
        if not inside:
            raise DataError(
                f"the box {tuple(round(edge, 4) for edge in box)} does not lie in the picture",
                where=sample.id,
                fix="boxes are (left, top, right, bottom); check the convention and the size",
            )
    elif point is None or not all(0 <= share <= 1 for share in point):
        raise DataError(f"no box, and no point in the picture ({point})", where=sample.id)
    loading = facts.get("loading")
    return Task(
        sample=sample,
        image=load_image(sample.images[0], where=sample.id) if image is None else image,
        instruction=sample.question,
        box=Box(*box) if box is not None else None,
        tree=tuple(facts.get("tree") or ()),
        loading=None if loading is None else load_image(loading, where=sample.id),
        loading_tree=tuple(facts.get("loading_tree") or ()),
        point=None if point is None else (float(point[0]), float(point[1])),
    )


def screen_of(
    task: Task,
    *,
    config: GroundingConfig,
    convention: Convention,
    fit: Fit,
    fit_zoom: Fit | None = None,
) -> Screen:
    """A fresh environment for a task; a page that still loads is first seen as it loads."""
    first = task.image if task.loading is None else task.loading
    loaded = None if task.loading is None else task.image
    return Screen(
        first, config, convention, fit, task.tree, loaded, fit_zoom, loading_tree=task.loading_tree
    )


def judge_task(task: Task, answer: Answer) -> PointVerdict:
    """The verdict on an answer: in the box, or near the point where a row has only that."""
    if task.box is not None:
        return judge_point(point=answer.point, box=task.box, predicted_box=answer.box)
    if task.point is None:
        raise DataError("no target", where=task.sample.id)
    return judge_near(point=answer.point, target=task.point)


def verdict_of(episode: Episode) -> PointVerdict | None:
    """The verdict on an episode; None where it has no answer."""
    return None if episode.answer is None else judge_task(episode.task, episode.answer)


def mean_log_prob(episode: Episode, *, last: bool = True) -> float:
    """Mean log-probability of the tokens the policy wrote: of its last turn, or of all (NaN: none).

    The last turn is the last unbroken run of written tokens.
    """
    written = [bool(one) for one in episode.written.tolist()]
    places = [i for i, one in enumerate(written) if one]
    if last and places:
        start = places[-1]
        while start > 0 and written[start - 1]:
            start -= 1
        places = [i for i in places if i >= start]
    if not places:
        return math.nan
    values = episode.log_probs.tolist()
    return sum(values[i] for i in places) / len(places)


def outcome_of(
    episode: Episode,
    *,
    config: GroundingConfig,
    confidence: float | None = None,
) -> Outcome:
    """What the rewards look at. `confidence` defaults to the answer's mean token probability, or to
    the stated one where the configuration says so. Whether a row needs a zoom is its own fact."""
    answered = episode.finish == "answered" and episode.answer is not None
    if config.reward.stated:
        confidence = episode.answer.stated if episode.answer else None
    elif confidence is None and answered:
        confidence = math.exp(mean_log_prob(episode))
    return Outcome(
        answer=episode.answer if answered else None,
        box=episode.task.box,
        point=episode.task.point,
        size=episode.task.image.size,
        calls=len(episode.screen.calls),
        zooms=episode.screen.zooms,
        most_calls=most_calls(config),
        confidence=confidence,
        needs_zoom=episode.task.sample.facts.get("needs_zoom"),
    )


def target_side(box: Box | None, *, size: Size) -> float | None:
    """Root of the target's area in pixels of a look of `size`; None without a box."""
    return None if box is None else math.sqrt(box.area * size[0] * size[1])


def bucket_of(side: float | None) -> str:
    """Name of the size bucket of a target: `<4`, `4-8`, ... , `32+`; `unknown` without a box."""
    if side is None:
        return "unknown"
    for low, high in zip((0.0, *BUCKETS), BUCKETS, strict=False):
        if side < high:
            return f"{low:g}-{high:g}" if low else f"<{high:g}"
    return f"{BUCKETS[-1]:g}+"


def row_of(episode: Episode, *, facts: Facts, convention: Convention) -> dict[str, Any]:
    """The JSON object that is kept of an episode; its keys are `ROW_FIELDS`."""
    task, screen = episode.task, episode.screen
    read = [read_turn(text) for text in episode.turns]
    verdict = verdict_of(episode) if episode.finish == "answered" else None
    first = screen.views[0]
    side = target_side(task.box, size=first.size)
    row = {
        "v": 1, "run": facts.run, "step": facts.step, "split": facts.split,
        "id": task.sample.id, "image_id": task.sample.image_key or task.sample.id,
        "index": episode.index, "seed": episode.seed, "instruction": task.instruction,
        "platform": task.sample.facts.get("platform"),
        "element": task.sample.facts.get("element"),
        "target_box": task.box, "target_point": task.point,
        "target_side": side, "bucket": bucket_of(side),
        "forced": episode.forced, "gate": facts.gate, "turns": list(episode.turns),
        "reasoning": [turn.reasoning for turn in read],
        "convention": convention.name, "parse": _parse_status(read, episode=episode),
        "image_size": task.image.size,
        "views": [_view(view, screen.image) for view in screen.views],
        "calls": [_call(call) for call in screen.calls], "pixels": screen.pixels,
        "zooms": screen.zooms, "failed_calls": sum(not call.ok for call in screen.calls),
        "finish": episode.finish, "masked": facts.masked,
        "point": episode.answer.point if episode.answer else None,
        "box": episode.answer.box if episode.answer else None,
        "hit": verdict.hit if verdict else False, "iou": verdict.iou if verdict else None,
        "distance": verdict.distance if verdict else None,
        **_tokens(episode, visual=facts.visual_tokens),
        "log_prob": mean_log_prob(episode, last=False),
        "answer_log_prob": mean_log_prob(episode),
        "confidence_before": facts.before, "hit_before": facts.hit_before,
        "confidence": facts.after,
        "stated": episode.answer.stated if episode.answer else None,
        "calibrated": facts.calibrated, "dispersion": facts.dispersion,
        "needs_zoom": task.sample.facts.get("needs_zoom"),
        "reward": dict(facts.rewarded.parts) if facts.rewarded else None,
        "total": facts.rewarded.total if facts.rewarded else None, "advantage": facts.advantage,
    }  # fmt: skip
    row["effect"] = effect_of(row)
    row["contradictions"] = contradictions_of(row)
    return _plain({**row, **facts.extra})


def before_look(first: Episode | None, *, config: GroundingConfig) -> dict[str, Any]:
    """The `Facts` that an answer without a look gives about the episodes of its question."""
    if first is None:
        return {}
    verdict = verdict_of(first)
    sure = outcome_of(first, config=config).confidence
    return {"before": sure, "hit_before": verdict is not None and verdict.hit}


def effect_of(row: Mapping[str, Any]) -> str:
    """What looking again changed: `helped`, `harmed`, `stayed right`, `stayed wrong`; `no look`;
    `unknown` where the answer before is not known."""
    if not row["zooms"]:
        return "no look"
    if row["hit_before"] is None:
        return "unknown"
    now = {True: ("stayed right", "helped"), False: ("harmed", "stayed wrong")}
    return now[bool(row["hit"])][0 if row["hit_before"] else 1]


def contradictions_of(row: Mapping[str, Any]) -> list[str]:
    """Where decision, confidence and result do not go together."""
    hit, looked, sure = bool(row["hit"]), row["zooms"] > 0, row["confidence"]
    said = " ".join(row["reasoning"]).lower()
    wants_look = "zoom" in said or "look again" in said
    found = {
        "unnecessary look": looked and (row["hit_before"] is True or row["needs_zoom"] is False),
        "missed look": not looked and not hit and row["needs_zoom"] is True,
        "useless look": looked and not hit,
        "over-confident": sure is not None and not hit and sure >= SURE,
        "under-confident": sure is not None and hit and sure <= UNSURE,
        "said look, did not": wants_look and not row["calls"],
    }
    return [name for name, holds in found.items() if holds]


def answer_of_row(row: Mapping[str, Any]) -> Answer | None:
    """Read the answer of a kept row again, from the text of its last turn and its last picture.

    None where the episode has no readable answer. Raises DataError for a row that lacks a field.
    """
    check_row(row)
    if row["finish"] != "answered" or not row["turns"] or not row["views"]:
        return None
    turn = read_turn(row["turns"][-1])
    if turn.numbers is None:
        return None
    view = row["views"][-1]
    try:
        return place_on(
            Box(*view["box"]),
            turn.numbers,
            size=(view["size"][0], view["size"][1]),
            convention=Convention(row["convention"]),
            stated=turn.stated_confidence,
        )
    except CoordinateError:
        return None


def verdict_of_row(row: Mapping[str, Any]) -> PointVerdict | None:
    """Judge a kept row again, without model and pixels; None where it has no readable answer."""
    answer = answer_of_row(row)
    if answer is None:
        return None
    if row["target_box"] is not None:
        target = Box(*row["target_box"])
        return judge_point(point=answer.point, box=target, predicted_box=answer.box)
    return judge_near(point=answer.point, target=row["target_point"])


def check_row(row: Mapping[str, Any]) -> None:
    """Raises DataError where a row lacks a field of `ROW_FIELDS`."""
    missing = [name for name in ROW_FIELDS if name not in row]
    if missing:
        raise DataError(
            f"the row lacks {', '.join(missing[:5])}",
            where=str(row.get("id", "a row")),
            fix="it is not a grounding row of this version; evaluate the run again",
        )


ROW_FIELDS = (
    "v", "run", "step", "split", "id", "image_id", "index", "seed", "instruction", "platform",
    "element", "target_box", "target_point", "target_side", "bucket", "forced", "gate", "turns",
    "reasoning", "convention", "parse", "image_size", "views", "calls", "pixels", "zooms",
    "failed_calls", "finish", "masked", "point", "box", "hit", "iou", "distance", "tokens_written",
    "tokens_given", "tokens_visual", "log_prob", "answer_log_prob", "confidence_before",
    "hit_before", "confidence", "stated", "calibrated", "dispersion", "needs_zoom", "reward",
    "total", "advantage", "effect", "contradictions",
)  # fmt: skip
"""Keys of a row, in order. Boxes and points are shares of the screenshot's sides."""


def _parse_status(read: Sequence[Turn], *, episode: Episode) -> str:
    """`ok`, or why the last turn is no answer."""
    if not read:
        return "nothing written"
    if read[-1].kind != "answer":
        return read[-1].problem or "a call, no answer"
    return "ok" if episode.answer else "outside the convention"


def _view(view: View, page: Image.Image) -> dict[str, Any]:
    left, top, right, bottom = view.box.pixels(page.size)
    return {
        "box": view.box,
        "size": view.size,
        "offset": (left, top),
        "scale": (view.size[0] / (right - left), view.size[1] / (bottom - top)),
        "pixels": view.pixels,
        "loading": view.loading,
    }


def _call(call: ToolCall) -> dict[str, Any]:
    return {
        "name": call.name, "arguments": call.arguments, "ok": call.ok, "problem": call.problem,
        "box": call.view.box if call.view else None, "pixels": call.pixels, "text": call.text,
    }  # fmt: skip


def _tokens(episode: Episode, *, visual: int | None) -> dict[str, int | None]:
    written = int(episode.written.sum())
    given = len(episode.written) - written
    return {"tokens_written": written, "tokens_given": given, "tokens_visual": visual}


def _plain(value: Any) -> Any:
    """What JSON can hold; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
