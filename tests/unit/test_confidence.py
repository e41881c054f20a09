"""Confidence measured on samples, calibrated on validation data, and when to look again."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.config.errors import InputError
from saccade.data.boxes import Box
from saccade.grounding.confidence import (
    ALWAYS,
    NEVER,
    Isotonic,
    TemperatureScaling,
    box_agreement,
    brier,
    choose_tau,
    ece,
    from_json,
    mean_probability,
    point_agreement,
    reliability_table,
    threshold_at,
    zoomer_score,
)

ONE, HALF, FAR = Box(0.0, 0.0, 0.4, 0.4), Box(0.0, 0.0, 0.2, 0.4), Box(0.6, 0.6, 0.8, 0.8)


def overconfident(count: int = 4000, *, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Confidences whose logits are three times too large, and what came true."""
    draw = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-draw.normal(0.3, 1.2, count)))
    logits = 3 * np.log(truth / (1 - truth))
    hits = draw.random(count) < truth
    return (1 / (1 + np.exp(-logits))).tolist(), hits.tolist()


def test_agreement_is_the_mean_overlap_of_all_pairs() -> None:
    assert box_agreement([ONE, ONE, ONE]) == 1.0
    assert box_agreement([ONE, HALF]) == pytest.approx(0.5)
    assert box_agreement([ONE, HALF, FAR]) == pytest.approx(0.5 / 3)
    with pytest.raises(ValueError, match="two"):
        box_agreement([ONE])


def test_a_sample_that_cannot_be_read_agrees_with_none() -> None:
    assert box_agreement([ONE, ONE, None]) == pytest.approx(1 / 3)
    assert box_agreement([None, None]) == 0.0
    assert point_agreement([(0.5, 0.5), None], scale=0.1) == 0.0


def test_points_agree_by_their_distance() -> None:
    assert point_agreement([(0.5, 0.5), (0.5, 0.5)], scale=0.1) == 1.0
    assert point_agreement([(0.5, 0.5), (0.5, 0.55)], scale=0.1) == pytest.approx(0.5)
    assert point_agreement([(0.1, 0.1), (0.9, 0.9)], scale=0.1) == 0.0


def test_the_score_adds_agreement_and_probability() -> None:
    scores = [math.log(0.5), math.log(0.7)]
    assert mean_probability(scores) == pytest.approx(0.6)
    assert zoomer_score([ONE, HALF], scores) == pytest.approx(1.1)
    assert zoomer_score([ONE, ONE], [0.0, 0.0]) == 2.0


def test_brier_and_ece_of_known_answers() -> None:
    assert brier([1.0, 0.0], [True, False]) == 0.0
    assert brier([0.5, 0.5], [True, False]) == 0.25
    assert brier([1.0, 0.0], [False, True]) == 1.0
    # two bins: (.15, right: 0) and (.85, right: .5)
    sure, hits = [0.1, 0.2, 0.8, 0.9], [False, False, True, False]
    assert ece(sure, hits, bins=2) == pytest.approx((0.15 + 0.35) / 2)
    assert ece(sure, hits, bins=[0.0, 0.15, 1.0]) == pytest.approx(
        0.25 * 0.1 + 0.75 * abs(1.9 / 3 - 1 / 3)
    )


def test_the_table_counts_every_answer_once() -> None:
    rows = reliability_table([0.0, 0.1, 0.5, 0.99, 1.0], [True] * 5, bins=10)
    assert [row.count for row in rows] == [1, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert rows[2].accuracy is None and rows[9].accuracy == 1.0
    assert rows[9].confidence == pytest.approx(0.995)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="calibrate"):
        ece([1.7, 0.2], [True, False])
    with pytest.raises(ValueError, match="finite"):
        brier([math.nan], [True])
    with pytest.raises(ValueError, match="confidences for"):
        brier([0.2, 0.3], [True])
    with pytest.raises(ValueError, match="confidences for"):
        brier([], [])
    with pytest.raises(ValueError, match="rising"):
        reliability_table([0.2], [True], bins=[0.0, 0.0, 1.0])


def test_a_temperature_that_was_put_in_is_found() -> None:
    sure, hits = overconfident()
    fitted = TemperatureScaling.fit(sure, hits)
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("kind", [TemperatureScaling, Isotonic])
def test_calibration_lowers_brier_and_ece_on_answers_it_was_not_fitted_to(kind) -> None:
    fitted = kind.fit(*overconfident(seed=1))
    sure, hits = overconfident(seed=2)
    after = [fitted.apply(one) for one in sure]
    assert brier(after, hits) < brier(sure, hits) - 0.02
    assert ece(after, hits) < 0.5 * ece(sure, hits)
    assert all(0 < one < 1 for one in after)


