"""Build the tiny Qwen3-VL: the real architecture at a few hundred thousand parameters.

In go an `ArchConfig` and example texts; out come a randomly initialised
`Qwen3VLForConditionalGeneration` (interleaved M-RoPE, DeepStack), a byte-level BPE tokenizer with
Qwen's special tokens, and a processor. Training it is the recipe `tiny-base`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from saccade.config.schema import ArchConfig
from saccade.models.processing import ImageTextProcessor, image_processor

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
INITIALIZER_RANGE = 0.06
"""The published 0.02 suits widths of thousands; at a width of 100 it stalls the first steps."""
# Qwen's split rule: contractions, words with one leading mark, single digits, marks, line breaks.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'text' -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `texts` with Qwen's split rule and special tokens."""
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "user\nassistant\nsystem\n"], trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(arch: ArchConfig, tokenizer: PreTrainedTokenizerFast) -> ImageTextProcessor:
    """Pair the tokenizer with Qwen's image processor at this model's patch size."""
    images = image_processor(
        patch_size=arch.patch_size,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={
            "shortest_edge": (4 * arch.patch_size) ** 2,
            "longest_edge": 1024 * (2 * arch.patch_size) ** 2,
        },
    )
    return ImageTextProcessor(
        image_processor=images, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE
    )


def tiny_config(arch: ArchConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Qwen3-VL's configuration at `arch`'s size; M-RoPE sections in the published proportion."""
    half = arch.head_dim // 2
    height = width = half * 20 // 64  # published: [24, 20, 20] of 64
    ids = {name: int(tokenizer.vocab[name]) for name in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": arch.hidden_size,
        "intermediate_size": 2 * arch.hidden_size,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": max(1, arch.heads // 2),
        "head_dim": arch.head_dim,
        "max_position_embeddings": 8192,
        "initializer_range": INITIALIZER_RANGE,
        "tie_word_embeddings": True,
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [half - height - width, height, width],
            "mrope_interleaved": True,
        },
    }
    vision = {
        "depth": arch.vision_layers,
        "hidden_size": arch.vision_hidden_size,
        "intermediate_size": 2 * arch.vision_hidden_size,
        "num_heads": arch.vision_heads,
        "patch_size": arch.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": arch.hidden_size,
        "num_position_embeddings": 16 * 16,
        "deepstack_visual_indexes": list(arch.deepstack_layers),
        "initializer_range": INITIALIZER_RANGE,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(config: Qwen3VLConfig, *, seed: int) -> Qwen3VLForConditionalGeneration:
    """Random weights from `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    text: Any = config.text_config
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.generation_config.do_sample = False
    return model
