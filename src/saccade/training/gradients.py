"""Whether gradients reach every part of the model: dead, vanishing or exploding groups by name.

Named parameter groups flow in once; before clipping the gradients are measured, after the step the
updates, and a verdict per group flows out every `EVERY_STEPS` steps. It costs one norm per tensor
and a bounded sample of each tensor's elements, only on steps that are measured. It judges, and
changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn

EVERY_STEPS = 10
PATIENCE = 3
"""Measurements in a row before a group counts as dead, vanishing, or moving too fast."""
ADAM_EPSILON = 1e-8
"""Adam divides by gradient size plus this: smaller gradients no longer move the weights."""
EXPLOSION = 100.0
"""A gradient norm this many times the group's own recent median is an explosion."""
HISTORY = 20
FAST_RATIO = 0.5
"""An update of half the weights' own size at every step is not learning any more."""
SAMPLED_ELEMENTS = 1 << 16
"""Elements per tensor, evenly spaced, on which updates are measured."""

ADVICE = {
    "dead": "it gets no gradient: is it connected to the loss?",
    "vanishing": "its gradients are below what the optimizer can use",
    "exploding": "lower training.learning_rate or training.max_grad_norm",
}


@dataclass(frozen=True)
class GroupReport:
    """One group at one step: gradient norm before clipping, update/weight ratio, verdict."""

    norm: float
    ratio: float
    state: str

    def as_dict(self) -> dict[str, float | str]:
        """The form the `gradients` event holds."""
        return {"norm": self.norm, "ratio": self.ratio, "state": self.state}


@dataclass
class _Watch:
    """What is remembered of a group between measurements."""

    streaks: dict[str, int] = field(default_factory=dict)
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    state: str = "ok"

    def streak(self, name: str, holds: bool) -> bool:
        """Count consecutive measurements that look bad; True once there are enough."""
        self.streaks[name] = self.streaks.get(name, 0) + 1 if holds else 0
        return self.streaks[name] >= PATIENCE


class GradientMonitor:
    """Measures groups of parameters every few steps."""

    def __init__(
        self, groups: Mapping[str, Sequence[nn.Parameter]], *, every: int = EVERY_STEPS
    ) -> None:
        self.groups = {
            name: [p for p in parameters if p.requires_grad] for name, parameters in groups.items()
        }
        self.every = every
        self._watches = {name: _Watch() for name in self.groups}
        self._norms: dict[str, float] = {}
        self._before: dict[str, list[Tensor]] = {}

    def before_update(self, *, step: int, resting: Collection[str] = ()) -> None:
        """Measure gradients, before clipping, and remember weights; `step` counts from 1.

        Groups that are `resting` do not learn at this step and are not judged.
        """
        self._norms, self._before = {}, {}
        if step % self.every:
            return
        for name, parameters in self.groups.items():
            if name in resting:
                continue
            self._norms[name] = _norm([p.grad for p in parameters if p.grad is not None])
            self._before[name] = [_sampled(p).clone() for p in parameters]

    def after_update(self) -> dict[str, GroupReport]:
        """Compare with the updated weights; empty on steps that are not measured."""
        reports = {}
        for name, before in self._before.items():
            after = [_sampled(p) for p in self.groups[name]]
            moved = _norm([new - old for new, old in zip(after, before, strict=True)])
            size = _norm(before)
            ratio = moved / size if size > 0 else (math.inf if moved > 0 else 0.0)
            state = self._judge(name, norm=self._norms[name], ratio=ratio)
            reports[name] = GroupReport(norm=self._norms[name], ratio=ratio, state=state)
        self._before = {}
        return reports

    def new_troubles(self, reports: Mapping[str, GroupReport]) -> list[str]:
        """One sentence for each group whose verdict just turned bad."""
        troubles = []
        for name, report in reports.items():
            watch = self._watches[name]
            if report.state != "ok" and report.state != watch.state:
                troubles.append(
                    f"gradients of {name!r} are {report.state} (norm {report.norm:.2e},"
                    f" update/weight {report.ratio:.2e}): {ADVICE[report.state]}"
                )
            watch.state = report.state
        return troubles

    def _judge(self, name: str, *, norm: float, ratio: float) -> str:
        watch = self._watches[name]
        elements = max(1, sum(p.numel() for p in self.groups[name]))
        usual = median(watch.norms) if len(watch.norms) >= PATIENCE else None
        dead = watch.streak("dead", norm == 0)
        tiny = watch.streak("vanishing", 0 < norm / math.sqrt(elements) < ADAM_EPSILON)
        fast = watch.streak("fast", ratio > FAST_RATIO)
        if norm > 0:
            watch.norms.append(norm)
        if dead:
            return "dead"
        if tiny:
            return "vanishing"
        if fast or (usual is not None and usual > 0 and norm > EXPLOSION * usual):
            return "exploding"
        return "ok"


def _sampled(parameter: nn.Parameter) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLED_ELEMENTS)]


def _norm(tensors: Sequence[Tensor]) -> float:
    if not tensors:
        return 0.0
    # one transfer per group, not one per tensor
    norms = torch.stack([torch.linalg.vector_norm(one.float()) for one in tensors])
    return float(torch.linalg.vector_norm(norms))
