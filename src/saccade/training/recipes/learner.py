"""A base that learns to answer, plain or behind a frozen selector: what `sft` and `dpo` share.

The configuration flows in; a model with something to train, its inputs from a batch, generated
answers and the finished folders flow out. Everything is read through the same two steps: `read`
turns a batch into the language model's arguments (images encoded once, with a selector only what
it keeps), `states` runs the language model on them. Left out: losses and what is measured.

Shapes: B samples, L tokens, S tokens that are left, D width.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from saccade.config.schema import Config
from saccade.data.chat import ChatRenderer
from saccade.data.samples import Sample
from saccade.models.backbone import Backbone, load_backbone, pick_device
from saccade.models.projector import parts_of
from saccade.models.recompute import recomputed_layers
from saccade.models.relevance import storage
from saccade.models.relevance.dropin import passed_on, refuse_vision_training
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.vision import encode_images
from saccade.training import state
from saccade.training.recipes.adapters import attach_lora, switched_off
from saccade.training.rundir import RunDir

NOT_INPUTS = ("labels", "answer_labels", "sample_ids")


@dataclass(frozen=True)
class Reading:
    """Arguments of the language model, and labels at the positions it is given."""

    arguments: dict[str, Any]
    labels_BS: Tensor


class PlainModel(nn.Module):
    """A base with nothing in front of it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base


