"""CIDEr-D: consensus with the references, by n-grams weighed by how telling they are.

In go candidate captions with their references, and optionally document frequencies counted
elsewhere; out comes the score of the set and of every caption. It is what the COCO evaluation
reports under the name CIDEr: clipped counts, a Gaussian penalty on the difference of lengths,
times 10 (a perfect caption with telling words reaches 10). Papers print it times 100.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saccade.scoring.caption_text import CaptionScores, Tokens, ngrams, paired

ORDERS = (1, 2, 3, 4)
SIGMA = 6.0
"""Width in words of the penalty on the difference of lengths."""


@dataclass(frozen=True)
class Frequencies:
    """In how many images' references each n-gram occurs, and how many images there are.

    Counted once over a training set they make the score of a caption independent of which others
    are scored with it, as a reward needs.
    """

    images: int
    counts: Mapping[Tokens, int]

    def weight(self, ngram: Tokens) -> float:
        """Inverse document frequency: log(images / max(1, images that have it))."""
        return math.log(self.images) - math.log(max(1, self.counts.get(ngram, 0)))


@dataclass(frozen=True)
class _Vector:
    """A caption as weighed n-grams of one order, with its Euclidean norm."""

    weights: Mapping[Tokens, float]
    norm: float


def count_frequencies(references: Sequence[Sequence[Tokens]]) -> Frequencies:
    """Count n-grams over images; an n-gram counts once per image however many references say it."""
    counts: Counter[Tokens] = Counter()
    for wanted in references:
        counts.update({g for one in wanted for order in ORDERS for g in ngrams(one, order=order)})
    return Frequencies(images=len(references), counts=counts)


def cider_d(
    candidates: Sequence[str],
    *,
    references: Sequence[Sequence[str]],
    frequencies: Frequencies | None = None,
) -> CaptionScores:
    """CIDEr-D (Vedantam et al., 2015), with document frequencies of these references by default.

    10 * mean over orders and references of exp(-d^2 / (2 * 6^2)) * sum over n-grams of
    min(g(c), g(r)) * g(r) / (|g(c)| |g(r)|), where g weighs an n-gram's count by its inverse
    document frequency and d is the difference of lengths. The set's score is the mean.
    """
    pairs = list(paired(candidates, references))
    known = frequencies or count_frequencies([wanted for _, wanted in pairs])
    scores = [_consensus(said, wanted, frequencies=known) for said, wanted in pairs]
    return CaptionScores(sum(scores) / len(scores), tuple(scores))


def _consensus(said: Tokens, wanted: Sequence[Tokens], *, frequencies: Frequencies) -> float:
    ours = [_vector(said, order=order, frequencies=frequencies) for order in ORDERS]
    total = 0.0
    for one in wanted:
        # the reference measures lengths in bigrams, which matters for an empty caption only
        gap = max(0, len(said) - 1) - max(0, len(one) - 1)
        theirs = [_vector(one, order=order, frequencies=frequencies) for order in ORDERS]
        alike = sum(_likeness(a, b) for a, b in zip(ours, theirs, strict=True)) / len(ORDERS)
        total += alike * math.exp(-(gap**2) / (2 * SIGMA**2))
    return 10.0 * total / len(wanted)


def _vector(words: Tokens, *, order: int, frequencies: Frequencies) -> _Vector:
    weights = {
        ngram: count * frequencies.weight(ngram)
        for ngram, count in ngrams(words, order=order).items()
    }
    return _Vector(weights, math.sqrt(sum(weight**2 for weight in weights.values())))


def _likeness(ours: _Vector, theirs: _Vector) -> float:
    """Cosine with our weights clipped to theirs, so that repeating a word gains nothing."""
    shared = sum(
        min(weight, theirs.weights[ngram]) * theirs.weights[ngram]
        for ngram, weight in ours.weights.items()
        if ngram in theirs.weights
    )
    lengths = ours.norm * theirs.norm
    return shared / lengths if lengths else 0.0
