"""Ways to look, compared on the same targets: never again, always, as learned, and by gates.

In go judged episodes on validation and test targets: greedy without a second look, greedy with one,
greedy and free, and several sampled without; out comes the content of `comparison.json`. Every
threshold and calibrator is fitted on validation and measured on test, and every gate decides
between the same two outcomes of a target, so that gates differ in nothing but whom they send to
look. Cost = pixels the model sees. Pure: reads no file and no model. Left out: rolling out
(`grounding_compare.py`) and drawing (`grounding_plot.py`).

Shapes: N targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from saccade.evaluation.grounding_gates import (
    Gated,
    Pairs,
    at_pixels,
    at_threshold,
    curve,
    in_order,
    oracle,
    order_of,
    random_gate,
    threshold_for_rate,
    zoom_rates,
)
from saccade.evaluation.grounding_rows import Scored
from saccade.evaluation.grounding_verdicts import verdicts
from saccade.evaluation.statistics import paired_difference, wilson_interval
from saccade.grounding.confidence import (
    Calibrator,
    Isotonic,
    TemperatureScaling,
    brier,
    choose_tau,
    ece,
    mean_probability,
    point_agreement,
    reliability_table,
    zoomer_score,
)

POINT_SCALE = 0.1
"""Shares of the sides at which two sampled points have nothing in common."""
LEAST_LARGE = 20
"""Targets a bucket needs to stand for the large ones."""
TITLES = {
    "never": "never look again",
    "always": "always look again",
    "learned": "learned policy",
    "random": "random gate at equal pixels",
    "dispersion": "dispersion gate",
    "dispersion_plain": "dispersion gate, 8 passes",
    "confidence": "confidence gate",
    "size": "predicted-size gate",
    "oracle": "oracle",
}


GATED = ("dispersion", "dispersion_plain", "confidence", "size")


@dataclass(frozen=True)
class Rolled:
    """Judged episodes of one split, all in the order of the targets; `sampled` per target."""

    never: Sequence[Scored]
    always: Sequence[Scored]
    free: Sequence[Scored]
    sampled: Sequence[Sequence[Scored]]

    def __len__(self) -> int:
        return len(self.never)

    @property
    def pairs(self) -> Pairs:
        return Pairs(
            never_hit_N=np.array([one.right for one in self.never], dtype=np.float64),
            always_hit_N=np.array([one.right for one in self.always], dtype=np.float64),
            never_pixels_N=np.array([one.pixels for one in self.never], dtype=np.float64),
            always_pixels_N=np.array([one.pixels for one in self.always], dtype=np.float64),
            always_looks_N=_more_looks(self.always),
        )

    @property
    def learned(self) -> Gated:
        return Gated(
            hit_N=np.array([one.right for one in self.free], dtype=np.float64),
            pixels_N=np.array([one.pixels for one in self.free], dtype=np.float64),
            zoom_N=np.array([one.zoomed for one in self.free], dtype=np.float64),
            looks_N=_more_looks(self.free),
        )


def _more_looks(episodes: Sequence[Scored]) -> np.ndarray:
    """Views beside the first."""
    return np.array([one.looks - 1 for one in episodes], dtype=np.float64)


@dataclass(frozen=True)
class Gate:
    """A way to decide: how sure of each target it is (not negative; below a threshold it looks
    again), and what deciding costs in pixels."""

    name: str
    validation_N: np.ndarray
    test_N: np.ndarray
    extra_N: np.ndarray | float = 0.0


def compare_arms(
    test: Rolled,
    validation: Rolled,
    *,
    small_below: float,
    prices: Sequence[float],
    seed: int = 0,
) -> dict[str, Any]:
    """The content of `comparison.json` that follows from the episodes.

    `small_below`: targets of a smaller side, in pixels of the first look, count as small.
    """
    gates = gates_of(test, validation)
    found = _arms(test, validation, gates)
    buckets = [one.bucket for one in test.never]
    small = np.array([one.side is not None and one.side < small_below for one in test.never])
    rows = [
        _row(name, gated, test=test, buckets=buckets, small_N=small, seed=seed)
        for name, gated in found.items()
    ]
    rates = zoom_rates(
        [one.zoomed for one in test.free], buckets,
        screens=[one.screen for one in test.free], seed=seed,
    )  # fmt: skip
    order = order_of(rates)
    calibrators = fitted_calibrators(validation)
    calibration = calibrations(test, calibrators)
    priced = [*gates, *calibrated_gates(test, validation, calibrators)]
    return {
        "samples": len(test), "validation_samples": len(validation), "small_below": small_below,
        "small_samples": int(small.sum()), "rows": rows, "buckets": in_order(buckets),
        "zoom_by_size": rates, "order": order, "large": _large(rates),
        "curves": {gate.name: curve(test.pairs, -gate.test_N, extra_N=gate.extra_N)
                   for gate in gates},
        "calibration": calibration, "prices": _prices(test, validation, priced, prices=prices),
        "verdicts": verdicts({row["arm"]: row for row in rows}, order=order,
                             calibration=calibration),
    }  # fmt: skip


def gates_of(test: Rolled, validation: Rolled) -> list[Gate]:
    """Every gate, and how sure it is of each target; no size gate where answers are points."""
    first_N = np.array([one.first_pixels for one in test.never], dtype=np.float64)
    passes = max(len(one) for one in test.sampled)
    agreement = _sure(validation, _agreement), _sure(test, _agreement)
    gates = [
        Gate("dispersion", *agreement),
        # each sample reads the screenshot anew; one of the passes is the first look itself
        Gate("dispersion_plain", *agreement, extra_N=(passes - 1) * first_N),
        Gate("confidence", _sure(validation, _trust), _sure(test, _trust)),
    ]
    if _mostly(one.answer_side is not None for one in (*validation.never, *test.never)):
        gates.append(Gate("size", _sure(validation, _answer_side), _sure(test, _answer_side)))
    return gates


def _sure(rolled: Rolled, of: Callable[[Scored, Sequence[Scored]], float]) -> np.ndarray:
    pairs = zip(rolled.never, rolled.sampled, strict=True)
    return np.array([of(one, samples) for one, samples in pairs])


def _agreement(one: Scored, samples: Sequence[Scored]) -> float:
    """UI-Zoomer's score; where answers are points, their nearness stands for the overlap.

    A box among points, or a point among boxes, is a slip of the pen and not the kind of answer.
    """
    log_probs = [math.log(s.confidence) if s.confidence else -math.inf for s in samples]
    placed = [s for s in samples if s.point]
    if not placed or _mostly(s.box is not None for s in placed):
        return zoomer_score([s.box for s in samples], log_probs)
    near = point_agreement([s.point for s in samples], scale=POINT_SCALE)
    return near + mean_probability(log_probs)


def _mostly(kinds: Iterable[bool]) -> bool:
    found = list(kinds)
    return 2 * sum(found) > len(found)


def _trust(one: Scored, samples: Sequence[Scored]) -> float:
    return one.confidence or 0.0  # what cannot be read is no answer to trust


def _answer_side(one: Scored, samples: Sequence[Scored]) -> float:
    return one.answer_side or 0.0


def _arms(test: Rolled, validation: Rolled, gates: Sequence[Gate]) -> dict[str, Gated]:
    """Every arm: the policies, and each gate as its threshold on validation has it and at the
    learned policy's own pixels.
    """
    pairs, learned = test.pairs, test.learned
    count = len(pairs)
    found = {
        "never": at_threshold(pairs, np.zeros(count), threshold=0.0),
        "always": at_threshold(pairs, np.zeros(count), threshold=-1.0),
        "learned": learned,
        "random": random_gate(pairs, pixels=learned.pixels),
    }
    rate = validation.learned.rate
    for gate in gates:
        threshold = threshold_for_rate(-gate.validation_N, rate=rate)
        found[gate.name] = at_threshold(
            pairs, -gate.test_N, threshold=threshold, extra_N=gate.extra_N
        )
        if gate.name != "dispersion_plain":  # eight passes cost more than any policy here
            found[f"{gate.name}_equal"] = at_pixels(
                pairs, -gate.test_N, pixels=learned.pixels, extra_N=gate.extra_N
            )
    return {**found, "oracle": oracle(pairs)}


def _row(
    name: str, found: Gated, *, test: Rolled, buckets: Sequence[str], small_N: np.ndarray, seed: int
) -> dict[str, Any]:
    low, high = wilson_interval(float(found.hit_N.sum()), total=len(found.hit_N))
    learned = test.learned
    everything = np.ones(len(test), dtype=bool)
    base = name.removesuffix("_equal")
    by_bucket = {
        bucket: _mean_where(found.hit_N, np.array([one == bucket for one in buckets]))
        for bucket in in_order(buckets)
    }
    return {
        "arm": name,
        "title": TITLES[base] + (" at equal pixels" if name != base else ""),
        "accuracy": found.accuracy, "low": low, "high": high,
        "accuracy_small": _mean_where(found.hit_N, small_N),
        "pixels": found.pixels, "zoom_rate": found.rate,
        # a gate fixed on validation is told with its threshold
        "threshold": -found.threshold if found.threshold is not None and base in GATED else None,
        "by_bucket": by_bucket,
        "difference": _difference(learned, found, test=test, where_N=everything, seed=seed),
        "difference_small": _difference(learned, found, test=test, where_N=small_N, seed=seed),
    }  # fmt: skip


def _mean_where(values_N: np.ndarray, where_N: np.ndarray) -> float | None:
    return float(values_N[where_N].mean()) if where_N.any() else None


def _difference(
    ours: Gated, theirs: Gated, *, test: Rolled, where_N: np.ndarray, seed: int
) -> dict[str, Any]:
    """Learned minus that arm, with the bootstrap over screenshots."""
    chosen = np.flatnonzero(where_N).tolist()
    found = paired_difference(
        {test.never[k].id: float(ours.hit_N[k]) for k in chosen},
        {test.never[k].id: float(theirs.hit_N[k]) for k in chosen},
        groups={one.id: one.screen for one in test.never},
        seed=seed,
    )
    return {**asdict(found), "clear": found.clear}


def _large(rates: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The zoom rate on the largest targets of which there are enough."""
    many = [r for r in rates if r["bucket"] != "unknown" and r["samples"] >= LEAST_LARGE]
    return many[-1] if many else None


