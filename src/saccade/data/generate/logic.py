"""Questions of logic drawn on the fly: which of two things follows from a start by given rules?

A `LogicSource` flows in; samples flow out, each a pure function of (seed, split, position). A rule
"a b" says that b follows from a. One chain of rules leads from the start to the answer; another, of
equal length, leads to the wrong candidate from elsewhere, and the other rules lead on at random, so
neither counting nor the last rule alone tells. As in ProsQA (arXiv 2412.06769), but with symbols.
Left out: words.

Symbols: 0 nothing, 1 "?" before the start, 2 "or" between candidates, 3 ":" before the steps, 4 "="
before the answer, 5 a pause, then the things.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from saccade.config.errors import InputError
from saccade.config.thoughts import LogicSource
from saccade.data.generate.puzzles import SPLITS, belongs_to
from saccade.data.samples import Sample

ASK, OR, BEGIN, EQUALS, PAUSE, FIRST = 1, 2, 3, 4, 5, 6
QUESTION, STEPS = "tokens", "steps"
"""Facts of a sample: symbols of rules and question; the things of the chain, the answer last."""
STREAMS = {name: number for number, name in enumerate(SPLITS)}
TRIES = 1000
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class Question:
    """Rules as pairs, a start, the two candidates, and the chain from start to answer."""

    rules: tuple[tuple[int, int], ...]
    start: int
    candidates: tuple[int, int]
    chain: tuple[int, ...]


def follows(rules: tuple[tuple[int, int], ...], start: int) -> set[int]:
    """Everything that follows from a start."""
    found, waiting = {start}, [start]
    while waiting:
        here = waiting.pop()
        new = {b for a, b in rules if a == here} - found
        found |= new
        waiting += new
    return found


def draw_question(source: LogicSource, position: int) -> Question:
    """Question `position` of a stream."""
    rng = np.random.default_rng([source.seed, STREAMS[source.split], source.steps, position])
    for _ in range(TRIES):
        things = rng.permutation(source.things).tolist()
        n = source.steps
        chain, other = things[: n + 1], things[n + 1 : 2 * n + 2]
        rules = {*pairwise(chain), *pairwise(other)}
        while len(rules) < source.rules:
            a, b = rng.choice(source.things, size=2, replace=False).tolist()
            rules.add((a, b))
        order = rng.permutation(len(rules)).tolist()
        listed = sorted(rules)
        mixed = tuple(listed[i] for i in order)
        both = (chain[-1], other[-1])
        if other[-1] in follows(mixed, chain[0]) or not _only_way(mixed, chain):
            continue
        if belongs_to(bytes(one for rule in listed for one in rule), split=source.split):
            both = both if rng.random() < 0.5 else both[::-1]
            return Question(mixed, chain[0], both, tuple(chain[1:]))
    # all that was checked by the configuration is that there are so many rules
    raise InputError(
        f"{_key(source)}: no question in {TRIES} tries with things={source.things},"
        f" rules={source.rules}, steps={source.steps}: among so many rules the wrong candidate"
        " follows, too, or there is a shorter way\n  fix: about as many rules as things, or more"
        " things"
    )


def _key(source: LogicSource) -> str:
    return f"data.{'train' if source.split == 'train' else 'eval'}.rules"


def _only_way(rules: tuple[tuple[int, int], ...], chain: list[int]) -> bool:
    """Whether the chain is the shortest way, so that there is one to write down."""
    level, steps = {chain[0]}, 0
    while chain[-1] not in level:
        level, steps = {b for a, b in rules if a in level}, steps + 1
    return steps == len(chain) - 1


class LogicQuestions:
    """A stream of questions as samples."""

    def __init__(self, source: LogicSource) -> None:
        self.source = source

    @property
    def vocabulary(self) -> int:
        """Signs and things."""
        return FIRST + self.source.things

    def __len__(self) -> int:
        return self.source.samples

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        found = draw_question(self.source, position)
        tokens = [FIRST + one for rule in found.rules for one in rule]
        tokens += [ASK, FIRST + found.start, FIRST + found.candidates[0], OR]
        tokens += [FIRST + found.candidates[1]]
        return Sample(
            id=f"logic-{self.source.split}-{position}",
            question=_text(found),
            answers=(LETTERS[found.chain[-1]],),
            kind=f"steps{self.source.steps}",
            facts={
                QUESTION: np.array(tokens), STEPS: np.array([FIRST + one for one in found.chain]),
                "candidates": tuple(FIRST + one for one in found.candidates),
            },
        )  # fmt: skip

    def groups(self) -> list[list[int]]:
        """Every sample for itself."""
        return [[position] for position in range(len(self))]

    def fingerprint(self) -> str:
        """Equal for equal settings."""
        text = self.source.model_dump_json()
        return "logic:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _text(found: Question) -> str:
    rules = " ".join(LETTERS[a] + LETTERS[b] for a, b in found.rules)
    first, second = (LETTERS[one] for one in found.candidates)
    return f"{rules} ? {LETTERS[found.start]} {first} or {second}"
