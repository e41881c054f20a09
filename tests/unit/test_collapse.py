"""Detectors of a collapsed policy: what stops a run, what does not, and how they survive one."""

from __future__ import annotations

import json
import random

import pytest

from saccade.config.grounding import GrpoConfig
from saccade.grounding.collapse import Detectors, PolicyCollapsed, Seen

HEALTHY = Seen(answers=0.97, taught=0.6, zooms=0.5, entropy=0.3)
SICK = {
    "answers": Seen(answers=0.5, taught=0.6, zooms=0.5, entropy=0.3),
    "rewards": Seen(answers=1.0, taught=0.0, zooms=0.5, entropy=0.3),
    "tools": Seen(answers=1.0, taught=0.6, zooms=1.0, entropy=0.3),
    "entropy": Seen(answers=1.0, taught=0.6, zooms=0.5, entropy=1e-6),
}
CONFIG = GrpoConfig(patience=5, stop_on_tool_rate=True)


def after(steps: list[Seen], config: GrpoConfig = CONFIG) -> Detectors:
    detectors = Detectors(config)
    for seen in steps:
        detectors.note(seen)
    return detectors


@pytest.mark.parametrize("sign", SICK)
def test_a_sign_that_lasts_stops_and_says_why(sign: str) -> None:
    almost = after([SICK[sign]] * 4)
    assert almost.collapsed() == []
    almost.stop(step=4, saved="nothing is saved")
    detectors = after([SICK[sign]] * 5)
    assert detectors.collapsed() == [sign]
    with pytest.raises(PolicyCollapsed) as caught:
        detectors.stop(step=5, saved="the last good checkpoint is step-4")
    message = str(caught.value)
    assert message.startswith("step 5: ") and "5 steps in a row" in message
    assert "step-4" in message and "\n  fix: " in message and "grounding." in message


@pytest.mark.parametrize("sign", SICK)
def test_one_good_step_begins_the_count_anew(sign: str) -> None:
    assert after([SICK[sign]] * 4 + [HEALTHY] + [SICK[sign]] * 4).collapsed() == []


def test_the_policy_that_only_calls_a_tool_shows_every_sign() -> None:
    tag_only = Seen(answers=0.0, taught=0.0, zooms=1.0, entropy=0.0)
    assert after([tag_only] * 5).collapsed() == ["answers", "rewards", "tools", "entropy"]


def test_nobody_zooming_is_a_sign_only_where_it_is_asked_for() -> None:
    never = Seen(answers=1.0, taught=0.6, zooms=0.0, entropy=0.3)
    assert after([never] * 9).collapsed() == ["tools"]
    assert after([never] * 9, GrpoConfig(patience=5)).collapsed() == []


def test_a_healthy_run_with_bad_moments_goes_on() -> None:
    drawn = random.Random(1)
    steps = [drawn.choice([HEALTHY, HEALTHY, *SICK.values()]) for _ in range(2000)]
    detectors = Detectors(GrpoConfig(patience=8, stop_on_tool_rate=True))
    for number, seen in enumerate(steps):
        detectors.note(seen)
        detectors.stop(step=number, saved="")


def test_the_count_goes_on_after_a_resume() -> None:
    first = after([SICK["answers"]] * 3)
    again = Detectors(CONFIG)
    again.restore(json.loads(json.dumps(first.saved())))
    again.note(SICK["answers"])
    assert again.collapsed() == []
    again.note(SICK["answers"])
    assert again.collapsed() == ["answers"]
