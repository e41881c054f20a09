"""Self-distillation from more cycles: the model follows itself thinking longer.

Question and state before a step flow in. The same weights think `cycles` times as many cycles from
that state without gradient; the step's own answer and halting score are pulled towards theirs:

    weight * T^2 * KL(teacher / T || own / T)  mean over supervised cells
    + halt_weight * (own halting score - teacher's)^2

One step of thinking then does what several did. It costs the teacher's cycles, forward only.

Shapes: B slots, L cells, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.core import Extra, Moment
from saccade.models.recursion.losses import IGNORE_INDEX


class Distill(Extra):
    """The loss of following oneself; it has no weights of its own."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        self.settings = config.distill
        self.cycles = config.cycles * config.distill.cycles

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        """Both pulls, per slot."""
        core, settings, heat = moment.core, self.settings, self.settings.temperature
        with torch.no_grad():
            state = core.deep_recursion(moment.x_BSD.detach(), moment.before, cycles=self.cycles)
            teacher_BLV, surer_B = core.read(state)
        own_BLV = functional.log_softmax(moment.logits_BLV.float() / heat, -1)
        wanted_BLV = functional.log_softmax(teacher_BLV.float() / heat, -1)
        far_BL = functional.kl_div(own_BLV, wanted_BLV, reduction="none", log_target=True).sum(-1)
        asked_BL = moment.labels_BL != IGNORE_INDEX
        far_B = (far_BL * asked_BL).sum(-1) / asked_BL.sum(-1).clamp(min=1)
        return {
            "distill": settings.weight * heat**2 * far_B,
            "distill_halt": settings.halt_weight * (moment.halt_B - surer_B).square(),
        }
