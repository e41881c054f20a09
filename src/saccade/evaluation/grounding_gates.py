"""Who should look again: every way of deciding it, on the same two outcomes of each target.

In go, for every target, what happens without a second look and what happens with one (right or
wrong, and the pixels seen), and a number that says how much a gate wants to look; out come its
expected accuracy and cost at a threshold, at a rate, at a given mean cost, and over all thresholds.
Thresholds are chosen on other targets than they are measured on. Pure arithmetic on arrays. Left
out: where outcomes come from (`grounding_arms.py`) and what a confidence is
(`grounding/confidence.py`).

Shapes: N targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from saccade.evaluation.statistics import LEAST_GROUPS, grouped_interval

SIZES = ("<4", "4-8", "8-16", "16-32", "32+", "unknown")
"""Buckets of target sizes as `grounding.episodes.bucket_of` names them, smallest first."""
CURVE_POINTS = 41
"""Most thresholds of a curve; fewer where scores tie."""


def in_order(buckets: Sequence[str]) -> list[str]:
    """The buckets that occur, smallest targets first, `unknown` last."""
    present = set(buckets)
    return [name for name in SIZES if name in present]


@dataclass(frozen=True)
class Pairs:
    """Both outcomes of every target: `never` without a second look, `always` with one.

    `always_looks_N` counts the views beside the first that `always` was shown.
    """

    never_hit_N: np.ndarray
    always_hit_N: np.ndarray
    never_pixels_N: np.ndarray
    always_pixels_N: np.ndarray
    always_looks_N: np.ndarray

    def __len__(self) -> int:
        return len(self.never_hit_N)


@dataclass(frozen=True)
class Gated:
    """What a gate comes to on every target, as expected values; `zoom_N` is its chance to look
    again, `looks_N` the number of views beside the first.

    `pixels_N` holds what deciding costs, too.
    """

    hit_N: np.ndarray
    pixels_N: np.ndarray
    zoom_N: np.ndarray
    looks_N: np.ndarray
    threshold: float | None = None

    @property
    def accuracy(self) -> float:
        return float(self.hit_N.mean())

    @property
    def pixels(self) -> float:
        return float(self.pixels_N.mean())

    @property
    def rate(self) -> float:
        return float(self.zoom_N.mean())

    @property
    def looks(self) -> float:
        return float(self.looks_N.mean())


def gated(
    pairs: Pairs, zoom_N: np.ndarray, *, extra_N: np.ndarray | float = 0.0,
    threshold: float | None = None,
) -> Gated:  # fmt: skip
    """The outcomes of looking again with chance `zoom_N` at each target.

    `extra_N` pixels are what deciding costs beside the looks themselves.
    """
    weight_N = np.asarray(zoom_N, dtype=np.float64)
    return Gated(
        hit_N=(1 - weight_N) * pairs.never_hit_N + weight_N * pairs.always_hit_N,
        pixels_N=(1 - weight_N) * pairs.never_pixels_N + weight_N * pairs.always_pixels_N + extra_N,
        zoom_N=weight_N,
        looks_N=weight_N * pairs.always_looks_N,
        threshold=threshold,
    )


def random_gate(pairs: Pairs, *, pixels: float) -> Gated:
    """Look again with the same chance everywhere, at these mean pixels: the exact expectation,
    nothing is drawn."""
    return at_pixels(pairs, np.zeros(len(pairs)), pixels=pixels)


def oracle(pairs: Pairs) -> Gated:
    """Look again only where it turns wrong into right: no gate on these outcomes does better."""
    return gated(pairs, (pairs.always_hit_N > pairs.never_hit_N).astype(np.float64))


def at_threshold(
    pairs: Pairs, need_N: np.ndarray, *, threshold: float, extra_N: np.ndarray | float = 0.0
) -> Gated:
    """Look again where the need is above `threshold`."""
    return gated(pairs, need_N > threshold, extra_N=extra_N, threshold=threshold)


def threshold_for_rate(need_N: np.ndarray, *, rate: float) -> float:
    """The threshold above which the share of needs is nearest to `rate` (ties: fewer looks)."""
    candidates = thresholds(need_N)
    shares = np.array([(need_N > one).mean() for one in candidates])
    distances = np.abs(shares - rate)
    best = np.flatnonzero(distances <= distances.min() + 1e-12)
    return candidates[int(best[np.argmin(shares[best])])]


def thresholds(need_N: np.ndarray) -> list[float]:
    """Every threshold that decides differently, from looking always to looking never."""
    values = np.unique(need_N)
    between = (values[:-1] + values[1:]) / 2
    return [float(values[0] - 1.0), *map(float, between), float(values[-1])]


def at_pixels(
    pairs: Pairs, need_N: np.ndarray, *, pixels: float, extra_N: np.ndarray | float = 0.0
) -> Gated:
    """The gate at exactly these mean pixels: the neediest targets first, the last of them partly.

    Targets of equal need get an equal chance, so what comes out is an expectation and depends on no
    order. Where the cost cannot be reached the gate looks never or always.
    """
    more_N = pairs.always_pixels_N - pairs.never_pixels_N
    budget = (
        pixels * len(pairs) - (gated(pairs, np.zeros(len(pairs)), extra_N=extra_N)).pixels_N.sum()
    )
    zoom_N = np.zeros(len(pairs))
    for value in np.unique(need_N)[::-1]:
        tied_N = need_N == value
        price = float(more_N[tied_N].sum())
        # looks that cost nothing are taken only while there is something left to spend
        chance = float(budget > 0) if price <= 0 else min(1.0, max(0.0, budget / price))
        zoom_N[tied_N] = chance
        budget -= chance * price
        if chance < 1.0:
            break
    return gated(pairs, zoom_N, extra_N=extra_N)


def curve(
    pairs: Pairs, need_N: np.ndarray, *, extra_N: np.ndarray | float = 0.0
) -> list[dict[str, float]]:
    """Accuracy, mean pixels and rate over the thresholds, from looking never to looking always."""
    every = thresholds(need_N)[::-1]
    places = np.unique(np.linspace(0, len(every) - 1, CURVE_POINTS).round().astype(int))
    found = [at_threshold(pairs, need_N, threshold=every[k], extra_N=extra_N) for k in places]
    return [
        {"pixels": one.pixels, "accuracy": one.accuracy, "zoom_rate": one.rate,
         "threshold": float(one.threshold or 0.0)}
        for one in found
    ]  # fmt: skip


def zoom_rates(
    zoomed: Sequence[bool], buckets: Sequence[str], *, screens: Sequence[str], seed: int = 0
) -> list[dict[str, Any]]:
    """Per bucket the share that looked again and its 95 % interval, small targets first.

    `screens` names the screenshot of each target; the interval is resampled by screenshot.
    """
    rows = []
    for name in in_order(buckets):
        places = [place for place, bucket in enumerate(buckets) if bucket == name]
        hits = {str(place): zoomed[place] for place in places}
        groups = {str(place): screens[place] for place in places}
        low, high = grouped_interval(hits, groups=groups, seed=seed)
        rows.append(
            {"bucket": name, "samples": len(hits), "screens": len(set(groups.values())),
             "zoom_rate": sum(hits.values()) / len(hits), "low": low, "high": high}
        )  # fmt: skip
    return rows


def order_of(rates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether looking gets rarer as targets get larger, judged by the 95 % intervals.

    `falls`: no bucket's interval lies above that of a bucket of smaller targets, and the largest
    targets' lies below the smallest ones'. `rises`: some bucket's does (named in `against`).
    `flat`: neither. `unknown`: fewer than two buckets stand on enough screenshots to be compared;
    the others take no part. `steps` says the same of the bare rates: True where none is above the
    one before it.
    """
    sized = [
        row for row in rates if row["bucket"] != "unknown" and row["screens"] >= LEAST_GROUPS
    ]  # fmt: skip
    against = [
        [small["bucket"], large["bucket"]]
        for small, large in combinations(sized, 2)
        if large["low"] > small["high"]
    ]
    apart = len(sized) > 1 and sized[0]["low"] > sized[-1]["high"]
    verdict = "rises" if against else "falls" if apart else "flat" if sized[1:] else "unknown"
    steps = all(one["zoom_rate"] >= two["zoom_rate"] for one, two in pairwise(sized))
    return {"order": verdict, "against": against, "steps": steps}