def fitted_calibrators(validation: Rolled) -> dict[str, Calibrator]:
    """Calibrators of the confidence of the answer at first look."""
    sure = _sure(validation, _trust).tolist()
    right = validation.pairs.never_hit_N.astype(bool).tolist()
    return {
        "temperature": TemperatureScaling.fit(sure, right), "isotonic": Isotonic.fit(sure, right)
    }  # fmt: skip


def calibrated_gates(
    test: Rolled, validation: Rolled, calibrators: Mapping[str, Calibrator]
) -> list[Gate]:
    """The confidence gate on calibrated confidence; calibrators keep the order, so what it can
    reach is what the raw one can."""
    sure = _sure(validation, _trust), _sure(test, _trust)
    return [
        Gate(f"confidence_{name}", *(np.array([one.apply(v) for v in sure_N]) for sure_N in sure))
        for name, one in calibrators.items()
    ]


def calibrations(test: Rolled, calibrators: Mapping[str, Calibrator]) -> dict[str, dict[str, Any]]:
    """How far the confidence of the answer at first look can be believed, before and after:
    Brier, ECE and reliability on the test targets, in all and by size."""
    raw = _sure(test, _trust)
    told = {"raw": raw} | {
        name: np.array([one.apply(value) for value in raw]) for name, one in calibrators.items()
    }
    buckets = [one.bucket for one in test.never]
    return {
        name: _reliability(sure_N, test=test, buckets=buckets)
        | {"calibrator": calibrators[name].to_json() if name in calibrators else None}
        for name, sure_N in told.items()
    }


