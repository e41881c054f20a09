"""Drop visual tokens inside the language model, after its first layers (FastV-like).

The first layers read every token; the attention that the last prompt token pays in the last of
them ranks the visual tokens (arXiv 2403.06764: after layer 2), and the rest are gone from the next
layer on, in prefill and in the cache that decoding reads. Done with hooks around the decoder
layers, for the length of a `with` block: a later layer gets only the rows that are left (left-
padded over the batch) and its output is put back in place, so DeepStack additions still find their
rows. The base's code is not touched. Equal to masking the dropped keys in those layers.

Shapes: B samples, L tokens (S in later layers), N cells of all images, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from saccade.config.errors import InputError
from saccade.models.packed import additive
from saccade.models.relevance.attention_scores import rotate
from saccade.models.relevance.prune import LanguageInputs
from saccade.models.relevance.teacher import last_prompt_position

Choose = Callable[[Tensor], Tensor]
"""Attention received by each visual token [N] -> which of them stay [N]."""


class _Chosen(Exception):
    """Raised to leave the forward pass once the choice is made."""


class DropInside:
    """While entered, the language model drops visual tokens after its first `full_layers` layers.

    Every prefill chooses anew, in the same pass; `keep_N` is its latest choice.
    """

    def __init__(
        self, base: Any, inputs: LanguageInputs, *, image_token: int, full_layers: int,
        choose: Choose,
    ) -> None:  # fmt: skip
        language_model = base.model.language_model
        if "flash" in language_model.config._attn_implementation:
            raise InputError(
                "early_attention drops tokens inside the language model by a mask, and "
                "FlashAttention takes none\n  fix: model.attention=sdpa"
            )
        self.base, self.inputs, self.choose = base, inputs, choose
        self.layers = language_model.layers
        self.first_late = full_layers
        self.image_BL = inputs.input_ids_BS == image_token
        self.keep_N: Tensor | None = None
        self._hooks: list[Any] = []
        self._index_BS = self._stay_BS = inputs.input_ids_BS
        self._whole: Tensor | None = None
        self._stop_when_chosen = False

    def __enter__(self) -> DropInside:
        observed = self.layers[self.first_late - 1].self_attn
        self._hooks.append(observed.register_forward_pre_hook(self._observe, with_kwargs=True))
        for index in range(self.first_late, len(self.layers)):
            layer = self.layers[index]
            before = _bound(self._before_late, index)
            self._hooks.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._after_late))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    @torch.no_grad()
    def preview(self) -> Tensor:
        """The choice [N] without the rest of the pass: runs the first layers only."""
        self._stop_when_chosen = True
        try:
            with self:
                self.base.model(**self.inputs.forward_arguments(), use_cache=False)
        except _Chosen:
            pass
        finally:
            self._stop_when_chosen = False
        assert self.keep_N is not None
        return self.keep_N

    # -- hooks -----------------------------------------------------------------------------------

    def _is_prefill(self, hidden: Tensor) -> bool:
        return hidden.shape[1] == self.image_BL.shape[1]

    def _observe(self, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_BLW = args[0] if args else kwargs["hidden_states"]
        if not self._is_prefill(hidden_BLW):
            return
        received_BL = last_token_attention(
            attention, hidden_BLW, kwargs["position_embeddings"], inputs=self.inputs
        )
        self.keep_N = self.choose(received_BL[self.image_BL])
        if self._stop_when_chosen:
            raise _Chosen
        stay_BL = self.inputs.attention_mask_BS.bool().clone()
        stay_BL[self.image_BL] = self.keep_N
        longest = int(stay_BL.sum(1).max())
        # stable sort: what is gone first, then what stays in its order = left padding
        order_BL = stay_BL.to(torch.int8).argsort(dim=1, stable=True)
        self._index_BS = order_BL[:, -longest:]
        self._stay_BS = stay_BL.gather(1, self._index_BS)

    def _before_late(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden, *rest = args
        if not self._is_prefill(hidden):
            self._whole = None
            return args, kwargs | {"attention_mask": self._decoding_mask(index, hidden, kwargs)}
        self._whole = hidden
        places_BS1 = self._index_BS[..., None]

        def take(values_BLX: Tensor) -> Tensor:
            values_BLX = values_BLX.expand(len(places_BS1), -1, -1)
            return values_BLX.gather(1, places_BS1.expand(-1, -1, values_BLX.shape[-1]))

        changed = {
            "position_embeddings": tuple(take(part) for part in kwargs["position_embeddings"]),
            "attention_mask": self._prefill_mask(hidden.dtype),
            "position_ids": None,  # only packed sequences need them, and these are not packed
        }
        return (take(hidden), *rest), kwargs | changed

    def _after_late(self, layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._whole is None:
            return output
        places_BSW = self._index_BS[..., None].expand_as(output)
        return self._whole.scatter(1, places_BSW, output)

    def _prefill_mask(self, dtype: torch.dtype) -> Tensor:
        length = self._stay_BS.shape[1]
        device = self._stay_BS.device
        causal_SS = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        own_SS = torch.eye(length, dtype=torch.bool, device=device)  # padding sees itself
        visible_BSS = (self._stay_BS[:, None, :] & causal_SS) | own_SS
        return additive(visible_BSS[:, None], dtype=dtype)

    def _decoding_mask(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        cached = kwargs["past_key_values"].get_seq_length(index)
        new = hidden.shape[1]
        grown = cached - self._stay_BS.shape[1]
        shape = (len(hidden), grown + new)
        visible_BK = torch.cat([self._stay_BS, self._stay_BS.new_ones(shape)], dim=1)
        visible_BQK = visible_BK[:, None].expand(-1, new, -1)
        late = torch.ones_like(visible_BQK[0]).tril(diagonal=cached)
        return additive((visible_BQK & late)[:, None], dtype=hidden.dtype)


def last_token_attention(
    attention: Any,
    hidden_BLW: Tensor,
    rotation: tuple[Tensor, Tensor],
    *,
    inputs: LanguageInputs,
) -> Tensor:
    """[B, L]: attention of the last prompt token, mean over heads, in float32."""
    batch, length, _ = hidden_BLW.shape
    rows = torch.arange(batch, device=hidden_BLW.device)
    asking_B = last_prompt_position(inputs).to(rows.device)
    query_BHD = attention.q_proj(hidden_BLW[rows, asking_B]).unflatten(-1, (-1, attention.head_dim))
    key_BLHD = attention.k_proj(hidden_BLW).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "q_norm"):  # Qwen3 normalises heads, Qwen2 does not
        query_BHD, key_BLHD = attention.q_norm(query_BHD), attention.k_norm(key_BLHD)
    cos_BLD, sin_BLD = (part.expand(batch, -1, -1) for part in rotation)
    query_BHD = rotate(
        query_BHD, cos_BLD[rows, asking_B][:, None], sin_BLD[rows, asking_B][:, None]
    )
    key_BLHD = rotate(key_BLHD, cos_BLD[:, :, None], sin_BLD[:, :, None])
    # several query heads share one key head
    shared = query_BHD.shape[1] // key_BLHD.shape[2]
    query_BKGD = query_BHD.unflatten(1, (-1, shared))
    logits = torch.einsum("bkgd,blkd->bkgl", query_BKGD.float(), key_BLHD.float())
    places_L = torch.arange(length, device=rows.device)
    visible_BL = inputs.attention_mask_BS.bool() & (places_L <= asking_B[:, None])
    logits = (logits * attention.scaling).masked_fill(~visible_BL[:, None, None], -torch.inf)
    return logits.softmax(-1).mean((1, 2))


def _bound(method: Any, index: int) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return method(index, args, kwargs)

    return hook
