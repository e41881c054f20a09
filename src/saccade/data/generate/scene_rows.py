"""Generated scenes as a source of samples: positions, groups, fingerprint, alike for all kinds.

The settings of a stream of scenes flow in; samples by position flow out. What is asked or told of
a scene is the subclass's. Left out: drawing.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from saccade.config.schema import ScenesSource
from saccade.data.samples import Sample

Source = TypeVar("Source", bound=ScenesSource)


class SceneRows(ABC, Generic[Source]):
    """Samples of one split's scenes; item i is sample i % Q of scene i // Q."""

    name: ClassVar[str]
    """First word of the fingerprint."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return self.source.scenes * self.source.questions

    def __getitem__(self, position: int) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        index, number = divmod(position, self.source.questions)
        return self.sample(index, number=number)

    @abstractmethod
    def sample(self, index: int, *, number: int) -> Sample:
        """Sample `number` of scene `index`."""

    def groups(self) -> list[list[int]]:
        """Positions of each scene's samples."""
        n = self.source.questions
        return [list(range(i * n, (i + 1) * n)) for i in range(self.source.scenes)]

    def fingerprint(self) -> str:
        """Equal for equal sources."""
        spec = self.source.model_dump_json()
        return f"{self.name}:" + hashlib.sha256(spec.encode()).hexdigest()[:16]
