"""Packed rows as the inputs of a language model, and block masks as numbers.

Rows of `data/packing.py` flow in; ids, labels, positions and pixels as a model takes them flow out.
Left out: the mask, which recipes change before they hand it on.

Shapes: R rows, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saccade.data.chat import ChatMarkers
from saccade.data.packing import PackedRows, positions


def packed_inputs(rows: PackedRows, *, base: Any, markers: ChatMarkers) -> dict[str, Any]:
    """Everything of packed rows but their mask, named as the base's arguments."""
    ids_RL = rows.input_ids_RL
    types_RL = (ids_RL == markers.image).to(torch.int)
    rope_3RL, _ = base.model.get_rope_index(
        ids_RL, mm_token_type_ids=types_RL, image_grid_thw=rows.grid_I3
    )
    inputs: dict[str, Any] = {
        "input_ids": ids_RL,
        "labels": rows.labels_RL,
        "mm_token_type_ids": types_RL,
        "position_ids": positions(rows.segment_RL, rope_3RL),
    }
    if rows.pixels_ND is not None:
        inputs["pixel_values"], inputs["image_grid_thw"] = rows.pixels_ND, rows.grid_I3
    return inputs


def additive(visible: Tensor, *, dtype: torch.dtype) -> Tensor:
    """A mask of truth values as attention adds it: 0 where visible, the lowest number elsewhere."""
    zero = torch.zeros((), dtype=dtype, device=visible.device)
    return torch.where(visible, zero, torch.finfo(dtype).min)