CASES = st.lists(
    st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=60
)  # fmt: skip


@settings(deadline=None)
@given(cases=CASES, seen=st.lists(st.integers(0, 1000), min_size=2, max_size=30, unique=True))
def test_calibration_keeps_every_order(cases, seen) -> None:
    sure, hits = [one / 1000 for one, _ in cases], [hit for _, hit in cases]
    for fitted in (Isotonic.fit(sure, hits), TemperatureScaling.fit(sure, hits)):
        if isinstance(fitted, TemperatureScaling) and not 0.01 < fitted.temperature < 100:
            continue  # a perfect or a hopeless fit: steps and constants in floating point
        after = [fitted.apply(one / 1000) for one in sorted(seen)]
        assert all(a < b for a, b in itertools.pairwise(after))


@settings(deadline=None)
@given(cases=CASES)
def test_isotonic_steps_are_the_least_squares_under_the_order(cases) -> None:
    sure, hits = [one / 1000 for one, _ in cases], [hit for _, hit in cases]
    fitted = Isotonic.fit(sure, hits)
    assert list(fitted.at) == sorted(set(fitted.at))
    assert all(a <= b for a, b in itertools.pairwise(fitted.value))
    # pooling keeps the total, and by the min-max formula each step is known on its own
    values = sorted(set(sure))
    means = {
        value: max(
            min(
                np.mean([h for s, h in zip(sure, hits, strict=True) if low <= s <= high])
                for high in values
                if high >= value
            )
            for low in values
            if low <= value
        )
        for value in values
    }
    for value in values:
        assert fitted.apply(value) == pytest.approx(means[value], abs=2e-6)


def test_isotonic_takes_scores_beyond_one() -> None:
    fitted = Isotonic.fit([0.2, 0.9, 1.4, 1.9], [False, False, True, True])
    steps = [fitted.apply(one) for one in (-1.0, 0.2, 1.0, 1.5, 5.0)]
    assert steps == sorted(steps) and steps[0] < 1e-5 and steps[-1] > 1 - 1e-5


@pytest.mark.parametrize("kind", [TemperatureScaling, Isotonic])
def test_a_calibrator_survives_json(kind) -> None:
    fitted = kind.fit(*overconfident(200))
    again = from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert again.apply(0.3) == fitted.apply(0.3)


@pytest.mark.parametrize(
    "kept",
    [{}, None, {"kind": "isotonic", "at": [], "value": []}, {"kind": "magic"},
     {"kind": "temperature", "temperature": "hot"}, {"kind": "isotonic", "at": [1], "value": []}],
)  # fmt: skip
def test_what_is_no_calibrator_is_refused(kept) -> None:
    with pytest.raises(InputError, match="calibrate again"):
        from_json(kept)


def test_the_threshold_lies_where_a_look_begins_to_pay() -> None:
    sure = [0.1, 0.2, 0.3, 0.7, 0.8, 0.9]
    now = [False, False, False, True, True, True]
    best = choose_tau(sure, hit_now=now, hit_after=[True] * 6, price=0.2)
    assert best.tau == pytest.approx(0.5)
    assert (best.accuracy, best.zoom_rate) == (1.0, 0.5)
    assert best.worth == pytest.approx(0.9)


def test_a_look_that_costs_more_than_it_brings_is_never_taken() -> None:
    sure, now = [0.1, 0.5, 0.9], [False, True, True]
    assert choose_tau(sure, hit_now=now, hit_after=[True] * 3, price=1.5).tau == NEVER
    assert choose_tau(sure, hit_now=now, hit_after=now, price=0.0).tau == NEVER
    everything = choose_tau(sure, hit_now=[False] * 3, hit_after=[True] * 3, price=0.1)
    assert everything.tau == ALWAYS and everything.zoom_rate == 1.0
    json.dumps(everything.tau, allow_nan=False)


@given(
    cases=st.lists(
        st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), min_size=1, max_size=30
    ),
    price=st.sampled_from([0.0, 0.05, 0.2, 0.5]),
    other=st.floats(0.0, 2.0),
)  # fmt: skip
def test_no_other_threshold_is_worth_more(cases, price: float, other: float) -> None:
    sure = [one / 10 for one, _, _ in cases]
    now, after = [one for _, one, _ in cases], [one for _, _, one in cases]
    best = choose_tau(sure, hit_now=now, hit_after=after, price=price)
    assert best.worth >= threshold_at(other, sure, now, after, price=price).worth - 1e-9
    assert best == threshold_at(best.tau, sure, now, after, price=price)


def test_a_negative_confidence_is_refused() -> None:
    with pytest.raises(ValueError, match="below 0"):
        choose_tau([-0.1, 0.4], hit_now=[True, True], hit_after=[True, True], price=0.1)
