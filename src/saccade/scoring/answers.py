"""Judge short text answers: one verdict per answer kind, for rewards and evaluation alike.

In go a model's text and the accepted answers, out comes right or wrong, a score under a named
metric, or what a blind guesser would reach. The published metrics live in `vqa.py`; the verdict
here is meant for people and departs from the VQA script: apostrophes are dropped instead of
repaired from a word list, a minus sign before a digit stays, number words reach twenty, every
comparison is normalised on both sides, and a text that would normalise to nothing ("a", "the") is
kept. Captions go to `captions.py`. Places are judged here only where they are text answers in
thousandths; pixels and boxes of screens are judged in `points.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from saccade.data.samples import Sample
from saccade.scoring.captions import CAPTION_METRICS, caption_score
from saccade.scoring.vqa import METRICS, agreement
from saccade.scoring.yes_no import yes_or_no

ARTICLES = {"a", "an", "the"}
COUNTED = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
NUMBER_WORDS = {word: str(value) for value, word in enumerate(COUNTED)} | {"none": "0"}

_APOSTROPHE = re.compile(r"['\u2019`\u00b4]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
_MINUS = re.compile(r"(?<![\w.])[-\u2212](?=\.?\d)")
_PUNCTUATION = re.compile(r"[;/\[\]\"{}()=+\\_\-<>@,?!:*&|~^$#\u2212\u2013\u2014\u201c\u201d]")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")
_PLACE_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_KEPT_MINUS = "\x00"


def normalise(text: str) -> str:
    """Lower case, no punctuation or articles, digits for number words, single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold().strip()
    bare = _APOSTROPHE.sub("", plain)
    bare = _THOUSANDS.sub("", bare)
    bare = _MINUS.sub(_KEPT_MINUS, bare)
    bare = _PUNCTUATION.sub(" ", _PERIOD.sub("", bare)).replace(_KEPT_MINUS, "-")
    words = [NUMBER_WORDS.get(word, word) for word in bare.split()]
    return " ".join(word for word in words if word not in ARTICLES) or " ".join(plain.split())


def is_correct(prediction: str, answers: Sequence[str], *, kind: str) -> bool:
    """Whether the prediction equals one of the accepted answers, by the rule of its kind."""
    rule = RULES.get(kind, _same_text)
    return bool(prediction.strip()) and any(rule(prediction, answer) for answer in answers)


def vqa_soft_accuracy(prediction: str, human_answers: Sequence[str]) -> float:
    """VQA accuracy (see `vqa.agreement`) with this module's own normaliser."""
    wanted = normalise(prediction)
    said = bool(prediction.strip())
    return agreement([said and normalise(answer) == wanted for answer in human_answers])


def score_answer(
    prediction: str,
    answers: Sequence[str],
    *,
    kind: str,
    metric: str = "accuracy",
    people: Sequence[str] = (),
) -> float:
    """What an answer is worth under `accuracy`, one of `vqa.METRICS` or a caption metric.

    `people` are all human answers, one per person; metrics that count them fall back to `answers`.
    CIDEr-D tells something only of many captions together and is 0 here.
    """
    if metric == "accuracy":
        return float(is_correct(prediction, answers, kind=kind))
    if metric in CAPTION_METRICS:
        return caption_score(metric, prediction, references=people or answers)
    counted = people if metric.startswith("vqa_") and people else answers
    return METRICS[metric](prediction, counted)


def majority_answers(samples: Iterable[Sample]) -> dict[str, str]:
    """The most common answer of each kind (the earliest one among equals)."""
    counts: dict[str, Counter[str]] = {}
    for sample in samples:
        counts.setdefault(sample.kind, Counter())[sample.answer] += 1
    return {kind: counter.most_common(1)[0][0] for kind, counter in counts.items()}


def majority_baseline(
    samples: Iterable[Sample], *, evaluation: Iterable[Sample] | None = None
) -> dict[str, float]:
    """Accuracy per kind of always giving the kind's most common answer in `samples`.

    Scored on `evaluation`, or on `samples` themselves. A kind that `samples` lack scores 0.
    """
    known = list(samples)
    guess = majority_answers(known)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for sample in known if evaluation is None else evaluation:
        asked[sample.kind] += 1
        right[sample.kind] += is_correct(
            guess.get(sample.kind, ""), sample.answers, kind=sample.kind
        )
    return {kind: right[kind] / asked[kind] for kind in asked}


def _same_text(prediction: str, answer: str) -> bool:
    return normalise(prediction) == normalise(answer)


def _same_number(prediction: str, answer: str) -> bool:
    """Equal as numbers where both are numbers ("3", "three", "3.0"), else equal as text."""
    left, right = normalise(prediction), normalise(answer)
    if _NUMBER.fullmatch(left) and _NUMBER.fullmatch(right):
        return float(left) == float(right)
    return left == right


def _same_reading(prediction: str, answer: str) -> bool:
    """Text read off an image: every letter counts, articles and number words included."""
    left, right = (
        " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'")
        for text in (prediction, answer)
    )
    return left == right


def _same_yes_no(prediction: str, answer: str) -> bool:
    """The first word decides, so that "yes, it is" counts as "yes"."""
    left, right = normalise(prediction).split(), normalise(answer).split()
    return left[:1] == right[:1]


def _same_place(prediction: str, answer: str) -> bool:
    """A point, or the middle of a box, inside the box that the answer is; else the same text."""
    said, meant = _PLACE_NUMBER.findall(prediction), _PLACE_NUMBER.findall(answer)
    if len(meant) != 4 or len(said) not in (2, 4):
        return _same_text(prediction, answer)
    x, y = ((float(said[i]) + float(said[i - 2])) / 2 for i in (0, 1))
    left, top, right, bottom = map(float, meant)
    return left <= x < right and top <= y < bottom


def _same_claim(prediction: str, answer: str) -> bool:
    """A "no" anywhere in the first sentence counts, as probing reads answers."""
    return yes_or_no(prediction) is yes_or_no(answer)


RULES: dict[str, Callable[[str, str], bool]] = {
    "digit": _same_number,
    "count": _same_number,
    "number": _same_number,
    "word": _same_reading,
    "ocr": _same_reading,
    "yes/no": _same_yes_no,
    "presence": _same_claim,
    "point": _same_place,
}
"""Rule by question kind; any other kind compares normalised text."""
