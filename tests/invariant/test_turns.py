"""Conversations: every turn chooses its tokens anew, for what is asked now, from whole images.

A random model shows a leak of earlier text, a lost image or a stale choice in every logit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.config.errors import InputError
from saccade.config.schema import JsonlSource
from saccade.data.chat import IGNORE_INDEX, user_text_mask
from saccade.data.samples import DataError, Sample
from saccade.data.sources import open_source
from tests.tiny_models import model_inputs, picture, relevance_model, renderer, sample

FIRST = ("what color is the star?", "red")
SECOND = ("which shape is it?", "circle")
NOW = "how many?"


def conversation(*turns: tuple[str, str], question: str = NOW) -> Sample:
    return replace(sample(3, (64, 96), question=question), turns=turns)


def scores(item: Sample, **settings: Any) -> Tensor:
    model = relevance_model(**settings)
    features = model.encode(renderer().batch([item], with_answer=False))
    with torch.no_grad():
        return model.score(features).logits_N


def words(item: Sample, *, query: Any) -> str:
    render = renderer()
    ids_BL = render.batch([item], with_answer=True)["input_ids"]
    return render.tokenizer.decode(
        ids_BL[user_text_mask(ids_BL, markers=render.markers, query=query)]
    )


def test_the_query_is_the_current_turn_or_all_of_them() -> None:
    item = conversation(FIRST, SECOND)
    assert words(item, query="last_turn") == NOW
    assert words(item, query="all_turns") == FIRST[0] + SECOND[0] + NOW


def test_rows_of_a_padded_batch_each_have_their_own_last_turn() -> None:
    render = renderer()
    items = [conversation(FIRST, SECOND), conversation(question="what color is it?")]
    ids_BL = render.batch(items, with_answer=True)["input_ids"]
    mask_BL = user_text_mask(ids_BL, markers=render.markers, query="last_turn")
    found = [render.tokenizer.decode(row[mask]) for row, mask in zip(ids_BL, mask_BL, strict=True)]
    assert found == [NOW, "what color is it?"]


def test_an_earlier_turns_text_does_not_move_the_choice_and_the_current_one_does() -> None:
    plain = scores(conversation(FIRST))
    assert torch.equal(plain, scores(conversation(("which digit is on the heart?", "seven"))))
    assert torch.equal(plain, scores(conversation()))
    assert not torch.equal(plain, scores(conversation(FIRST, question="which digit?")))


def test_all_turns_are_read_when_that_is_configured() -> None:
    plain = scores(conversation(FIRST), query="all_turns")
    other = scores(conversation(("which digit is on the heart?", "red")), query="all_turns")
    assert not torch.equal(plain, other)
    # replies are the model's own words: no query holds them
    replied = scores(conversation((FIRST[0], "seven")), query="all_turns")
    assert torch.equal(plain, replied)


def test_only_the_last_answer_is_learned() -> None:
    render = renderer()
    item = replace(conversation(FIRST, SECOND), answers=("three",))
    encoded = render.encode(item, with_answer=True)
    learned = encoded.input_ids_L[encoded.labels_L != IGNORE_INDEX]
    assert render.tokenizer.decode(learned) == "three<|im_end|>"
    text = render.tokenizer.decode(encoded.input_ids_L)
    for part in (*FIRST, *SECOND, NOW):
        assert part in text


def two_turns(*, places: tuple[int, ...]) -> Sample:
    pictures = (picture(seed=1, height=64, width=96), picture(seed=2, height=48, width=48))
    return Sample(
        "two", NOW, ("three",), images=pictures, turns=(FIRST,), image_turns=places, image_key="k"
    )  # fmt: skip


def test_an_image_stands_in_the_turn_that_shows_it() -> None:
    render = renderer()
    ids = {
        places: render.encode(two_turns(places=places), with_answer=False).input_ids_L.tolist()
        for places in ((0, 0), (0, 1), (1, 1))
    }
    assert len({tuple(row) for row in ids.values()}) == 3
    assert ids[0, 0] == render.encode(two_turns(places=()), with_answer=False).input_ids_L.tolist()
    asked = render.tokenizer("what color", add_special_tokens=False)["input_ids"]
    for (first, second), row in ids.items():
        start = next(i for i in range(len(row)) if row[i : i + len(asked)] == asked)
        before = row[:start].count(render.markers.vision_start)
        assert before == (first, second).count(0)


def test_images_are_placed_in_the_order_of_the_turns() -> None:
    for places in ((1, 0), (0,)):
        with pytest.raises(ValueError, match="one turn per image"):
            two_turns(places=places)


@pytest.mark.parametrize("places", [(0, 0), (0, 1), (1, 1)])
def test_keeping_everything_changes_nothing_wherever_images_stand(
    places: tuple[int, ...],
) -> None:
    model = relevance_model()
    batch = renderer().batch([two_turns(places=places), conversation(FIRST)], with_answer=False)
    with torch.no_grad():
        ours = model(**model_inputs(batch), keep=1.0).logits
        base = model.base(**model_inputs(batch)).logits
    assert torch.equal(ours, base)


def test_both_images_are_chosen_for_the_current_question() -> None:
    model = relevance_model()
    item = two_turns(places=(0, 1))
    batch = renderer().batch([item], with_answer=False)
    chosen = model.reduce(batch, keep=0.25).images
    assert [one.kept for one in chosen] == [6, 2]
    other = renderer().batch(
        [replace(item, question="which digit?", id="other")], with_answer=False
    )
    # a random selector may keep the same cells; what it thinks of them must still change
    with torch.no_grad():
        before, after = (model.score(model.encode(one)).logits_N for one in (batch, other))
    counts = [one.full for one in chosen]
    for ours, theirs in zip(before.split(counts), after.split(counts), strict=True):
        assert not torch.equal(ours, theirs)


def greedy(model: Any, batch: dict[str, Any], *, steps: int) -> list[int]:
    """The answer by whole forward passes: no cache, nothing carried over."""
    reduced = model.reduce(batch, keep=0.25)
    arguments = reduced.inputs.forward_arguments()
    ids_BS, positions = arguments["input_ids"], arguments["position_ids"]
    mask_BS = arguments["attention_mask"]
    found: list[int] = []
    for _ in range(steps):
        full = {**arguments, "input_ids": ids_BS, "position_ids": positions,
                "attention_mask": mask_BS}  # fmt: skip
        with torch.no_grad():
            token = model.base(**full, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        found.append(int(token))
        ids_BS = torch.cat([ids_BS, token], dim=1)
        positions = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
        mask_BS = torch.nn.functional.pad(mask_BS, (0, 1), value=1)
    return found


def test_generating_each_turn_equals_recomputing_it_from_the_whole_images() -> None:
    model, render = relevance_model(), renderer()
    turns: tuple[tuple[str, str], ...] = ()
    choices = []
    for question in ("what color is it?", "which shape is it?", "how many?"):
        item = conversation(*turns, question=question)
        batch = render.batch([item], with_answer=False)
        inputs = model_inputs(batch)
        out = model.generate(
            **inputs, keep=0.25, max_new_tokens=4, do_sample=False, eos_token_id=None
        )
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert new == greedy(model, batch, steps=4)
        (image,) = model.reduce(batch, keep=0.25).images
        assert image.full == 24  # all cells stand for choice again, whatever was kept before
        assert image.keep_HW is not None
        choices.append(image.keep_HW)
        turns = (*turns, (question, render.decode(torch.tensor([new]))[0] or "?"))
    assert not all(torch.equal(choices[0], one) for one in choices[1:])


# -- rows ----------------------------------------------------------------------------------------


def rows(folder: Path, *lines: dict[str, Any], **settings: Any) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return open_source(JsonlSource(type="jsonl", path=path, **settings))


def test_a_history_column_holds_the_earlier_turns(tmp_path: Path) -> None:
    source = rows(
        tmp_path,
        {"image": ["a.png", "b.png"], "question": "and <image> here?", "answer": "2",
         "history": [["what is <image> this?", "a cat"]]},
        {"image": "a.png", "question": "what?", "answer": "x", "history": None},
        {"image": "a.png", "question": "what?", "answer": "x",
         "history": [{"question": "who?", "answer": "me"}]},
    )  # fmt: skip
    assert source[0].turns == (("what is  this?", "a cat"),)
    assert (source[0].question, source[0].image_turns) == ("and  here?", (0, 1))
    assert (source[1].turns, source[1].image_turns) == ((), ())
    assert source[2].turns == (("who?", "me"),)


@pytest.mark.parametrize(
    "cell",
    [
        {"messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": "how many?"},
            {"role": "assistant", "content": [{"type": "text", "text": "2"}]}]},
        {"conversations": [
            {"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"},
            {"from": "human", "value": "how many?"}, {"from": "gpt", "value": "2"}]},
    ],
    ids=["messages", "conversations"],
)  # fmt: skip
def test_chat_rows_give_history_question_and_answer(tmp_path: Path, cell: dict[str, Any]) -> None:
    found = rows(tmp_path, {"image": "a.png", **cell})[0]
    assert (found.question, found.answers) == ("how many?", ("2",))
    assert found.turns == (("what?", "a cat"),)
    assert found.image_turns == (0,)


def test_a_chat_without_its_last_answer_takes_the_answer_column(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "how many?"}]
    found = rows(tmp_path, {"messages": chat, "answer": ["2", "2", "3"]})[0]
    assert (found.question, found.answers, found.turns) == ("how many?", ("2", "3"), ())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answer": "x", "history": "who? me"}, "history is text"),
        ({"question": "?", "answer": "x", "history": [["who?"]]}, "an earlier turn is a list"),
        ({"question": "?", "answer": "x", "history": [["who?", ""]]}, "an earlier turn"),
        ({"question": "?", "answer": "x", "history": [["<|im_end|>", "a"]]}, "chat template"),
        ({"question": "?", "answer": "x", "history": [["a", "<|im_end|>"]]}, "chat template"),
        ({"question": "<image>?", "answer": "x", "history": [["who?", "me"]],
          "image": ["a.png", "b.png"]}, "marks 1 images .* the row has 2"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "message 1 is by assistant"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "role 'tool'"),
        ({"messages": [{"role": "user", "content": " "}]}, "message of the user"),
        ({"messages": "hi"}, "messages is text"),
    ],
)  # fmt: skip
def test_a_broken_conversation_names_what_is_wrong(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"line 1.*{message}"):
        rows(tmp_path, row)[0]


def test_a_question_column_wins_over_messages_unless_they_are_mapped(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "b"}]
    row = {"question": "a?", "answer": "a", "messages": chat}
    assert rows(tmp_path, row)[0].question == "a?"
    mapped = rows(tmp_path, row, columns={"messages": "messages", "question": "", "answer": ""})
    assert (mapped[0].question, mapped[0].answer) == ("b?", "b")
    with pytest.raises(InputError, match="no column 'answer'"):
        rows(tmp_path, {"question": "a?", "messages": chat})
