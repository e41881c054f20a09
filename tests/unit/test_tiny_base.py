"""The recipe `tiny-base`: every tensor learns, every loss counts, small scenes come first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.config.resolve import resolve
from saccade.training.recipes.tiny_base import CurriculumSource, TinyBaseRecipe

SETTINGS = ("model.device=cpu", "data.train.questions=6", "training.batch_size=24")


def recipe(*overrides: str) -> TinyBaseRecipe:
    return TinyBaseRecipe(resolve("smoke/tiny-base", overrides=[*SETTINGS, *overrides]).config)


def one_loss(made: TinyBaseRecipe) -> dict[str, Any]:
    source = made.train_source()
    batch = made.collate([source[i] for i in range(24)])
    tokens = (batch["labels"][:, 1:] != -100).sum()
    return made.loss(batch, step=0, denominator=tokens)


def test_every_trainable_tensor_gets_a_finite_non_zero_gradient() -> None:
    made = recipe()
    one_loss(made)["loss"].backward()
    named = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert named
    silent = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in named.values())


@pytest.mark.parametrize("weight", ["cell_loss_weight", "look_loss_weight"])
def test_switching_an_auxiliary_loss_off_changes_the_loss(weight: str) -> None:
    full, without = one_loss(recipe()), one_loss(recipe(f"tiny_base.{weight}=0"))
    assert float(full["loss"].detach()) > float(without["loss"].detach())
    assert set(full) - set(without) == {weight.removesuffix("_weight")}


def test_small_scenes_come_first_and_keep_their_order() -> None:
    made = recipe("tiny_base.small_share=0.5")
    source = made.train_source()
    assert isinstance(source, CurriculumSource) and source.ordered
    boundary = source.first * source.questions
    assert boundary == 6 * 24 // 2
    small, full = source[boundary - 1].facts["grid"], source[boundary].facts["grid"]
    assert small[0] * small[1] <= 36 * 5 / 4 < full[0] * full[1]


def test_data_without_scenes_trains_on_answers_alone() -> None:
    made = recipe()
    source = made.train_source()
    plain = [source[i] for i in range(12)]
    stripped = [type(s)(**{**s.__dict__, "facts": {}}) for s in plain]
    batch = made.collate(stripped)
    assert "cell_targets" not in batch and "look_at" not in batch
    losses = made.loss(batch, step=0, denominator=torch.tensor(24.0))
    assert set(losses) == {"loss", "token_accuracy"}