def _reliability(sure_N: np.ndarray, *, test: Rolled, buckets: Sequence[str]) -> dict[str, Any]:
    hit_N = test.pairs.never_hit_N.astype(bool)
    parts = {}
    for name in in_order(buckets):
        mine = np.array([one == name for one in buckets])
        parts[name] = _losses(sure_N[mine], hit_N[mine])
    rows = reliability_table(sure_N.tolist(), hit_N.tolist())
    return {**_losses(sure_N, hit_N), "bins": [asdict(one) for one in rows], "by_bucket": parts}


def _losses(sure_N: np.ndarray, hit_N: np.ndarray) -> dict[str, float]:
    sure, hits = sure_N.tolist(), hit_N.tolist()
    return {"brier": brier(sure, hits), "ece": ece(sure, hits)}


def _prices(
    test: Rolled, validation: Rolled, gates: Sequence[Gate], *, prices: Sequence[float]
) -> list[dict[str, Any]]:
    """For each price of a look: every gate at the threshold that validation finds best, on test.

    `worth` is accuracy minus the price of every view beside the first.
    """
    before = validation.pairs
    fixed = {name: _worth(one) for name, one in (
        ("never", at_threshold(test.pairs, np.zeros(len(test)), threshold=0.0)),
        ("always", at_threshold(test.pairs, np.zeros(len(test)), threshold=-1.0)),
        ("learned", test.learned), ("oracle", oracle(test.pairs)),
    )}  # fmt: skip
    return [
        {
            "price": price,
            "arms": {
                **{name: told(price) for name, told in fixed.items()},
                **{
                    gate.name: _chosen(gate, before, test, price=price)
                    for gate in gates if gate.name != "dispersion_plain"
                },
            },
        }
        for price in prices
    ]  # fmt: skip


def _worth(found: Gated) -> Callable[[float], dict[str, Any]]:
    def told(price: float) -> dict[str, Any]:
        return {"tau": None, "accuracy": found.accuracy, "zoom_rate": found.rate,
                "pixels": found.pixels, "worth": found.accuracy - price * found.looks}  # fmt: skip

    return told


def _chosen(gate: Gate, before: Pairs, test: Rolled, *, price: float) -> dict[str, Any]:
    tau = choose_tau(
        gate.validation_N.tolist(), hit_now=before.never_hit_N.astype(bool).tolist(),
        hit_after=before.always_hit_N.astype(bool).tolist(), price=price,
    ).tau  # fmt: skip
    found = at_threshold(test.pairs, -gate.test_N, threshold=-tau, extra_N=gate.extra_N)
    return {**_worth(found)(price), "tau": tau}
