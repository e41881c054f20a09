"""`RelevanceModel`: a frozen Qwen-VL that reads only the visual tokens a question needs.

In go exactly the inputs the base model takes; out come its logits or its answer, computed from
the kept tokens. Text-only and video inputs pass through. In training the sequence stays whole and
the choice acts through gates (`gates.py`); at inference tokens are really dropped (`prune.py`);
the two compute the same thing. Every selector, trained or baseline, runs through `reduce`.
Left out: choosing before the vision tower (placements `pixels` and `glance`).

Shapes: B samples, L tokens, I images, N merged cells of all images, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from saccade.config.errors import InputError
from saccade.config.schema import ModelConfig, SelectorConfig
from saccade.data.chat import ChatMarkers, user_text_mask
from saccade.models.backbone import Backbone
from saccade.models.losses import (
    IGNORE_INDEX,
    SupervisedLoss,
    supervised_loss,
    supervised_tokens,
)
from saccade.models.relevance import storage
from saccade.models.relevance.allocate import budget, top_k
from saccade.models.relevance.baselines import ARMS
from saccade.models.relevance.gates import (
    bound_gain,
    gated_attention_mask,
    soft_top_k,
    straight_through,
)
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.prune import (
    ImageTokens,
    LanguageInputs,
    full_length,
)
from saccade.models.relevance.reduce import Reduced, reduce_with_arm
from saccade.models.relevance.selector import Question, RelevanceSelector, Scored
from saccade.models.relevance.teacher import distillation_losses, question_attention
from saccade.models.relevance.textures import PatchLayout, Textures, compute_textures
from saccade.models.relevance.vision import encode_images

PASSED_ON = ("output_attentions", "output_hidden_states", "use_cache")


@dataclass(frozen=True)
class VisualFeatures:
    """Everything that is computed once per batch of images, whatever is kept of it."""

    inputs: LanguageInputs
    grid: CellGrid
    textures: Textures
    sample_of_image_I: Tensor


class RelevanceModel(nn.Module):
    """A frozen base and the trainable selector in front of its language model."""

    def __init__(self, backbone: Backbone, config: SelectorConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.base = backbone.model
        self.backbone = backbone
        self.selector_config = config
        self.markers = ChatMarkers.of(backbone.processor.tokenizer)
        images = backbone.processor.image_processor
        self.layout = PatchLayout(
            patch=images.patch_size,
            merge=images.merge_size,
            temporal=images.temporal_patch_size,
            mean=tuple(images.image_mean),
            std=tuple(images.image_std),
        )
        width = self.base.config.text_config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.selector = RelevanceSelector(config, feature_width=width, embedding_width=width)
        self.selector.to(self.base.device)

    # -- the base model's face ------------------------------------------------------------------

    @property
    def config(self) -> Any:
        return self.base.config

    @property
    def generation_config(self) -> Any:
        return self.base.generation_config

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def train(self, mode: bool = True) -> RelevanceModel:
        """Only the selector has a training mode; the base stays as it will be used."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        keep: int | float | None = None,
        full_length_logits: bool = False,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (and loss) of the base model on the kept tokens.

        Shapes as in the base; logits are [B, S, V] with S the longest remaining row (left-padded),
        or [B, L, V] with zeros at dropped positions when `full_length_logits`. `labels` are given
        at full length. `keep` overrides the configured budget. In training mode the gradient
        reaches the selector and logits are full-length.
        """
        batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if pixel_values is None or kwargs.get("pixel_values_videos") is not None:
            return self.base(
                **batch, pixel_values=pixel_values, image_grid_thw=image_grid_thw,
                mm_token_type_ids=mm_token_type_ids, labels=labels,
                logits_to_keep=logits_to_keep, **kwargs,
            )  # fmt: skip
        batch |= {
            "pixel_values": pixel_values, "image_grid_thw": image_grid_thw,
            "mm_token_type_ids": mm_token_type_ids, "labels": labels,
        }  # fmt: skip
        features = self.encode(batch)
        passed = {name: kwargs[name] for name in PASSED_ON if name in kwargs}
        if self.training and torch.is_grad_enabled():
            gated = self.gate(features, keep=keep)
            inputs, arguments = features.inputs, gated.arguments
        else:
            inputs = self.reduce(batch, keep=keep, features=features).inputs
            arguments = inputs.forward_arguments()
        out = self.base(
            **arguments, labels=inputs.labels_BS, logits_to_keep=logits_to_keep, **passed
        )
        if full_length_logits:
            out.logits = full_length(out.logits, inputs.source_BS, length=input_ids.shape[1])
        return out

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, *, keep: int | float | None = None, **inputs: Any
    ) -> Tensor:
        """Like the base's `generate`: returns the full prompt followed by the new tokens."""
        names = ("attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
        batch = {"input_ids": input_ids, **{n: inputs.pop(n, None) for n in names}}
        if batch["pixel_values"] is None:
            return self.base.generate(input_ids, attention_mask=batch["attention_mask"], **inputs)
        reduced = self.reduce(batch, keep=keep)
        new = self.base.generate(**reduced.inputs.generation_arguments(), **inputs)
        return torch.cat([input_ids, new[:, reduced.inputs.input_ids_BS.shape[1] :]], dim=1)

    # -- the parts -------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any]) -> VisualFeatures:
        """Run the vision tower once. Identical neighbouring images are encoded once, too."""
        ids_BL = batch["input_ids"]
        mask_BL = batch.get("attention_mask")
        mask_BL = torch.ones_like(ids_BL) if mask_BL is None else mask_BL
        pixels_ND, grid_I3 = batch["pixel_values"], batch["image_grid_thw"]
        types_BL = batch.get("mm_token_type_ids")
        types_BL = (ids_BL == self.markers.image).int() if types_BL is None else types_BL
        images = encode_images(self.base, pixels_ND, grid_I3)
        textures = compute_textures(images.pixels_ND, images.grid_J3, layout=self.layout)
        counts = CellGrid.of(images.grid_J3, merge=self.layout.merge).counts

        def spread(values_N: Tensor) -> Tensor:
            parts = values_N.split(counts)
            return torch.cat([parts[j] for j in images.distinct_of])

        positions_3BL, _ = self.base.model.get_rope_index(
            ids_BL, mm_token_type_ids=types_BL, image_grid_thw=grid_I3, attention_mask=mask_BL
        )
        inputs = LanguageInputs(
            input_ids_BS=ids_BL,
            attention_mask_BS=mask_BL,
            positions_3BS=positions_3BL,
            images=images.tokens,
            labels_BS=batch.get("labels"),
        )
        grid = CellGrid.of(grid_I3, merge=self.layout.merge)
        return VisualFeatures(
            inputs=inputs,
            grid=grid,
            textures=Textures(
                spread(textures.channels_NC), spread(textures.bits_N), spread(textures.rarity_N)
            ),
            sample_of_image_I=self._sample_of_image(ids_BL, grid),
        )

    def score(self, features: VisualFeatures, *, kept: list[int] | None = None) -> Scored:
        """Run the trained selector on every cell, told that `kept[i]` cells of image i may stay."""
        assert features.inputs.images is not None
        kept = self.budgets(features.grid, None) if kept is None else kept
        cells = features.grid.counts
        share_I = torch.tensor(
            [k / n for k, n in zip(kept, cells, strict=True)], device=self.device
        )
        return self.selector(
            torch.cat(features.inputs.images.pooled),
            textures=features.textures,
            grid=features.grid,
            question=self._question(features.inputs.input_ids_BS),
            sample_of_image_I=features.sample_of_image_I,
            share_I=share_I,
        )

    def budgets(self, grid: CellGrid, keep: int | float | None) -> list[int]:
        config = self.selector_config
        keep = config.keep if keep is None else keep
        limits = {"min_tokens": config.min_tokens, "max_tokens": config.max_tokens}
        return [budget(cells, keep, **limits) for cells in grid.counts]

    @torch.no_grad()
    def reduce(
        self,
        batch: Mapping[str, Any],
        *,
        arm: str = "trained",
        keep: int | float | None = None,
        seed: int = 0,
        features: VisualFeatures | None = None,
    ) -> Reduced:
        """Choose tokens with one of `ARMS` and drop, pool or resize the others.

        `features` from `encode` may be reused for any number of arms and budgets.
        """
        if arm not in ARMS:
            raise InputError(f"unknown selector {arm!r}\n  fix: use one of {', '.join(ARMS)}")
        features = self.encode(batch) if features is None else features
        kept = self.budgets(features.grid, 1.0 if ARMS[arm].how == "keep_all" else keep)
        return reduce_with_arm(self, batch, features, arm=ARMS[arm], kept=kept, seed=seed)

    @torch.no_grad()
    def generate_reduced(self, reduced: Reduced, *, max_new_tokens: int) -> Tensor:
        """Greedy answer to reduced inputs: new tokens only, [B, T]."""
        new = self.base.generate(
            **reduced.inputs.generation_arguments(),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        return new[:, reduced.inputs.input_ids_BS.shape[1] :]

    # -- training --------------------------------------------------------------------------------

    def gate(
        self,
        features: VisualFeatures,
        *,
        keep: int | float | None = None,
        denominator: Tensor | float | None = None,
    ) -> Gated:
        """Full-length inputs whose visual tokens act as strongly as the selector lets them.

        `denominator` is what the loss will be divided by; default: its own supervised tokens.
        """
        inputs, grid = features.inputs, features.grid
        if denominator is None:
            denominator = 1.0 if inputs.labels_BS is None else supervised_tokens(inputs.labels_BS)
        assert inputs.images is not None
        kept = self.budgets(grid, keep)
        scored = self.score(features, kept=kept)
        hard_N = top_k(scored.logits_N, cells=grid.counts, kept=kept)
        valid_IM = grid.valid_IHW.flatten(1)
        soft_IM = soft_top_k(
            grid.pad(scored.logits_N[:, None])[..., 0].flatten(1),
            valid_IM=valid_IM,
            kept_I=torch.tensor(kept, device=valid_IM.device),
            temperature_I=self.selector_config.temperature * scored.softness_I,
        )
        soft_N = soft_IM[valid_IM]
        gate_N = bound_gain(straight_through(soft_N, hard_N), tokens=denominator)
        gate_BL = torch.ones_like(inputs.input_ids_BS, dtype=gate_N.dtype)
        gate_BL = gate_BL.masked_scatter(inputs.input_ids_BS == self.markers.image, gate_N)
        gates = gate_N.split(grid.counts)
        images = ImageTokens(
            pooled=inputs.images.pooled,
            deepstack=tuple(
                tuple(rows * gates[i][:, None].to(rows.dtype) for i, rows in enumerate(level))
                for level in inputs.images.deepstack
            ),
        )
        arguments: dict[str, Any] = {
            "input_ids": inputs.input_ids_BS,
            "position_ids": inputs.positions_3BS,
            "attention_mask": gated_attention_mask(
                inputs.attention_mask_BS, gate_BL, dtype=self.base.dtype
            ),
            "mm_encoder_outputs": {"image": images.encoder_output()},
        }
        return Gated(scored=scored, hard_N=hard_N, soft_N=soft_N, arguments=arguments)

    def answer_loss(
        self, features: VisualFeatures, *, keep: int | float, denominator: Tensor | float
    ) -> tuple[SupervisedLoss, Gated]:
        """Cross-entropy of the answers read through the gate; see `supervised_loss`."""
        gated = self.gate(features, keep=keep, denominator=denominator)
        hidden = self.base.model(**gated.arguments, use_cache=False).last_hidden_state
        labels = features.inputs.labels_BS
        assert labels is not None
        loss = supervised_loss(self.base.lm_head, hidden, labels, denominator=denominator)
        return loss, gated

    def imitation_loss(
        self,
        features: VisualFeatures,
        *,
        denominator: Tensor | float,
        keep: int | float | None = None,
    ) -> Tensor:
        """Distillation towards the base model's own attention from the question to the image.

        Images count by their sample's supervised tokens / `denominator`, as in the answer loss, so
        that the sum over micro-batches does not depend on how they are cut.
        """
        labels = features.inputs.labels_BS
        assert labels is not None
        teacher_N = question_attention(self.base, features.inputs, image_token=self.markers.image)
        logits_N = self.score(features, kept=self.budgets(features.grid, keep)).plain_N
        losses_I = distillation_losses(logits_N, teacher_N, counts=features.grid.counts)
        tokens_B = (labels[:, 1:] != IGNORE_INDEX).sum(1)
        return (losses_I * tokens_B[features.sample_of_image_I]).sum() / denominator

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path, *, include_base: bool = False) -> None:
        """Write the selector (a few MB) and where its base is; `include_base` copies the base."""
        storage.save(self, Path(folder), include_base=include_base)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backbone: Backbone | None = None,
        model: ModelConfig | None = None,
    ) -> RelevanceModel:
        """Load a saved selector onto `backbone`, or onto the base named in the folder."""
        return storage.load(Path(folder), backbone=backbone, model=model)

    # -- helpers ---------------------------------------------------------------------------------

    def _question(self, input_ids_BL: Tensor) -> Question:
        mask_BL = user_text_mask(input_ids_BL, markers=self.markers)
        counts = mask_BL.sum(1)
        longest = max(1, int(counts.max()))
        order_BT = (~mask_BL).to(torch.int8).argsort(dim=1, stable=True)[:, :longest]
        present_BT = torch.arange(longest, device=counts.device)[None] < counts[:, None]
        with torch.no_grad():
            embeddings_BTD = self.get_input_embeddings()(input_ids_BL.gather(1, order_BT))
        embeddings_BTD = embeddings_BTD.masked_fill(~present_BT[..., None], 0)
        # an image without a question still needs one token to attend to: a zero
        present_BT[:, 0] = True
        return Question(embeddings_BTD, present_BT)

    def _sample_of_image(self, input_ids_BL: Tensor, grid: CellGrid) -> Tensor:
        """Images stand in reading order; an image belongs to the row its placeholders are in."""
        left = (input_ids_BL == self.markers.image).sum(1).tolist()
        owners, row = [], 0
        for cells in grid.counts:
            while left[row] < cells:
                row += 1
            left[row] -= cells
            owners.append(row)
        return torch.tensor(owners, device=input_ids_BL.device)


@dataclass(frozen=True)
class Gated:
    """The selector's choice and the base model's arguments it acts through."""

    scored: Scored
    hard_N: Tensor
    soft_N: Tensor
    arguments: dict[str, Any]
