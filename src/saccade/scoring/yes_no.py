"""Yes/no probing in the manner of POPE: does a model say yes to things that are not there?

In go what a model said and what is true; out come accuracy, precision, recall, F1 and the rate of
yes, with "yes" as the positive class (Li et al., 2023, "Evaluating Object Hallucination in Large
Vision-Language Models"). Departure: POPE takes every answer without a "no" for a yes; here an
answer that says neither is neither, is wrong, and is counted apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_WORD = re.compile(r"[a-z']+")
_NO = {"no", "not", "none", "nope"}
_YES = {"yes", "yeah", "yep"}


@dataclass(frozen=True)
class YesNoScores:
    """Shares over all questions; precision is 0 where nothing was affirmed."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_rate: float
    unclear_rate: float
    questions: int

    def as_dict(self) -> dict[str, float]:
        """The scores by name, without the count."""
        return {name: value for name, value in asdict(self).items() if name != "questions"}


def yes_or_no(text: str) -> bool | None:
    """What a text says in its first sentence; None for neither.

    A "no", a "not" or an "n't" anywhere in it is a no, as in "there is not"; else a "yes" is a yes.
    """
    sentence = re.split(r"[.!?\n]", text.strip().lower().replace("\u2019", "'"), maxsplit=1)[0]
    words = _WORD.findall(sentence)
    if any(word in _NO or word.endswith("n't") for word in words):
        return False
    return True if any(word in _YES for word in words) else None


def yes_no_scores(predictions: Sequence[str], *, answers: Sequence[str]) -> YesNoScores:
    """Score texts against true answers ("yes" or "no"). Raises ValueError without any.

    accuracy = right / all; precision = true yes / said yes; recall = true yes / is yes;
    F1 = 2 P R / (P + R); yes rate = said yes / all.
    """
    if not predictions or len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} answers to {len(answers)} questions")
    said = [yes_or_no(text) for text in predictions]
    truth = [yes_or_no(answer) for answer in answers]
    count = len(said)
    both = sum(a is True and b is True for a, b in zip(said, truth, strict=True))
    affirmed, positive = said.count(True), truth.count(True)
    precision = both / affirmed if affirmed else 0.0
    recall = both / positive if positive else 0.0
    total = precision + recall
    return YesNoScores(
        accuracy=sum(a is b and a is not None for a, b in zip(said, truth, strict=True)) / count,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / total if total else 0.0,
        yes_rate=affirmed / count,
        unclear_rate=said.count(None) / count,
        questions=count,
    )
