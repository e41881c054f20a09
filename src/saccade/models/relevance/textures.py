"""What the pixels of each cell look like: 13 distinct channels and a coding cost.

In go the flat patch rows the image processor made (the same tensor the vision tower reads) and
the grids; out come, per merged cell and area-pooled from full resolution, R, G, B, L*, a*,
|Sobel x|, |Sobel y|, gradient magnitude, y, x, eccentricity, centre-surround saliency and local
entropy, each under a fixed normalisation (never relative to the batch). `bits_N` is the cost of
the cell's pixels given a preview of one pixel per cell. No trainable parts.

Shapes: N cells of all images, P patch pixels, I images, H x W pixels or cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CHANNELS = (
    "red", "green", "blue", "lightness", "green_red", "sobel_x", "sobel_y", "gradient",
    "y", "x", "eccentricity", "saliency", "entropy",
)  # fmt: skip
COLORS = CHANNELS[:3]
ENTROPY_BINS = 32
QUANTUM = 4 / 255
"""Residual step that counts as one level when coding a cell against its preview."""
COLOR_BANDWIDTH = 6.0
"""CIE L*a*b* units within which two cells count as of one colour."""
LIGHTNESS_SHARE = 0.3
"""How much L* counts in that distance: shading changes lightness before it changes the hue."""
COLOR_SAMPLES = 1024
"""Cells of an image that stand for all of them in its colour density."""


@dataclass(frozen=True)
class PatchLayout:
    """How the image processor cuts and normalises images."""

    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def cell_px(self) -> int:
        return self.patch * self.merge


@dataclass(frozen=True)
class Textures:
    """`channels_NC` in the order of `CHANNELS`; `bits_N` per colour value, `rarity_N` in bits."""

    channels_NC: Tensor
    bits_N: Tensor
    rarity_N: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Textures:
        """Apply `change` to every field (all are per cell)."""
        return Textures(change(self.channels_NC), change(self.bits_N), change(self.rarity_N))

    def channel(self, name: str) -> Tensor:
        return self.channels_NC[:, CHANNELS.index(name)]


def unpatchify(pixels_ND: Tensor, grid_thw: tuple[int, int, int], layout: PatchLayout) -> Tensor:
    """Patch rows of one still image -> normalised image [3, H, W].

    Rows come merge-block by merge-block: (row block, column block, row in block, column in block),
    each row holding (channel, frame, y, x). Both frames of a still image are equal.
    """
    _, rows, columns = grid_thw
    m, p = layout.merge, layout.patch
    blocks = pixels_ND.reshape(rows // m, columns // m, m, m, 3, layout.temporal, p, p)[
        ..., 0, :, :
    ]
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * p, columns * p)


def patchify(image_3HW: Tensor, layout: PatchLayout) -> Tensor:
    """Inverse of `unpatchify`."""
    m, p = layout.merge, layout.patch
    _, height, width = image_3HW.shape
    blocks = image_3HW.reshape(3, height // (m * p), m, p, width // (m * p), m, p)
    blocks = blocks.permute(1, 4, 2, 5, 0, 3, 6)
    frames = blocks[..., None, :, :].expand(*blocks.shape[:5], layout.temporal, p, p)
    return frames.reshape(-1, 3 * layout.temporal * p * p)


def shrink_pixels(
    pixels_ND: Tensor,
    *,
    grid_thw: tuple[int, int, int],
    target: tuple[int, int],
    layout: PatchLayout,
) -> tuple[Tensor, tuple[int, int, int]]:
    """The image at `target` = (rows, columns) of cells, antialiased bicubic, as patch rows."""
    image_3HW = unpatchify(pixels_ND.float(), grid_thw, layout)
    size = (target[0] * layout.cell_px, target[1] * layout.cell_px)
    small = F.interpolate(
        image_3HW[None], size=size, mode="bicubic", antialias=True, align_corners=False
    )[0]
    low, high = image_3HW.amin(), image_3HW.amax()  # bicubic overshoots; pixels cannot
    thw = (1, target[0] * layout.merge, target[1] * layout.merge)
    return patchify(small.clamp(low, high), layout), thw


@torch.no_grad()
def compute_textures(pixels_ND: Tensor, grid_thw_I3: Tensor, *, layout: PatchLayout) -> Textures:
    """Textures of every merged cell of a packed batch of still images."""
    channels, bits, rarity = [], [], []
    start = 0
    for t, h, w in grid_thw_I3.tolist():
        rows = pixels_ND[start : start + t * h * w].float()
        start += t * h * w
        image_3HW = unpatchify(rows, (t, h, w), layout)
        mean = image_3HW.new_tensor(layout.mean)[:, None, None]
        std = image_3HW.new_tensor(layout.std)[:, None, None]
        rgb_3HW = (image_3HW * std + mean).clamp(0, 1)
        channels.append(_channels(rgb_3HW, cell_px=layout.cell_px))
        bits.append(_preview_bits(rgb_3HW, cell_px=layout.cell_px))
        rarity.append(_rarity(_pool(rgb_to_lab(rgb_3HW), layout.cell_px)))
    return Textures(torch.cat(channels), torch.cat(bits), torch.cat(rarity))


def _pool(plane_CHW: Tensor, cell_px: int) -> Tensor:
    return F.avg_pool2d(plane_CHW[None], cell_px)[0]


def _channels(rgb_3HW: Tensor, *, cell_px: int) -> Tensor:
    lab_3HW = rgb_to_lab(rgb_3HW)
    grey_HW = rgb_3HW.mean(0)
    gx_HW, gy_HW = _sobel(grey_HW)
    gradient_HW = (gx_HW**2 + gy_HW**2).sqrt()
    edges = torch.stack([gx_HW.abs(), gy_HW.abs(), gradient_HW])
    lightness_a = torch.stack([lab_3HW[0] / 100, (lab_3HW[1] + 128) / 255])
    pooled = _pool(torch.cat([rgb_3HW, lightness_a, edges]), cell_px)
    _, h, w = pooled.shape
    y = ((torch.arange(h, device=pooled.device) + 0.5) / h)[:, None].expand(h, w)
    x = ((torch.arange(w, device=pooled.device) + 0.5) / w)[None, :].expand(h, w)
    eccentricity = ((y - 0.5) ** 2 + (x - 0.5) ** 2).sqrt() / 0.5**0.5
    saliency = _centre_surround(_pool(lab_3HW, cell_px))
    entropy = _entropy(grey_HW, cell_px=cell_px)
    planes = torch.cat([pooled, torch.stack([y, x, eccentricity, saliency, entropy])])
    return planes.reshape(len(CHANNELS), -1).T


def rgb_to_lab(rgb_3HW: Tensor) -> Tensor:
    """sRGB in 0..1 -> CIE L*a*b* (D65)."""
    linear = torch.where(rgb_3HW <= 0.04045, rgb_3HW / 12.92, ((rgb_3HW + 0.055) / 1.055) ** 2.4)
    matrix = rgb_3HW.new_tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    white = rgb_3HW.new_tensor([0.9505, 1.0, 1.089])[:, None, None]
    xyz = torch.einsum("ij,jhw->ihw", matrix, linear) / white
    f = torch.where(xyz > 0.008856, xyz.clamp_min(1e-8) ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _sobel(grey_HW: Tensor) -> tuple[Tensor, Tensor]:
    kernel = grey_HW.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    padded = F.pad(grey_HW[None, None], (1, 1, 1, 1), mode="replicate")
    both = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])[0]
    return both[0], both[1]


def _centre_surround(lab_3hw: Tensor) -> Tensor:
    """Colour distance of a cell from the mean of its 7x7 neighbourhood, 50 units = 1 (capped)."""
    around = F.avg_pool2d(lab_3hw[None], 7, stride=1, padding=3, count_include_pad=False)[0]
    return ((lab_3hw - around).norm(dim=0) / 50).clamp(max=1)


def _rarity(lab_3hw: Tensor) -> Tensor:
    """[cells]: bits of surprise at a cell's mean colour among the colours of its own image.

    Self-information under a Gaussian kernel density (after Bruce and Tsotsos, Saliency Based on
    Information Maximization, 2005), averaged over 3x3 cells so that the middle of a rare thing
    is as rare as its rim.
    """
    lab_N3 = lab_3hw.flatten(1).T * lab_3hw.new_tensor([LIGHTNESS_SHARE, 1.0, 1.0])
    stride = -(-len(lab_N3) // COLOR_SAMPLES)
    distance_NM = torch.cdist(lab_N3, lab_N3[::stride], compute_mode="donot_use_mm_for_euclid_dist")
    density_N = torch.exp(-0.5 * (distance_NM / COLOR_BANDWIDTH) ** 2).mean(1)
    # a cell outside the sample may be alone in its colour: no rarer than one of all cells
    surprise_N = -density_N.clamp_min(1 / len(lab_N3)).log2()
    plane = surprise_N.reshape(1, 1, *lab_3hw.shape[1:])
    return F.avg_pool2d(plane, 3, stride=1, padding=1, count_include_pad=False).flatten()


def _entropy(grey_HW: Tensor, *, cell_px: int) -> Tensor:
    """Entropy of each cell's grey histogram, in 0..1 (1 = uniform over all bins)."""
    height, width = grey_HW.shape
    h, w = height // cell_px, width // cell_px
    cells = grey_HW.reshape(h, cell_px, w, cell_px).permute(0, 2, 1, 3).reshape(h * w, -1)
    bins = (cells * ENTROPY_BINS).long().clamp(0, ENTROPY_BINS - 1)
    counts = torch.zeros(h * w, ENTROPY_BINS, device=grey_HW.device)
    counts.scatter_add_(1, bins, torch.ones_like(cells))
    share = counts / cells.shape[1]
    entropy = -(share * share.clamp_min(1e-12).log2()).sum(1)
    return (entropy / torch.log2(torch.tensor(float(ENTROPY_BINS)))).reshape(h, w)


def _preview_bits(rgb_3HW: Tensor, *, cell_px: int) -> Tensor:
    """Mean log2(1 + |residual| / quantum) of a cell against the upsampled one-pixel preview."""
    preview = F.interpolate(
        _pool(rgb_3HW, cell_px)[None], size=rgb_3HW.shape[1:], mode="bilinear", align_corners=False
    )[0]
    cost = torch.log2(1 + (rgb_3HW - preview).abs() / QUANTUM)
    return _pool(cost, cell_px).mean(0).reshape(-1)
