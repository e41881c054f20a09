"""Continuous thoughts: a causal model whose last hidden state is its own next input.

Symbols of a question flow in; scores of the symbols after it flow out. At a thought's place the
input is the hidden state of the place before, after the final norm, so nothing is read out and
written in again (COCONUT, arXiv 2412.06769). k thoughts take k + 1 passes one after another, and
gradients flow through all of them. Stages of the curriculum replace one more written step each:

    question : step_1 ... step_n = answer        stage 0, all written
    question : thought ... step_n = answer       stage s, the first s replaced
    question : thought ... thought = answer      the last stage

Controls put nothing or learned pauses in the place of thoughts. Left out: a cache of keys, which
questions this short do not need.

Shapes: B samples, L symbols, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from saccade.config.thoughts import ThoughtsConfig
from saccade.models.recursion.blocks import Linear, SwiGLU, rms_norm, rotations, truncated_normal_

MULTIPLE = 16


@dataclass(frozen=True)
class Layout:
    """What comes after the question: so many fed-back places, then so many written steps."""

    replaced: int
    places: int
    kind: str


def layout_of(stage: int, *, config: ThoughtsConfig, steps: int) -> Layout:
    """The layout of a stage of the curriculum."""
    replaced = 0 if config.mode == "written" else min(stage, steps)
    places = 0 if config.mode in ("none", "written") else replaced * config.per_step
    return Layout(replaced, places, config.mode)


def stage_at(step: int, *, steps: int, total: int, config: ThoughtsConfig) -> int:
    """The stage of a training step: 0 ... `steps`; the last one takes `last_share`."""
    if not config.curriculum or config.mode == "written":
        return steps
    before = total * (1 - config.last_share)
    return min(steps, int(step / before * steps)) if step < before else steps


class CausalBlock(nn.Module):
    """A pre-norm block of causal attention and SwiGLU."""

    def __init__(self, config: ThoughtsConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv, self.out = (
            Linear(config.width, 3 * config.width),
            Linear(config.width, config.width),
        )
        self.feed = SwiGLU(config.width, expansion=4.0, multiple=MULTIPLE)

    def forward(self, h_BLD: Tensor) -> Tensor:
        mixed = self.qkv(rms_norm(h_BLD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        cos, sin = rotations(h_BLD.shape[1], head_width=q.shape[-1], theta=1e4)
        q, k = (_turned(one, cos.to(one), sin.to(one)) for one in (q, k))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h_BLD = h_BLD + self.out(seen.transpose(1, 2).flatten(2))
        return h_BLD + self.feed(rms_norm(h_BLD))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), -1) * sin


class ThoughtModel(nn.Module):
    """Embeds symbols, feeds states back, and scores the symbols that follow."""

    def __init__(self, config: ThoughtsConfig, *, vocabulary: int) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.tokens = nn.Embedding(vocabulary, config.width)
        truncated_normal_(self.tokens.weight.data, std=1.0)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.layers))
        self.head = Linear(config.width, vocabulary)
        self.pause: nn.Parameter | None = None
        if config.mode == "pause":
            self.pause = nn.Parameter(truncated_normal_(torch.empty(config.width), std=1.0))

    def hidden(self, inputs_BLD: Tensor) -> Tensor:
        """States [B, L, D] after the final norm."""
        for block in self.blocks:
            inputs_BLD = block(inputs_BLD)
        return rms_norm(inputs_BLD)

    def thought(self, before_BL: Tensor, *, places: int) -> Tensor:
        """Inputs [B, L + places, D]: the symbols, then the thoughts (or pauses) after them."""
        inputs_BLD = self.tokens(before_BL)
        for _ in range(places):
            if self.pause is not None:
                next_BD = self.pause.expand(len(before_BL), -1)
            else:
                next_BD = self.hidden(inputs_BLD)[:, -1]
            inputs_BLD = torch.cat((inputs_BLD, next_BD[:, None]), 1)
        return inputs_BLD

    def forward(self, before_BL: Tensor, after_BM: Tensor, *, places: int) -> Tensor:
        """Scores [B, M, V] of the symbols `after`, each from what comes before it."""
        inputs_BLD = self.thought(before_BL, places=places)
        told_BMD = self.tokens(after_BM[:, :-1])
        h_BLD = self.hidden(torch.cat((inputs_BLD, told_BMD), 1))
        return self.head(h_BLD[:, -after_BM.shape[1] :])

    def continued(self, before_BL: Tensor, *, places: int, count: int) -> Tensor:
        """[B, count]: the likeliest symbols one after another."""
        inputs_BLD = self.thought(before_BL, places=places)
        said = []
        for _ in range(count):
            next_B = self.head(self.hidden(inputs_BLD)[:, -1]).argmax(-1)
            said.append(next_B)
            inputs_BLD = torch.cat((inputs_BLD, self.tokens(next_B)[:, None]), 1)
        return torch.stack(said, 1)
