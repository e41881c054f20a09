"""What a data set looks like in numbers: kinds, answers, image sizes, visual tokens.

Rows are added one by one, so a data set of any length streams through; `to_json` gives the
summary. The visual tokens of an image follow the Qwen-VL processors' resize rule. Rows without an
answer (a place is asked for) count by the area of their target. Left out: anything about pixels'
content.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade.data.samples import Sample
from saccade.data.screens.chance import ClickChance

MAX_ASPECT = 200
"""Longest side over shortest; the Qwen-VL processors refuse more."""

QUANTILES = (0, 25, 50, 75, 95, 100)


def visual_tokens(
    size: tuple[int, int], *, cell_pixels: int, min_pixels: int, max_pixels: int
) -> int:
    """Visual tokens (merged cells) that an image of (width, height) pixels becomes.

    Both sides are rounded to whole cells and scaled so that the area lies between the limits,
    exactly as `smart_resize` of the Qwen-VL image processors does.
    """
    width, height = size
    rows, columns = round(height / cell_pixels), round(width / cell_pixels)
    area = rows * columns * cell_pixels**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / cell_pixels))
        columns = max(1, math.floor(width / shrink / cell_pixels))
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / cell_pixels)
        columns = math.ceil(width * grow / cell_pixels)
    return rows * columns


@dataclass
class Statistics:
    """Counts over the rows added so far."""

    kinds: Counter[str] = field(default_factory=Counter)
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    images_per_row: Counter[int] = field(default_factory=Counter)
    question_lengths: list[int] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    places: ClickChance = field(default_factory=ClickChance)

    def add_row(self, sample: Sample) -> None:
        self.kinds[sample.kind] += 1
        if sample.answers:
            self.answers.setdefault(sample.kind, Counter())[sample.answer.lower()] += 1
        elif sample.facts.keys() & {"box", "point"}:
            self.places.add(sample.facts)
        self.images_per_row[len(sample.images)] += 1
        self.question_lengths.append(len(sample.question))

    def add_image(self, size: tuple[int, int], *, tokens: int) -> None:
        """Count one distinct image."""
        self.sizes[size] += 1
        self.tokens[tokens] += 1

    def majority(self) -> dict[str, tuple[str, float]]:
        """Most common answer of each kind and the share of rows it answers rightly."""
        found = {kind: counter.most_common(1)[0] for kind, counter in self.answers.items()}
        return {kind: (text, n / self.kinds[kind]) for kind, (text, n) in found.items()}

    def to_json(self, *, top: int = 20) -> dict[str, Any]:
        everything = sum(self.answers.values(), Counter())
        majority = self.majority()
        rows = max(1, sum(self.kinds.values()))
        blind = sum(share * self.kinds[kind] for kind, (_, share) in majority.items()) / rows
        return {
            "kinds": dict(self.kinds.most_common()),
            "distinct_answers": len(everything),
            "top_answers": dict(everything.most_common(top)),
            "majority": {
                kind: {"answer": answer, "share": round(share, 4)}
                for kind, (answer, share) in majority.items()
            },
            "majority_share": round(blind, 4),
            "random_click": self._random_click(),
            "question_characters": _quantiles(Counter(self.question_lengths)),
            "images_per_row": {str(n): rows for n, rows in sorted(self.images_per_row.items())},
            "distinct_images": sum(self.sizes.values()),
            "image_width": _quantiles(self._sides(0)),
            "image_height": _quantiles(self._sides(1)),
            "visual_tokens_per_image": _quantiles(self.tokens),
        }

    def _random_click(self) -> dict[str, Any] | None:
        """What a click anywhere scores; None where no place is asked for."""
        found = self.places.total()
        return found.to_json() if found.rows or found.without_box else None

    def _sides(self, axis: int) -> Counter[int]:
        sides: Counter[int] = Counter()
        for size, count in self.sizes.items():
            sides[size[axis]] += count
        return sides


def _quantiles(counts: Counter[int]) -> dict[str, float]:
    """Nearest-rank percentiles of counted values; empty without values."""
    if not counts:
        return {}
    values = np.array(sorted(counts))
    ranks = np.cumsum([counts[int(value)] for value in values])
    picks = [np.searchsorted(ranks, max(1, math.ceil(q / 100 * ranks[-1]))) for q in QUANTILES]
    return {f"p{q}": int(values[pick]) for q, pick in zip(QUANTILES, picks, strict=True)}
