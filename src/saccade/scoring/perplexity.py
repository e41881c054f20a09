"""How well a model predicts text: perplexity, nats and bits per token and per byte.

Negative log-probabilities of asked tokens flow in, readings flow out. With T tokens that are asked
for, N bytes among them and the sum S = -sum log p(token | tokens before it) in nats:

    nats per token   S / T
    bits per token   S / (T ln 2)
    bits per byte    S / (N ln 2)
    perplexity       exp(S / T)

Perplexity: Jelinek et al. 1977; bits per byte: Gao et al. 2020 (arXiv 2101.00027), which does not
depend on how text is cut into tokens. Positions that are not asked for (padding, masks) count in
neither S nor T; an end mark counts as a token and holds no byte. Baselines: all tokens alike, and a
unigram model, p = (count + 1) / (tokens + vocabulary) of the training text. Left out: the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = -100


@dataclass(frozen=True)
class Surprise:
    """What some text cost: nats in all, over so many tokens that hold so many bytes."""

    nats: float
    tokens: int
    bytes: int

    def __add__(self, other: Surprise) -> Surprise:
        return Surprise(
            self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes
        )

    def readings(self) -> dict[str, float]:
        """All readings by name; infinite where a token had no probability."""
        each = self.nats / self.tokens if self.tokens else math.nan
        return {
            "perplexity": math.exp(each) if each < 700 else math.inf,
            "nats_per_token": each,
            "bits_per_token": each / math.log(2),
            "bits_per_byte": self.nats / (self.bytes * math.log(2)) if self.bytes else math.nan,
        }


def added(parts: Iterable[Surprise]) -> Surprise:
    """Several texts as one."""
    return sum(parts, Surprise(0.0, 0, 0))


def surprise(
    nats: NDArray[np.floating], targets: NDArray[np.integer], *, first_byte: int
) -> Surprise:
    """Of negative log-probabilities at every position, those that were asked for."""
    asked = targets != IGNORED
    return Surprise(
        float(np.asarray(nats, dtype=np.float64)[asked].sum()), int(asked.sum()),
        int((targets >= first_byte).sum()),
    )  # fmt: skip


def unigram_nats(counts: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float64]:
    """Negative log-probability of every token, by how often it was seen, one added to each."""
    seen = np.asarray(counts, dtype=np.float64) + 1
    return -np.log(seen / seen.sum())


def unigram_surprise(
    token_nats: NDArray[np.float64], targets: NDArray[np.integer], *, first_byte: int
) -> Surprise:
    """What the asked tokens cost a model that does not look at those before them."""
    nats = token_nats[np.where(targets == IGNORED, 0, targets)]
    return surprise(nats, targets, first_byte=first_byte)
