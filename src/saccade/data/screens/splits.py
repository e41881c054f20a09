"""Which of train, validation and test a screenshot belongs to: a function of its pixels alone.

A picture flows in, the name of a split flows out. Every row that shows the same picture is in the
same split, whatever its file is called and however it was compressed without loss, and adding rows
or sources moves nothing. Left out: what is done with the rows (`prepare.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from PIL import Image

from saccade.config.errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, Split, Split] = ("train", "validation", "test")


@dataclass(frozen=True)
class Shares:
    """Parts of the screenshots, in any unit: 75, 5, 20 are per cent."""

    train: float = 75.0
    validation: float = 5.0
    test: float = 20.0

    @classmethod
    def read(cls, text: str) -> Shares:
        """`75/5/20`; raises InputError for anything that is not three parts."""
        try:
            parts = [float(part) for part in text.split("/")]
        except ValueError:
            parts = []
        if len(parts) != 3 or min(parts) < 0 or not 0 < sum(parts) < float("inf"):
            raise InputError(
                f"--shares {text}: three numbers for train, validation and test are needed"
                "\n  fix: for example --shares 75/5/20"
            )
        return cls(*parts)

    def counts(self, total: int) -> dict[Split, int]:
        """`total` things shared out; the counts add up to it."""
        ends = list(accumulate((self.train, self.validation, self.test)))
        edges = [0, *(round(total * end / ends[-1]) for end in ends)]
        return {name: edges[k + 1] - edges[k] for k, name in enumerate(SPLITS)}

    def __str__(self) -> str:
        return f"{self.train:g}/{self.validation:g}/{self.test:g}"


def pixels_hash(picture: Image.Image) -> str:
    """SHA-256 of size and 8-bit RGB pixels, equal for equal pictures in different files."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    digest.update(picture.convert("RGB").tobytes())
    return digest.hexdigest()


def split_of(pixels: str, *, shares: Shares) -> Split:
    """The split of a screenshot with this hash (hexadecimal digits)."""
    place = int(pixels[:13], 16) / 16**13 * (shares.train + shares.validation + shares.test)
    if place < shares.train:
        return "train"
    return "validation" if place < shares.train + shares.validation else "test"
