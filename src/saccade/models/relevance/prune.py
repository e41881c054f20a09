"""Drop visual tokens by transforming a model's inputs; the model itself stays as it is.

In go a batch, the vision tower's features and a keep mask over merged cells; out come shorter
ids, mask, labels, features (every DeepStack level) and the *original* M-RoPE positions of what is
left. Dropping a token equals masking its key in the full sequence; keeping all of them returns
the inputs untouched, bit for bit. Positions are never renumbered: that costs grounding. Tokens of
a coarse view can be put in beside them (`insert_tokens`), at positions in the same frame.

Shapes: B samples, L tokens (S after dropping), N cells of all images, D width, I images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from saccade.data.chat import IGNORE_INDEX


@dataclass(frozen=True)
class ImageTokens:
    """Merged visual tokens per image and their DeepStack rows: `deepstack[level][image]`."""

    pooled: tuple[Tensor, ...]
    deepstack: tuple[tuple[Tensor, ...], ...]

    def map(self, change: Any) -> ImageTokens:
        """Apply `change(image index, rows)` to the tokens and to every DeepStack level alike."""
        return ImageTokens(
            pooled=tuple(change(i, rows) for i, rows in enumerate(self.pooled)),
            deepstack=tuple(
                tuple(change(i, rows) for i, rows in enumerate(level)) for level in self.deepstack
            ),
        )

    @classmethod
    def blank(cls, counts: list[int], *, device: Any) -> ImageTokens:
        """Stand-ins of width 0 for tokens that are not computed yet."""
        return cls(pooled=tuple(torch.empty(n, 0, device=device) for n in counts), deepstack=())

    def after(self, first: ImageTokens) -> ImageTokens:
        """Each image's tokens behind those of `first`, in every level."""
        return ImageTokens(
            pooled=tuple(torch.cat(pair) for pair in zip(first.pooled, self.pooled, strict=True)),
            deepstack=tuple(
                tuple(torch.cat(pair) for pair in zip(theirs, own, strict=True))
                for theirs, own in zip(first.deepstack, self.deepstack, strict=True)
            ),
        )

    def pick(self, images: Sequence[int]) -> ImageTokens:
        """The tokens of these images, in this order; an image may be named several times."""
        return ImageTokens(
            pooled=tuple(self.pooled[i] for i in images),
            deepstack=tuple(tuple(level[i] for i in images) for level in self.deepstack),
        )

    def kept(self, keep_N: Tensor) -> ImageTokens:
        """The tokens where `keep_N` (all images packed) is True."""
        keeps = keep_N.split([len(rows) for rows in self.pooled])
        return self.map(lambda i, rows: rows[keeps[i]])

    def encoder_output(self) -> BaseModelOutputWithDeepstackFeatures:
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=self.pooled,  # type: ignore[arg-type]
            deepstack_features=list(self.deepstack),  # type: ignore[arg-type]
        )


def joined(parts: Sequence[ImageTokens]) -> ImageTokens:
    """The images of all parts, one part's after the other's."""
    levels = len(parts[0].deepstack)
    return ImageTokens(
        pooled=tuple(rows for part in parts for rows in part.pooled),
        deepstack=tuple(
            tuple(rows for part in parts for rows in part.deepstack[level])
            for level in range(levels)
        ),
    )


@dataclass(frozen=True)
class LanguageInputs:
    """What the language model reads; `source_BS` is each position's place in the full sequence."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    positions_3BS: Tensor
    images: ImageTokens | None
    labels_BS: Tensor | None = None
    source_BS: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        return self.attention_mask_BS.sum(1).tolist()

    def forward_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the base model's `forward` (labels left out)."""
        arguments: dict[str, Any] = {
            "input_ids": self.input_ids_BS,
            "attention_mask": self.attention_mask_BS,
            "position_ids": self.positions_3BS,
        }
        if self.images is not None:
            arguments["mm_encoder_outputs"] = {"image": self.images.encoder_output()}
        return arguments

    def generation_arguments(self) -> dict[str, Any]:
        """As above, with the text positions in front that `generate` continues from."""
        arguments = self.forward_arguments()
        text_BS = (self.attention_mask_BS.cumsum(1) - 1).clamp_min(0)
        stacked = torch.cat([text_BS[None].to(self.positions_3BS.dtype), self.positions_3BS])
        return {**arguments, "position_ids": stacked}


