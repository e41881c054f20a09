"""The screen that can be looked at again: real pixels, chained offsets, readable refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.config.grounding import GroundingConfig, RewardConfig, ZoomConfig
from saccade.data.boxes import WHOLE, Box, Size
from saccade.data.samples import DataError, Sample
from saccade.grounding.coordinates import Convention, CoordinateError
from saccade.grounding.environment import Screen, most_calls
from saccade.grounding.episodes import (
    ROW_FIELDS,
    Episode,
    Facts,
    answer_of_row,
    bucket_of,
    check_row,
    mean_log_prob,
    outcome_of,
    row_of,
    screen_of,
    target_side,
    task_of,
    verdict_of,
    verdict_of_row,
)
from saccade.grounding.messages import read_turn, write_call
from saccade.grounding.rewards import reward_of

PAGE = (768, 576)
CONVENTION = Convention("0-1000")


def fit(size: Size) -> Size:
    return max(16, round(size[0] / 16) * 16), max(16, round(size[1] / 16) * 16)


def first_look(size: Size) -> Size:
    return 128, 96


def gradient(size: Size = PAGE) -> Image.Image:
    """A page whose colour says where a pixel lies: red across, green down."""
    x = np.linspace(0, 255, size[0])[None, :].repeat(size[1], 0)
    y = np.linspace(0, 255, size[1])[:, None].repeat(size[0], 1)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def screen(*, size: Size = PAGE, tools: Any = ("zoom",), tree: Any = (), loaded: Any = None,
           **zoom: Any) -> Screen:  # fmt: skip
    config = GroundingConfig(tools=list(tools), zoom=ZoomConfig(**zoom))
    return Screen(gradient(size), config, CONVENTION, first_look, tree, loaded, fit)


def test_a_zoom_returns_the_pixels_of_the_part_it_shows() -> None:
    page = screen()
    result = page.zoom([500, 250, 750, 500])
    assert result.ok and result.view is not None and result.text == ""
    view = result.view
    assert view.box == Box(0.5, 0.25, 0.75, 0.5)
    assert view.size == view.image.size
    assert view.pixels == pytest.approx(ZoomConfig().pixels, rel=0.1)
    colours = np.asarray(view.image.convert("RGB"), dtype=float)
    middle = colours[colours.shape[0] // 2, colours.shape[1] // 2]
    assert middle[0] == pytest.approx(255 * 0.625, abs=2)
    assert middle[1] == pytest.approx(255 * 0.375, abs=2)


def test_numbers_refer_to_the_latest_picture() -> None:
    page = screen(calls=2)
    page.zoom([500, 500, 1000, 1000])
    assert page.answer([500, 500]).point == pytest.approx((0.75, 0.75))
    page.zoom([0, 0, 500, 500])
    assert page.view.box == pytest.approx(Box(0.5, 0.5, 0.75, 0.75))
    answer = page.answer([0, 0, 1000, 1000], stated=0.7)
    assert answer.box == pytest.approx(page.view.box)
    assert answer.point == pytest.approx((0.625, 0.625)) and answer.stated == 0.7
    assert page.numbers((0.625, 0.625)) == [500, 500]
    assert page.write((0.5, 0.5, 0.75, 0.75)) == "[0, 0, 1000, 1000]"


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ([495, 495, 505, 505], Box(0.375, 0.375, 0.625, 0.625)),
        ([0, 0, 10, 10], Box(0, 0, 0.25, 0.25)),
        ([990, 990, 1000, 1000], Box(0.75, 0.75, 1, 1)),
        ([0, 500, 500, 510], Box(0, 0.380, 0.5, 0.630)),
    ],
)
def test_a_small_box_is_widened_about_its_middle_and_kept_inside(asked, shown: Box) -> None:
    page = screen(max_aspect=100)
    assert page.zoom(asked).ok
    assert page.view.box == pytest.approx(shown, abs=1 / 576)


def test_a_crop_has_at_least_the_shortest_side() -> None:
    page = screen(size=(200, 150), calls=3, window=0.01, min_side=28)
    assert page.zoom([400, 400, 410, 410]).ok
    left, top, right, bottom = page.view.box.pixels((200, 150))
    assert (round(right - left), round(bottom - top)) == (28, 28)
    assert "too small" in page.zoom([0, 0, 500, 500]).text
    small = screen(size=(20, 150), window=0.5)
    assert "too small" in small.zoom([0, 0, 500, 500]).text


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("zoom", {}, "one argument, box"),
        ("zoom", {"region": [1, 2, 3, 4]}, "one argument, box"),
        ("zoom", {"box": [1, 2, 3, 4], "factor": 2}, "one argument, box"),
        ("zoom", {"box": "[1, 2, 3, 4]"}, "list of 4 numbers"),
        ("zoom", {"box": [1, 2]}, "list of 4 numbers"),
        ("zoom", {"box": [[1, 2], [3, 4]]}, "list of 4 numbers"),
        ("zoom", {"box": [1, 2, 3, None]}, "list of 4 numbers"),
        ("zoom", {"box": [1, 2, 3, True]}, "list of 4 numbers"),
        ("zoom", {"box": {"left": 1}}, "list of 4 numbers"),
        ("zoom", {"box": [1, 2, 3, math.nan]}, "finite"),
        ("zoom", {"box": [1, 2, 3, 10**400]}, "finite"),
        ("zoom", {"box": [500, 0, 100, 300]}, "swapped"),
        ("zoom", {"box": [100, 0, 100, 300]}, "no area"),
        ("zoom", {"box": [0, 0, 1200, 900]}, "outside the picture"),
        ("zoom", {"box": [-5, 0, 100, 100]}, "outside the picture"),
        ("zoom", {"box": [0, 0, 1000, 5]}, "times longer"),
        ("inspect", {"box": [0, 0, 100, 100]}, "no tool 'inspect'"),
        ("wait", {}, "no tool 'wait'"),
        ("", {}, "no tool ''"),
        ("rm -rf " * 30, {}, "no tool"),
    ],
)
def test_nonsense_is_refused_with_a_text_and_counted(name: str, arguments, reason: str) -> None:
    page = screen()
    result = page.call(name, arguments)
    assert not result.ok and result.view is None
    assert result.text.startswith("error: ") and reason in result.text
    assert len(result.text) < 200
    assert len(page.views) == 1 and page.zooms == 0
    assert [call.ok for call in page.calls] == [False] and page.calls[0].problem


def test_zooms_and_calls_have_limits() -> None:
    page = screen(calls=1)
    assert page.zoom([0, 0, 500, 500]).ok
    assert page.zoom([0, 0, 500, 500]).text == "error: no zoom left: answer now"
    assert len(page.calls) == most_calls(page.config) == 2 and not page.over
    assert page.zoom([0, 0, 500, 500]).text == "error: no calls left: answer now"
    assert page.over and page.zooms == 1
    assert "no zoom left" in screen(calls=0).zoom([0, 0, 500, 500]).text


def test_a_mistake_leaves_the_zoom_to_be_made() -> None:
    page = screen(calls=1)
    assert not page.zoom([500, 0, 100, 300]).ok
    assert page.zoom([100, 0, 500, 300]).ok and not page.over


def test_pixels_are_those_the_model_sees() -> None:
    page = screen(calls=2)
    assert page.pixels == 128 * 96
    page.zoom([0, 0, 500, 500])
    assert page.pixels == 128 * 96 + page.view.size[0] * page.view.size[1]
    before = page.pixels
    page.zoom([0, 0, 0, 0])
    assert page.pixels == before


def test_a_turn_is_taken_as_it_was_read() -> None:
    page = screen(calls=2)
    written = write_call("zoom", json.dumps({"box": [0, 0, 500, 500]}))
    assert page.take(read_turn(written)).ok
    assert "not JSON" in page.take(read_turn("<tool_call>zoom!</tool_call>")).text
    assert len(page.calls) == 2 and page.zooms == 1
    page.take(read_turn(written * 10))
    assert len(page.calls) == 12 and page.over and page.zooms == 1
    with pytest.raises(ValueError, match="calls no tool"):
        page.take(read_turn("[1, 2]"))


def test_an_answer_that_names_no_place_is_refused() -> None:
    for numbers in ([1200, 3], [1, 2, 3], [math.nan, 1], [5, 5, 1, 1]):
        with pytest.raises(CoordinateError):
            screen().answer(numbers)


TREE = [
    {"role": "button", "name": 'save "all"', "box": (0.1, 0.1, 0.2, 0.2)},
    {"role": "link", "name": "help", "box": (0.8, 0.8, 0.9, 0.9)},
]


def test_inspect_lists_what_lies_in_the_box_in_numbers_of_the_picture() -> None:
    page = screen(tools=("zoom", "inspect"), tree=TREE)
    assert page.inspect([0, 0, 500, 500]).text == 'button "save \\"all\\"" [100, 100, 200, 200]'
    page.zoom([0, 0, 500, 500])
    assert page.inspect([0, 0, 1000, 1000]).text.endswith("[200, 200, 400, 400]")
    assert page.pixels == 128 * 96 + page.view.pixels


def test_inspect_says_when_nothing_is_there_and_is_refused_without_a_tree() -> None:
    page = screen(tools=("inspect",), tree=TREE)
    assert page.inspect([300, 300, 500, 500]).text == "nothing is here"
    assert "no accessibility tree" in screen(tools=("inspect",)).inspect([0, 0, 9, 9]).text


def test_inspect_lists_so_many_elements_and_counts_the_rest() -> None:
    page = screen(tools=("inspect",), tree=TREE[:1] * 25)
    assert page.inspect([0, 0, 1000, 1000]).text.splitlines()[-1] == "and 5 more"


def test_wait_shows_the_loaded_page_once_and_then_nothing_changes() -> None:
    loaded = Image.new("RGB", PAGE, "blue")
    page = screen(tools=("zoom", "wait"), loaded=loaded)
    result = page.wait()
    assert result.ok and result.view is not None and result.view.box == WHOLE
    assert result.view.image is loaded and page.pixels == 2 * 128 * 96
    assert page.wait().text == "nothing changed" and len(page.views) == 2
    assert page.zoom([0, 0, 500, 500]).view is not None
    assert page.view.image.getpixel((3, 3)) == (0, 0, 255)


def test_wait_on_a_page_that_is_there_says_so_and_counts() -> None:
    page = screen(tools=("wait",))
    assert page.wait().text == "nothing changed"
    assert len(page.calls) == 1 and page.pixels == 128 * 96
    assert "takes no arguments" in page.call("wait", {"seconds": 5}).text


# episodes and their rows --------------------------------------------------------------------------


def sample(**facts: Any) -> Sample:
    kept = {"box": (0.5, 0.5, 0.6, 0.6), "platform": "web", "element": "icon", "size": PAGE}
    return Sample(id="a/1", question="Click the red star.", answers=(), images=(gradient(),),
                  kind="point", image_key="a", facts={**kept, **facts})  # fmt: skip


def episode(*turns: str, finish: Any = "answered", **facts: Any) -> Episode:
    """An episode as a rollout would leave it, with two tokens written per turn and one given."""
    config = GroundingConfig(tools=["zoom"])
    task = task_of(sample(**facts))
    page = screen_of(task, config=config, convention=CONVENTION, fit=first_look, fit_zoom=fit)
    answer = None
    for text in turns:
        turn = read_turn(text)
        if turn.kind == "call":
            page.take(turn)
        elif turn.numbers is not None:
            answer = page.answer(turn.numbers, stated=turn.stated_confidence)
    written = torch.tensor(([True, True, False] * len(turns))[:-1])
    scores = torch.linspace(-0.5, -0.1, len(written)) * written
    return Episode(task=task, index=3, seed=17, turns=list(turns), ids=torch.arange(len(written)),
                   written=written, log_probs=scores, entropies=scores.abs(), screen=page,
                   answer=answer, finish=finish)  # fmt: skip


ZOOM = write_call("zoom", json.dumps({"box": [500, 500, 750, 750]}))


def kept_row(one: Episode, **facts: Any) -> dict[str, Any]:
    made = row_of(one, facts=Facts(run="r", step=5, split="test", **facts), convention=CONVENTION)
    return json.loads(json.dumps(made, allow_nan=False))


def test_a_kept_row_is_judged_again_without_model_or_pixels() -> None:
    one = episode(f"<think>too small</think>{ZOOM}", "[100, 100, 300, 300] confidence: 0.9")
    row = kept_row(one)
    assert row["hit"] is True
    assert row["zooms"] == 1 and row["parse"] == "ok"
    assert row["reasoning"][0] == "too small" and row["stated"] == 0.9
    assert row["views"][1]["offset"] == pytest.approx([384, 288])
    again, first = verdict_of_row(row), verdict_of(one)
    assert again is not None and again == first
    assert answer_of_row(row) == one.answer


def test_a_row_has_every_field_in_order_and_lacking_ones_are_named() -> None:
    row = kept_row(episode("[550, 550]"))
    assert tuple(row)[: len(ROW_FIELDS)] == tuple(name for name in row if name in ROW_FIELDS)
    assert set(row) == set(ROW_FIELDS)
    del row["views"]
    with pytest.raises(DataError, match="lacks views"):
        check_row(row)


@pytest.mark.parametrize("finish", ["unreadable", "truncated", "too many turns"])
def test_an_episode_without_answer_is_kept_and_is_no_hit(finish: str) -> None:
    row = kept_row(episode(ZOOM, "I do not know.", finish=finish))
    assert (row["finish"], row["hit"], row["distance"]) == (finish, False, None)
    assert row["parse"] == "no place in the answer"
    assert verdict_of_row(row) is None


def test_a_right_answer_in_a_truncated_episode_is_no_hit() -> None:
    one = episode("[550, 550]", finish="truncated")
    assert kept_row(one)["hit"] is False
    assert outcome_of(one, config=GroundingConfig()).answer is None


@pytest.mark.parametrize("needs", [True, False, None])
def test_a_bonus_goes_to_a_hit_after_a_look_on_rows_that_say_they_need_one(needs: Any) -> None:
    config = GroundingConfig(reward=RewardConfig(tool=0.3))
    facts = {} if needs is None else {"needs_zoom": needs}
    outcome = outcome_of(episode(ZOOM, "[200, 200]", **facts), config=config)
    assert outcome.needs_zoom is needs
    assert reward_of(outcome, config=config.reward).parts["tool"] == (0.3 if needs else 0)


def test_rows_say_what_looking_again_changed() -> None:
    right, wrong = episode(ZOOM, "[200, 200]"), episode(ZOOM, "[900, 900]")
    assert kept_row(right, hit_before=False)["effect"] == "helped"
    assert kept_row(right, hit_before=True)["effect"] == "stayed right"
    assert kept_row(wrong, hit_before=True)["effect"] == "harmed"
    assert kept_row(wrong, hit_before=False)["effect"] == "stayed wrong"
    assert kept_row(wrong)["effect"] == "unknown"
    assert kept_row(episode("[550, 550]"))["effect"] == "no look"


def test_rows_name_contradictions() -> None:
    looked, wrong = episode(ZOOM, "[200, 200]"), episode("[10, 10]", needs_zoom=True)
    assert kept_row(looked, hit_before=True)["contradictions"] == ["unnecessary look"]
    assert kept_row(looked, after=0.1)["contradictions"] == ["under-confident"]
    assert kept_row(wrong, after=0.9)["contradictions"] == [
        "missed look", "over-confident",
    ]  # fmt: skip
    talk = episode("<think>I should zoom in.</think>[550, 550]")
    assert kept_row(talk)["contradictions"] == ["said look, did not"]
    assert kept_row(episode(ZOOM, "[900, 900]"))["contradictions"] == ["useless look"]


def test_confidence_is_the_mean_probability_of_the_last_turn() -> None:
    one = episode(ZOOM, "[200, 200]")
    scores = one.log_probs.tolist()
    assert mean_log_prob(one) == pytest.approx((scores[3] + scores[4]) / 2)
    assert mean_log_prob(one, last=False) == pytest.approx(sum(scores) / 4)
    outcome = outcome_of(one, config=GroundingConfig())
    assert outcome.confidence == pytest.approx(math.exp(mean_log_prob(one)))
    assert (outcome.calls, outcome.zooms, outcome.most_calls) == (1, 1, 2)
    assert reward_of(outcome, config=GroundingConfig().reward).hit


def test_a_row_with_a_point_and_no_box_is_judged_by_nearness() -> None:
    row = kept_row(episode("[550, 550]", box=None, point=(0.5, 0.5)))
    assert row["hit"] is True and row["bucket"] == "unknown"
    assert verdict_of_row(row) is not None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"box": (0.5, 0.5, 1.2, 0.6)}, "does not lie in the picture"),
        ({"box": (0.6, 0.5, 0.5, 0.6)}, "does not lie in the picture"),
        ({"box": (0.5, 0.5, 0.5, 0.6)}, "does not lie in the picture"),
        ({"box": (math.nan, 0.5, 0.5, 0.6)}, "does not lie in the picture"),
        ({"box": None}, "no box"),
        ({"box": None, "point": (1.5, 0.2)}, "no box"),
    ],
)
def test_a_target_outside_the_picture_is_refused(facts: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        task_of(sample(**facts))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "page.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    one = Sample(id="row 7", question="q", answers=(), images=(broken,), kind="point",
                 facts={"box": (0.1, 0.1, 0.2, 0.2)})  # fmt: skip
    with pytest.raises(DataError, match="row 7"):
        task_of(one)


def test_targets_fall_into_buckets_by_their_side_at_the_first_look() -> None:
    side = target_side(Box(0, 0, 24 / 768, 24 / 576), size=(128, 96))
    assert side == pytest.approx(4.0)
    names = [bucket_of(one) for one in (3.9, 4.0, 8.0, 31.9, 32.0, None)]
    assert names == ["<4", "4-8", "8-16", "16-32", "32+", "unknown"]
