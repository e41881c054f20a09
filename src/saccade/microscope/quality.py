"""Numbers that describe a choice of cells: where it lies, how it spreads, what two choices share.

In go one image's kept cells and score maps (a `View`); out come plain numbers, each with what it
would be by chance or at most, so that it can be read alone: recall of the answer's cells, 4x4
coverage, spatial entropy over 8x8 blocks, nearest-neighbour distance, score quartiles, the decay of
the scores over ranks, and the overlap of two choices. No model, no drawing.

Shapes: H x W cells of one image.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saccade.microscope.explain import SCORES, View

COVERAGE_BLOCKS = 4
ENTROPY_BLOCKS = 8
DECAY_POINTS = 21
"""Points of a decay curve: scores at 0, 5, ... 100 % of the ranks."""


@dataclass(frozen=True)
class Quality:
    """How one image's kept cells lie; None where the question has no answer.

    `nearest_neighbour_ratio` compares the mean distance with that of cells thrown at random: below
    1 the choice is clustered, above it is spread.
    """

    kept: int
    cells: int
    answer_cell_recall: float | None
    coverage_4x4: float
    entropy_8x8_bits: float
    entropy_8x8_most_bits: float
    nearest_neighbour_cells: float | None
    nearest_neighbour_ratio: float | None
    quartiles: dict[str, tuple[float, float, float, float, float]]
    decay: dict[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Overlap:
    """What two choices of cells on one grid share; `by_chance` is the IoU of random choices."""

    both: int
    only_first: int
    only_second: int
    iou: float
    by_chance: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def quality(view: View) -> Quality | None:
    """Describe the kept cells of one image; None when tokens were merged, not chosen."""
    if view.replaced:
        return None
    keep_HW = np.asarray(view.keep_HW, dtype=bool)
    count = int(keep_HW.sum())
    bits, most = spatial_entropy(keep_HW)
    distance = nearest_neighbour(keep_HW)
    chance = 0.5 * math.sqrt(keep_HW.size / count) if count else math.nan
    drawn = {name: view.maps[name] for name in (*SCORES, "balance") if name in view.maps}
    return Quality(
        kept=count,
        cells=keep_HW.size,
        answer_cell_recall=answer_recall(keep_HW, view.answer_cells),
        coverage_4x4=coverage(keep_HW),
        entropy_8x8_bits=bits,
        entropy_8x8_most_bits=most,
        nearest_neighbour_cells=distance,
        nearest_neighbour_ratio=None if distance is None else distance / chance,
        quartiles={name: quartiles(map_HW) for name, map_HW in drawn.items()},
        decay={name: decay_curve(map_HW) for name, map_HW in drawn.items()},
    )


def answer_recall(keep_HW: np.ndarray, answer_cells: tuple[int, ...]) -> float | None:
    """Share of the cells that carry the answer and were kept; None where they are not known."""
    if not answer_cells:
        return None
    return float(keep_HW.reshape(-1)[list(answer_cells)].mean())


def coverage(keep_HW: np.ndarray, *, blocks: int = COVERAGE_BLOCKS) -> float:
    """Share of a `blocks` x `blocks` partition of the image that holds a kept cell."""
    counts, existing = _block_counts(keep_HW, blocks=blocks)
    return float((counts[existing] > 0).mean())


def spatial_entropy(keep_HW: np.ndarray, *, blocks: int = ENTROPY_BLOCKS) -> tuple[float, float]:
    """Entropy in bits of where kept cells fall among the blocks, and the most it could be."""
    counts, existing = _block_counts(keep_HW, blocks=blocks)
    total = counts.sum()
    if not total:
        return 0.0, 0.0
    share = counts[counts > 0] / total
    most = math.log2(min(int(existing.sum()), int(total)))
    return abs(float(-(share * np.log2(share)).sum())), most


def nearest_neighbour(keep_HW: np.ndarray) -> float | None:
    """Mean distance in cells from a kept cell to the nearest other; None with fewer than two."""
    points_K2 = np.argwhere(keep_HW).astype(np.float64)
    if len(points_K2) < 2:
        return None
    nearest = []
    for start in range(0, len(points_K2), 512):  # thousands of cells would need gigabytes at once
        gaps_PK2 = points_K2[start : start + 512, None] - points_K2[None]
        distance_PK = np.sqrt((gaps_PK2**2).sum(-1))
        rows = np.arange(len(distance_PK))
        distance_PK[rows, start + rows] = np.inf
        nearest.append(distance_PK.min(1))
    return float(np.concatenate(nearest).mean())


def quartiles(map_HW: np.ndarray) -> tuple[float, float, float, float, float]:
    """Least, lower quartile, median, upper quartile and greatest value of a score."""
    low, first, middle, third, high = np.percentile(map_HW, [0, 25, 50, 75, 100])
    return float(low), float(first), float(middle), float(third), float(high)


def decay_curve(map_HW: np.ndarray, *, points: int = DECAY_POINTS) -> tuple[float, ...]:
    """Scores from the highest rank to the lowest, scaled so that the extremes are 1 and 0.

    A curve that falls at once singles few cells out; a straight one does not discriminate.
    """
    ranked = np.sort(np.asarray(map_HW, dtype=np.float64).reshape(-1))[::-1]
    at = np.linspace(0, len(ranked) - 1, points)
    values = np.interp(at, np.arange(len(ranked)), ranked)
    span = values[0] - values[-1]
    return tuple(float(v) for v in ((values - values[-1]) / span if span > 1e-12 else values * 0))


def overlap(first: View, second: View) -> Overlap | None:
    """What two choices share; None when they are on different grids or one chose no cells."""
    if first.replaced or second.replaced or first.keep_HW.shape != second.keep_HW.shape:
        return None
    a, b = first.keep_HW.astype(bool), second.keep_HW.astype(bool)
    both, union = int((a & b).sum()), int((a | b).sum())
    expected = float(a.sum()) * float(b.sum()) / a.size
    chance_union = float(a.sum()) + float(b.sum()) - expected
    return Overlap(
        both=both,
        only_first=int((a & ~b).sum()),
        only_second=int((b & ~a).sum()),
        iou=both / union if union else 1.0,
        by_chance=expected / chance_union if chance_union else 1.0,
    )


def _block_counts(keep_HW: np.ndarray, *, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Kept cells per block, and which blocks hold any cell (small images leave some empty)."""
    rows, columns = keep_HW.shape
    row_H = ((np.arange(rows) + 0.5) * blocks / rows).astype(int)
    column_W = ((np.arange(columns) + 0.5) * blocks / columns).astype(int)
    block_HW = row_H[:, None] * blocks + column_W[None]
    counts = np.bincount(block_HW[keep_HW], minlength=blocks * blocks)
    existing = np.bincount(block_HW.reshape(-1), minlength=blocks * blocks) > 0
    return counts, existing
