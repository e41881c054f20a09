"""One parser of what a policy writes: every syntax alike, no answer from anything else, no hang."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.config.grounding import GroundingConfig, RewardConfig
from saccade.grounding.coordinates import Convention
from saccade.grounding.messages import (
    instruction_text,
    read_turn,
    system_text,
    tool_schemas,
    write_call,
)


@pytest.mark.parametrize(
    "text",
    [
        "[12, 34, 56, 78]",
        "[12,34,56,78]",
        "[ 12 , 34 , 56 , 78 ]",
        "[12 34 56 78]",
        "[12.0, 34., 56.00, +78]",
        "[1.2e1, 34, 56, 78]",
        "(12, 34, 56, 78)",
        "(12, 34), (56, 78)",
        "(12,34),(56,78)",
        "[[12, 34, 56, 78]]",
        "[[12, 34], [56, 78]]",
        '{"bbox_2d": [12, 34, 56, 78]}',
        '[{"bbox_2d": [12, 34, 56, 78], "label": "the red star"}]',
        '```json\n[\n  {"bbox_2d": [12, 34, 56, 78], "label": "star"}\n]\n```',
        "```\n[12, 34, 56, 78]\n```",
        "<|box_start|>(12,34),(56,78)<|box_end|>",
        "The red star is at [12, 34, 56, 78].",
        "<think>Is it [1, 2, 3, 4]?</think>\n[12, 34, 56, 78]",
        "I see (1, 2).</think>[12, 34, 56, 78]",
        "<think></think>[12,\n34,\n56,\n78]",
        "[1, 2, 3, 4] no: [12, 34, 56, 78]",
        "[1, 2]\n[12, 34, 56, 78]",
    ],
)
def test_a_box_is_read_however_it_is_written(text: str) -> None:
    turn = read_turn(text)
    assert turn.kind == "answer", turn.problem
    assert turn.numbers == (12, 34, 56, 78)


@pytest.mark.parametrize(
    "text",
    [
        "[512, 30]",
        "(512, 30)",
        "(512.0 30)",
        "click(512, 30)",
        "click(x=512, y=30)",
        "click(start_box='(512,30)')",
        '{"point_2d": [512, 30], "label": "save"}',
        '```json\n{"point_2d": [512, 30]}\n```',
        "[1, 2, 3, 4] and then [512, 30]",
        "[1, 2]\n[512, 30]",
        "element [3] of menu (2): [512, 30] (1)",
    ],
)
def test_a_point_is_read_however_it_is_written(text: str) -> None:
    turn = read_turn(text)
    assert turn.kind == "answer", turn.problem
    assert turn.numbers == (512, 30)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no answer"),
        ("   \n", "no answer"),
        ("I cannot find it.", "no place"),
        ("512, 30", "no place"),
        ("[the red star]", "no place"),
        ("[12, 34, 56, star]", "no place"),
        ("[12, 34", "no place"),
        ("[512]", "no place"),
        ("[1, 2, 3]", "2 or 4 numbers, not 3"),
        ("[1, 2, 3, 4, 5]", "2 or 4 numbers, not 5"),
        ("(1,2),(3,4),(5,6)", "2 or 4 numbers, not 6"),
        ("[56, 34, 12, 78]", "swapped"),
        ("[12, 78, 56, 34]", "swapped"),
        ("[12, 34, 12, 78]", "no area"),
        ("[nan, 34]", "finite"),
        ("[12, Infinity]", "finite"),
        ("[12, -inf, 3, 4]", "finite"),
        ("[1e999, 3]", "finite"),
        ("[1, 2, 3, 4] then [5, 6, 7]", "not 3"),
        ("[" + "9" * 400 + ", 1]", "no place"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, reason: str) -> None:
    turn = read_turn(text)
    assert turn.kind == "unreadable"
    assert reason in turn.problem
    assert turn.numbers is None


@pytest.mark.parametrize(
    "text",
    [
        "<think>[1, 2, 3, 4]</think>",
        "<think>it is at [1, 2, 3, 4]",
        "it is at [1, 2, 3, 4]</think>",
        "<tool_response>[1, 2, 3, 4]</tool_response>",
        "<tool_response>[1, 2, 3, 4]",
        "[1, 2, 3, 4]</tool_response>",
        "<think><tool_response></tool_response>[1, 2, 3, 4]</think>",
    ],
)
def test_reasoning_and_tool_output_are_no_answers(text: str) -> None:
    assert read_turn(text).kind == "unreadable"


def test_reasoning_is_kept_apart() -> None:
    assert read_turn("<think> small, so I zoom </think>[1, 2]").reasoning == "small, so I zoom"
    assert read_turn("It is here: [1, 2]").reasoning == "It is here:"
    assert read_turn("[1, 2]").reasoning == ""


def test_a_written_call_is_read_back() -> None:
    text = write_call("zoom", json.dumps({"box": [1, 2, 3, 4]}))
    assert text == (
        '<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2, 3, 4]}}\n</tool_call>'
    )
    turn = read_turn(f"<think>too small</think>\n{text}")
    assert turn.kind == "call" and turn.call is not None and turn.calls == 1
    assert (turn.call.name, turn.call.arguments) == ("zoom", {"box": [1, 2, 3, 4]})
    assert turn.problem == "" and turn.numbers is None and turn.reasoning == "too small"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call></tool_call>", "empty"),
        ("<tool_call>\n \n</tool_call>", "empty"),
        ("<tool_call>zoom(1, 2, 3, 4)</tool_call>", "not JSON"),
        ("<tool_call>[1, 2, 3, 4]</tool_call>", "a call is"),
        ('<tool_call>{"arguments": {}}</tool_call>', "a call is"),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', "a call is"),
        ('<tool_call>{"name": "zoom", "arguments": [1]}</tool_call>', "JSON object"),
        ('<tool_call>{"name": "zoom", "arguments": {"box": [1, 2, 3, 4]}}', "not closed"),
        ("<tool_call>" + "[" * 1900 + "</tool_call>", "not JSON"),
        ("<tool_call>" + "9" * 9000 + "</tool_call>", "too long"),
    ],
)
def test_a_broken_call_is_a_call_with_a_reason_and_never_an_answer(text: str, reason: str) -> None:
    for around in (text, "[1, 2, 3, 4] " + text):
        turn = read_turn(around)
        assert turn.kind == "call" and turn.calls == 1
        assert reason in turn.problem
        assert turn.numbers is None


def test_several_calls_in_one_turn_are_counted_and_not_run() -> None:
    turn = read_turn(write_call("wait", "{}") * 10 + "[1, 2]")
    assert turn.kind == "call" and turn.calls == 10
    assert "10 calls in one turn" in turn.problem


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("[1, 2] confidence: 0.8", 0.8),
        ("[1, 2] Confidence 80%", 0.8),
        ("[1, 2], confidence is 1", 1.0),
        ('{"point_2d": [1, 2], "confidence": 0.25}', 0.25),
        ("confidence: 0.1 ... [1, 2] confidence=.5 confidence=0.5", 0.5),
        ("[1, 2] confidence: 80", None),
        ("[1, 2] confidence: 101%", None),
        ("[1, 2] confidence: high", None),
        ("[1, 2]", None),
    ],
)
def test_a_stated_confidence_is_read_in_its_range_only(text: str, stated: float | None) -> None:
    assert read_turn(text).stated_confidence == stated


NASTY = {
    "open brackets": "[" * 100_000,
    "both brackets": "[" * 50_000 + "]" * 50_000,
    "digits": "1" * 100_000,
    "digits in a bracket": "[" + "1" * 100_000 + "]",
    "digits and commas": "[" + "1," * 50_000 + "]",
    "digits and blanks": "[" + "1 " * 50_000,
    "pairs": "[1,2]," * 16_000,
    "commas": "[1,2]" + "," * 100_000 + "[3,4]",
    "blanks": "[1," + " " * 100_000 + "2]",
    "dots": "[1" + "." * 100_000 + ",2]",
    "exponents": "[" + "1e" * 50_000 + ",2]",
    "names": "[" + "a=" * 50_000 + "1,2]",
    "thoughts": "<think>" * 14_000,
    "closed thoughts": "[1,2]</think>" * 8_000,
    "calls": "<tool_call>" * 9_000,
    "closed calls": "<tool_call>{</tool_call>" * 4_000,
    "deep call": "<tool_call>" + '{"a":' * 20_000 + "</tool_call>",
    "half tags": "<tool_call" * 10_000,
    "confidence": "[1,2]" + "confidence:" * 9_000,
    "blank confidence": "[1,2] confidence" + " " * 100_000,
    "nul": "\x00" * 100_000,
}


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_text_cannot_hang_the_parser(name: str) -> None:
    # in a thread of its own, so that a hang fails the test instead of stopping all of them
    worker = threading.Thread(target=read_turn, args=(NASTY[name],), daemon=True)
    worker.start()
    worker.join(timeout=20)
    assert not worker.is_alive()


def fastest(text: str) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        read_turn(text)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("unit", ["[", "[1,2],", "[1,2]\n", "1", "</think>[1", "confidence 1 "])
def test_time_grows_with_the_length_and_not_its_square(unit: str) -> None:
    base = 100_000 // len(unit)
    # eight times the text may take 64 times as long only where time is quadratic
    assert fastest(unit * base) <= 30 * max(fastest(unit * (base // 8)), 1e-4)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(
    ["[", "]", "(", ")", "{", "}", "1", "23.5", "-", ",", " ", "\n", "nan", "inf", "e", "x=",
     "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
     '{"name": "zoom"}', "confidence", ":", "%", "\u0661", "\u00b2", "```"]
), max_size=40))  # fmt: skip
def test_whatever_is_written_is_read_as_one_of_three(parts: list[str]) -> None:
    turn = read_turn("".join(parts))
    assert turn.kind in ("call", "answer", "unreadable")
    assert (turn.kind == "answer") == (turn.numbers is not None)
    assert (turn.kind == "call") == (turn.call is not None) == (turn.calls > 0)
    assert turn.kind != "unreadable" or turn.problem


def test_the_system_text_says_what_form_and_which_numbers() -> None:
    box = system_text(GroundingConfig(), convention=Convention("0-1000"))
    assert "[left, top, right, bottom]" in box and "0 to 1000" in box and "zoom" in box
    point = system_text(
        GroundingConfig(answer="point", tools=[], reward=RewardConfig(stated=True)),
        convention=Convention("pixels"),
    )
    assert "[x, y]" in point and "pixels" in point
    assert "zoom" not in point and "confidence" in point


def test_the_instruction_stays_as_it_is() -> None:
    assert instruction_text("Click the red star.", GroundingConfig()) == "Click the red star."


def test_tools_have_schemas_that_templates_take() -> None:
    schemas = tool_schemas(["zoom", "inspect", "wait"])
    assert [one["function"]["name"] for one in schemas] == ["zoom", "inspect", "wait"]
    assert schemas[0]["function"]["parameters"]["required"] == ["box"]
    assert schemas[2]["function"]["parameters"]["properties"] == {}
    json.dumps(schemas)
