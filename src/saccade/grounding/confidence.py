"""How sure an answer is, measured and calibrated, and when that is too little.

In go sampled answers, their log-probabilities, and on validation data whether answers were right;
out come a confidence, a calibrator that turns it into a probability, and the threshold below which
a second look pays. Measured, as UI-Zoomer does it (arXiv 2604.14113):

    S = mean pairwise IoU of the samples + mean of exp(mean log-probability of a sample's tokens)

Calibrators keep the order of what they are given and survive a JSON round trip. Left out: where
answers come from (`rollouts.py`) and plots. Plain Python and numpy; no torch.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saccade.config.errors import InputError
from saccade.data.boxes import Box, iou

BINS = 10
EDGE = 1e-9
"""Confidences are kept this far from 0 and 1, where a logit is infinite."""
STEEPEST = 1e3
"""Largest and (inverted) smallest sharpening that a temperature is searched for."""
TIE = 1e-6
"""Share of the raw confidence in an isotonic one, so that equal steps keep their order."""
NEVER, ALWAYS = 0.0, 1e9
"""Thresholds below which no confidence lies, and every one."""


def box_agreement(boxes: Sequence[Box | None]) -> float:
    """Mean pairwise intersection over union of sampled boxes; an unreadable one overlaps none.

    Raises ValueError for fewer than two samples.
    """
    pairs = _pairs(boxes)
    return sum(iou(a, b) if a and b else 0.0 for a, b in pairs) / len(pairs)


def point_agreement(points: Sequence[Sequence[float] | None], *, scale: float) -> float:
    """1 - mean pairwise distance of sampled points over `scale`, each pair at least 0.

    `scale` is in the unit of the points: the distance at which two answers say nothing in common,
    such as the diagonal of a target. An unreadable sample is that far from all others.
    """
    pairs = _pairs(points)
    near = [max(0.0, 1 - math.dist(a, b) / scale) if a and b else 0.0 for a, b in pairs]
    return sum(near) / len(near)


def mean_probability(log_probs: Sequence[float]) -> float:
    """Mean over samples of exp(mean log-probability of a sample's tokens)."""
    if not log_probs:
        raise ValueError("no samples")
    return sum(math.exp(one) for one in log_probs) / len(log_probs)


def zoomer_score(boxes: Sequence[Box | None], log_probs: Sequence[float]) -> float:
    """UI-Zoomer's S in 0..2: agreement of the boxes plus mean probability of writing them."""
    return box_agreement(boxes) + mean_probability(log_probs)


def brier(confidences: Sequence[float], hits: Sequence[bool]) -> float:
    """Mean of (confidence - hit)^2; 0 is best."""
    sure, right = _paired(confidences, hits)
    return float(np.mean((sure - right) ** 2))


@dataclass(frozen=True)
class Bin:
    """One row of a reliability table: answers whose confidence lies in [low, high)."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


def reliability_table(
    confidences: Sequence[float], hits: Sequence[bool], *, bins: int | Sequence[float] = BINS
) -> list[Bin]:
    """Mean confidence and share of right answers per bin; the last bin includes its upper end.

    `bins` is a number of equal widths over 0..1, or the edges themselves.
    """
    sure, right = _paired(confidences, hits)
    edges = np.linspace(0.0, 1.0, bins + 1) if isinstance(bins, int) else np.asarray(bins, float)
    if len(edges) < 2 or np.any(np.diff(edges) <= 0):
        raise ValueError("bins are a positive number or rising edges")
    if sure.min() < edges[0] or sure.max() > edges[-1]:
        raise ValueError(f"confidences outside {edges[0]:g}..{edges[-1]:g}: calibrate them first")
    place = np.minimum(np.searchsorted(edges, sure, side="right") - 1, len(edges) - 2)
    rows = []
    for i in range(len(edges) - 1):
        here = place == i
        count = int(here.sum())
        mean = (float(sure[here].mean()), float(right[here].mean())) if count else (None, None)
        rows.append(Bin(float(edges[i]), float(edges[i + 1]), count, *mean))
    return rows


def ece(
    confidences: Sequence[float], hits: Sequence[bool], *, bins: int | Sequence[float] = BINS
) -> float:
    """Expected calibration error: mean over answers of their bin's |confidence - accuracy|."""
    rows = reliability_table(confidences, hits, bins=bins)
    gaps = [
        row.count * abs(row.confidence - row.accuracy)
        for row in rows
        if row.confidence is not None and row.accuracy is not None
    ]
    return sum(gaps) / sum(row.count for row in rows)


@dataclass(frozen=True)
class TemperatureScaling:
    """p = sigmoid(logit(confidence) / temperature): one number, fitted by likelihood (Guo et al.
    2017). It sharpens or flattens, and cannot move the confidence at which p is 1/2."""

    temperature: float = 1.0

    @classmethod
    def fit(cls, confidences: Sequence[float], hits: Sequence[bool]) -> TemperatureScaling:
        """The likeliest temperature on validation data; confidences lie in 0..1."""
        sure, right = _paired(confidences, hits)
        logits = _logit(sure)
        low, high = -math.log(STEEPEST), math.log(STEEPEST)
        # the likelihood is concave in 1 / temperature, so its slope has one root
        for _ in range(80):
            middle = (low + high) / 2
            slope = float(np.mean((right - _sigmoid(logits * math.exp(middle))) * logits))
            low, high = (middle, high) if slope > 0 else (low, middle)
        return cls(temperature=math.exp(-(low + high) / 2))

    def apply(self, confidence: float) -> float:
        """A calibrated probability; the order of confidences stays."""
        return float(_sigmoid(_logit(np.asarray([confidence])) / self.temperature)[0])

    def to_json(self) -> dict[str, Any]:
        """What `from_json` (the function of this module) reads."""
        return {"kind": "temperature", "temperature": self.temperature}


@dataclass(frozen=True)
class Isotonic:
    """Rising steps fitted by pooling adjacent violators, joined by straight lines.

    `at` are raw confidences and `value` the shares of right answers there. A trace of the raw
    confidence (`TIE`) is mixed in, so that no two different confidences become equal.
    """

    at: tuple[float, ...]
    value: tuple[float, ...]

    @classmethod
    def fit(cls, confidences: Sequence[float], hits: Sequence[bool]) -> Isotonic:
        """Least squares under the order; `confidences` may be any numbers (S goes to 2)."""
        sure, right = _paired(confidences, hits)
        blocks: list[list[float]] = []
        """Sum of hits, count, lowest and highest confidence of each block."""
        for value in np.unique(sure):
            here = right[sure == value]
            blocks.append([float(here.sum()), float(len(here)), float(value), float(value)])
            while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
                last = blocks.pop()
                blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1],
                              blocks[-1][2], last[3]]  # fmt: skip
        points = [(edge, _mean(block)) for block in blocks for edge in sorted({*block[2:]})]
        return cls(at=tuple(at for at, _ in points), value=tuple(v for _, v in points))

    def apply(self, confidence: float) -> float:
        """A calibrated probability; different confidences stay in their order."""
        i = bisect.bisect_right(self.at, confidence)
        if i in (0, len(self.at)):
            step = self.value[max(0, i - 1)]
        else:
            (a, b), (low, high) = self.at[i - 1 : i + 1], self.value[i - 1 : i + 1]
            step = low + (high - low) * (confidence - a) / (b - a)
        squashed = (1 + confidence / (1 + abs(confidence))) / 2
        return (1 - TIE) * step + TIE * squashed

    def to_json(self) -> dict[str, Any]:
        """What `from_json` (the function of this module) reads."""
        return {"kind": "isotonic", "at": list(self.at), "value": list(self.value)}


