"""Pack all questions about one image behind one shared prefix.

In go encoded samples whose images are equal; out come rows `[image prefix | q1 a1 | q2 a2 | ...]`
with a block mask (every question sees the prefix and itself) and a layout from which positions
follow. The image is then encoded and read once for all its questions. Packed rows give the same
token logits as separate samples. Left out: packing of different images into one row.

Shapes: R rows, L tokens per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.data.chat import IGNORE_INDEX, ChatMarkers, Encoded

PADDING = -1
PREFIX = 0


@dataclass(frozen=True)
class PackedRows:
    """`segment_RL` is 0 on the prefix, k on question k, -1 on padding; right-padded."""

    input_ids_RL: Tensor
    labels_RL: Tensor
    segment_RL: Tensor
    pixels_ND: Tensor | None
    grid_I3: Tensor | None

    def block_mask(self) -> Tensor:
        """Boolean [R, 1, L, L]: causal, and only the prefix and the own question are visible."""
        query_RL1, key_R1L = self.segment_RL[:, :, None], self.segment_RL[:, None, :]
        length = self.segment_RL.shape[1]
        causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
        visible = ((key_R1L == PREFIX) | (key_R1L == query_RL1)) & (key_R1L != PADDING)
        own_LL = torch.eye(length, dtype=torch.bool)  # padding rows need one key, or softmax is NaN
        return ((visible & causal_LL) | own_LL)[:, None]


def prefix_length(encoded: Encoded, *, markers: ChatMarkers) -> int:
    """Tokens up to the end of the last image (0 for text-only samples)."""
    ends = (encoded.input_ids_L == markers.vision_end).nonzero()
    return int(ends[-1]) + 1 if len(ends) else 0


def pack(groups: list[list[Encoded]], *, markers: ChatMarkers) -> PackedRows:
    """One row per group; a group's samples must show the same images."""
    rows = []
    for group in groups:
        start = prefix_length(group[0], markers=markers)
        ids, labels = [group[0].input_ids_L[:start]], [group[0].labels_L[:start]]
        segment = [torch.full((start,), PREFIX)]
        for number, item in enumerate(group, start=1):
            if not torch.equal(item.input_ids_L[:start], ids[0]):
                raise ValueError(f"{item.sample_id} does not share the images of its group")
            ids.append(item.input_ids_L[start:])
            labels.append(item.labels_L[start:])
            segment.append(torch.full((len(item.input_ids_L) - start,), number))
        rows.append((torch.cat(ids), torch.cat(labels), torch.cat(segment)))
    columns = zip(zip(*rows, strict=True), (markers.pad, IGNORE_INDEX, PADDING), strict=True)
    padded = [
        torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True, padding_value=value)
        for column, value in columns
    ]
    pixels = [group[0].pixels_ND for group in groups if group[0].pixels_ND is not None]
    grids = [group[0].grid_I3 for group in groups if group[0].grid_I3 is not None]
    return PackedRows(
        *padded,
        pixels_ND=torch.cat(pixels) if pixels else None,
        grid_I3=torch.cat(grids) if grids else None,
    )


def positions(segment_RL: Tensor, prefix_positions_3RL: Tensor) -> Tensor:
    """Positions [3, R, L]: the prefix keeps its own, every question starts right after it.

    `prefix_positions_3RL` comes from the model's `get_rope_index` on the packed rows; only its
    prefix part is used.
    """
    positions_3RL = prefix_positions_3RL.clone()
    for row in range(segment_RL.shape[0]):
        in_prefix_L = segment_RL[row] == PREFIX
        prefix = positions_3RL[:, row, in_prefix_L]
        start = int(prefix.max()) + 1 if prefix.numel() else 0
        for number in range(1, int(segment_RL[row].max()) + 1):
            here_L = segment_RL[row] == number
            positions_3RL[:, row, here_L] = torch.arange(int(here_L.sum())) + start
    return positions_3RL
