"""The vision tower of a base model as the frozen encoder of shards.

A `ModelConfig` and a side in pixels flow in; pictures become merged features, one per cell, with
the processor's own normalisation and nothing resized. A tower with a part that never learned (all
of its gains exactly one and all of its biases exactly zero, as initialisation leaves them) is
refused unless told otherwise: capsules of random weights look like data and mean nothing. On a CPU
each picture is encoded alone, so its features do not depend on its neighbours, to the last bit.

Shapes: B pictures, N patches of a picture, P values of a patch, T cells, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from saccade.config.errors import InputError
from saccade.config.schema import ModelConfig
from saccade.models.backbone import load_backbone


@dataclass(frozen=True)
class Pixels:
    """Prepares square pictures of a side with a base model's image processor."""

    images: Any
    side: int
    patches: int
    """Patches of a picture."""

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        """Patch rows [N, P] of each picture."""
        area = self.side**2
        out = self.images(
            images=list(pictures),
            return_tensors="pt",
            size={"shortest_edge": area, "longest_edge": area},
        )
        return list(out["pixel_values"].split(self.patches))


class TowerEncoder:
    """Features of a base model's vision tower for pictures of one size."""

    def __init__(self, config: ModelConfig, *, side: int, allow_untrained: bool = False) -> None:
        backbone = load_backbone(config)
        self.name = backbone.name
        self._base = backbone.model
        images = backbone.processor.image_processor
        self._device = next(backbone.model.parameters()).device
        self.alone = self._device.type == "cpu"
        tower = self._base.model.visual
        if not allow_untrained:
            refuse_untrained(tower, name=config.name)
        merge = int(tower.spatial_merge_size)
        cell = int(images.patch_size) * merge
        if side % cell:
            near = max(cell, round(side / cell) * cell)
            raise InputError(
                f"shards.side={side}: {config.name} sees cells of {cell} pixels"
                f"\n  fix: a multiple of it, such as shards.side={near}"
            )
        self.side = side
        self.grid = (side // cell, side // cell)
        self._grid_thw = torch.tensor([[1, side * merge // cell, side * merge // cell]])
        self.prepare = Pixels(images, side, patches=int(self._grid_thw.prod()))
        self.width = int(tower.config.out_hidden_size)
        self.digest = _digest(self._base, side=side, device=self._device)
        # the language model is not needed from here on
        self._features = self._base.model.get_image_features

    @torch.no_grad()
    def encode(self, prepared: Sequence[Tensor]) -> Tensor:
        """Features [B, T, D] in raster order of cells."""
        if self.alone:
            parts = [self._batch([one])[0] for one in prepared]
        else:
            parts = self._batch(prepared)
        return torch.stack([part.cpu() for part in parts])

    def _batch(self, prepared: Sequence[Tensor]) -> Sequence[Tensor]:
        pixels = torch.cat(list(prepared)).to(self._device)
        grids = self._grid_thw.repeat(len(prepared), 1).to(self._device)
        return self._features(pixels, grids, return_dict=True).pooler_output


def refuse_untrained(tower: Any, *, name: str) -> None:
    """Raise InputError when a block of the tower is exactly as initialisation leaves it."""
    learned: dict[str, bool] = {}
    for key, value in tower.named_parameters():
        parts = key.split(".")
        block = ".".join(parts[:2]) if parts[1].isdigit() else parts[0]
        if key.endswith("bias"):
            start = torch.zeros_like(value)
        elif value.ndim == 1:
            start = torch.ones_like(value)
        else:
            continue
        learned[block] = learned.get(block, False) or not torch.equal(value, start)
    random = sorted(block for block, was in learned.items() if not was)
    if random or not learned:
        part = f"part {random[0]!r}" if random else "whole"
        raise InputError(
            f"model.name={name}: the vision tower's {part} never learned: its gains are all 1 and"
            " its biases all 0, as random initialisation leaves them"
            "\n  fix: use a trained model (`tiny`, a trained folder, a hub name), or say"
            " shards.untrained_encoder=true"
        )


def _digest(base: Any, *, side: int, device: torch.device) -> str:
    tower = base.model.visual
    attention = str(tower.config._attn_implementation)
    place = device.type if device.type == "cpu" else torch.cuda.get_device_name(device)
    about = (torch.__version__, transformers.__version__, attention, side, place)
    digest = hashlib.sha256(repr(about).encode() + tower.config.to_json_string().encode())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    return digest.hexdigest()
