"""The trainable part as one module: question + cells -> one logit per cell.

Puts the encoders, the three scores and the balance together for a packed batch of images, each
with the question of the sample it belongs to. About 2M parameters at Qwen3-VL-2B width. Knows
nothing of language models, masks or budgets.

Shapes: N cells of all images, D feature width, B samples, T question tokens, I images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from saccade.config.schema import SelectorConfig
from saccade.models.relevance.balance import TENSIONS, Balance
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.scores import (
    SCORE_NAMES,
    CellEncoder,
    Information,
    Participation,
    QuestionEncoder,
    Salience,
)
from saccade.models.relevance.textures import CHANNELS, COLORS, Textures


@dataclass(frozen=True)
class Question:
    """Embeddings of the user's own words, right-padded: [B, T, D] and their presence [B, T]."""

    embeddings_BTD: Tensor
    present_BT: Tensor


@dataclass(frozen=True)
class Scored:
    """Packed per-cell results; every map is [N].

    `plain_N` and `match_N` (participation by itself, scaled alike) are what imitates the teacher.
    """

    logits_N: Tensor
    plain_N: Tensor
    maps: dict[str, Tensor]
    weights: dict[str, Tensor]
    tension_I3: Tensor
    softness_I: Tensor
    match_N: Tensor | None = None

    def tensions(self) -> list[dict[str, float]]:
        rows = self.tension_I3.detach().tolist()
        return [dict(zip(TENSIONS, row, strict=True)) for row in rows]


class RelevanceSelector(nn.Module):
    """Scores every cell of every image for the question asked about it."""

    def __init__(
        self,
        config: SelectorConfig,
        *,
        feature_width: int,
        embedding_width: int,
        measured_width: int | None = None,
    ) -> None:
        """`measured_width`: leading features that information and salience read; default all."""
        super().__init__()
        self.measured = feature_width if measured_width is None else measured_width
        self.names = tuple(name for name in SCORE_NAMES if name in config.scores)
        width = config.width
        self.pixels = config.textures == "all"
        self.channels = CHANNELS if self.pixels else COLORS
        self.cells = CellEncoder(feature_width, width=width, channels=len(self.channels))
        self.question = QuestionEncoder(embedding_width, width=width, layers=config.question_layers)
        self.scores = nn.ModuleDict()
        if "information" in self.names:
            self.scores["information"] = Information(pixels=self.pixels)
        if "salience" in self.names:
            self.scores["salience"] = Salience(pixels=self.pixels)
        if "participation" in self.names:
            self.scores["participation"] = Participation(
                feature_width, width=width, probes=config.heads
            )
        by_answers = config.learning != "distill"
        self.balance = Balance(
            width,
            scores=len(self.names),
            learn_tensions=config.tensions and by_answers,
            learn_weights=config.balance == "learned",
        )
        self._freeze_what_nothing_teaches(by_answers=by_answers)

    def _freeze_what_nothing_teaches(self, *, by_answers: bool) -> None:
        """Parts that no loss reaches keep their first values and count as not trained.

        What imitates the teacher is the logit before the tensions, so imitation alone teaches
        nothing behind it; the question's summary only serves weights and tensions.
        """
        weighs = self.balance.weigh is not None
        summarises = weighs or self.balance.tensions is not None
        taught = {
            self.balance.code: by_answers,
            self.cells: by_answers or weighs,
            self.question: summarises or "participation" in self.names,
            self.question.summary: summarises,
        }
        for part, learns in taught.items():
            if not learns:
                part.requires_grad_(False)

    def forward(
        self,
        features_ND: Tensor,
        *,
        textures: Textures,
        grid: CellGrid,
        question: Question,
        sample_of_image_I: Tensor,
        share_I: Tensor,
    ) -> Scored:
        """Score a packed batch.

        `sample_of_image_I` says whose question an image answers, `share_I` which share of its
        cells may be kept.
        """
        valid = grid.valid_IHW
        dtype = self.cells.features.weight.dtype
        # channels differ in scale by orders of magnitude; the norm has nothing to learn
        normed_ND = nn.functional.layer_norm(features_ND.to(dtype), features_ND.shape[-1:])
        features = grid.pad(normed_ND)
        seen_NC = textures.channels_NC[:, : len(self.channels)].to(dtype)
        cells = self.cells(features, grid.pad(seen_NC), valid)
        states_BTW, summary_BW = self.question(
            question.embeddings_BTD.to(dtype), question.present_BT
        )
        states_ITW = states_BTW[sample_of_image_I]
        present_IT = question.present_BT[sample_of_image_I]
        maps_IHWK = torch.stack(
            [
                self._score(name, features, textures, grid, states_ITW, present_IT)
                for name in self.names
            ],
            dim=-1,
        )
        balanced = self.balance(
            maps_IHWK,
            cells_IHWW=cells,
            question_IW=summary_BW[sample_of_image_I],
            share_I=share_I.to(dtype),
            valid_IHW=valid,
        )
        match_N = None
        if "participation" in self.names:
            match_IHW = maps_IHWK[..., self.names.index("participation")]
            match_N = grid.pack(match_IHW) * self.balance.log_scale.exp()
        maps_NK, weights_NK = grid.pack(maps_IHWK), grid.pack(balanced.weight_IHWK)
        return Scored(
            logits_N=grid.pack(balanced.logit_IHW),
            plain_N=grid.pack(balanced.plain_IHW),
            maps={name: maps_NK[:, k] for k, name in enumerate(self.names)},
            weights={name: weights_NK[:, k] for k, name in enumerate(self.names)},
            tension_I3=balanced.tension_I3,
            softness_I=balanced.softness_I,
            match_N=match_N,
        )

    def _score(
        self,
        name: str,
        features: Tensor,
        textures: Textures,
        grid: CellGrid,
        states_ITW: Tensor,
        present_IT: Tensor,
    ) -> Tensor:
        def plane(values_N: Tensor) -> Tensor:
            return grid.pad(values_N[:, None].to(features.dtype))[..., 0]

        score, valid = self.scores[name], grid.valid_IHW
        measured = features[..., : self.measured]
        if name == "information":
            found = (textures.bits_N, textures.channel("entropy")) if self.pixels else ()
            return score(measured, pixel_maps=[plane(one) for one in found], valid_IHW=valid)
        if name == "salience":
            found = (textures.channel("saliency"), textures.rarity_N) if self.pixels else ()
            return score(measured, pixel_maps=[plane(one) for one in found], valid_IHW=valid)
        return score(features, states_ITW=states_ITW, present_IT=present_IT, valid_IHW=valid)
