"""Recipe `grounding`: which of its three phases a run is.

In goes a configuration, out comes the recipe of its phase: naming places (`places`), demonstrations
with crops (`warm`), or groups of sampled episodes (`grpo`). Left out: the order of the phases
(`training/grounding_phases.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saccade.config.schema import Config

if TYPE_CHECKING:
    from saccade.training.trainers import Recipe


def open_phase(config: Config) -> Recipe:
    """The recipe of the configured phase."""
    if config.grounding.phase == "grpo":
        from saccade.training.recipes.grounding_grpo import GrpoPhase

        return GrpoPhase(config)
    if config.grounding.phase == "warm":
        from saccade.training.recipes.grounding_demos import WarmPhase

        return WarmPhase(config)
    from saccade.training.recipes.grounding_demos import PlacesPhase

    return PlacesPhase(config)
