"""What trainers and adapters ask of a model, answered by the base inside.

`DropIn` is the part of `RelevanceModel` that TRL, PEFT and the Hugging Face `Trainer` talk to:
configuration, embeddings, checkpointing, modes, saving, and states at full length for code that
aligns by position. It is a `PreTrainedModel` because the `Trainer` saves anything else as a bare
state dict, which fails on tied embeddings. It holds no weights besides the base. Left out: what is
read and what is dropped (`model.py`), files (`storage.py`), merging adapters (`merge.py`).

Shapes: B samples, L tokens, S tokens that are left, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from saccade.config.errors import InputError
from saccade.data.chat import IGNORE_INDEX, ChatMarkers, user_text_mask
from saccade.models.backbone import Backbone
from saccade.models.relevance import storage
from saccade.models.relevance.prune import LanguageInputs, full_length

INPUTS = (
    "input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids", "labels",
    "sample_ids",
)  # fmt: skip
PASSED_ON = (
    "output_attentions", "output_hidden_states", "use_cache", "num_items_in_batch",
    "output_router_logits", "return_dict",
)  # fmt: skip
"""Keyword arguments that mean the same to the base whatever was dropped."""
NOT_LOADABLE = Path(__file__).with_name("give_ref_model_and_processing_class")
"""A folder without a model, named after what was forgotten by whoever looks for one in it."""


@dataclass(frozen=True)
class Read:
    """What the language model is given: inputs with their origin, and `forward`'s arguments."""

    inputs: LanguageInputs
    arguments: dict[str, Any]


class DropIn(PreTrainedModel):
    """A frozen or trainable base with something in front of it, seen as one model."""

    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(_own_config(backbone))
        self.base = backbone.model
        self.backbone = backbone
        # adapters keep this to find their base again
        self.name_or_path = backbone.location
        # counts supervised tokens as the base's loss does
        self.loss_type = self.base.loss_type
        self.full_length_logits = False
        self._no_split_modules = set(self.base._no_split_modules or ())
        self.all_tied_weights_keys = {
            f"base.{name}": f"base.{twin}" for name, twin in self.base.all_tied_weights_keys.items()
        }

    # -- what the base answers -------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def generation_config(self) -> Any:
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        # the parent's constructor sets one before there is a base
        if "base" in self._modules:
            self.base.generation_config = value

    @property
    def lm_head(self) -> nn.Module:
        return self.base.lm_head

    @classmethod
    def can_generate(cls) -> bool:
        return True

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """PEFT asks that this exists; generation itself runs in the base."""
        return self.base.prepare_inputs_for_generation(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base.set_input_embeddings(value)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.base.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        return self.base.resize_token_embeddings(*args, **kwargs)

    def get_decoder(self) -> nn.Module:
        return self.base.get_decoder()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        self.base.tie_weights()

    # -- modes -----------------------------------------------------------------------------------

    @property
    def trains_selector(self) -> bool:
        """Whether any selector weight learns; if none does, training drops tokens for real."""
        selector: nn.Module = self.selector  # type: ignore[assignment]
        return any(parameter.requires_grad for parameter in selector.parameters())

    def train(self, mode: bool = True) -> Any:
        """A base with something to learn (an adapter, say) trains; a frozen one stays in eval.

        Raises InputError when weights of the vision tower are to learn: it runs without gradients.
        """
        super().train(mode)
        learns = any(parameter.requires_grad for parameter in self.base.parameters())
        self.base.train(mode and learns)
        if mode and learns:
            refuse_vision_training(self.base)
        elif mode and self.is_activation_checkpointing:
            # a layer recomputes itself only in training mode; its parts stay in evaluation
            for layer in self.base.model.language_model.layers:
                layer.training = True
        return self

    def reference(self) -> Any:
        """A frozen copy, for trainers that compare with the model as it was at the start.

        Shares the base's memory when nothing in the base learns.
        """
        frozen = not any(parameter.requires_grad for parameter in self.base.parameters())
        shared = {id(one): one for one in (self.base, self.backbone)} if frozen else {}
        return copy.deepcopy(self, shared).requires_grad_(False).eval()

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The older name, which TRL and PEFT still use; without the parent's warning."""
        return self.is_activation_checkpointing

    # -- states at full length -------------------------------------------------------------------

    @property
    def base_model(self) -> Body:  # type: ignore[override]
        """The body without its output layer: what TRL's fused output layer is put behind."""
        return Body(self)

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        include_base: bool | None = None,
        **_: Any,
    ) -> None:
        """Write the selector (a few MB) and where its base is; `include_base` copies the base.

        By default the base is copied when it has weights that learn. Other files in the folder
        stay. Raises InputError when an adapter is attached: its own `save_pretrained` saves it.
        """
        if include_base is None:
            include_base = any(parameter.requires_grad for parameter in self.base.parameters())
        if is_main_process:
            model: Any = self
            folder = Path(save_directory)
            storage.save(model, folder, include_base=include_base, state=state_dict)


