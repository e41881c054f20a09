"""Which of a look's visual tokens a policy reads: a selector in front of every picture.

A picture and the question asked of it flow in; which of its cells stay, and their tokens, flow
out. The choice is the one that `RelevanceModel` makes for that question and that picture alone,
first look and crops alike, so a policy behind a selector reads exactly what that model would.
Selectors that put other tokens in the place of what they drop are refused: what a look costs would
no longer be a share of its cells. Left out: where tokens stand in a dialogue (`dialogue.py`) and
what they cost (`evaluation/grounding_costs.py`).

Shapes: C cells of one picture, N patches, D patch values, P tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saccade.config.schema import Config
from saccade.models.backbone import Backbone
from saccade.models.flops import count_flops
from saccade.models.relevance import storage
from saccade.models.relevance.baselines import ARMS, ArmInfo, find_arm
from saccade.models.relevance.model import RelevanceModel
from saccade.models.relevance.prune import ImageTokens
from saccade.models.relevance.reduce import REPLACING, keep_cells, refuse_replacing

TRAINED = "trained"


@dataclass(frozen=True)
class Kept:
    """The cells of a picture that are read, and their tokens as the tower gave them."""

    cells_C: Tensor
    tokens: ImageTokens


class Pruner:
    """Chooses the cells of one picture at a time; deterministic, whoever else is asked."""

    def __init__(self, model: RelevanceModel, *, arm: ArmInfo) -> None:
        """Raises InputError for a selector that does more than drop tokens."""
        refuse_replacing(arm, config=model.selector_config)
        self.model, self.arm = model, arm
        self._costs: dict[tuple[int, ...], float] = {}

    @property
    def early(self) -> bool:
        """Whether only the chosen cells go through the vision tower."""
        return self.arm.trained and self.model.selector_config.placement != "features"

    def choose(
        self, ids_P: Tensor, *, pixels_ND: Tensor, grid: tuple[int, int, int], name: str
    ) -> Kept:
        """The cells kept for a prompt that shows this picture alone, with all its placeholders.

        `name` is what a selector that draws at random draws by.
        """
        keep_C, tokens = keep_cells(
            self.model, self._batch(ids_P, pixels_ND, grid, name), arm=self.arm
        )
        return Kept(keep_C.cpu(), tokens)

    def cost(self, ids_P: Tensor, *, pixels_ND: Tensor, grid: tuple[int, int, int]) -> float:
        """Floating-point operations of choosing, the vision tower's left out; once per grid."""
        if grid not in self._costs:
            batch = self._batch(ids_P, pixels_ND, grid, "")
            with torch.no_grad():
                features = self.model.encode(batch)
                features.whole()
                score = self.model.score if self.arm.trained else None
                if self.arm.how == "keep_all":
                    self._costs[grid] = 0.0
                elif score is not None and not self.arm.set_step:
                    self._costs[grid] = count_flops(lambda: score(features))[1]
                else:
                    self.model.reduce(batch, arm=self.arm.name, features=features)
                    self._costs[grid] = count_flops(
                        lambda: self.model.reduce(batch, arm=self.arm.name, features=features)
                    )[1]
        return self._costs[grid]

    def _batch(
        self, ids_P: Tensor, pixels_ND: Tensor, grid: tuple[int, int, int], name: str
    ) -> dict[str, Any]:
        ids_1P = ids_P[None].to(self.model.device)
        return {
            "input_ids": ids_1P,
            "attention_mask": torch.ones_like(ids_1P),
            "mm_token_type_ids": (ids_1P == self.model.markers.image).int(),
            "pixel_values": pixels_ND.to(self.model.device),
            "image_grid_thw": torch.tensor([grid], device=self.model.device),
            "sample_ids": [name],
        }


def open_pruner(config: Config, *, base: Any, processor: Any) -> Pruner | None:
    """The selector of `grounding.selector` in front of `base`; None where looks are read whole.

    A name of an untrained selector (`grid`, `random`, ...) is that one, any other a run of recipe
    relevance or its model folder. Raises InputError when there is none or it does not fit.
    """
    name = config.grounding.selector
    if name is None:
        return None
    where = config.model.name
    backbone = Backbone(model=base, processor=processor, name=where, location=where)
    was_training = base.training
    if is_untrained(name):
        settings = config.selector.model_copy(update={"placement": "features"})
        model = RelevanceModel(backbone, settings)
        model.selector.requires_grad_(False)
        pruner = Pruner(model, arm=find_arm(name))
    else:
        folder = storage.find(name, root=config.run.root, key="grounding.selector")
        model = storage.load_frozen(folder, backbone=backbone, settings=config.selector)
        pruner = Pruner(model, arm=find_arm(TRAINED))
    base.train(was_training)
    return pruner


def is_untrained(name: str) -> bool:
    """Whether a name is that of a selector that needs no training."""
    plain = name.partition("+")[0]
    return plain in ARMS and not ARMS[plain].trained


def only_drops(name: str) -> bool:
    """Whether an untrained selector of that name can stand in front of a policy."""
    return is_untrained(name) and find_arm(name).how not in REPLACING
