"""The gradient monitor on small hand-made models: what it calls dead, vanishing, exploding."""

from __future__ import annotations

import torch
from torch import nn

from saccade.training.gradients import PATIENCE, SAMPLED_ELEMENTS, GradientMonitor, GroupReport


class Watched:
    """Two groups whose gradients the test sets by hand, and a monitor that looks every step."""

    def __init__(self, *, size: int = 4) -> None:
        self.good = nn.Parameter(torch.ones(size, size))
        self.other = nn.Parameter(torch.ones(size, size))
        self.monitor = GradientMonitor({"good": [self.good], "other": [self.other]}, every=1)
        self.troubles: list[str] = []

    def step(self, gradient: torch.Tensor | float | None, *, move: float = 1e-3) -> GroupReport:
        self.good.grad = torch.full_like(self.good, 0.1)
        self.other.grad = (
            None if gradient is None else torch.zeros_like(self.other) + torch.as_tensor(gradient)
        )
        self.monitor.before_update(step=1)
        with torch.no_grad():
            self.other.add_(move)
        reports = self.monitor.after_update()
        self.troubles += self.monitor.new_troubles(reports)
        assert reports["good"].state == "ok"
        return reports["other"]


def test_a_healthy_group_reports_norm_and_update_ratio() -> None:
    report = Watched(size=4).step(0.5, move=0.01)
    assert report.state == "ok"
    assert abs(report.norm - 2.0) < 1e-6
    assert abs(report.ratio - 0.01) < 1e-6


def test_a_group_without_gradient_is_dead_after_some_checks_and_named_once() -> None:
    for gradient in (None, 0.0):
        watched = Watched()
        states = [watched.step(gradient).state for _ in range(PATIENCE + 2)]
        assert states == ["ok"] * (PATIENCE - 1) + ["dead"] * 3
        assert len(watched.troubles) == 1
        assert "'other' are dead" in watched.troubles[0]


def test_a_dead_group_that_wakes_up_is_well_again() -> None:
    watched = Watched()
    for _ in range(PATIENCE):
        watched.step(None)
    assert watched.step(0.1).state == "ok"


def test_gradients_below_what_the_optimizer_can_use_are_vanishing() -> None:
    watched = Watched()
    states = [watched.step(1e-10).state for _ in range(PATIENCE)]
    assert states[-1] == "vanishing"


def test_a_sudden_jump_of_the_norm_is_exploding() -> None:
    watched = Watched()
    for _ in range(PATIENCE):
        assert watched.step(0.1).state == "ok"
    assert watched.step(100.0).state == "exploding"
    assert watched.step(0.1).state == "ok"
    assert "lower training.learning_rate" in watched.troubles[0]


def test_updates_as_large_as_the_weights_are_exploding() -> None:
    watched = Watched()
    states = [watched.step(0.1, move=20.0 * 3**i).state for i in range(PATIENCE)]
    assert states[-1] == "exploding"


def test_weights_that_start_at_zero_are_not_exploding() -> None:
    watched = Watched()
    with torch.no_grad():
        watched.other.zero_()
    assert [watched.step(0.1).state for _ in range(4)] == ["ok"] * 4


def test_steps_in_between_cost_nothing_and_report_nothing() -> None:
    parameter = nn.Parameter(torch.ones(3))
    monitor = GradientMonitor({"all": [parameter]}, every=10)
    for step in range(1, 10):
        monitor.before_update(step=step)
        assert monitor.after_update() == {}
    monitor.before_update(step=10)
    assert set(monitor.after_update()) == {"all"}


def test_large_tensors_are_sampled() -> None:
    parameter = nn.Parameter(torch.ones(SAMPLED_ELEMENTS * 4))
    monitor = GradientMonitor({"all": [parameter]}, every=1)
    monitor.before_update(step=1)
    assert sum(one.numel() for one in monitor._before["all"]) <= 2 * SAMPLED_ELEMENTS
    with torch.no_grad():
        parameter.mul_(1.5)
    assert abs(monitor.after_update()["all"].ratio - 0.5) < 1e-5


def test_frozen_parameters_are_not_watched() -> None:
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    assert GradientMonitor({"all": [frozen]}).groups == {"all": []}