Calibrator = TemperatureScaling | Isotonic


def from_json(kept: Any) -> Calibrator:
    """The calibrator that `to_json` wrote. Raises InputError for anything else."""
    try:
        if kept["kind"] == "temperature":
            return TemperatureScaling(temperature=float(kept["temperature"]))
        if kept["kind"] == "isotonic" and len(kept["at"]) == len(kept["value"]) > 0:
            return Isotonic(tuple(map(float, kept["at"])), tuple(map(float, kept["value"])))
    except (KeyError, TypeError, ValueError):
        pass
    raise InputError("not a saved calibrator\n  fix: calibrate again on validation data")


@dataclass(frozen=True)
class Threshold:
    """Look again when the confidence is below `tau`: `NEVER` = 0 never does, `ALWAYS` always.

    `worth` is what validation says it brings: accuracy - price * zoom rate.
    """

    tau: float
    worth: float
    accuracy: float
    zoom_rate: float


def choose_tau(
    confidences: Sequence[float],
    *,
    hit_now: Sequence[bool],
    hit_after: Sequence[bool],
    price: float,
) -> Threshold:
    """The threshold that maximises mean hit - price * zoom on validation data.

    `hit_now` says whether the answer without a second look was right, `hit_after` the one with it;
    `price` is that of a look, in hits. Candidates lie between neighbouring confidences; of equally
    good ones the one that looks least. Confidences are not negative.
    """
    sure, now = _paired(confidences, hit_now)
    after = _paired(confidences, hit_after)[1]
    if sure.min() < NEVER:
        raise ValueError("a confidence below 0 is not one")
    values = np.unique(sure)
    middles = (values[:-1] + values[1:]) / 2
    candidates = [NEVER, *(float(m) for m in middles), ALWAYS]
    return max(
        (threshold_at(tau, sure, now, after, price=price) for tau in candidates),
        key=lambda one: (round(one.worth, 12), -one.zoom_rate),
    )


def threshold_at(
    tau: float,
    confidences: Sequence[float] | np.ndarray,
    hit_now: Sequence[bool] | np.ndarray,
    hit_after: Sequence[bool] | np.ndarray,
    *,
    price: float,
) -> Threshold:
    """What a given threshold is worth on data: for a curve over thresholds, or on a test split."""
    looks = np.asarray(confidences, dtype=float) < tau
    hits = np.where(looks, np.asarray(hit_after, dtype=float), np.asarray(hit_now, dtype=float))
    accuracy, rate = float(hits.mean()), float(looks.mean())
    return Threshold(tau=tau, worth=accuracy - price * rate, accuracy=accuracy, zoom_rate=rate)


def _mean(block: Sequence[float]) -> float:
    return block[0] / block[1]


def _pairs(samples: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(samples) < 2:
        raise ValueError("how far samples agree takes two of them")
    return list(itertools.combinations(samples, 2))


def _paired(
    confidences: Sequence[float] | np.ndarray, hits: Sequence[bool] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sure, right = np.asarray(confidences, dtype=float), np.asarray(hits, dtype=float)
    if sure.shape != right.shape or sure.ndim != 1 or not len(sure):
        raise ValueError(f"{sure.size} confidences for {right.size} answers")
    if not np.all(np.isfinite(sure)):
        raise ValueError("a confidence is not a finite number")
    return sure, right


def _logit(sure: np.ndarray) -> np.ndarray:
    kept = np.clip(sure, EDGE, 1 - EDGE)
    return np.log(kept) - np.log1p(-kept)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