def drop_tokens(
    inputs: LanguageInputs, keep_N: Tensor, *, image_token: int, pad_token: int
) -> LanguageInputs:
    """Remove the visual tokens where `keep_N` is False, in ids, positions, labels and features.

    Rows are left-padded to the longest remaining one. `keep_N` follows the images' packed order.
    """
    assert inputs.images is not None
    if bool(keep_N.all()):
        return inputs
    present_BL = inputs.attention_mask_BS.bool()
    stay_BL = present_BL.clone()
    stay_BL[inputs.input_ids_BS == image_token] = keep_N
    # stable sort: dropped positions first, then what stays in its order = left padding
    order_BL = stay_BL.to(torch.int8).argsort(dim=1, stable=True)
    longest = int(stay_BL.sum(1).max())
    index_BS = order_BL[:, -longest:]
    stay_BS = stay_BL.gather(1, index_BS)

    def take(values_BL: Tensor, filler: int) -> Tensor:
        return values_BL.gather(1, index_BS).masked_fill(~stay_BS, filler)

    labels = inputs.labels_BS
    return replace(
        inputs,
        input_ids_BS=take(inputs.input_ids_BS, pad_token),
        attention_mask_BS=stay_BS.to(inputs.attention_mask_BS.dtype),
        positions_3BS=torch.stack([take(axis, 0) for axis in inputs.positions_3BS]),
        images=inputs.images.kept(keep_N),
        labels_BS=take(labels, IGNORE_INDEX) if labels is not None else None,
        source_BS=_source(inputs, index_BS).masked_fill(~stay_BS, -1),
    )


def _source(inputs: LanguageInputs, index_BS: Tensor) -> Tensor:
    """Places in the sequence the user gave, also when tokens had been put in before."""
    return index_BS if inputs.source_BS is None else inputs.source_BS.gather(1, index_BS)


def insert_tokens(
    inputs: LanguageInputs,
    extra: ImageTokens,
    positions_3M: list[Tensor],
    *,
    image_token: int,
    pad_token: int,
) -> LanguageInputs:
    """Put `extra` tokens of each image in front of its own, at the given M-RoPE positions.

    `extra` and `positions_3M` are per image, in packed order. The new tokens have no place in the
    user's sequence (`source_BS` is -1 there) and are not supervised. Rows are left-padded anew.
    """
    assert inputs.images is not None
    fresh = iter(zip(inputs.images.pooled, extra.pooled, positions_3M, strict=True))
    image_BL = inputs.input_ids_BS == image_token
    length = image_BL.shape[1]
    device = image_BL.device
    rows = []
    for row in range(len(image_BL)):
        own_L = image_BL[row].nonzero()[:, 0]
        kept_L = inputs.attention_mask_BS[row].bool().nonzero()[:, 0]
        pieces, places, done, start = [], [], int(kept_L[0]), 0
        while start < len(own_L):
            tokens, added, positions = next(fresh)
            first = int(own_L[start])
            pieces += [torch.arange(done, first), torch.full((len(added),), length)]
            places.append(positions)
            done, start = first, start + len(tokens)
        pieces.append(torch.arange(done, length))
        rows.append((torch.cat(pieces).to(device), places))
    longest = max(len(index) for index, _ in rows)
    index_BS = torch.stack([F.pad(i, (longest - len(i), 0), value=length + 1) for i, _ in rows])

    def spread(values_BL: Tensor, *, new: int, filler: int) -> Tensor:
        tail = values_BL.new_tensor([[new, filler]]).expand(len(values_BL), -1)
        return torch.cat([values_BL, tail], dim=1).gather(1, index_BS)

    positions_3BS = torch.stack(
        [spread(axis, new=0, filler=0) for axis in inputs.positions_3BS.float()]
    )
    given = [torch.cat(places, dim=1) for _, places in rows if places]
    positions_3BS[:, index_BS == length] = torch.cat(given, dim=1).to(positions_3BS)
    place_BL = torch.arange(length, device=device).expand(len(image_BL), -1)
    source_BL = place_BL if inputs.source_BS is None else inputs.source_BS
    labels = inputs.labels_BS
    return replace(
        inputs,
        input_ids_BS=spread(inputs.input_ids_BS, new=image_token, filler=pad_token),
        attention_mask_BS=spread(inputs.attention_mask_BS, new=1, filler=0),
        positions_3BS=positions_3BS,
        images=inputs.images.after(extra),
        labels_BS=None if labels is None else spread(labels, new=IGNORE_INDEX, filler=IGNORE_INDEX),
        source_BS=spread(source_BL, new=-1, filler=-1),
    )


def full_length(logits_BSV: Tensor, source_BS: Tensor | None, *, length: int) -> Tensor:
    """Spread logits back over the full sequence; dropped positions are zero (a flat guess)."""
    if source_BS is None:
        return logits_BSV
    full_BLV = logits_BSV.new_zeros(logits_BSV.shape[0], length, logits_BSV.shape[-1])
    rows, columns = (source_BS >= 0).nonzero(as_tuple=True)
    full_BLV[rows, source_BS[rows, columns]] = logits_BSV[rows, columns]
    return full_BLV
