"""The recipe `tiny-base`: every tensor learns, every loss counts, small scenes come first."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.data.generate.scenes import CELL_TARGETS
from saccade.training.recipes.tiny_base import CurriculumSource, TinyBaseRecipe

SETTINGS = ("model.device=cpu", "data.train.questions=6", "training.batch_size=24")


def recipe(*overrides: str) -> TinyBaseRecipe:
    return TinyBaseRecipe(resolve("smoke/tiny-base", overrides=[*SETTINGS, *overrides]).config)


def one_loss(made: TinyBaseRecipe) -> dict[str, Any]:
    source = made.train_source()
    batch = made.collate([source[i] for i in range(24)])
    tokens = (batch["labels"][:, 1:] != -100).sum()
    return made.loss(batch, step=0, denominator=tokens)


@pytest.mark.parametrize("part", ["all", "vision", "language"])
def test_every_trainable_tensor_gets_a_finite_non_zero_gradient(part: str) -> None:
    made = recipe(f"tiny_base.train={part}")
    one_loss(made)["loss"].backward()
    named = {name: p for name, p in made.model.named_parameters() if p.requires_grad}
    assert named
    silent = [n for n, p in named.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in named.values())


def test_the_two_stages_together_train_every_tensor_and_only_the_merger_twice() -> None:
    trained = [
        {name for name, p in recipe(f"tiny_base.train={part}").model.named_parameters()
         if p.requires_grad and not name.startswith("reader")}
        for part in ("vision", "language", "all")
    ]  # fmt: skip
    assert trained[0] | trained[1] == trained[2]
    assert {name.split(".")[3] for name in trained[0] & trained[1]} == {"merger"}


def test_the_first_stage_needs_scenes_and_measures_the_cells_it_names() -> None:
    made = recipe("tiny_base.train=vision")
    scores = made.evaluate(made.train_source(), limit=12)
    assert set(scores) == {"accuracy", *(f"accuracy_{name}" for name in CELL_TARGETS)}
    overrides = ["tiny_base.train=vision", "data.train={type: jsonl, path: rows.jsonl}"]
    with pytest.raises(InputError, match=r"tiny_base\.train=vision.*data\.train\.type is jsonl"):
        TinyBaseRecipe(resolve("smoke/tiny-base", overrides=overrides).config)


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
