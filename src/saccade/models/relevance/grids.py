"""Move per-cell values between the packed order models use and padded 2-D grids.

Packed: all cells of all images in one axis, each image in raster order (that is how the vision
tower's merged tokens come). Padded: one [H, W] plane per image with a validity mask, for anything
that looks at neighbours. Every average here is normalised by the valid cells it covers, so an
image's values never depend on the images it is batched with.

Shapes: I images, H x W padded grid, N cells of all images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CellGrid:
    """Merged grid sizes of a packed batch of still images."""

    sizes: tuple[tuple[int, int], ...]
    valid_IHW: Tensor

    @classmethod
    def of(cls, grid_thw_I3: Tensor, *, merge: int) -> CellGrid:
        sizes = tuple((int(h) // merge, int(w) // merge) for _, h, w in grid_thw_I3.tolist())
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        valid = torch.zeros(len(sizes), height, width, dtype=torch.bool, device=grid_thw_I3.device)
        for image, (h, w) in enumerate(sizes):
            valid[image, :h, :w] = True
        return cls(sizes=sizes, valid_IHW=valid)

    @property
    def counts(self) -> list[int]:
        return [h * w for h, w in self.sizes]

    def pad(self, packed_NC: Tensor) -> Tensor:
        """[N, C] -> [I, H, W, C], zeros outside."""
        padded = packed_NC.new_zeros(*self.valid_IHW.shape, packed_NC.shape[-1])
        padded[self.valid_IHW] = packed_NC
        return padded

    def pack(self, padded_IHW: Tensor) -> Tensor:
        """[I, H, W, ...] -> [N, ...]."""
        return padded_IHW[self.valid_IHW]

    def split(self, packed_N: Tensor) -> list[Tensor]:
        """[N, ...] -> one [h, w, ...] tensor per image."""
        parts = packed_N.split(self.counts)
        return [
            part.reshape(h, w, *part.shape[1:])
            for part, (h, w) in zip(parts, self.sizes, strict=True)
        ]


def box_mean(values_IHWC: Tensor, valid_IHW: Tensor, *, radius: int) -> Tensor:
    """Mean over the valid cells of the (2 radius + 1)^2 window around each cell."""
    side = 2 * radius + 1
    weight_I1HW = valid_IHW[:, None].to(values_IHWC.dtype)
    values_ICHW = values_IHWC.movedim(-1, 1) * weight_I1HW
    total = F.avg_pool2d(values_ICHW, side, stride=1, padding=radius, count_include_pad=True)
    share = F.avg_pool2d(weight_I1HW, side, stride=1, padding=radius, count_include_pad=True)
    return (total / share.clamp_min(1e-6)).movedim(1, -1)


def block_mean(values_IHWC: Tensor, valid_IHW: Tensor, *, side: int) -> Tensor:
    """Coarse preview: each cell replaced by the mean of its side x side block's valid cells."""
    height, width = valid_IHW.shape[1:]
    weight_I1HW = valid_IHW[:, None].to(values_IHWC.dtype)
    values_ICHW = values_IHWC.movedim(-1, 1) * weight_I1HW
    pad = (0, -width % side, 0, -height % side)
    total = F.avg_pool2d(F.pad(values_ICHW, pad), side)
    share = F.avg_pool2d(F.pad(weight_I1HW, pad), side)
    mean = total / share.clamp_min(1e-6)
    mean = mean.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
    return mean[:, :, :height, :width].movedim(1, -1)


def image_mean(values_IHWC: Tensor, valid_IHW: Tensor) -> Tensor:
    """[I, C]: mean over an image's valid cells."""
    weight = valid_IHW[..., None].to(values_IHWC.dtype)
    return (values_IHWC * weight).sum((1, 2)) / weight.sum((1, 2))


def standardise(values_IHW: Tensor, valid_IHW: Tensor) -> Tensor:
    """Zero mean and unit deviation per image; flat maps stay zero instead of exploding."""
    mean_I1 = image_mean(values_IHW[..., None], valid_IHW)
    centred = (values_IHW - mean_I1[:, :, None]) * valid_IHW
    variance_I1 = image_mean(centred[..., None] ** 2, valid_IHW)
    return centred * torch.rsqrt(variance_I1[:, :, None] + 1e-4)
