"""Join a vision tower and a language model by a new projector into one Qwen3-VL.

In go two model names (each `tiny`, a folder or a hub name) and a seed; out comes a `Backbone` that
saves and loads like any other. The tower comes from a Qwen3-VL, the language model and its
tokenizer from a Qwen3-VL or a plain Qwen3; their widths need not agree. The projector is what
Qwen3-VL has between them: the tower's merger, and one merger per DeepStack level. Its parts are
named for schedules (`projector`, `vision.last2`, `language.first1`, ...). Left out: training.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen3VLConfig
from transformers import Qwen3VLForConditionalGeneration as Qwen3VL

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import ModelConfig
from saccade.models.backbone import DTYPES, Backbone, load_backbone, locate, pick_device
from saccade.models.processing import ImageTextProcessor

PROJECTOR = re.compile(r"model\.visual\.(merger|deepstack_merger_list)\.")
PLACEHOLDERS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def join(config: ModelConfig, *, vision: str, language: str, seed: int) -> Backbone:
    """A Qwen3-VL of the tower of `vision` and the language model of `language`, all frozen.

    The projector is drawn from `seed` at the language model's own initial spread; equal arguments
    give equal weights. Raises InputError where the two cannot be joined.
    """
    tower = _tower_of(config, vision)
    text_config, text_model, tokenizer = _language_of(config, language)
    joined = _joined_config(tower.model.config, text_config, tokenizer, names=(vision, language))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Qwen3VL._from_config(joined, attn_implementation=config.attention)
    _copy(tower.model.model.visual, model.model.visual, skip=("merger.", "deepstack_merger_list."))
    body = getattr(text_model.model, "language_model", text_model.model)
    _copy(body, model.model.language_model)
    if not joined.tie_word_embeddings:
        _copy(text_model.lm_head, model.lm_head)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.do_sample = False
    template = tokenizer.chat_template
    if "image" not in str(template or ""):  # a text model's template knows no pictures
        template = tower.processor.chat_template
    processor = ImageTextProcessor(
        image_processor=tower.processor.image_processor, tokenizer=tokenizer, chat_template=template
    )
    tokenizer.chat_template = template
    device = pick_device(config)
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    model = model.to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
    return Backbone(model=model, processor=processor, name="joined", location="memory")


def refresh(backbone: Backbone, *, seed: int) -> None:
    """Draw the projector of a model anew, in place."""
    visual = backbone.model.model.visual
    spread = float(getattr(backbone.model.config.text_config, "initializer_range", 0.02))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for merger in (visual.merger, *visual.deepstack_merger_list):
            for name, parameter in merger.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif name.startswith("norm"):
                    parameter.fill_(1.0)
                else:
                    drawn = torch.randn(parameter.shape, generator=generator) * spread
                    parameter.copy_(drawn)


def parts_of(base: Any, parts: list[str]) -> dict[str, nn.Parameter]:
    """The parameters of the named parts of a Qwen3-VL, by their full names.

    Raises InputError when a part asks for more blocks than there are. Token embeddings and the
    output layer belong to no part: a projector is aligned to them.
    """
    chosen: set[str] = set()
    named = dict(base.named_parameters())
    for part in parts:
        chosen |= {name for name in named if _belongs(name, part, base)}
    return {name: parameter for name, parameter in named.items() if name in chosen}


def _belongs(name: str, part: str, base: Any) -> bool:
    is_projector = PROJECTOR.match(name) is not None
    if part == "projector":
        return is_projector
    kind, _, which = part.partition(".")
    prefix, blocks = {
        "vision": ("model.visual.blocks.", len(base.model.visual.blocks)),
        "language": ("model.language_model.layers.", len(base.model.language_model.layers)),
    }[kind]
    if not which:
        tower = name.startswith("model.visual.") and not is_projector
        body = name.startswith(prefix) or name.startswith("model.language_model.norm.")
        return tower if kind == "vision" else body
    count = int(which.removeprefix("first").removeprefix("last"))
    if count > blocks:
        raise InputError(
            f"train names {part}, but there are only {blocks} blocks"
            f"\n  fix: at most {kind}.{which.rstrip('0123456789')}{blocks}, or {kind} for all"
        )
    if not name.startswith(prefix):
        return False
    number = int(name[len(prefix) :].partition(".")[0])
    return number < count if which.startswith("first") else number >= blocks - count


def _tower_of(config: ModelConfig, name: str) -> Backbone:
    backbone = load_backbone(_named(config, name), device=torch.device("cpu"))
    kind = backbone.model.config.model_type
    if kind != "qwen3_vl":
        raise InputError(
            f"pretrain.vision={name}: a {kind} tower does not fit a Qwen3-VL"
            "\n  fix: name a model of type qwen3_vl"
        )
    return backbone


def _language_of(config: ModelConfig, name: str) -> tuple[Any, Any, Any]:
    """Text configuration, model and tokenizer of a Qwen3-VL or a plain Qwen3."""
    location = locate(name)
    own = _named(config, name)
    try:
        kind = AutoConfig.from_pretrained(location, revision=own.revision).model_type
        if kind == "qwen3_vl":
            backbone = load_backbone(own, device=torch.device("cpu"))
            return backbone.model.config.text_config, backbone.model, backbone.processor.tokenizer
        if kind != "qwen3":
            raise InputError(
                f"pretrain.language={name}: model type {kind!r} cannot be joined"
                "\n  fix: name a model of type qwen3_vl or qwen3"
            )
        model: Any = AutoModelForCausalLM.from_pretrained(location, revision=own.revision)
        tokenizer = AutoTokenizer.from_pretrained(location, revision=own.revision)
    except OSError as error:
        raise OutsideError(
            f"pretrain.language={name}: cannot be loaded: {str(error).splitlines()[0]}"
            "\n  fix: check the name and the network (HF_TOKEN for gated models), or pass a folder"
        ) from error
    return model.config, model, tokenizer


def _named(config: ModelConfig, name: str) -> ModelConfig:
    revision = config.revision if name == config.name else None
    return config.model_copy(update={"name": name, "revision": revision, "dtype": "float32"})


def _joined_config(
    vision: Any, text: Any, tokenizer: Any, *, names: tuple[str, str]
) -> Qwen3VLConfig:
    tower = vision.vision_config.to_dict() | {"out_hidden_size": text.hidden_size}
    levels = len(tower["deepstack_visual_indexes"])
    if levels > text.num_hidden_layers:
        raise InputError(
            f"pretrain.vision={names[0]} feeds {levels} decoder layers (DeepStack), but"
            f" pretrain.language={names[1]} has {text.num_hidden_layers}"
            "\n  fix: use a deeper language model"
        )
    body = text.to_dict()
    for key in ("model_type", "architectures", "transformers_version"):
        body.pop(key, None)
    rope = dict(body.get("rope_parameters") or {})
    if "mrope_section" not in rope:  # equal positions on all axes are what a text model knows
        half = text.head_dim // 2
        share = half * 20 // 64  # published: [24, 20, 20] of 64
        rope |= {"mrope_section": [half - 2 * share, share, share], "mrope_interleaved": True}
    body["rope_parameters"] = rope
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in PLACEHOLDERS.items()}
    unknown = (None, tokenizer.unk_token_id)
    missing = [PLACEHOLDERS[key] for key, number in ids.items() if number in unknown]
    if missing:
        raise InputError(
            f"pretrain.language={names[1]}: its tokenizer has no {missing[0]}"
            "\n  fix: use a Qwen tokenizer, which has places for pictures"
        )
    return Qwen3VLConfig(
        text_config=body, vision_config=tower, tie_word_embeddings=text.tie_word_embeddings, **ids
    )


def _copy(source: nn.Module, target: nn.Module, *, skip: tuple[str, ...] = ()) -> None:
    given = {k: v for k, v in source.state_dict().items() if not k.startswith(skip or ("\0",))}
    wanted = {k for k in target.state_dict() if not k.startswith(skip or ("\0",))}
    result = target.load_state_dict(given, strict=False)
    strange = (wanted - set(given)) | set(result.unexpected_keys)
    if strange:
        raise InputError(
            f"the two models cannot be joined: {min(strange)} has no counterpart"
            "\n  fix: name models of one generation (qwen3_vl, qwen3)"
        )
