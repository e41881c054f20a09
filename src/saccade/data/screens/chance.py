"""What clicking anywhere at random would score: the number every accuracy is to be read beside.

Samples flow in; the expected share of hits flows out, over all and by platform, element type and
application. A click uniform over the screenshot hits a target with the probability of its area, so
the mean area of the boxes is exact: nothing is drawn. Rows that know no box (a click point alone)
are counted and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from saccade.data.boxes import Box
from saccade.data.samples import Sample

KEYS = ("platform", "element", "application")


@dataclass(frozen=True)
class RandomClick:
    """Expected accuracy of a uniform click; `by` maps a fact to its values' own expectations."""

    accuracy: float
    rows: int
    without_box: int
    by: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class ClickChance:
    """Areas of the boxes seen so far, so that a source of any length streams through."""

    areas: list[float] = field(default_factory=list)
    groups: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    without_box: int = 0

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count one row by its facts."""
        box = facts.get("box")
        if box is None:
            self.without_box += 1
            return
        area = Box(*box).clamped().area
        self.areas.append(area)
        for key in KEYS:
            if facts.get(key) is not None:
                self.groups.setdefault((key, str(facts[key])), []).append(area)

    def total(self) -> RandomClick:
        """The expectation; accuracy 0 where no row has a box."""
        by: dict[str, dict[str, float]] = {}
        for (key, value), areas in sorted(self.groups.items()):
            by.setdefault(key, {})[value] = _mean(areas)
        return RandomClick(_mean(self.areas), len(self.areas), self.without_box, by)


def random_click(samples: Iterable[Sample]) -> RandomClick:
    """Mean box area over the samples that have a box."""
    chance = ClickChance()
    for sample in samples:
        chance.add(sample.facts)
    return chance.total()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
