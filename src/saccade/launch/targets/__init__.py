"""Where jobs can run: one line per target, each imported only when it is used.

A name flows in, the target flows out. A new target is one module plus one line in `TARGETS`; the
contract tests pick it up. Left out: what a target must do (`base.py`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from saccade.config.errors import InputError

if TYPE_CHECKING:
    from saccade.launch.targets.base import Settings, Target

TARGETS: dict[str, str] = {
    "local": "saccade.launch.targets.local:LocalTarget",
    "fake": "saccade.launch.targets.fake:FakeTarget",
    "vertex": "saccade.launch.targets.vertex:VertexTarget",
    "docker": "saccade.launch.targets.docker:DockerTarget",
    "hf-jobs": "saccade.launch.targets.hf_jobs:HfJobsTarget",
}
"""Name -> where it lives."""


def open_target(name: str, *, settings: Settings) -> Target:
    """Import and connect a target; the class's `open(settings)` makes it."""
    place = TARGETS.get(name)
    if place is None:
        raise InputError(f"target {name}: unknown; there are {', '.join(TARGETS)}")
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute).open(settings)
