"""Which extras a configuration asks for: the one place that knows them all.

A configuration flows in, modules that join the recursion flow out, in a fixed order. Extras that
are no modules (noise, cheaper training, gradient flow, capsules) are asked for where they act.
"""

from __future__ import annotations

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.core import Extra
from saccade.models.recursion.extras.codebook import Codebook
from saccade.models.recursion.extras.distill import Distill
from saccade.models.recursion.extras.memory import MemoryBank
from saccade.models.recursion.extras.mtp import NextCells
from saccade.models.recursion.extras.planning import LatentPlanning
from saccade.models.recursion.extras.q_halting import QHalting


def make_extras(config: RecursionConfig) -> tuple[Extra, ...]:
    """The modules that are switched on."""
    wanted: list[Extra] = []
    if config.memory.enabled:
        wanted.append(MemoryBank(config))
    if config.planning.enabled:
        wanted.append(LatentPlanning(config))
    if config.codebook.enabled:
        wanted.append(Codebook(config))
    if config.mtp.enabled:
        wanted.append(NextCells(config))
    if config.distill.enabled:
        wanted.append(Distill(config))
    if config.q_halting.enabled:
        wanted.append(QHalting(config))
    return tuple(wanted)
