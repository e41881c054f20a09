"""The few statistics that scores are reported with: intervals, spreads, paired differences.

In go counts, values or paired verdicts; out come plain floats. Everything is deterministic: the
bootstrap draws from a seed it is given. Questions about one image are not independent of each
other, so paired differences are resampled by image, never by question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""
LEAST_GROUPS = 10
"""Images a bootstrap needs for a verdict: of fewer, its interval is too narrow to lean on."""


@dataclass(frozen=True)
class Difference:
    """Mean of `ours - theirs` over paired samples of so many images, and its 95 % interval."""

    mean: float
    low: float
    high: float
    samples: int
    groups: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0.0 or self.high < 0.0


def wilson_interval(correct: float, *, total: int) -> tuple[float, float]:
    """95 % interval of a share; sensible at 0 and 1, where the textbook one is not."""
    if total == 0:
        return 0.0, 1.0
    share, spread = correct / total, Z_95**2 / total
    center = (share + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    low, high = center - half, center + half
    # at 0 and 1 the bound is exact; rounding must not put the share outside its own interval
    return (0.0 if correct <= 0 else low), (1.0 if correct >= total else high)


def normal_interval(mean: float, *, values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of values that are not negative, from their spread."""
    half = Z_95 * mean_sd(values)[1] / math.sqrt(max(1, len(values)))
    return max(0.0, mean - half), mean + half


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for fewer than two values)."""
    if not values:
        return math.nan, 0.0
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_difference(
    ours: Mapping[str, float],
    theirs: Mapping[str, float],
    *,
    groups: Mapping[str, str],
    seed: int = 0,
    resamples: int = 2000,
) -> Difference:
    """Compare two sets of per-sample scores on the samples both have.

    `groups` names the image of each sample; the bootstrap resamples images.
    """
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return Difference(math.nan, math.nan, math.nan, 0, 0)
    low, high, sums_G2 = _bootstrap(
        {sample: ours[sample] - theirs[sample] for sample in shared},
        groups=groups, seed=seed, resamples=resamples,
    )  # fmt: skip
    mean = float(sums_G2[:, 0].sum() / sums_G2[:, 1].sum())
    return Difference(mean, low, high, len(shared), len(sums_G2))


def grouped_interval(
    hits: Mapping[str, bool], *, groups: Mapping[str, str], seed: int = 0, resamples: int = 2000
) -> tuple[float, float]:
    """95 % interval of a share of samples that share images: the bootstrap over images, and
    nowhere narrower than Wilson's, because at 0 and 1 a bootstrap has no width."""
    low, high = wilson_interval(sum(hits.values()), total=len(hits))
    if not hits:
        return low, high
    lower, upper, _ = _bootstrap(hits, groups=groups, seed=seed, resamples=resamples)
    return min(low, lower), max(high, upper)


def _bootstrap(
    values: Mapping[str, float], *, groups: Mapping[str, str], seed: int, resamples: int
) -> tuple[float, float, np.ndarray]:
    """95 % interval of the mean, resampled by group; sum and count of each group."""
    sums: dict[str, list[float]] = {}
    for sample, value in values.items():
        entry = sums.setdefault(groups.get(sample, sample), [0.0, 0.0])
        entry[0] += value
        entry[1] += 1
    sums_G2 = np.array(list(sums.values()))
    rng = np.random.default_rng(seed)
    draws_RG = rng.integers(len(sums_G2), size=(resamples, len(sums_G2)))
    resampled_R2 = sums_G2[draws_RG].sum(1)
    low, high = np.quantile(resampled_R2[:, 0] / resampled_R2[:, 1], [0.025, 0.975])
    return float(low), float(high), sums_G2
