"""Three ways a cell can be relevant: information, salience, participation.

In go the cells' features (from the frozen vision tower) and textures on their grid, and the
user's question; out comes one map per score, standardised per image so that none outshouts the
others. Information asks how many bits a cell adds over a coarse preview; salience how much it
stands out from its surround and its image; participation how well it matches the question. After
the three ways of knowing of ARR-COC; the formulas here are our own. No answer, template or
padding token is ever read.

Shapes: I images, H x W grid, D feature width, W selector width, B samples, T question tokens,
P probes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saccade.models.relevance.grids import block_mean, box_mean, image_mean, standardise

SCORE_NAMES = ("information", "salience", "participation")
PREVIEW_SIDE = 4


class CellEncoder(nn.Module):
    """Frozen visual features + textures -> selector width, with a look at the 3x3 neighbours.

    What the balance knows of a cell; the scores read the frozen features themselves.
    """

    def __init__(self, feature_width: int, *, width: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Linear(feature_width, width)
        self.textures = nn.Linear(channels, width, bias=False)
        self.around = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, features_IHWD: Tensor, textures_IHWC: Tensor, valid_IHW: Tensor) -> Tensor:
        hidden = self.features(features_IHWD) + self.textures(textures_IHWC)
        hidden = F.gelu(hidden) * valid_IHW[..., None]
        around = self.around(box_mean(hidden, valid_IHW, radius=1))
        return hidden + self.out(F.gelu(hidden + around))


class QuestionEncoder(nn.Module):
    """The user's words in context: frozen embeddings -> projection -> small transformer."""

    def __init__(self, embedding_width: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embedding_width)
        self.project = nn.Linear(embedding_width, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, nhead=4, dim_feedforward=2 * width, dropout=0.0,
                activation="gelu", batch_first=True, norm_first=True,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.summary = nn.Linear(width, 1, bias=False)

    def forward(self, embeddings_BTD: Tensor, present_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns token states [B, T, W] and a summary [B, W]."""
        states_BTW = self.project(self.norm(embeddings_BTD))
        states_BTW = states_BTW + _sinusoids(states_BTW)
        for layer in self.layers:
            states_BTW = layer(states_BTW, src_key_padding_mask=~present_BT)
        weight_BT1 = self.summary(states_BTW).masked_fill(~present_BT[..., None], -torch.inf)
        return states_BTW, (weight_BT1.softmax(1) * states_BTW).sum(1)


def _sinusoids(states_BTW: Tensor) -> Tensor:
    _, length, width = states_BTW.shape
    half = width // 2
    rate = torch.exp(torch.arange(half, device=states_BTW.device) * (-math.log(1000.0) / half))
    angle_TH = torch.arange(length, device=states_BTW.device)[:, None] * rate
    return torch.cat([angle_TH.sin(), angle_TH.cos()], dim=-1).to(states_BTW.dtype)


class Information(nn.Module):
    """Bits a cell adds over a coarse preview, in features and in pixels: measured, calibrated.

    Feature part: rate of a Gaussian code of the residual against the 4x4-block mean, mean over
    channels k of 1/2 log2(1 + r_k^2 / s^2), with a learned noise level s (the rate of reverse
    water-filling, Cover & Thomas 10.3.3). Pixel part: preview coding cost and entropy. It learns
    no directions on purpose: a measure that can become a detector measures nothing. `pixel_maps`
    may be empty: then the features alone are measured.
    """

    def __init__(self, *, pixels: bool = True) -> None:
        super().__init__()
        self.log_noise = nn.Parameter(torch.zeros(()))
        # one part needs no mixing
        self.mix = nn.Parameter(torch.tensor([1.0, 0.5, 0.5])) if pixels else None

    def forward(
        self, features_IHWD: Tensor, *, pixel_maps: Sequence[Tensor], valid_IHW: Tensor
    ) -> Tensor:
        residual = features_IHWD - block_mean(features_IHWD, valid_IHW, side=PREVIEW_SIDE)
        rate = 0.5 * torch.log2(1 + residual**2 * torch.exp(-2 * self.log_noise)).mean(-1)
        if self.mix is None:
            return standardise(rate, valid_IHW)
        parts = [standardise(part, valid_IHW) for part in (rate, *pixel_maps)]
        return standardise(sum_weighted(parts, self.mix), valid_IHW)


class Salience(nn.Module):
    """How far a cell stands out: from its 5x5 surround, from its image, in colour, by rarity.

    Distances are plain sums over feature channels; only their mixture is learned. `pixel_maps`
    may be empty, as above.
    """

    def __init__(self, *, pixels: bool = True) -> None:
        super().__init__()
        self.log_unit = nn.Parameter(torch.zeros(()))
        self.mix = nn.Parameter(torch.tensor([1.0, 1.0, 0.5, 1.0] if pixels else [1.0, 1.0]))

    def forward(
        self, features_IHWD: Tensor, *, pixel_maps: Sequence[Tensor], valid_IHW: Tensor
    ) -> Tensor:
        surround = features_IHWD - box_mean(features_IHWD, valid_IHW, radius=2)
        whole = features_IHWD - image_mean(features_IHWD, valid_IHW)[:, None, None]
        contrast = [
            torch.log1p((gap**2).mean(-1) * self.log_unit.exp()) for gap in (surround, whole)
        ]
        parts = [standardise(part, valid_IHW) for part in (*contrast, *pixel_maps)]
        return standardise(sum_weighted(parts, self.mix), valid_IHW)


class Participation(nn.Module):
    """Learned coupling of question and cell: several probes, a cell counts by its best match.

    Each probe attends to the question's tokens and is compared with every cell by cosine (one
    linear map on each side); the log-sum-exp over probes is a soft OR, so a question about two
    things can mark both. A cell is matched by what it shows itself; what its neighbours mean for
    it is the balance's business.
    """

    def __init__(self, feature_width: int, *, width: int, probes: int) -> None:
        super().__init__()
        self.probes = probes
        self.attend = nn.Linear(width, probes, bias=False)
        self.question = nn.Linear(width, width)
        self.cell = nn.Linear(feature_width, width)
        self.sharpness = nn.Parameter(torch.full((probes,), 2.0))

    def forward(
        self, features_IHWD: Tensor, *, states_ITW: Tensor, present_IT: Tensor, valid_IHW: Tensor
    ) -> Tensor:
        weight_ITP = self.attend(states_ITW).masked_fill(~present_IT[..., None], -torch.inf)
        values_ITPd = self.question(states_ITW).unflatten(-1, (self.probes, -1))
        probe_IPd = torch.einsum("itp,itpd->ipd", weight_ITP.softmax(1), values_ITPd)
        cell_IHWPd = self.cell(features_IHWD).unflatten(-1, (self.probes, -1))
        cosine_IHWP = torch.einsum(
            "ihwpd,ipd->ihwp",
            F.normalize(cell_IHWPd, dim=-1, eps=1e-4),
            F.normalize(probe_IPd, dim=-1, eps=1e-4),
        )
        match = torch.logsumexp(cosine_IHWP * self.sharpness.exp(), dim=-1)
        return standardise(match, valid_IHW)


def sum_weighted(parts: list[Tensor], weights: Tensor) -> Tensor:
    """Positive mixture of maps: softplus keeps a measure from counting against itself."""
    return torch.einsum("k...,k->...", torch.stack(parts), F.softplus(weights))
