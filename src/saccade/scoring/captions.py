"""Caption metrics against several references: BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D.

In go candidate captions and, for each, its references; out comes the score of the whole set and of
every caption in it. Given equal tokens the numbers are those of the COCO caption evaluation
(pycocoevalcap), quirks included; `caption_text.py` says what a token is and how COCO's differ.
CIDEr-D is in its own file. Left out: METEOR and SPICE, which need Java and word nets.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saccade.scoring.caption_text import CaptionScores, Tokens, ngrams, paired
from saccade.scoring.cider import cider_d

_SMALL, _TINY = 1e-9, 1e-15
"""What the reference adds to denominators and numerators, so that nothing divides by zero."""
ROUGE_BETA = 1.2


def bleu(
    candidates: Sequence[str], *, references: Sequence[Sequence[str]], order: int = 4
) -> CaptionScores:
    """BLEU of the given order, with the closest reference length (Papineni et al., 2002).

    (prod over n <= order of matched n-grams / n-grams) ** (1 / order), times exp(1 - r / c) where
    the candidates' length c is below the closest references' length r. The set's score pools
    counts and lengths over all captions; it is not the mean of the captions' scores.
    """
    pairs = paired(candidates, references)
    counted = [_overlap(said, wanted, order=order) for said, wanted in pairs]
    together = _Overlap(
        matched=tuple(sum(one.matched[n] for one in counted) for n in range(order)),
        possible=tuple(sum(one.possible[n] for one in counted) for n in range(order)),
        length=sum(one.length for one in counted),
        reference_length=sum(one.reference_length for one in counted),
    )
    return CaptionScores(_bleu_of(together), tuple(_bleu_of(one) for one in counted))


def rouge_l(candidates: Sequence[str], *, references: Sequence[Sequence[str]]) -> CaptionScores:
    """ROUGE-L: F-measure of the longest common subsequence, beta 1.2 (Lin, 2004).

    (1 + b^2) P R / (R + b^2 P), where precision P and recall R are each the best over references,
    not necessarily the same one. The set's score is the mean.
    """
    scores = []
    for said, wanted in paired(candidates, references):
        common = [common_length(said, one) for one in wanted]
        precision = max(common) / max(1, len(said))
        recall = max(c / max(1, len(one)) for c, one in zip(common, wanted, strict=True))
        square = ROUGE_BETA**2
        both = recall + square * precision
        scores.append((1 + square) * precision * recall / both if both else 0.0)
    return CaptionScores(sum(scores) / len(scores), tuple(scores))


def caption_scores(
    candidates: Sequence[str], *, references: Sequence[Sequence[str]]
) -> dict[str, CaptionScores]:
    """Every caption metric by name. Raises ValueError as `caption_text.paired` does."""
    return {
        name: metric(candidates, references=references) for name, metric in CAPTION_METRICS.items()
    }


def caption_score(metric: str, candidate: str, *, references: Sequence[str]) -> float:
    """One caption's score as a set of its own.

    CIDEr-D weighs n-grams by how few images' references have them, so a set of one scores 0.
    """
    return CAPTION_METRICS[metric]([candidate], references=[references]).samples[0]


def common_length(left: Tokens, right: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


@dataclass(frozen=True)
class _Overlap:
    """What BLEU needs to know about one caption or many."""

    matched: tuple[int, ...]
    possible: tuple[int, ...]
    length: int
    reference_length: int


def _overlap(said: Tokens, wanted: list[Tokens], *, order: int) -> _Overlap:
    """N-grams of a caption that its references have, each at most as often as one reference."""
    matched = []
    for n in range(1, order + 1):
        most: Counter[Tokens] = Counter()
        for one in wanted:
            most |= ngrams(one, order=n)
        matched.append((ngrams(said, order=n) & most).total())
    closest = min(wanted, key=lambda one: (abs(len(one) - len(said)), len(one)))
    possible = tuple(max(0, len(said) - n) for n in range(order))
    return _Overlap(tuple(matched), possible, len(said), len(closest))


def _bleu_of(overlap: _Overlap) -> float:
    product = 1.0
    for matched, possible in zip(overlap.matched, overlap.possible, strict=True):
        product *= (matched + _TINY) / (possible + _SMALL)
    ratio = (overlap.length + _TINY) / (overlap.reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return product ** (1 / len(overlap.matched)) * brevity


CAPTION_METRICS: dict[str, Callable[..., CaptionScores]] = {
    "cider": cider_d,
    **{f"bleu{order}": functools.partial(bleu, order=order) for order in (1, 2, 3, 4)},
    "rouge_l": rouge_l,
}
"""Scores of (candidates, references=...) by the name they are reported under."""

UNBOUNDED = ("cider",)
"""Metrics that are no share: CIDEr-D reaches 10."""
