"""Chats are rendered once and right: template, placeholders, labels, padding, packing."""

from __future__ import annotations

import pytest
import torch

from saccade.config.schema import ScenesSource
from saccade.data.chat import IGNORE_INDEX
from saccade.data.generate.scenes import SceneSource
from saccade.data.packing import pack, positions
from saccade.data.samples import DataError, Sample
from saccade.models.losses import supervised_loss
from tests.tiny_models import (
    mixed_samples,
    picture,
    random_backbone,
    renderer,
    sample,
    scene_samples,
)


def test_one_placeholder_per_merged_cell_in_every_image() -> None:
    render = renderer()
    batch = render.batch(mixed_samples(), with_answer=True)
    placeholders = int((batch["input_ids"] == render.markers.image).sum())
    assert placeholders == sum(render.cells(batch["image_grid_thw"]))
    assert placeholders == 4 * 6 + 6 * 4 + 3 * 3 + 8 * 5


def test_only_the_answer_and_its_end_mark_are_supervised() -> None:
    render = renderer()
    encoded = render.encode(sample(0, (64, 64)), with_answer=True)
    learned = encoded.input_ids_L[encoded.labels_L != IGNORE_INDEX]
    assert render.tokenizer.decode(learned) == "red<|im_end|>"
    again = encoded.labels_L[encoded.labels_L != IGNORE_INDEX]
    assert torch.equal(learned, again)


def test_the_prompt_is_the_beginning_of_the_full_text_and_ends_where_the_model_speaks() -> None:
    render = renderer()
    prompt = render.encode(sample(0, (64, 64)), with_answer=False).input_ids_L
    full = render.encode(sample(0, (64, 64)), with_answer=True).input_ids_L
    assert torch.equal(full[: len(prompt)], prompt)
    assert render.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")


def test_the_rendering_agrees_with_the_processors_own() -> None:
    render, processor = renderer(), random_backbone().processor
    one = sample(0, (64, 96), (48, 48))
    content = [{"type": "image", "image": image} for image in one.images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": one.question}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    stock = processor(text=[text], images=list(one.images), return_tensors="pt")
    ours = render.encode(one, with_answer=False)
    assert torch.equal(ours.input_ids_L, stock["input_ids"][0])
    assert ours.pixels_ND is not None and torch.equal(ours.pixels_ND, stock["pixel_values"])


def test_batches_are_padded_on_the_left() -> None:
    batch = renderer().batch(mixed_samples(), with_answer=True)
    mask = batch["attention_mask"]
    assert (mask[:, -1] == 1).all() and (mask.diff(dim=1) >= 0).all()
    assert (batch["labels"][mask == 0] == IGNORE_INDEX).all()


def test_text_only_samples_and_mixtures_work() -> None:
    render = renderer()
    texts = render.batch([sample(0), sample(1)], with_answer=True)
    assert "pixel_values" not in texts
    mixture = render.batch([sample(0), sample(1, (64, 64))], with_answer=True)
    assert len(mixture["image_grid_thw"]) == 1


def test_earlier_turns_are_context_and_images_stand_before_the_first_question() -> None:
    shown = picture(seed=1, height=64, width=64)
    chat = Sample(
        id="t", question="and now?", answers=("blue",), images=(shown,),
        turns=(("what color is it?", "red"),),
    )  # fmt: skip
    render = renderer()
    encoded = render.encode(chat, with_answer=True)
    text = render.tokenizer.decode(encoded.input_ids_L)
    assert text.index("<|vision_end|>what color is it?") < text.index("and now?")
    assert text.count("<|vision_start|>") == 1
    learned = encoded.input_ids_L[encoded.labels_L != IGNORE_INDEX]
    assert render.tokenizer.decode(learned) == "blue<|im_end|>"


def test_an_empty_question_and_a_literal_placeholder_are_data_errors() -> None:
    with pytest.raises(DataError, match="question is empty"):
        renderer().encode(sample(0, (64, 64), question="  "), with_answer=True)
    with pytest.raises(DataError, match="placeholders"):
        renderer().encode(sample(0, (64, 64), question="<|image_pad|>?"), with_answer=True)


def test_pixel_limits_bound_the_visual_tokens() -> None:
    from saccade.data.chat import ChatRenderer

    render = ChatRenderer(random_backbone().processor, max_pixels=64 * 64)
    grid = render.encode(sample(0, (256, 192)), with_answer=False).grid_I3
    assert grid is not None and render.cells(grid)[0] <= 16


def packed_and_separate() -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of two scenes with three questions each, packed in two rows and as six rows."""
    model, render = random_backbone().model, renderer()
    source = SceneSource(
        ScenesSource(
            scenes=2, questions=3, min_cells=60, max_cells=80, min_objects=3, max_objects=4
        )
    )
    groups = [source.scene_samples(i) for i in range(2)]
    rows = pack(
        [[render.encode(s, with_answer=True) for s in group] for group in groups],
        markers=render.markers,
    )
    types = (rows.input_ids_RL == render.markers.image).int()
    rope, _ = model.model.get_rope_index(
        rows.input_ids_RL, mm_token_type_ids=types, image_grid_thw=rows.grid_I3
    )
    with torch.no_grad():
        hidden = model.model(
            input_ids=rows.input_ids_RL,
            attention_mask=rows.block_mask(),
            position_ids=positions(rows.segment_RL, rope),
            pixel_values=rows.pixels_ND,
            image_grid_thw=rows.grid_I3,
        ).last_hidden_state
        packed = supervised_loss(model.lm_head, hidden, rows.labels_RL, denominator=1.0).total
        batch = render.batch([s for group in groups for s in group], with_answer=True)
        labels = batch.pop("labels")
        batch.pop("sample_ids")
        hidden = model.model(**batch).last_hidden_state
        separate = supervised_loss(model.lm_head, hidden, labels, denominator=1.0).total
    return packed, separate


def test_packed_questions_have_the_loss_of_separate_ones() -> None:
    packed, separate = packed_and_separate()
    assert float((packed - separate).abs() / separate) < 1e-5


def test_packing_refuses_samples_of_different_images() -> None:
    render = renderer()
    a, b = (render.encode(s, with_answer=True) for s in scene_samples(2))
    with pytest.raises(ValueError, match="does not share"):
        pack([[a, b]], markers=render.markers)
