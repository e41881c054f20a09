"""What the recipe `recursion` does on text and code: only causal models learn, nats are counted.

A model and a source of stream windows flow in; for every window and step of thinking flows out what
its asked tokens cost, by the model's own probabilities (stablemax or softmax) in float64. Left out:
baselines and tables (`evaluation/reading.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from saccade.config.errors import InputError
from saccade.config.recursion import RecursionConfig
from saccade.data.generate.puzzles import TARGET
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource
from saccade.data.streams import FIRST_BYTE
from saccade.models.recursion.losses import cell_losses
from saccade.models.recursion.model import RecursiveModel
from saccade.scoring.perplexity import Surprise, added, surprise

Cost = tuple[Sample, list[Surprise]]


def asks_ahead(source: Any) -> bool:
    """Whether a source's targets are inputs of later positions."""
    return bool(getattr(source, "ahead", False))


def refuse_unless_causal(settings: RecursionConfig, source: Any) -> None:
    """Raise InputError where a model could look up what it is asked for."""
    if asks_ahead(source) and not settings.causal:
        raise InputError(
            "recursion.causal=false: every position would see the bytes that it is asked for"
            "\n  fix: recursion.causal=true, or arch=text"
        )


@torch.no_grad()
def read_all(
    model: RecursiveModel,
    source: SampleSource,
    *,
    count: int,
    steps: int,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Cost]:
    """Read the first `count` windows, thinking `steps` steps about each."""
    from saccade.training.recipes.recursion import collate_puzzles

    device, found = next(model.parameters()).device, []
    for start in range(0, count, batch_size):
        samples = [source[i] for i in range(start, min(start + batch_size, count))]
        batch = collate_puzzles(samples, geometry=model.geometry)
        ids_BL, labels_BL = batch["input_ids"].to(device), batch["labels"].to(device)
        costs: list[list[Surprise]] = [[] for _ in samples]
        for thought in model.think(ids_BL, batch["puzzles"].to(device), steps=steps):
            each = cell_losses(thought.logits_BLV, labels_BL, kind=model.config.loss)
            for own, nats_L, sample in zip(costs, each.cpu().numpy(), samples, strict=True):
                own.append(surprise(nats_L, sample.facts[TARGET], first_byte=FIRST_BYTE))
        found += zip(samples, costs, strict=True)
        progress(len(found), count)
    return found


def reading_metrics(found: list[Cost]) -> dict[str, float]:
    """The few numbers that a training tells of itself, after the last step of thinking."""
    return added(costs[-1] for _, costs in found).readings()
