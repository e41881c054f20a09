"""Object hallucination in captions, in the manner of CHAIR: what is named that is not there?

In go captions, the objects that are really in each picture, and a vocabulary of objects
(`vocabularies.py`); out come the share of mentions that are wrong, the share of captions with a
wrong one, and the share of what is there that is mentioned (Rohrbach et al., 2018, "Object
Hallucination in Image Captioning"). Words outside the vocabulary do not count. Mentions are found
by words alone, longest name first ("hot dog" is no dog); plurals by English spelling rules.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from saccade.scoring.caption_text import Tokens, tokens
from saccade.scoring.vocabularies import Vocabulary


@dataclass(frozen=True)
class CaptionObjects:
    """One caption: every mention in order, and the mentions of what is not there."""

    mentioned: tuple[str, ...]
    hallucinated: tuple[str, ...]


@dataclass(frozen=True)
class Hallucination:
    """Rates over a set of captions, and what was found in each."""

    chair_i: float
    chair_s: float
    object_recall: float
    mentions: int
    samples: tuple[CaptionObjects, ...]


def chair(
    captions: Sequence[str], *, truths: Sequence[Collection[str]], vocabulary: Vocabulary
) -> Hallucination:
    """CHAIR_i, CHAIR_s and recall of objects. Raises ValueError without captions.

    CHAIR_i = mentions of absent objects / all mentions; CHAIR_s = captions with such a mention /
    captions; recall = objects present and mentioned / objects present. A share of nothing is 0.
    `truths` may use any name of an object that the vocabulary knows.
    """
    if not captions or len(captions) != len(truths):
        raise ValueError(f"{len(captions)} captions and objects for {len(truths)}")
    names = _Names(vocabulary)
    samples, present, found = [], 0, 0
    for caption, truth in zip(captions, truths, strict=True):
        real = {one for name in truth for one in names.mentions(name)}
        said = names.mentions(caption)
        samples.append(CaptionObjects(said, tuple(one for one in said if one not in real)))
        present += len(real)
        found += len(real & set(said))
    mentions = sum(len(one.mentioned) for one in samples)
    wrong = sum(len(one.hallucinated) for one in samples)
    return Hallucination(
        chair_i=wrong / mentions if mentions else 0.0,
        chair_s=sum(bool(one.hallucinated) for one in samples) / len(samples),
        object_recall=found / present if present else 0.0,
        mentions=mentions,
        samples=tuple(samples),
    )


def mentions(text: str, *, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Objects that a text names, in order, each as often as it is named."""
    return _Names(vocabulary).mentions(text)


class _Names:
    """A vocabulary turned round: from words to the object."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.object_of: dict[Tokens, str] = {}
        for name, others in vocabulary.items():
            for other in others:
                self.object_of.setdefault(tokens(other), name)
        # an object's own name is stronger than the same word among another's other names
        self.object_of.update({tokens(name): name for name in vocabulary})
        self.longest = max((len(words) for words in self.object_of), default=0)

    def mentions(self, text: str) -> tuple[str, ...]:
        words, found, place = tokens(text), [], 0
        while place < len(words):
            for length in range(self.longest, 0, -1):
                name = self._object(words[place : place + length])
                if name is not None:
                    found.append(name)
                    break
            else:
                length = 1
            place += length
        return tuple(found)

    def _object(self, words: Tokens) -> str | None:
        if not words:
            return None
        forms = (words[-1], *_singulars(words[-1]))
        known = (self.object_of.get((*words[:-1], form)) for form in forms)
        return next((name for name in known if name is not None), None)


@lru_cache(maxsize=4096)
def _singulars(word: str) -> tuple[str, ...]:
    """What a word may be the plural (or the possessive) of, likeliest first."""
    bare = word.removesuffix("'s").removesuffix("'")
    forms = [bare] if bare != word else []
    for ending, instead in (("ies", "y"), ("ves", "fe"), ("ves", "f"), ("es", ""), ("s", "")):
        if bare.endswith(ending) and len(bare) > len(ending) + 1:
            forms.append(bare.removesuffix(ending) + instead)
    return tuple(forms)
