"""The phases of a grounding run, each an ordinary run of its own: places, demonstrations, groups.

In goes the configuration of the run that was asked for; out come the configurations of all runs to
make, in order. The phases before the asked one are called NAME-places and NAME-warm, take their
schedule from `grounding.places` and `grounding.warm`, and hand their model on. What is finished is
skipped and what was interrupted continues, as with any run. What the last phase would refuse is
refused before the first. Left out: the phases' losses (`recipes/grounding*.py`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import Resolved
from saccade.config.schema import Config
from saccade.training.rundir import RunDir

PHASES = ("places", "warm", "grpo")


def runs_of(resolved: Resolved) -> list[Resolved]:
    """The runs that one `saccade train` makes; a single one for every recipe but grounding."""
    config = resolved.config
    if config.recipe != "grounding":
        return [resolved]
    refuse_what_cannot_be(config)
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
            "training.batch_size": _batch_size(config, phase=phase),
        }  # fmt: skip
        runs.append(_changed(resolved, changes, because=f"grounding.{phase}"))
        start = str(RunDir.of(runs[-1].config).path / "model")
    return [*runs, _changed(resolved, {"model.name": start}, because="the phase before")]


def _batch_size(config: Config, *, phase: str) -> int:
    """Samples of a micro-batch, so that a step of the phase has as many as the phase asks for.

    Raises InputError where they cannot be dealt out evenly.
    """
    settings = config.grounding
    samples, keys = settings.warm.batch_size, "grounding.warm.batch_size"
    if phase == "places":
        samples = settings.places.batch_size * settings.places.questions
        keys = "grounding.places.batch_size x grounding.places.questions"
    accumulation, processes = config.training.accumulation, int(os.environ.get("WORLD_SIZE", "1"))
    if samples % (accumulation * processes):
        raise InputError(
            f"{keys} = {samples}: does not divide by training.accumulation={accumulation} x"
            f" {processes} processes\n  fix: make it a multiple of {accumulation * processes}"
        )
    return samples // (accumulation * processes)


def refuse_what_cannot_be(config: Config) -> None:
    """What no run up to the configured phase could do: InputError, or OutsideError for what is not
    installed. Imports no torch, so that it costs nothing to ask first."""
    settings, asked = config.grounding, PHASES.index(config.grounding.phase)
    loading = getattr(config.data.train, "loading_share", 0)
    if loading and asked and "wait" not in settings.tools:
        raise InputError(
            f"data.train.loading_share={loading:g}: pages are still loading, and no tool waits for"
            " them\n  fix: grounding.tools=[zoom,wait], or data.train.loading_share=0"
        )
    groups = config.grounding.phase == "grpo"
    warms = asked == 1 or (groups and settings.warm.steps > 0)
    if (groups and settings.grpo.adapter == "lora") or (warms and settings.warm.adapter == "lora"):
        _need("peft", "adapters need PEFT")
    if groups:
        _refuse_for_groups(config)


def _refuse_for_groups(config: Config) -> None:
    settings = config.grounding
    if config.training.parallel == "fsdp":
        raise InputError(
            "training.parallel=fsdp: episodes are sampled between steps, when a sharded base is"
            " nowhere whole\n  fix: use training.parallel=ddp"
        )
    if settings.selector is not None and settings.grpo.adapter == "none":
        raise InputError(
            f"grounding.selector={settings.selector}: it reads the question by word embeddings that"
            " would change while it chooses\n  fix: grounding.grpo.adapter=lora"
        )
    zooms = "zoom" in settings.tools and settings.zoom.calls > 0
    if settings.grpo.budget is not None and not zooms:
        raise InputError(
            f"grounding.grpo.budget={settings.grpo.budget:g}: there is no zoom to spend it on"
            "\n  fix: add zoom to grounding.tools, with grounding.zoom.calls=1 or more"
        )
    if settings.grpo.choice and not zooms:
        raise InputError(
            f"grounding.grpo.choice={settings.grpo.choice:g}: there is no zoom to choose"
            "\n  fix: grounding.grpo.choice=0"
        )
    if settings.grpo.rollouts != "trl":
        return
    _need("trl", "grounding.grpo.rollouts=trl needs TRL")
    refuse_other_tools(config)
    if settings.selector is not None:
        raise InputError(
            f"grounding.selector={settings.selector}: TRL's generation reads whole looks"
            "\n  fix: grounding.grpo.rollouts=shared"
        )


def refuse_other_tools(config: Config) -> None:
    """InputError for tools that TRL's environment has not."""
    if config.grounding.tools != ["zoom"]:
        raise InputError(
            f"grounding.tools={config.grounding.tools}: TRL's environment offers zoom alone"
            "\n  fix: grounding.tools=[zoom], or grounding.grpo.rollouts=shared"
        )


def _need(package: str, what: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise OutsideError(f"{what}, which is not installed\n  fix: pip install 'saccade[rl]'")


def _changed(resolved: Resolved, changes: Mapping[str, Any], *, because: str) -> Resolved:
    config, sources = resolved.config, dict(resolved.sources)
    for key, value in changes.items():
        section, _, leaf = key.partition(".")
        if getattr(getattr(config, section), leaf) != value:
            node = getattr(config, section).model_copy(update={leaf: value})
            config = config.model_copy(update={section: node})
            sources[key] = because
    return Resolved(config=config, sources=sources, recipe=resolved.recipe)
