"""Make a base able to call tools and to be shown what they return, pictures included.

A backbone flows in and flows out again. Qwen3-VL's own chat template has a place for both, so it
stays as it is; a base whose template knows no tools (the tiny one) gets a template of the same
form and the marks `<tool_call>`, `</tool_call>`, `<tool_response>`, `</tool_response>` as tokens of
their own. Where the vocabulary is tiny, the fixed pieces of a call become tokens, too: the text
stays the same, only shorter in tokens. All of it is saved and loaded with the model's folder.
Left out: what tools there are and what is said about them (`grounding/messages.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from saccade.models.backbone import Backbone

CALL, CALL_END = "<tool_call>", "</tool_call>"
RESPONSE, RESPONSE_END = "<tool_response>", "</tool_response>"
MARKS = (CALL, CALL_END, RESPONSE, RESPONSE_END)
PIECES = (
    '\n{"name": "', '", "arguments": {', '"box": [', "]}}\n", "}}\n", ", ",
    "zoom", "inspect", "wait",
)  # fmt: skip
"""What calls are made of; tokens of their own where words are spelled in letters otherwise."""
FEW_TOKENS = 2048
"""A vocabulary smaller than this spells most words."""

_CONTENT = """\
{%- macro content(parts) -%}
{%- if parts is string -%}
{{- parts -}}
{%- else -%}
{%- for part in parts -%}
{%- if part.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'text' -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_SCHEMAS = """\
{%- if tools and first.show -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}
{{- content(messages[0].content) + '\\n\\n' -}}
{%- endif -%}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and' -}}
{{- ' arguments within <tool_call></tool_call> XML tags:\\n<tool_call>\\n' -}}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' -}}
{%- endif -%}
"""
_TURNS = """\
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' + content(message.content) + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- elif not (tools and first.show and loop.first and message.role == 'system') -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content -%}{{- content(message.content) -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- if not loop.first or message.content -%}{{- '\\n' -}}{%- endif -%}
{%- set call = call.function or call -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def tool_template(*, schemas: bool) -> str:
    """Qwen3-VL's chat template without videos; without `schemas` it prints no tool descriptions.

    They are some hundred words, which a base that spells them cannot read anyway.
    """
    show = f"{{%- set first = namespace(show={'true' if schemas else 'false'}) -%}}\n"
    return _CONTENT + show + (_SCHEMAS if schemas else "") + _TURNS


def knows_tools(processor: Any) -> bool:
    """Whether the chat template shows what a tool returned, with its picture, and marks it."""
    shown = processor.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "c"}]},
        ],
        chat_template=processor.chat_template or processor.tokenizer.chat_template,
        tokenize=False,
    )
    return f"{RESPONSE}\n" in shown and processor.image_token in shown


def tool_ready(backbone: Backbone) -> Backbone:
    """The backbone itself, its processor and embeddings changed in place where that is needed.

    New tokens start as the mean of the tokens they were spelled with before, so nothing is drawn.
    """
    processor = backbone.processor
    if knows_tools(processor):
        return backbone
    tokenizer = processor.tokenizer
    few = len(tokenizer) < FEW_TOKENS
    template = tool_template(schemas=not few)
    processor.chat_template = tokenizer.chat_template = template
    known = tokenizer.get_vocab()
    wanted = [text for text in (*MARKS, *(PIECES if few else ())) if text not in known]
    spelled = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in wanted]
    # ordinary tokens: decoding keeps them, and a policy's turn is read from decoded text
    added = [AddedToken(text, normalized=False, special=False) for text in wanted]
    tokenizer.add_tokens(added)
    _make_room(backbone.model, len(tokenizer))
    for text, pieces in zip(wanted, spelled, strict=True):
        row = tokenizer.convert_tokens_to_ids(text)
        for weight in _token_rows(backbone.model):
            weight[row] = weight[pieces].mean(0)
    return backbone


def _make_room(base: Any, tokens: int) -> None:
    """Grow the embeddings to `tokens` rows; published ones often have rows to spare."""
    weight = base.get_input_embeddings().weight
    if weight.shape[0] < tokens:
        learns = weight.requires_grad
        with torch.random.fork_rng(devices=[]):  # new rows are drawn, then overwritten
            base.resize_token_embeddings(tokens, mean_resizing=False)
        for layer in (base.get_input_embeddings(), base.get_output_embeddings()):
            layer.weight.requires_grad_(learns)


def _token_rows(base: Any) -> list[Tensor]:
    """The embedding and, where it is not the same, the output layer: one row per token."""
    first, last = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    return [first.data] if first is last else [first.data, last.data]
