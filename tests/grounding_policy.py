"""A policy for tests of group training: the tiny base, taught in seconds to zoom or to answer.

It is shown demonstrations with no, one and two looks at a few drawn screens until it samples all
three by itself. What it answers is not good, only readable, and its calls are real ones.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saccade.config.resolve import Resolved, resolve
from saccade.config.schema import Config
from saccade.data.boxes import WHOLE, Box
from saccade.data.sources import open_source
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.episodes import Episode, Task, task_of
from saccade.models.backbone import Backbone, load_backbone
from saccade.models.losses import supervised_loss
from saccade.models.tools import tool_ready
from saccade.training.rundir import RunDir

TASKS = 2
STEPS = 150


def resolved(*overrides: str) -> Resolved:
    """The smoke recipe with the two questions that the policy was taught, and small pictures."""
    return resolve(
        "smoke/grounding",
        overrides=[
            "model.device=cpu", "grounding.zoom.calls=2", "grounding.grpo.max_tokens=120",
            "data.train.screens=1", "data.train.targets=2", "model.max_pixels=3072",
            "grounding.zoom.pixels=3072", "grounding.grpo.temperature=1",
            "grounding.grpo.budget=null", *overrides,
        ],
    )  # fmt: skip


def settings(*overrides: str) -> Config:
    return resolved(*overrides).config


def some_tasks(config: Config, count: int = TASKS) -> list[Task]:
    source = open_source(config.data.train)
    return [task_of(source[number]) for number in range(count)]


def halved(box: Box, within: Box) -> Box:
    """A quarter of `within` that shows the middle of the box."""
    x, y = box.seen_in(within).center
    left, top = min(0.5, max(0.0, x - 0.25)), min(0.5, max(0.0, y - 0.25))
    return Box(left, top, left + 0.5, top + 0.5).inside(within)


def shown(dialogue: Dialogue, task: Task, *, looks: int) -> Episode:
    """A demonstration with so many looks, each a quarter of the one before."""
    assert task.box is not None
    windows, seen = [], WHOLE
    for _ in range(looks):
        seen = halved(task.box, seen)
        windows.append(seen)
    return dialogue.demonstration(task, looks=windows, index=looks)


@functools.cache
def _taught(counts: tuple[int, ...], steps: int) -> Backbone:
    config = settings("grounding.zoom.calls=9")
    backbone = tool_ready(load_backbone(config.model))
    base = backbone.model
    base.requires_grad_(True)
    base.model.visual.requires_grad_(False)
    dialogue = Dialogue(base, backbone.processor, config=config)
    groups = [[shown(dialogue, task, looks=n) for n in counts] for task in some_tasks(config)]
    batch = dialogue.rows(groups)
    learned = [one for one in base.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-3)
    tokens = (batch["labels"] != -100).sum()
    for _ in range(steps):
        optimizer.zero_grad()
        states_RLD = dialogue.states(batch)
        loss = supervised_loss(base.lm_head, states_RLD, batch["labels"], denominator=tokens)
        loss.total.backward()
        optimizer.step()
    base.requires_grad_(False)
    base.eval()
    return backbone


def taught(*counts: int, steps: int = STEPS) -> Backbone:
    """A copy of the policy that was shown episodes with so many looks (0, 1 and 2 by default)."""
    torch.manual_seed(0)
    made = _taught(counts or (0, 1, 2), steps)
    return Backbone(copy.deepcopy(made.model), made.processor, made.name, made.location)


def flat(groups: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for group in groups for one in group]


def untrained_run(root: Path, *overrides: str) -> Path:
    """A run directory with a model that was never trained: enough to be scored and compared."""
    cache = f"data.eval.cache={root / 'cache'}"
    settings = [f"run.root={root}", "run.name=toy", cache, "training.threads=1",
                "eval.batch_size=3", "eval.samples=6", "data.eval.screens=2",
                "grounding.grpo.max_tokens=24", *overrides]  # fmt: skip
    made = resolve("smoke/grounding", overrides=settings)
    run = RunDir.create(made)
    backbone = tool_ready(load_backbone(made.config.model))
    backbone.model.save_pretrained(run.path / "model")
    backbone.processor.save_pretrained(run.path / "model")
    return run.path