class Body:
    """Calls the base's body on what is left and puts its states back to where they came from.

    Trainers that project single positions (TRL's fused output layer) take states and labels of
    equal length, so dropped positions are filled: zero states, which guess every token alike and
    pass no gradient on.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, input_ids: Tensor, **inputs: Any) -> BaseModelOutputWithPast:
        model = self.model
        read = model.read({"input_ids": input_ids, **inputs})
        if read is None:
            return model.base.model(input_ids=input_ids, **inputs)
        out = model.base.model(**read.arguments, **passed_on(inputs))
        out.last_hidden_state = at_full_length(out.last_hidden_state, read.inputs, like=input_ids)
        return out


def at_full_length(values_BSX: Tensor, inputs: LanguageInputs, *, like: Tensor) -> Tensor:
    """Spread states or logits over the full sequence and make sure that they are that long.

    A misaligned trainer still computes a loss, only a wrong one; so a wrong length is an error.
    """
    full_BLX = full_length(values_BSX, inputs.source_BS, length=like.shape[1])
    if full_BLX.shape[:2] != like.shape:
        raise RuntimeError(
            f"states of {tuple(full_BLX.shape[:2])} positions for inputs of {tuple(like.shape)}: "
            "they would be read at the wrong positions"
        )
    return full_BLX


def token_log_probs(logits_BLV: Tensor, ids_BL: Tensor) -> Tensor:
    """Log-probability of every token but the first, [B, L-1], from full-length logits.

    Raises InputError for logits of another length, such as those of the kept tokens only.
    """
    if logits_BLV.shape[:2] != ids_BL.shape:
        raise InputError(
            f"logits at {tuple(logits_BLV.shape[:2])} positions do not belong to tokens at "
            f"{tuple(ids_BL.shape)}: visual tokens were dropped in between"
            "\n  fix: pass full_length_logits=True, or set model.full_length_logits = True"
        )
    log_probs_BLV = logits_BLV[:, :-1].float().log_softmax(-1)
    return log_probs_BLV.gather(2, ids_BL[:, 1:, None])[..., 0]


def passed_on(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that go through to the base unchanged."""
    return {name: kwargs[name] for name in PASSED_ON if name in kwargs}


def refuse_unknown(batch: Mapping[str, Any]) -> None:
    """Raise TypeError for an argument that would be ignored or mean something else here."""
    known = (*INPUTS, *PASSED_ON)
    strange = [name for name, value in batch.items() if name not in known and value is not None]
    if strange:
        raise TypeError(
            f"RelevanceModel.forward() with images takes no {', '.join(strange)}: positions, "
            "embeddings and caches belong to the tokens that are kept, which it chooses itself"
        )


def refuse_vision_training(base: Any) -> None:
    """Raise InputError when a weight of the vision tower is to learn."""
    for name, parameter in base.model.visual.named_parameters():
        if parameter.requires_grad:
            raise InputError(
                f"visual.{name} is to be trained, but the vision tower runs without gradients"
                "\n  fix: freeze model.base.model.visual; for LoRA, let target_modules name "
                r"language-model layers: r'.*language_model.*\.(q_proj|v_proj)'"
            )


def with_full_prompt(new: Any, prompt_BL: Tensor, *, read: int) -> Any:
    """What the base generated, its `read` prompt tokens replaced by the prompt as it was given."""
    made_BT = new if isinstance(new, Tensor) else new.sequences
    copies = len(made_BT) // len(prompt_BL)  # beams, or several answers per prompt
    full = torch.cat([prompt_BL.repeat_interleave(copies, dim=0), made_BT[:, read:]], dim=1)
    if isinstance(new, Tensor):
        return full
    new.sequences = full
    return new


def text_labels(labels_BL: Tensor | None, ids_BL: Tensor, *, image_token: int) -> Tensor | None:
    """Labels without those on visual placeholders and on the token right behind one.

    What predicts these depends on which neighbours were kept, so they have no fixed meaning.
    """
    if labels_BL is None:
        return None
    image_BL = ids_BL == image_token
    behind_BL = torch.nn.functional.pad(image_BL, (1, 0))[:, :-1]
    return labels_BL.masked_fill(image_BL | behind_BL, IGNORE_INDEX)


def likely_supervised(ids_BL: Tensor, mask_BL: Tensor | None, *, markers: ChatMarkers) -> Tensor:
    """Tokens after each row's last user word or image: about how many a loss is a mean of.

    For the gates' gradient limit where labels are not shown to the model (TRL's fused output
    layer keeps them to itself).
    """
    present_BL = ids_BL != markers.pad if mask_BL is None else mask_BL.bool()
    prompt_BL = user_text_mask(ids_BL, markers=markers) | (ids_BL == markers.image)
    after_BL = prompt_BL.flip(1).cumsum(1).flip(1) == 0
    return (after_BL & present_BL).sum().clamp_min(1)


def _own_config(backbone: Backbone) -> Any:
    """The base's configuration under a name that nothing can be loaded by.

    Trainers that are given no reference model or processor load one by this name; under the base's
    name that would be the base without its selector, silently. Parts (text, vision) are shared
    with the base.
    """
    config = copy.copy(backbone.model.config)
    config._name_or_path = str(NOT_LOADABLE)
    return config
