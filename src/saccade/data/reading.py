"""Windows of a text or code stream as samples that the recipe `recursion` reads.

A `StreamSource` flows in; samples flow out whose facts hold the arrays of `generate/puzzles.py`:
input tokens, and as targets the tokens one ahead, nothing asked for past the end. `ahead` tells
recipes that targets are later inputs, so that only a causal model may learn from them. Splits are
by the content of a document, so that a document twice is in one split. Left out: the stream itself
(`streams.py`).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from saccade.config.errors import InputError
from saccade.config.streams import StreamSource
from saccade.data.generate.puzzles import IGNORED, INPUT, PUZZLE, TARGET, share_of
from saccade.data.samples import Sample
from saccade.data.streams import (
    FIRST_BYTE,
    PAD,
    VOCABULARY,
    Document,
    TokenWindows,
    code_documents,
    decode,
    text_documents,
)

HELD_OUT = 7
"""Of eight shares of the documents, the one that `test` gets."""


class StreamWindows:
    """Windows of a stream, in its order."""

    ahead = True
    """Targets are inputs of later positions."""
    vocabulary = VOCABULARY
    identities = 1

    def __init__(self, source: StreamSource) -> None:
        find = text_documents if source.content == "text" else code_documents
        documents = find(source.path)[: source.documents]
        self.kind, self.length = source.content, source.length
        self.documents = [one for one in documents if _belongs(one, split=source.split)]
        if not self.documents:
            raise InputError(
                f"{source.path}: none of {len(documents)} documents is in the split"
                f" `{source.split}`\n  fix: more documents, or split=all and another file"
            )
        self.windows = TokenWindows(self.documents, length=source.length)
        self.name = f"{source.path.stem}-{source.split}"

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: int) -> Sample:
        given, asked = self.windows[position]
        target = np.where(asked == PAD, IGNORED, asked.astype(np.int64))
        return Sample(
            id=f"{self.name}-{position}",
            question=decode(given).decode("utf-8", "replace"),
            answers=(decode(asked).decode("utf-8", "replace"),),
            kind=self.kind,
            facts={INPUT: given.astype(np.int64), TARGET: target, PUZZLE: 0},
        )

    def groups(self) -> list[list[int]]:
        """Every window for itself."""
        return [[position] for position in range(len(self))]

    def fingerprint(self) -> str:
        """Equal for equal documents and windows."""
        digest = hashlib.sha256(repr((self.kind, self.length)).encode())
        for document in self.documents:
            digest.update(hashlib.sha256(document.read()).digest())
        return f"stream:{digest.hexdigest()[:16]}"

    def counts(self) -> NDArray[np.int64]:
        """How often each token is in the stream."""
        total = np.zeros(VOCABULARY, dtype=np.int64)
        for document in self.documents:
            found = np.frombuffer(document.read(), dtype=np.uint8)
            total[FIRST_BYTE:] += np.bincount(found, minlength=256)
        total[1] += len(self.documents)  # the EOS of each
        return total


def _belongs(document: Document, *, split: str) -> bool:
    if split == "all":
        return True
    return (share_of(document.read()) == HELD_OUT) == (split == "test")
