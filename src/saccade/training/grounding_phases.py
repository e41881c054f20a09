"""The phases of a grounding run, each an ordinary run of its own: places, demonstrations, groups.

In goes the configuration of the run that was asked for; out come the configurations of all runs to
make, in order. The phases before the asked one are called NAME-places and NAME-warm, take their
schedule from `grounding.places` and `grounding.warm`, and hand their model on. What is finished is
skipped and what was interrupted continues, as with any run. Left out: the phases' losses
(`recipes/grounding*.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saccade.config.resolve import Resolved
from saccade.config.schema import Config
from saccade.training.rundir import RunDir

PHASES = ("places", "warm", "grpo")


def runs_of(resolved: Resolved) -> list[Resolved]:
    """The runs that one `saccade train` makes; a single one for every recipe but grounding."""
    config = resolved.config
    if config.recipe != "grounding":
        return [resolved]
    name = RunDir.of(config).path.name
    asked = config.grounding.phase
    runs: list[Resolved] = []
    start = config.model.name
    for phase in PHASES[: PHASES.index(asked)]:
        schedule = getattr(config.grounding, phase)
        if not schedule.steps:
            continue
        changes = {
            "run.name": f"{name}-{phase}", "grounding.phase": phase, "model.name": start,
            "grounding.selector": None,
            "training.steps": schedule.steps, "training.learning_rate": schedule.learning_rate,
            "training.batch_size": _samples(config, phase=phase), "training.accumulation": 1,
        }  # fmt: skip
        runs.append(_changed(resolved, changes, because=f"grounding.{phase}"))
        start = str(RunDir.of(runs[-1].config).path / "model")
    return [*runs, _changed(resolved, {"model.name": start}, because="the phase before")]


def _samples(config: Config, *, phase: str) -> int:
    if phase == "warm":
        return config.grounding.warm.batch_size
    return config.grounding.places.batch_size * config.grounding.places.questions


def _changed(resolved: Resolved, changes: Mapping[str, Any], *, because: str) -> Resolved:
    config, sources = resolved.config, dict(resolved.sources)
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        if getattr(getattr(config, section), leaf) != value:
            node = getattr(config, section).model_copy(update={leaf: value})
            config = config.model_copy(update={section: node})
            sources[key] = because
    return Resolved(config=config, sources=sources, recipe=resolved.recipe)
