"""Captions as tokens and n-grams, paired with their references.

Shared by the caption metrics (`captions.py`, `cider.py`). Tokens are runs of letters, digits and
apostrophes in lower case: punctuation is dropped, and contractions and possessives stay one token,
where COCO's tokeniser (Stanford PTB, a Java program) splits them ("jenny 's", "do n't").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = tuple[str, ...]

_TOKEN = re.compile(r"(?:[^\W_]|')+")
_APOSTROPHES = str.maketrans("\u2019\u02bc\u00b4`", "''''")


@dataclass(frozen=True)
class CaptionScores:
    """One metric: the score of the set and of each caption, in the order they were given."""

    corpus: float
    samples: tuple[float, ...]


def tokens(text: str) -> Tokens:
    """Lower-case runs of letters, digits and apostrophes: "Jenny's 2 dogs." -> jenny's 2 dogs."""
    plain = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    return tuple(_TOKEN.findall(plain.lower()))


def ngrams(words: Tokens, *, order: int) -> Counter[Tokens]:
    """Counts of the n-grams of one order."""
    return Counter(words[i : i + order] for i in range(len(words) - order + 1))


def paired(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterator[tuple[Tokens, list[Tokens]]]:
    """Each candidate beside its references, as tokens.

    Raises ValueError without candidates, or where one has no list of references.
    """
    if not candidates or len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions and references for {len(references)}")
    for number, (said, wanted) in enumerate(zip(candidates, references, strict=True)):
        if isinstance(wanted, str) or not wanted:
            raise ValueError(f"caption {number} needs a list of references")
        yield tokens(said), [tokens(one) for one in wanted]
