"""Weight decay on matrices only, and the shape of the learning-rate schedule."""

from __future__ import annotations

import pytest
from torch import nn

from saccade.config.schema import TrainingConfig
from saccade.training.optimizers import (
    decays,
    learning_rate_factor,
    make_optimizer,
    make_schedule,
)


def model() -> nn.Module:
    tied = nn.Linear(8, 10, bias=False)
    embedding = nn.Embedding(10, 8)
    tied.weight = embedding.weight
    parts = {
        "embedding": embedding, "tied": tied, "linear": nn.Linear(8, 8), "norm": nn.LayerNorm(8),
        "convolution": nn.Conv2d(3, 8, 2), "frozen": nn.Linear(2, 2).requires_grad_(False),
    }  # fmt: skip
    return nn.ModuleDict(parts)


def test_only_matrices_decay() -> None:
    assert {name for name, decay in decays(model()).items() if decay} == {
        "linear.weight",
        "convolution.weight",
    }


def test_the_optimizer_holds_every_trainable_parameter_once() -> None:
    whole = model()
    optimizer = make_optimizer(whole, training=TrainingConfig(weight_decay=0.1, beta2=0.95))
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in whole.parameters() if p.requires_grad)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_to_its_peak_and_then_follows_the_schedule(schedule: str) -> None:
    rates = [learning_rate_factor(n, steps=100, warmup=10, schedule=schedule) for n in range(100)]
    assert 0 < rates[0] <= 0.1
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == 1.0 if schedule == "constant" else 0 < rates[-1] < 0.05


def test_no_warm_up_starts_at_the_peak() -> None:
    training = TrainingConfig(warmup_ratio=0.0, learning_rate=0.5)
    schedule = make_schedule(make_optimizer(model(), training=training), training=training)
    assert schedule.get_last_lr() == [0.5, 0.5]
