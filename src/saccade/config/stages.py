"""The configuration of the stages after pretraining: adapters, fine-tuning, preferences.

Part of `schema.py`, which holds the rest and passes these names on. Imports pydantic only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.nodes import Node
from saccade.config.stage_pretrain import PART


class LoraConfig(Node):
    """Low-rank adapters (recipes `sft` and `dpo`): what is added to the frozen base."""

    rank: PositiveInt = 16
    """Width of an adapter: each trained layer gains rank x (inputs + outputs) weights."""
    alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """Strength: what an adapter adds is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of an adapter's inputs that is left out in training (never when answering)."""
    target_modules: Annotated[list[str], Field(min_length=1)] = [
        "q_proj", "k_proj", "v_proj", "o_proj",
    ]  # fmt: skip
    """Linear layers of the language model that get an adapter, by the end of their name."""


class SftConfig(Node):
    """Supervised fine-tuning on answers (recipe `sft`)."""

    adapter: Literal["lora", "none"] = "lora"
    """What is trained: `lora` adapters on a frozen base, or `none` = the whole language model."""
    vision: bool = False
    """With `adapter: none`, train the vision tower as well (not behind a selector)."""
    train: list[str] = []
    """With `adapter: none`, the parts that learn, named as in `pretrain.schedule`, for example
    `[projector]` or `[projector, language.last2]`; empty = the whole language model, and the tower
    with `vision`."""
    selector: str | None = None
    """Run (or its `model` folder) whose trained selector stands in front and stays as it is: the
    language model learns to answer from the `selector.keep` visual tokens that are left."""
    packing: bool = False
    """Read an image once for all of its questions in a batch; the same loss, less work (not behind
    a selector, which chooses anew for every question)."""

    @model_validator(mode="after")
    def _parts_fit(self) -> SftConfig:
        if self.vision and self.adapter == "lora":
            raise ValueError("vision=true needs adapter=none: adapters stand in the language model")
        self._parts_are_parts()
        if self.selector is not None and (self.vision or self.packing):
            wrong = "vision" if self.vision else "packing"
            raise ValueError(f"{wrong}=true does not go with a selector: leave one of them out")
        return self

    def _parts_are_parts(self) -> None:
        unknown = next((part for part in self.train if not PART.fullmatch(part)), None)
        if unknown is not None:
            raise ValueError(
                f"no part is called {unknown}; there are projector, vision, vision.lastN,"
                " language, language.firstN, language.lastN"
            )
        if self.train and (self.adapter == "lora" or self.vision):
            raise ValueError(
                "train names the parts that learn, which needs adapter=none and vision=false"
            )
        sees = any(not part.startswith("language") for part in self.train)
        if self.selector is not None and sees:
            raise ValueError(
                "behind a selector only parts of the language model can learn, not"
                f" {', '.join(self.train)}"
            )


class DpoConfig(Node):
    """Learning from preferred and rejected answers (recipe `dpo`)."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """How strongly the model is held to what it was: larger stays closer."""
    selector: str | None = None
    """Run (or its `model` folder) whose trained selector stands in front, as for `sft`."""
