"""The layers of a recursive model: post-norm blocks that mix positions, then channels.

Hidden states flow in and out, [B, S, D]. As published (arXiv 2510.04871 and its code): RMSNorm
without gain, SwiGLU, no biases, truncated-normal weights of standard deviation 1/sqrt(inputs).
Positions are mixed by attention or by a SwiGLU across them, which needs a fixed length. Causal
attention is not published; text needs it. Left out: dropout and other masks.

Shapes: B slots, S positions (prefix and tokens), D width, H heads, K width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from saccade.config.recursion import RecursionConfig

EPSILON = 1e-5
CUT = 2.0
"""Weights are drawn within this many standard deviations."""
CUT_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut off at +-2."""


def truncated_normal_(tensor: Tensor, *, std: float) -> Tensor:
    """Fill with normal numbers cut at two standard deviations, whose own deviation is `std`."""
    scale = std / CUT_STD
    return nn.init.trunc_normal_(tensor, std=scale, a=-CUT * scale, b=CUT * scale)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-5) over the last axis, without a learned gain."""
    return functional.rms_norm(x, x.shape[-1:], eps=EPSILON)


def hidden_width(width: int, *, expansion: float, multiple: int) -> int:
    """Inner width of a SwiGLU: 2/3 of expansion x width, rounded up to a multiple."""
    return multiple * math.ceil(round(expansion * width * 2 / 3) / multiple)


class Linear(nn.Linear):
    """A linear layer without bias, drawn as published."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights."""
        truncated_normal_(self.weight.data, std=self.in_features**-0.5)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) over the last axis."""

    def __init__(self, width: int, *, expansion: float, multiple: int) -> None:
        super().__init__()
        inner = hidden_width(width, expansion=expansion, multiple=multiple)
        self.gate_up = Linear(width, 2 * inner)
        self.down = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.silu(gate) * up)


class Attention(nn.Module):
    """Attention between all positions, or to those before, told apart by rotation if asked to."""

    def __init__(
        self, width: int, *, heads: int, length: int, theta: float | None, causal: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.rotates = theta is not None
        self.cos_SK: Tensor
        self.sin_SK: Tensor
        if theta is not None:
            cos_SK, sin_SK = rotations(length, head_width=width // heads, theta=theta)
            self.register_buffer("cos_SK", cos_SK.float(), persistent=False)
            self.register_buffer("sin_SK", sin_SK.float(), persistent=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BSD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.rotates:
            q, k = self._rotated(q), self._rotated(k)
        mixed_BHSK = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed_BHSK.transpose(1, 2).flatten(2))

    def _rotated(self, x_BHSK: Tensor) -> Tensor:
        first, second = x_BHSK.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x_BHSK * self.cos_SK.to(x_BHSK.dtype) + turned * self.sin_SK.to(x_BHSK.dtype)


def rotations(length: int, *, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, K] in float64 of rotary positions; a head's halves turn together."""
    rate = theta ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), rate)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


class Block(nn.Module):
    """h = RMS(h + Mix(h)), then h = RMS(h + SwiGLU(h))."""

    def __init__(self, config: RecursionConfig, *, length: int) -> None:
        super().__init__()
        size = {"expansion": config.expansion, "multiple": config.ffn_multiple}
        self.across = config.mixer == "mlp"
        self.mix: nn.Module
        if self.across:
            self.mix = SwiGLU(length, **size)
        else:
            theta = config.rope_theta if config.positions == "rope" else None
            self.mix = Attention(
                config.width, heads=config.heads, length=length, theta=theta, causal=config.causal
            )
        self.feed = SwiGLU(config.width, **size)

    def forward(self, h_BSD: Tensor) -> Tensor:
        if self.across:  # the norm, too, is taken across positions
            h_BDS = h_BSD.transpose(1, 2)
            h_BSD = rms_norm(h_BDS + self.mix(h_BDS)).transpose(1, 2)
        else:
            h_BSD = rms_norm(h_BSD + self.mix(h_BSD))
        return rms_norm(h_BSD + self.feed(h_BSD))
