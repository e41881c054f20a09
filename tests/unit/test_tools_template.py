"""A base without tools learns their form, not their use: template, tokens, embeddings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from saccade.config.schema import ModelConfig
from saccade.grounding.messages import tool_schemas, write_call
from saccade.models.backbone import Backbone, load_backbone
from saccade.models.tools import FEW_TOKENS, MARKS, knows_tools, tool_ready, tool_template
from tests.dialogue_example import ready
from tests.tiny_models import random_backbone

CALL = write_call("zoom", '{"box": [112, 234, 356, 478]}')
ASKED: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Click the star."}]}
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": ASKED,
    "a system turn and strings": [{"role": "system", "content": "Be brief."},
                                  {"role": "user", "content": "Hello"}],
    "a structured call": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *ASKED,
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function",
             "function": {"name": "zoom", "arguments": {"box": [1, 2, 3, 4]}}}]},
        {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "a crop"}]},
    ],
    "a call with words, arguments as text": [
        *ASKED,
        {"role": "assistant", "content": "Hm.", "tool_calls": [
            {"name": "zoom", "arguments": '{"box": [1, 2, 3, 4]}'},
            {"name": "wait", "arguments": {}}]},
        {"role": "tool", "content": "no"}, {"role": "tool", "content": [{"type": "image"}]},
        {"role": "assistant", "content": "[1, 2, 3, 4]"},
    ],
}  # fmt: skip


def qwen3_vl_template() -> str:
    """The published template, as TRL ships it."""
    trl = pytest.importorskip("trl", reason="TRL, which ships the template, is not installed")
    return (Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja").read_text()


@pytest.mark.parametrize("conversation", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
@pytest.mark.parametrize("tools", [None, tool_schemas(["zoom", "wait"])], ids=["bare", "tools"])
def test_the_template_renders_as_qwen3_vl_does(conversation: Any, tools: Any) -> None:
    tokenizer = ready().processor.tokenizer

    def rendered(template: str) -> str:
        return tokenizer.apply_chat_template(
            conversation, chat_template=template, tools=tools, tokenize=False,
            add_generation_prompt=True,
        )  # fmt: skip

    assert rendered(tool_template(schemas=True)) == rendered(qwen3_vl_template())


def test_a_tiny_vocabulary_is_shown_no_tool_descriptions() -> None:
    processor = ready().processor
    text = processor.tokenizer.apply_chat_template(
        ASKED, tools=tool_schemas(["zoom"]), tokenize=False
    )
    assert len(processor.tokenizer) < FEW_TOKENS
    assert text == processor.tokenizer.apply_chat_template(ASKED, tokenize=False)


def test_a_call_takes_few_tokens_and_stays_the_text_it_is() -> None:
    tokenizer = ready().processor.tokenizer
    ids = tokenizer(CALL + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(ids) <= 30
    assert tokenizer.decode(ids[:-1]) == CALL
    assert tokenizer.decode(ids, skip_special_tokens=True) == CALL  # the marks are ordinary tokens
    for mark in MARKS:
        assert len(tokenizer(mark, add_special_tokens=False)["input_ids"]) == 1


def test_what_was_there_before_stays_as_it_was() -> None:
    before, after = random_backbone(), ready()
    old = len(before.processor.tokenizer)
    weights = before.model.get_input_embeddings().weight, after.model.get_input_embeddings().weight
    assert torch.equal(weights[0][:old], weights[1][:old])
    ids = torch.arange(7, 40)[None]
    with torch.no_grad():
        logits = before.model(input_ids=ids).logits, after.model(input_ids=ids).logits
    assert torch.equal(logits[0], logits[1][..., :old])
    assert not any(one.requires_grad for one in after.model.parameters())


def test_new_tokens_start_as_the_mean_of_what_spelled_them_and_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    one, other = ready(), ready()
    assert torch.equal(state, torch.get_rng_state())
    weight, old = one.model.get_input_embeddings().weight, random_backbone().processor.tokenizer
    assert torch.equal(weight, other.model.get_input_embeddings().weight)
    row = one.processor.tokenizer.convert_tokens_to_ids("<tool_call>")
    spelled = old("<tool_call>", add_special_tokens=False)["input_ids"]
    assert len(spelled) > 1
    assert torch.allclose(weight[row], weight[spelled].mean(0))


def test_an_output_layer_of_its_own_gets_the_rows_too() -> None:
    backbone = copy.deepcopy(random_backbone())
    head = nn.Linear(*reversed(backbone.model.lm_head.weight.shape), bias=False)
    backbone.model.config.tie_word_embeddings = False
    backbone.model.config.text_config.tie_word_embeddings = False
    backbone.model.lm_head = head.requires_grad_(False)
    tool_ready(backbone)
    first, last = (layer.weight for layer in (backbone.model.get_input_embeddings(),
                                              backbone.model.get_output_embeddings()))  # fmt: skip
    row = backbone.processor.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert first.shape == last.shape and first is not last
    assert not torch.equal(first[row], last[row])


def test_saved_and_loaded_it_is_ready_at_once(tmp_path: Path) -> None:
    made = ready()
    made.model.save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    loaded = load_backbone(ModelConfig(name=str(tmp_path), device="cpu", dtype="float32"))
    assert knows_tools(loaded.processor)
    weights = [one.model.state_dict() for one in (made, tool_ready(loaded))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    ids = [one.processor.tokenizer(CALL)["input_ids"] for one in (made, loaded)]
    assert ids[0] == ids[1]
    assert loaded.processor.chat_template == made.processor.chat_template


def test_a_base_that_knows_tools_is_left_alone() -> None:
    backbone = copy.deepcopy(random_backbone())
    own = qwen3_vl_template()
    backbone.processor.chat_template = backbone.processor.tokenizer.chat_template = own
    vocabulary = len(backbone.processor.tokenizer)
    same: Backbone = tool_ready(backbone)
    assert same is backbone
    assert backbone.processor.chat_template == own
    assert len(backbone.processor.tokenizer) == vocabulary
