"""Text in, score out: no way of writing is paid more than trying honestly.

Every row goes through the real parser, the real screen and the real reward. The fixture at the end
is the reward an earlier system used; it fails the same rows.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.config.grounding import GroundingConfig, GrpoConfig, RewardConfig, ZoomConfig
from saccade.data.boxes import Box, Size, iou
from saccade.grounding.coordinates import Convention, CoordinateError
from saccade.grounding.environment import Answer, Screen, most_calls
from saccade.grounding.messages import read_turn, write_call
from saccade.grounding.rewards import (
    PARTS,
    Outcome,
    coverage,
    group_rewards,
    nearness,
    reward_of,
)

PAGE = (1000, 1000)
SMALL = Box(0.62, 0.30, 0.66, 0.34)
"""The target of most rows; in numbers of 0-1000 [620, 300, 660, 340]."""
RIGHT, WRONG = "[620, 300, 660, 340]", "[100, 700, 140, 740]"
CONFIG = GroundingConfig(tools=["zoom", "wait"], zoom=ZoomConfig(calls=1))
EVERYTHING = RewardConfig(hit=1.0, point=0.2, coverage=0.2, iou=0.2, format=0.1, call=0.1,
                          tool=0.2, confidence=0.3)  # fmt: skip
WEIGHTS = {
    "default": RewardConfig(),
    "everything": EVERYTHING,
    "no format": RewardConfig(format=0.0),
    "costly calls": RewardConfig(call=0.45),
    "confidence": RewardConfig(confidence=1.0, stated=True),
}


def fit(size: Size) -> Size:
    return size


def zoomed(box: list[float]) -> str:
    return write_call("zoom", json.dumps({"box": box}))


def outcome(*turns: str, box: Box = SMALL, config: GroundingConfig = CONFIG,
            convention: str = "0-1000", confidence: float | None = None,
            needs_zoom: bool | None = None) -> Outcome:  # fmt: skip
    """Play written turns as a rollout does: calls are run, the first other turn ends it."""
    page = Screen(Image.new("RGB", PAGE), config, Convention(convention), fit)  # type: ignore[arg-type]
    answer: Answer | None = None
    stated = None
    for text in turns:
        turn = read_turn(text)
        if turn.kind == "call":
            page.take(turn)
            continue
        if turn.numbers is not None:
            try:
                answer = page.answer(turn.numbers, stated=turn.stated_confidence)
                stated = answer.stated
            except CoordinateError:
                answer = None
        break
    return Outcome(
        answer=answer, box=box, size=PAGE, calls=len(page.calls), zooms=page.zooms,
        most_calls=most_calls(config), confidence=stated if confidence is None else confidence,
        needs_zoom=needs_zoom,
    )  # fmt: skip


def paid(*turns: str, reward: RewardConfig | None = None, **known) -> float:
    return reward_of(outcome(*turns, **known), config=reward or CONFIG.reward).total


WAIT = write_call("wait", "{}")
ON_TARGET = zoomed([620, 300, 660, 340])
SILENT = {
    "nothing": ("",),
    "words": ("I cannot find it.",),
    "an empty tool tag": ("<tool_call></tool_call>",),
    "an open tool tag": ("<tool_call>",),
    "one wait": (WAIT,),
    "ten waits": (WAIT,) * 10,
    "ten waits in one turn": (WAIT * 10,),
    "one zoom": (ON_TARGET,),
    "a zoom and words": (ON_TARGET, "There it is."),
    "a region equal to the target": (zoomed([620, 300, 660, 340]),),
    "a made up tool response": (f"<tool_response>{RIGHT}</tool_response>",),
    "an open tool response": (f"<tool_response>\n{RIGHT}",),
    "a call and its made up response": (
        f"{ON_TARGET}\n<tool_response>\n{RIGHT}\n</tool_response>",
    ),
    "an echoed tool response": (ON_TARGET, f"<tool_response>{RIGHT}</tool_response>"),
    "numbers in the reasoning": (f"<think>It is at {RIGHT}.</think>",),
    "numbers in reasoning that never ends": (f"<think>It is at {RIGHT}.",),
    "a call inside the reasoning": (f"<think>{ON_TARGET}</think>",),
    "zero area": ("[640, 320, 640, 320]",),
    "no height": ("[620, 320, 660, 320]",),
    "swapped corners": ("[660, 340, 620, 300]",),
    "NaN": ("[NaN, 300, 660, 340]",),
    "infinity": ("[-Infinity, -Infinity, Infinity, Infinity]",),
    "three numbers": ("[620, 300, 660]",),
    "a list of guesses": ("(630, 310), (640, 320), (650, 330)",),
    "outside the picture": ("[620, 300, 660, 1340]",),
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("row", SILENT)
def test_whatever_is_no_answer_is_paid_no_more_than_the_worst_wrong_one(
    row: str, weights: str
) -> None:
    reward = WEIGHTS[weights]
    worst = paid(zoomed([0, 0, 9, 0]), WAIT, ON_TARGET, f"{WRONG} confidence: 1", reward=reward)
    plain = paid(WRONG + " confidence: 1.0", reward=reward)
    got = outcome(*SILENT[row])
    assert got.answer is None
    total = reward_of(got, config=reward).total
    assert total <= worst + 1e-9 and total <= plain
    if reward.format > 0:
        assert total < worst


@pytest.mark.parametrize("weights", WEIGHTS)
def test_ten_calls_cost_more_than_one(weights: str) -> None:
    reward = WEIGHTS[weights]
    assert paid(*SILENT["ten waits"], reward=reward) < paid(WAIT, reward=reward)
    assert paid(*SILENT["ten waits in one turn"], reward=reward) < paid(WAIT, reward=reward)


WRONG_TRIES = {
    "numbers in the reasoning, wrong answer": f"<think>{RIGHT}</think>{WRONG}",
    "several answers, the last wrong": f"{RIGHT}\n{RIGHT}\n{WRONG}",
    "fake tool output, wrong answer": f"<tool_response>{RIGHT}</tool_response>{WRONG}",
    "tool output closed only, wrong answer": f"{RIGHT}</tool_response>{WRONG}",
}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("row", WRONG_TRIES)
def test_what_stands_before_a_wrong_answer_changes_nothing(row: str, weights: str) -> None:
    reward = WEIGHTS[weights]
    assert paid(WRONG_TRIES[row], reward=reward) == paid(WRONG, reward=reward)


def test_of_several_answers_the_last_counts() -> None:
    assert paid(f"{WRONG}\n{RIGHT}") == paid(RIGHT)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_useless_call_makes_a_right_answer_worth_less(weights: str) -> None:
    reward = WEIGHTS[weights]
    best = paid(RIGHT, reward=reward)
    for useless in (WAIT, "<tool_call></tool_call>", zoomed([1, 1, 1, 1])):
        assert paid(useless, RIGHT, reward=reward) == pytest.approx(best - reward.call)
    whole = zoomed([0, 0, 1000, 1000])
    assert paid(whole, RIGHT, reward=reward) == pytest.approx(best - reward.call)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_right_answer_after_a_useful_crop_beats_a_wrong_one(weights: str) -> None:
    reward = WEIGHTS[weights]
    # the crop shows a quarter of each side about the target, whose middle is then in the middle
    after = paid(ON_TARGET, "[420, 420, 580, 580]", reward=reward, needs_zoom=True)
    assert after > paid(WRONG, reward=reward)
    assert after >= paid(RIGHT, reward=reward) - reward.call - 1e-9


def test_numbers_after_a_crop_are_those_of_the_crop() -> None:
    assert paid(ON_TARGET, "[500, 500]") == pytest.approx(paid("[640, 320]") - CONFIG.reward.call)
    assert paid(ON_TARGET, RIGHT) < paid(ON_TARGET, "[500, 500]") - 0.9


def test_the_tool_bonus_needs_a_hit_a_crop_and_a_row_that_needs_one() -> None:
    reward = EVERYTHING

    def bonus(*turns: str, needs: bool | None) -> float:
        return reward_of(outcome(*turns, needs_zoom=needs), config=reward).parts["tool"]

    assert bonus(ON_TARGET, "[500, 500]", needs=True) == reward.tool
    assert bonus(ON_TARGET, "[500, 500]", needs=False) == 0
    assert bonus(ON_TARGET, "[500, 500]", needs=None) == 0
    assert bonus(ON_TARGET, "[5, 5]", needs=True) == 0
    assert bonus(RIGHT, needs=True) == 0
    assert bonus(zoomed([9, 9, 1, 1]), RIGHT, needs=True) == 0
    assert bonus(WAIT, RIGHT, needs=True) == 0


@pytest.mark.parametrize(
    "huge", ["[0, 0, 1000, 1000]", "[0, 0, 1000, 900]", "[100, 100, 1000, 1000]"]
)
def test_size_earns_no_hit(huge: str) -> None:
    made = outcome(huge)
    assert made.answer is not None and made.answer.box is not None
    x, y = made.answer.point
    middle = f"[{round(x * 1000)}, {round(y * 1000)}]"
    assert not reward_of(made, config=CONFIG.reward).hit
    # by default a box is paid as the point in its middle, whatever its size
    assert paid(huge) == pytest.approx(paid(middle))
    assert paid(huge) <= paid(WRONG) + 1e-3
    # where overlap is paid, covering everything is worth next to nothing
    assert paid(huge, reward=EVERYTHING) <= paid(WRONG, reward=EVERYTHING) + 0.02


def test_a_tiny_box_is_paid_less_overlap_than_a_fitting_one() -> None:
    tiny = "[639, 319, 641, 321]"
    assert paid(tiny) == pytest.approx(paid(RIGHT))
    assert paid(tiny, reward=EVERYTHING) < paid(RIGHT, reward=EVERYTHING)


def test_another_convention_is_never_guessed() -> None:
    shares, thousand = "[0.62, 0.30, 0.66, 0.34]", RIGHT
    assert paid(shares) <= paid(WRONG) + 1e-3
    assert outcome(thousand, convention="0-1").answer is None
    assert paid(shares, convention="0-1") == pytest.approx(paid(RIGHT))
    wide = GroundingConfig(tools=["zoom", "wait"])
    page = Screen(Image.new("RGB", (2000, 1000)), wide, Convention("pixels"), fit)
    assert page.answer([620, 300]).point == (0.31, 0.3)


@pytest.mark.parametrize(
    "text",
    [
        "[620.0, 300.0, 660.00, 340.]",
        "[ 620,300 , 660,340 ]",
        f"```json\n{RIGHT}\n```",
        '```json\n[{"bbox_2d": [620, 300, 660, 340], "label": "star"}]\n```',
        "(620, 300), (660, 340)",
        f"The star is at {RIGHT}.",
        f"<think>hm</think>\n{RIGHT}",
    ],
)
def test_every_syntax_is_paid_alike(text: str) -> None:
    assert paid(text, reward=EVERYTHING) == paid(RIGHT, reward=EVERYTHING)


def test_a_point_is_paid_as_a_box_without_overlap() -> None:
    assert paid("[640, 320]") == pytest.approx(paid(RIGHT))
    assert paid('{"point_2d": [640, 320]}') == paid("(640, 320)") == paid("[640, 320]")
    assert paid("[640, 320]", reward=EVERYTHING) < paid(RIGHT, reward=EVERYTHING)


def test_claiming_certainty_earns_nothing_without_a_brier_term() -> None:
    stated = RewardConfig(stated=True)
    for text in (RIGHT, WRONG):
        assert paid(f"{text} confidence: 100%", reward=stated) == paid(text, reward=stated)


def test_claiming_certainty_is_paid_only_when_right_with_one() -> None:
    stated = WEIGHTS["confidence"]
    assert paid(f"{RIGHT} confidence: 100%", reward=stated) == pytest.approx(
        paid(RIGHT, reward=stated) + 1
    )
    assert paid(f"{WRONG} confidence: 100%", reward=stated) == paid(WRONG, reward=stated)
    assert paid(f"{WRONG} confidence: 0%", reward=stated) == pytest.approx(
        paid(WRONG, reward=stated) + 1
    )
    # doubt in silence earns nothing
    assert reward_of(replace(outcome(""), confidence=0.0), config=stated).parts["confidence"] == 0


@given(chance=st.floats(0, 1), said=st.floats(0, 1))
def test_the_confidence_part_is_highest_at_the_true_chance(chance: float, said: float) -> None:
    def expected(confidence: float) -> float:
        parts = [
            reward_of(outcome(text, confidence=confidence), config=EVERYTHING).parts["confidence"]
            for text in ("[640, 320]", "[5, 5]")
        ]
        return chance * parts[0] + (1 - chance) * parts[1]

    assert expected(chance) >= expected(said) - 1e-9


@given(
    hit=st.floats(0, 3), point=st.floats(0, 3), call=st.floats(0, 3), form=st.floats(0, 0.2),
    sure=st.floats(0, 3), calls=st.integers(0, 12), others=st.integers(0, 3),
    confidence=st.floats(0, 1) | st.none(),
)  # fmt: skip
def test_silence_never_pays_whatever_the_weights(
    hit, point, call, form, sure, calls, others, confidence
) -> None:
    reward = RewardConfig(hit=hit, point=point, call=call, format=form, confidence=sure)
    silent = Outcome(None, SMALL, PAGE, calls=calls, most_calls=3, confidence=confidence)
    wrong = Outcome(Answer((0.0, 1.0)), SMALL, PAGE, calls=others, most_calls=3, confidence=1.0)
    least = reward_of(wrong, config=reward).total
    assert reward_of(silent, config=reward).total <= least + 1e-9


def test_an_answer_after_too_many_calls_is_none() -> None:
    late = outcome(WAIT, WAIT, WAIT, WAIT, RIGHT)
    assert late.answer is not None and late.calls > late.most_calls
    made = reward_of(late, config=CONFIG.reward)
    assert made.parts["hit"] == 0 and made.verdict is None
    assert made.total < paid(WRONG)


def test_every_part_is_named_and_they_sum_up() -> None:
    made = reward_of(
        outcome(ON_TARGET, "[420, 420, 580, 580]", confidence=0.5, needs_zoom=True),
        config=EVERYTHING,
    )
    assert tuple(made.parts) == PARTS
    assert made.total == pytest.approx(sum(made.parts.values()))
    assert made.parts["confidence"] == pytest.approx(0.3 * 0.75)
    assert made.parts["iou"] == pytest.approx(0.2, rel=1e-6)


def test_the_formulas_are_those_written_down() -> None:
    box, other = Box(0.2, 0.2, 0.4, 0.6), Box(0.3, 0.3, 0.7, 0.5)
    assert nearness((0.3, 0.4), box, size=PAGE) == 1.0
    assert nearness((0.4, 0.4), box, size=PAGE) == pytest.approx(math.exp(-0.5))
    assert nearness((0.4, 0.6), box, size=PAGE) == pytest.approx(math.exp(-1.0))
    assert coverage(box, box, size=PAGE) == pytest.approx(1.0)
    # sigmas are half sides: .1 and .2 against .2 and .1; the middles are .2 and 0 apart
    across = 0.2**2 / (4 * (0.01 + 0.04)) + math.log(0.05 / (2 * 0.1 * 0.2)) / 2
    down = math.log(0.05 / (2 * 0.2 * 0.1)) / 2
    assert coverage(box, other, size=PAGE) == pytest.approx(math.exp(-across - down))


def test_a_box_without_area_has_a_finite_coverage() -> None:
    flat = Box(0.3, 0.3, 0.3, 0.3)
    assert 0 < coverage(flat, SMALL, size=PAGE) < 1
    assert nearness((0.3, 0.3), flat, size=PAGE) == 1.0


def test_a_row_known_only_by_a_point_pays_for_nearness() -> None:
    made = Outcome(Answer((0.5, 0.5)), None, PAGE, point=(0.55, 0.5))
    assert reward_of(made, config=CONFIG.reward).parts["hit"] == 1.0
    with pytest.raises(ValueError, match="without a target"):
        reward_of(replace(made, point=None), config=CONFIG.reward)


def test_curiosity_pays_the_lacking_share_to_right_answers_after_a_zoom_only() -> None:
    config = GroundingConfig(grpo=GrpoConfig(curiosity=0.5), tools=["zoom", "wait"])
    group = [
        outcome(RIGHT), outcome(WRONG), outcome(ON_TARGET, "[500, 500]"), outcome(WAIT, RIGHT),
    ]  # fmt: skip
    floors = [one.parts["curiosity"] for one in group_rewards(group, config=config)]
    assert floors == [0, 0, pytest.approx(0.25), 0]
    wrong = [outcome(ON_TARGET, "[5, 5]"), *group[:1] * 3]
    assert all(not one.parts["curiosity"] for one in group_rewards(wrong, config=config))
    eager = [group[2]] * 4
    assert all(not one.parts["curiosity"] for one in group_rewards(eager, config=config))
    assert group_rewards([], config=config) == []


# the reward an earlier system used ----------------------------------------------------------------


def earlier_reward(text: str, *, target: Box = SMALL) -> float:
    """As it was coded: IoU of the FIRST numbers, tool tags counted, nothing run.

    A tool tag without a box earns .1 on small or edge targets. With a box: .6 IoU + .3 tool + .1
    gate, where tool = k IoU with tags (k = .4 small, .2 edge, .1 other), else .1 if not small and
    IoU > .7; gate sums -.3 (small, no tool, IoU < .5), -.25 (neither, > 1 tool), -.05 (small, wait
    without zoom), -.4 (> 2 tools).
    """
    tools = text.count("<tool_call>")
    small = target.area < 0.05
    edge = target.left < 0.1 or target.top < 0.1 or target.right > 0.9 or target.bottom > 0.9
    number = r"(\d*\.?\d+)"
    found = re.search(rf"\[\s*{number},\s*{number},\s*{number},\s*{number}\s*\]", text)
    if tools and not found:
        return 0.1 if small or edge else 0.0
    overlap = iou(Box(*(float(one) / 1000 for one in found.groups())), target) if found else 0.0
    if tools:
        tool = (0.4 if small else 0.2 if edge else 0.1) * overlap
    else:
        tool = 0.1 if not small and overlap > 0.7 else 0.0
    gate = -0.3 if small and not tools and overlap < 0.5 else 0.0
    gate -= 0.25 if not small and not edge and tools > 1 else 0.0
    gate -= 0.05 if small and "wait" in text and "zoom" not in text else 0.0
    gate -= 0.4 if tools > 2 else 0.0
    return 0.6 * overlap + 0.3 * tool + 0.1 * gate


def test_the_fixture_pays_what_was_measured_of_the_earlier_reward() -> None:
    tag = "<tool_call></tool_call>"
    assert earlier_reward(RIGHT) == pytest.approx(0.60)
    assert earlier_reward(tag + RIGHT) == pytest.approx(0.72)
    assert earlier_reward(WRONG) == pytest.approx(-0.03)
    assert earlier_reward(tag + WRONG) == pytest.approx(0.0)
    assert earlier_reward(tag) == earlier_reward(WAIT) == pytest.approx(0.10)
    assert earlier_reward(WAIT * 10) == pytest.approx(0.10)
    large = Box(0.2, 0.2, 0.6, 0.6)
    assert earlier_reward("[200, 200, 600, 600]", target=large) == pytest.approx(0.63)
    assert earlier_reward(tag * 2 + "[200, 200, 600, 600]", target=large) == pytest.approx(0.605)


@pytest.mark.parametrize(
    "row",
    [
        "an empty tool tag", "an open tool tag", "one wait", "ten waits", "one zoom",
        "a region equal to the target", "a made up tool response", "an open tool response",
        "a call and its made up response", "an echoed tool response", "numbers in the reasoning",
        "numbers in reasoning that never ends", "a call inside the reasoning",
    ],
)  # fmt: skip
def test_the_earlier_reward_paid_for_what_this_one_does_not(row: str) -> None:
    text = "".join(SILENT[row])
    assert earlier_reward(text) > earlier_reward(WRONG)
    assert paid(*SILENT[row]) < paid(WRONG)


def test_the_earlier_reward_paid_useless_calls_first_answers_and_ten_waits_alike() -> None:
    assert earlier_reward("<tool_call></tool_call>" + RIGHT) > earlier_reward(RIGHT)
    assert earlier_reward(f"{RIGHT}\n{WRONG}") == earlier_reward(RIGHT)
    assert earlier_reward(WAIT * 10) == earlier_reward(WAIT)
