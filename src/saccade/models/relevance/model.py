"""`RelevanceModel`: a frozen Qwen-VL that reads only the visual tokens a question needs.

In go exactly the inputs the base model takes; out come its logits or its answer, computed from
the kept tokens. Text-only and video inputs pass through. In training the sequence stays whole and
the choice acts through gates (`gates.py`); at inference tokens are really dropped (`prune.py`);
the two compute the same thing. Every selector, trained or baseline, runs through `reduce`. Where
the choice is made is the selector's placement: after the vision tower (`features`), or before it,
so that only chosen cells are encoded (`pixels`, `glance`; see `glance.py`). In training the whole
image is encoded in every placement, because every gate needs a token behind it.

Shapes: B samples, L tokens, I images, N merged cells of all images, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

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
from saccade.models.relevance.allocate import adapted, budget, top_k
from saccade.models.relevance.balance import NEUTRAL
from saccade.models.relevance.baselines import find_arm
from saccade.models.relevance.dropin import (
    DropIn,
    Read,
    at_full_length,
    likely_supervised,
    passed_on,
    refuse_unknown,
    text_labels,
    with_full_prompt,
)
from saccade.models.relevance.feature_cache import FeatureCache
from saccade.models.relevance.gated import GatedSelector
from saccade.models.relevance.gates import (
    bound_gain,
    gated_attention_mask,
    soft_choice,
    straight_through,
)
from saccade.models.relevance.glance import (
    Preview,
    cell_width,
    measured_width,
    patch_features,
    patch_summary,
    preview_features,
    take_preview,
    texture_features,
    uncovered,
)
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.prune import (
    ImageTokens,
    LanguageInputs,
)
from saccade.models.relevance.reduce import Reduced, put_preview, reduce_with_arm
from saccade.models.relevance.selector import Question, RelevanceSelector, Scored
from saccade.models.relevance.teacher import distillation_losses, question_attention
from saccade.models.relevance.textures import PatchLayout, Textures
from saccade.models.relevance.vision import ImageView


@dataclass(frozen=True)
class VisualFeatures:
    """Everything that is computed once per batch of images, whatever is kept of it.

    `cells_ND` is what the selector knows of each cell. With a placement before the tower,
    `inputs.images` is blank until `whole` or a choice fills it.
    """

    inputs: LanguageInputs
    grid: CellGrid
    textures: Textures
    sample_of_image_I: Tensor
    view: ImageView
    cells_ND: Tensor
    preview: Preview | None = None

    def whole(self) -> LanguageInputs:
        """The inputs with every token of every image."""
        return replace(self.inputs, images=self.view.tokens)


class RelevanceModel(DropIn):
    """A frozen base and the trainable selector in front of its language model."""

    def __init__(self, backbone: Backbone, config: SelectorConfig, *, seed: int = 0) -> None:
        super().__init__(backbone)
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
        cells = cell_width(self.base, placement=config.placement)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.selector = (
                GatedSelector(feature_width=cells)
                if config.kind == "gated"
                else RelevanceSelector(
                    config,
                    feature_width=cells,
                    embedding_width=width,
                    measured_width=measured_width(self.base, placement=config.placement),
                )
            )
        self.selector.to(self.base.device)
        self.feature_cache: FeatureCache | None = None

    # -- the base model's face (the rest of it is in `dropin.py`) -------------------------------

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
        full_length_logits: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (and loss) of the base model on the kept tokens.

        Shapes as in the base; logits are [B, S, V] with S the longest remaining row (left-padded),
        or [B, L, V] with zeros at dropped positions when `full_length_logits` (default: the
        attribute of that name) and always while training. `labels` are given at full length.
        `keep` overrides the configured budget.
        """
        batch: dict[str, Any] = {
            "input_ids": input_ids, "attention_mask": attention_mask,
            "pixel_values": pixel_values, "image_grid_thw": image_grid_thw,
            "mm_token_type_ids": mm_token_type_ids,
        }  # fmt: skip
        meant = text_labels(labels, input_ids, image_token=self.markers.image)
        read = self.read(batch | {"labels": meant} | kwargs, keep=keep)
        if read is None:
            return self.base(**batch, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
        whole = self.full_length_logits if full_length_logits is None else full_length_logits
        whole = whole or (self.training and torch.is_grad_enabled())
        whole = whole or isinstance(logits_to_keep, Tensor)  # positions of the full sequence
        out = self.base(
            **read.arguments, labels=read.inputs.labels_BS,
            logits_to_keep=0 if whole else logits_to_keep, **passed_on(kwargs),
        )  # fmt: skip
        if whole:
            full_BLV = at_full_length(out.logits, read.inputs, like=input_ids)
            out.logits = slice_logits_to_keep(full_BLV, logits_to_keep)
        return out

    def read(self, batch: Mapping[str, Any], *, keep: int | float | None = None) -> Read | None:
        """What the language model is given; None where there is nothing to choose (text, video).

        While the selector learns, the whole sequence behind gates, which lets the gradient reach
        it; otherwise what is left after dropping, which is cheaper and computes the same.
        """
        if batch.get("pixel_values") is None or batch.get("pixel_values_videos") is not None:
            return None
        refuse_unknown(batch)
        features = self.encode(batch)
        if self.training and torch.is_grad_enabled() and self.trains_selector:
            tokens = batch.get("num_items_in_batch")
            if tokens is None and batch.get("labels") is None:
                mask = batch.get("attention_mask")
                tokens = likely_supervised(batch["input_ids"], mask, markers=self.markers)
            gated = self.gate(features, keep=keep, denominator=tokens)
            return Read(gated.inputs, gated.arguments)
        inputs = self.reduce(batch, keep=keep, features=features).inputs
        return Read(inputs, inputs.forward_arguments())

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
        return with_full_prompt(new, input_ids, read=reduced.inputs.input_ids_BS.shape[1])

    # -- the parts -------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, batch: Mapping[str, Any]) -> VisualFeatures:
        """Everything the choice is made from. Identical neighbouring images are encoded once."""
        ids_BL = batch["input_ids"]
        mask_BL = batch.get("attention_mask")
        mask_BL = torch.ones_like(ids_BL) if mask_BL is None else mask_BL
        pixels_ND, grid_I3 = batch["pixel_values"], batch["image_grid_thw"]
        types_BL = batch.get("mm_token_type_ids")
        types_BL = (ids_BL == self.markers.image).int() if types_BL is None else types_BL
        view = ImageView(
            self.base, pixels_ND, grid_I3,
            reuse=self.selector_config.reuse_features, cache=self.feature_cache,
        )  # fmt: skip
        grid = CellGrid.of(grid_I3, merge=self.layout.merge)
        textures = view.textures(self.layout)
        positions_3BL, _ = self.base.model.get_rope_index(
            ids_BL, mm_token_type_ids=types_BL, image_grid_thw=grid_I3, attention_mask=mask_BL
        )
        early = self.selector_config.placement != "features"
        inputs = LanguageInputs(
            input_ids_BS=ids_BL,
            attention_mask_BS=mask_BL,
            positions_3BS=positions_3BL,
            images=ImageTokens.blank(grid.counts, device=ids_BL.device) if early else view.tokens,
            labels_BS=batch.get("labels"),
        )
        cells_ND, preview = self._cells(view, grid, textures)
        return VisualFeatures(
            inputs=inputs,
            grid=grid,
            textures=textures,
            sample_of_image_I=self._sample_of_image(ids_BL, grid),
            view=view,
            cells_ND=cells_ND,
            preview=preview,
        )

    def _cells(
        self, view: ImageView, grid: CellGrid, textures: Textures
    ) -> tuple[Tensor, Preview | None]:
        """What the selector may know of each cell at its placement."""
        config = self.selector_config
        if config.placement == "features":
            return torch.cat(view.tokens.pooled), None
        seen_NC = texture_features(textures, grid)
        patches_NPD = patch_features(self.base, view)
        if config.placement == "pixels":
            return torch.cat([patches_NPD.flatten(1), seen_NC], dim=-1), None
        preview = take_preview(
            self.base, view.pixels_ND, view.grid_I3,
            scale=config.preview_scale, layout=self.layout,
        )  # fmt: skip
        blurred_ND, sharp_NE = preview_features(preview, grid), patch_summary(patches_NPD)
        return torch.cat([blurred_ND, sharp_NE, seen_NC], dim=-1), preview

    def score(self, features: VisualFeatures, *, kept: list[int] | None = None) -> Scored:
        """Run the trained selector on every cell, told that `kept[i]` cells of image i may stay."""
        kept = self.budgets(features.grid, None) if kept is None else kept
        cells = features.grid.counts
        share_I = torch.tensor(
            [k / n for k, n in zip(kept, cells, strict=True)], device=self.device
        )
        # a trainer's autocast must not mix precisions inside the selector
        with torch.autocast(self.device.type, enabled=False):
            return self.selector(
                features.cells_ND,
                textures=features.textures,
                grid=features.grid,
                question=self._question(features.inputs.input_ids_BS),
                sample_of_image_I=features.sample_of_image_I,
                share_I=share_I,
            )

    def adapt(self, scored: Scored, kept: list[int], *, cells: list[int]) -> Tensor | None:
        """[I]: the budgets that the tension chooses, or None when budgets are fixed."""
        config = self.selector_config
        if config.adaptive == 1.0:
            return None
        return adapted(
            kept, scored.tension_I3[:, 0], cells=cells, reach=config.adaptive, neutral=NEUTRAL
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
        """Choose tokens with one of `ARMS` (or `ARM+mmr`) and drop, pool or resize the others.

        `features` from `encode` may be reused for any number of arms and budgets.
        """
        info = find_arm(arm)
        features = self.encode(batch) if features is None else features
        kept = self.budgets(features.grid, 1.0 if info.how == "keep_all" else keep)
        return reduce_with_arm(self, batch, features, arm=info, kept=kept, seed=seed)

    @torch.no_grad()
    def generate_reduced(self, reduced: Reduced, *, max_new_tokens: int) -> Tensor:
        """Greedy answer to reduced inputs: new tokens only, [B, T]."""
        with reduced.during():
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
        inputs, grid = features.whole(), features.grid
        if denominator is None:
            denominator = 1.0 if inputs.labels_BS is None else supervised_tokens(inputs.labels_BS)
        assert inputs.images is not None
        kept = self.budgets(grid, keep)
        scored = self.score(features, kept=kept)
        kept_I = self.adapt(scored, kept, cells=grid.counts)
        if kept_I is None:
            kept_I = torch.tensor(kept, device=self.device)
        kept = [round(k) for k in kept_I.tolist()]
        hard_N = top_k(scored.logits_N, cells=grid.counts, kept=kept)
        soft_N = soft_choice(
            scored, grid, kept_I=kept_I, temperature=self.selector_config.temperature
        )
        gate_N = bound_gain(straight_through(soft_N, hard_N), tokens=denominator)
        gates = list(gate_N.split(grid.counts))
        if features.preview is not None:
            inputs = put_preview(self, features, inputs, short=[True] * len(kept))
            rest = uncovered(features.preview, grid.split(hard_N))
            gates = [torch.cat([a.to(b), b]) for a, b in zip(rest, gates, strict=True)]
        return Gated(
            scored=scored,
            hard_N=hard_N,
            soft_N=soft_N,
            kept_I=kept_I,
            inputs=inputs,
            arguments=self._gated_arguments(inputs, gates),
        )

    def _gated_arguments(self, inputs: LanguageInputs, gates: list[Tensor]) -> dict[str, Any]:
        """The base's arguments with one gate per visual token, image by image."""
        gate_N = torch.cat(gates)
        gate_BL = torch.ones_like(inputs.input_ids_BS, dtype=gate_N.dtype)
        gate_BL = gate_BL.masked_scatter(inputs.input_ids_BS == self.markers.image, gate_N)
        assert inputs.images is not None
        images = ImageTokens(
            pooled=inputs.images.pooled,
            deepstack=tuple(
                tuple(rows * gates[i][:, None].to(rows.dtype) for i, rows in enumerate(level))
                for level in inputs.images.deepstack
            ),
        )
        return {
            "input_ids": inputs.input_ids_BS,
            "position_ids": inputs.positions_3BS,
            "attention_mask": gated_attention_mask(
                inputs.attention_mask_BS, gate_BL, dtype=self.base.dtype
            ),
            "mm_encoder_outputs": {"image": images.encoder_output()},
        }

    def answer_loss(
        self, features: VisualFeatures, *, keep: int | float, denominator: Tensor | float
    ) -> tuple[SupervisedLoss, Gated]:
        """Cross-entropy of the answers read through the gate; see `supervised_loss`."""
        gated = self.gate(features, keep=keep, denominator=denominator)
        hidden = self.base.model(**gated.arguments, use_cache=False).last_hidden_state
        labels = gated.inputs.labels_BS
        assert labels is not None
        loss = supervised_loss(self.base.lm_head, hidden, labels, denominator=denominator)
        if gated.kept_I.requires_grad:
            loss = replace(loss, total=loss.total + self._price(features, gated) / denominator)
        return loss, gated

    def _price(self, features: VisualFeatures, gated: Gated) -> Tensor:
        """What the kept tokens cost, counted by supervised tokens like the answers."""
        labels = features.inputs.labels_BS
        assert labels is not None
        tokens_B = (labels[:, 1:] != IGNORE_INDEX).sum(1)
        share_I = gated.kept_I / torch.tensor(features.grid.counts, device=self.device)
        return (
            self.selector_config.token_price
            * (share_I * tokens_B[features.sample_of_image_I]).sum()
        )

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
        teacher_N = question_attention(self.base, features.whole(), image_token=self.markers.image)
        scored = self.score(features, kept=self.budgets(features.grid, keep))
        losses_I = distillation_losses(scored.plain_N, teacher_N, counts=features.grid.counts)
        if scored.match_N is not None and len(scored.maps) > 1:
            # the score that learns is taught by itself, too: else the balance, which finds the
            # measured scores more useful at first, leaves it without a gradient
            alone_I = distillation_losses(scored.match_N, teacher_N, counts=features.grid.counts)
            losses_I = (losses_I + alone_I) / 2
        tokens_B = (labels[:, 1:] != IGNORE_INDEX).sum(1)
        return (losses_I * tokens_B[features.sample_of_image_I]).sum() / denominator

    # -- files -----------------------------------------------------------------------------------

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
        mask_BL = user_text_mask(
            input_ids_BL, markers=self.markers, query=self.selector_config.query
        )
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
    kept_I: Tensor
    inputs: LanguageInputs
    arguments: dict[str, Any]