class Learner:
    """A model of which the adapters, or the whole language model, learn."""

    def __init__(
        self,
        config: Config,
        *,
        lora: bool,
        selector: str | None,
        vision: bool = False,
        parts: Sequence[str] = (),
    ) -> None:
        self.config, self.lora, self.selector, self.vision = config, lora, selector, vision
        self.parts = list(parts)
        settings = config.model
        if not lora and settings.dtype == "auto":
            # full fine-tuning moves weights by less than bfloat16 can tell apart
            settings = settings.model_copy(update={"dtype": "float32"})
        backbone = load_backbone(settings, device=pick_device(settings))
        self.base, self.processor = backbone.model, backbone.processor
        self.renderer = ChatRenderer(
            self.processor, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
        )
        self.adapter: Any = None
        if lora:
            self.adapter = attach_lora(self.base, config.lora, seed=config.run.seed)
        else:
            self.base.requires_grad_(True)
            self.base.model.visual.requires_grad_(vision)
            self._only_parts_learn()
        self.model: Any = PlainModel(self.base)
        if selector is not None:
            self.model = load_selector(config, selector, backbone=backbone)
            refuse_vision_training(self.base)

    def _only_parts_learn(self) -> None:
        if self.parts:
            self.base.requires_grad_(False)
            for parameter in parts_of(self.base, self.parts).values():
                parameter.requires_grad_(True)

    @property
    def _sees(self) -> bool:
        """Whether anything in front of the language model learns."""
        return any(parameter.requires_grad for parameter in self.base.model.visual.parameters())

    # reading -----------------------------------------------------------------------------------

    def read(self, batch: Mapping[str, Any], *, labels: Tensor) -> Reading:
        """What the language model is given of a batch; images are encoded here, once."""
        inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
        if inputs.get("pixel_values") is None:
            inputs.pop("mm_token_type_ids", None)
            return Reading(inputs, labels)
        if isinstance(self.model, RelevanceModel):
            read = self.model.read({**inputs, "labels": labels})
            assert read is not None and read.inputs.labels_BS is not None
            return Reading(read.arguments, read.inputs.labels_BS)
        return Reading(self._plain(inputs), labels)

    def _plain(self, inputs: dict[str, Any]) -> dict[str, Any]:
        pixels_ND, grid_I3 = inputs["pixel_values"], inputs["image_grid_thw"]
        ids_BL, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = inputs.get("position_ids")
        if positions is None:
            positions, _ = self.base.model.get_rope_index(
                ids_BL, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=grid_I3,
                attention_mask=mask,
            )  # fmt: skip
        if self._sees:
            images = self.base.model.get_image_features(pixels_ND, grid_I3, return_dict=True)
        else:
            images = encode_images(self.base, pixels_ND, grid_I3).tokens.encoder_output()
        return {
            "input_ids": ids_BL,
            "attention_mask": mask,
            "position_ids": positions,
            "mm_encoder_outputs": {"image": images},
        }

    def states(self, reading: Reading) -> Tensor:
        """Hidden states [B, S, D] in front of the output layer."""
        again = self.config.training.gradient_checkpointing and torch.is_grad_enabled()
        with recomputed_layers(self.base, on=again):
            out = self.base.model(
                **reading.arguments, **passed_on({"use_cache": False, "return_dict": True})
            )
        return out.last_hidden_state

    def as_it_was(self) -> AbstractContextManager[None]:
        """The input model for the block, where an adapter tells the two apart."""
        return nullcontext() if self.adapter is None else switched_off(self.adapter)

    # answering ---------------------------------------------------------------------------------

    @torch.no_grad()  # not inference_mode: FSDP2 keeps its gathered weights for the next step
    def answer(self, samples: list[Sample]) -> list[str]:
        """Greedy answers, as `saccade eval` gives them."""
        batch = self.renderer.batch(samples, with_answer=False)
        inputs = {
            name: value.to(self.base.device)
            for name, value in batch.items()
            if isinstance(value, Tensor) and name != "labels"
        }
        longest = self.config.eval.max_new_tokens
        if isinstance(self.model, RelevanceModel) and "pixel_values" in inputs:
            new_BT = self.model.generate_reduced(self.model.reduce(inputs), max_new_tokens=longest)
        else:
            new = self.base.generate(**inputs, max_new_tokens=longest, do_sample=False)
            new_BT = new[:, inputs["input_ids"].shape[1] :]
        return self.renderer.decode(new_BT)

    # what is trained, and what becomes of it ---------------------------------------------------

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """One group per layer of the model, and one for each part outside the layers."""
        named: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parts = [one for one in name.split(".") if one not in ("base", "model")]
                number = next((i for i, one in enumerate(parts) if one.isdigit()), 1)
                named[".".join(parts[: number + 1])].append(parameter)
        return dict(named)

    def save(self, run: RunDir) -> None:
        """Write `adapter/` (LoRA) and `model/`: the merged base with processor, and any selector.

        The base is loaded anew and takes up what was trained: in training its weights may be
        shared out over processes, and this model stays as it is.
        """
        twin = self._twin()
        trained = state.trained_tensors(self.model)
        with torch.no_grad():
            for name, one in state.trained_tensors(twin.model).items():
                one.copy_(trained[name])
        base = twin.base
        if twin.adapter is not None:
            folder = run.path / "adapter"
            twin.adapter.save_pretrained(folder, save_embedding_layers=False)
            base = twin.adapter.merge_and_unload(safe_merge=True)
        folder = run.path / "model"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped right here
        base.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if isinstance(twin.model, RelevanceModel):
            twin.model.backbone = replace(twin.model.backbone, name=storage.HERE)
            storage.save(twin.model, folder, include_base=False)

    def _twin(self) -> Learner:
        dtype = str(self.base.dtype).removeprefix("torch.")
        place = self.config.model.model_copy(update={"device": "cpu", "dtype": dtype})
        return self._anew(self.config.model_copy(update={"model": place}))

    def _anew(self, config: Config) -> Learner:
        """A learner of the same kind, under another configuration."""
        return Learner(
            config, lora=self.lora, selector=self.selector, vision=self.vision, parts=self.parts
        )

    def input_model(self) -> Learner:
        """The model as it was at the start, loaded anew (where no adapter can be switched off)."""
        return Learner(self.config, lora=False, selector=self.selector)


def load_selector(config: Config, name: str, *, backbone: Backbone) -> RelevanceModel:
    """A run's selector in front of `backbone`, frozen, at the configured budget.

    Raises InputError when there is no such run, it has no finished selector, or that does not fit.
    """
    folder = storage.find(name, root=config.run.root, key=f"{config.recipe}.selector")
    return storage.load_frozen(folder, backbone=backbone, settings=config.selector)
