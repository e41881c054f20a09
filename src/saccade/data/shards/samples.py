"""What a shard holds of one sample before it is encoded, and the symbols of its targets.

A `ShardSample` has a picture to be drawn when asked, the exact symbols of what the picture shows,
and the symbols that are to be predicted from it: the output grid, the text after the page, the
caption. One alphabet serves all kinds: 0 PAD, 1 EOS, 2..11 the colours of grids, from 12 on the 256
bytes. A sample without targets does not exist: a source that has none refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.data import streams
from saccade.data.grids import canvas
from saccade.data.shards.held_out import Contents

FIRST_BYTE = canvas.VOCABULARY
VOCABULARY = FIRST_BYTE + 256
Tokens = NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class ShardSample:
    """A picture, what it shows and what is asked, the latter two as symbols."""

    id: str
    draw: Callable[[], Image.Image]
    inputs: Tokens
    targets: Tokens


class ShardSamples(Protocol):
    """Samples by position, each a function of it alone; `kind` names them in reports."""

    kind: str

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> ShardSample: ...

    @property
    def widths(self) -> tuple[int, int]:
        """Most symbols of an input and of a target."""
        ...

    def contents(self) -> Contents:
        """A number per sample, equal for samples of one task, document or picture."""
        ...

    def fingerprint(self) -> str:
        """Equal for equal samples."""
        ...


def grid_tokens(tokens: NDArray[np.integer]) -> Tokens:
    """Symbols of a canvas as symbols of a shard (they are the same)."""
    return np.asarray(tokens, dtype=np.int16)


def byte_tokens(content: bytes, *, limit: int) -> Tokens:
    """Bytes as symbols, at most `limit`; EOS follows where room is left."""
    plain = streams.encode(content[:limit]) - streams.FIRST_BYTE + FIRST_BYTE
    return np.append(plain, np.int16(canvas.EOS)) if len(plain) < limit else plain


def pad(tokens: Tokens, *, width: int) -> Tokens:
    """Fill up with PAD."""
    padded = np.zeros(width, dtype=np.int16)
    padded[: len(tokens)] = tokens
    return padded
