"""A base that learns to ground, whole or by adapters: what the phases of `grounding` share.

The configuration flows in; a `Learner` whose base can call tools flows out. Left out: losses and
what is learned from (`grounding_demos.py`, `grounding_grpo.py`).
"""

from __future__ import annotations

from saccade.config.schema import Config
from saccade.models.backbone import Backbone
from saccade.models.tools import tool_ready
from saccade.training.recipes.learner import Learner


class ToolLearner(Learner):
    """A learner whose base can call tools, however it was loaded."""

    def __init__(self, config: Config, *, lora: bool, vision: bool = False) -> None:
        super().__init__(config, lora=lora, selector=None, vision=vision)
        name = config.model.name
        tool_ready(Backbone(self.base, self.processor, name=name, location=name))

    def _anew(self, config: Config) -> ToolLearner:
        return ToolLearner(config, lora=self.lora, vision=self.vision)
