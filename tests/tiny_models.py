"""A small random Qwen3-VL for exactness tests: real architecture, two DeepStack levels.

Random weights show a broken position or a lost DeepStack row more clearly than trained ones:
nothing is redundant. Weights are drawn larger than at the start of training for the same reason.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from saccade.config.schema import ArchConfig, ScenesSource, SelectorConfig
from saccade.data.chat import ChatRenderer
from saccade.data.generate.scenes import SceneSource, vocabulary_texts
from saccade.data.samples import Sample
from saccade.models.backbone import Backbone
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.prune import LanguageInputs
from saccade.models.relevance.selector import RelevanceSelector
from saccade.models.tiny import build_model, build_processor, build_tokenizer, tiny_config

ARCH = ArchConfig(
    hidden_size=48, layers=3, heads=4, head_dim=16, vision_hidden_size=32, vision_layers=2,
    vision_heads=2, deepstack_layers=[0, 1], vocab_size=400,
)  # fmt: skip


@functools.cache
def random_backbone() -> Backbone:
    tokenizer = build_tokenizer(vocabulary_texts(), vocab_size=ARCH.vocab_size)
    processor = build_processor(ARCH, tokenizer)
    model = build_model(tiny_config(ARCH, tokenizer), seed=1)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    model = model.eval().requires_grad_(False)
    return Backbone(model=model, processor=processor, name="random", location="memory")


@functools.cache
def older_backbone() -> Backbone:
    """A Qwen2.5-VL: no DeepStack, window attention in the tower, sectioned M-RoPE."""
    processor = random_backbone().processor
    ids = random_backbone().model.config
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer), "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                "mrope_section": [2, 3, 3]},
            "initializer_range": 0.15,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "patch_size": ARCH.patch_size, "out_hidden_size": 64, "window_size": 32,
            "fullatt_block_indexes": [1], "initializer_range": 0.15,
        },
        image_token_id=ids.image_token_id, video_token_id=ids.video_token_id,
        vision_start_token_id=ids.vision_start_token_id,
        vision_end_token_id=ids.vision_end_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = Qwen2_5_VLForConditionalGeneration(config).eval().requires_grad_(False)
    return Backbone(model=model, processor=processor, name="older", location="memory")


def relevance_model(backbone: Backbone | None = None, **settings: object) -> RelevanceModel:
    config = SelectorConfig.model_validate({"width": 32, "heads": 4, **settings})
    return RelevanceModel(backbone or random_backbone(), config, seed=3).eval()


def tensions_of(model: RelevanceModel) -> torch.nn.Linear:
    """The layer that sets the three tensions."""
    assert isinstance(model.selector, RelevanceSelector)
    tensions = model.selector.balance.tensions
    assert tensions is not None
    return tensions


def renderer() -> ChatRenderer:
    return ChatRenderer(random_backbone().processor)


def picture(*, seed: int, height: int, width: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(3, height // 8, width // 8, generator=generator)
    fine = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
    pixels = (fine * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def sample(number: int, *sizes: tuple[int, int], question: str = "what color is it?") -> Sample:
    """A sample with one generated picture per (height, width)."""
    images = tuple(
        picture(seed=97 * number + i, height=h, width=w) for i, (h, w) in enumerate(sizes)
    )
    return Sample(id=f"s{number}", question=question, answers=("red",), images=images)


def mixed_samples() -> list[Sample]:
    """Three image sizes, two images in one sample, different lengths: left padding everywhere."""
    return [
        sample(0, (64, 96)),
        sample(1, (96, 64), (48, 48), question="which digit is on the star in the second image?"),
        sample(2, (128, 80), question="how many?"),
    ]


def scene_samples(count: int) -> list[Sample]:
    source = SceneSource(ScenesSource(scenes=count, questions=1, min_cells=60, max_cells=90,
                                      min_objects=3, max_objects=4))  # fmt: skip
    return [source[i] for i in range(count)]


def model_inputs(batch: dict) -> dict:
    """What the base model's forward takes from a batch."""
    return {k: v for k, v in batch.items() if k not in ("sample_ids", "labels")}


def stepwise(model: RelevanceModel, inputs: LanguageInputs, *, steps: int) -> torch.Tensor:
    """Greedy decoding without a cache: the whole (pruned) sequence again for every token."""
    ids, mask, positions = inputs.input_ids_BS, inputs.attention_mask_BS, inputs.positions_3BS
    new = []
    for _ in range(steps):
        grown = replace(inputs, input_ids_BS=ids, attention_mask_BS=mask, positions_3BS=positions)
        with torch.no_grad():
            token = model.base(**grown.forward_arguments()).logits[:, -1].argmax(-1)
        new.append(token)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = torch.cat([positions, positions[:, :, -1:] + 1], 2)
    return torch.stack(new, 1)
