"""The one record that data sources produce and everything else consumes.

A `Sample` is a question, its answer and zero or more images, still as pixels on disk or in
memory; tokens exist only after `chat.py`. Facts for measuring (question kind, the cells that
carry the answer) ride in `facts` and never reach a model's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.config.errors import InputError

ImageRef = Path | bytes | Image.Image | Callable[[], Image.Image]
"""Where pixels come from: a file, encoded bytes, an open image, or a function that draws them."""


@dataclass(frozen=True)
class Sample:
    """One question about zero or more images.

    `turns` holds earlier (question, answer) pairs of a conversation; `image_turns` says in which
    turn each image is shown (0 is the earliest; empty: all at the start). `image_key` is equal for
    samples that show the same images (batches are grouped by it). `answers` are all accepted
    answers; the first one is trained on.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    images: tuple[ImageRef, ...] = ()
    kind: str = "question"
    image_key: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    image_turns: tuple[int, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = self.image_turns
        if places and (len(places) != len(self.images) or list(places) != sorted(places)):
            raise ValueError("image_turns names one turn per image, in the order of the turns")

    @property
    def answer(self) -> str:
        return self.answers[0] if self.answers else ""


class DataError(InputError):
    """A broken row or file: `where` names source, row and id, `fix` says what to do."""

    def __init__(self, message: str, *, where: str, fix: str = "") -> None:
        super().__init__(f"{where}: {message}" + (f"\n  fix: {fix}" if fix else ""))
        self.where = where
        self.problem = message
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # an exception is sent between processes by its arguments, and these are named
        return partial(DataError, where=self.where, fix=self.fix), (self.problem,)
