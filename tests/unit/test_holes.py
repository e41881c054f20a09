"""Pictures with holes: what a question needs stays, what is hidden is hidden for good."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saccade.config.resolve import resolve
from saccade.training.recipes.tiny_base import TinyBaseRecipe

SETTINGS = ["data.train.scenes=8", "data.train.questions=4", "training.batch_size=16"]


def recipe(*, share: float) -> TinyBaseRecipe:
    overrides = [*SETTINGS, f"tiny_base.hole_share={share}"]
    return TinyBaseRecipe(resolve("smoke/tiny-base", overrides=overrides).config)


@pytest.fixture(scope="module")
def made() -> TinyBaseRecipe:
    return recipe(share=1)


@pytest.fixture(scope="module")
def batches(made: TinyBaseRecipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same samples with and without holes."""
    source = made.train_source()
    samples = [source[i] for i in range(16)]
    return made.collate(samples), recipe(share=0).collate(samples)


def test_every_question_still_sees_the_cells_of_its_own_answer(batches: Any) -> None:
    holed, _ = batches
    assert len(holed["look_row"]) > 0
    for row, asking, cells_L in zip(
        holed["look_row"], holed["look_from"], holed["look_at"], strict=True
    ):
        assert holed["attention_mask"][row, 0, asking][cells_L].all()


def test_holes_hide_image_cells_and_nothing_else(made: TinyBaseRecipe, batches: Any) -> None:
    holed, whole = batches
    hidden = whole["attention_mask"] & ~holed["attention_mask"]
    image_RL = whole["input_ids"] == made.renderer.markers.image
    assert hidden.any(-1).any(-1).all(), "every picture has holes at share 1"
    assert not (hidden & ~image_RL[:, None, None, :]).any()
    assert holed["attention_mask"].any(-1).all(), "every token sees something, or softmax is NaN"


def test_holes_depend_on_the_picture_and_not_on_its_place_in_the_batch(
    made: TinyBaseRecipe,
) -> None:
    source = made.train_source()
    first, second = [source[i] for i in range(4)], [source[i] for i in range(4, 8)]
    alone = made.collate(second)["attention_mask"]
    behind = made.collate(first + second)["attention_mask"][1:]
    length = alone.shape[-1]
    assert torch.equal(alone, behind[..., :length, :length])


def test_holes_change_the_loss(made: TinyBaseRecipe, batches: Any) -> None:
    _, whole = batches
    tokens = (whole["labels"][:, 1:] != -100).sum()
    losses = [made.loss(batch, step=1, denominator=tokens)["loss"] for batch in batches]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("share", [0, 1])
def test_a_tower_with_holes_learns_from_the_shown_cells_alone(share: float) -> None:
    source_of = ["tiny_base.train=vision", "data.train.questions=1", "training.batch_size=4"]
    overrides = [*SETTINGS[:1], *source_of, f"tiny_base.hole_share={share}"]
    tower = TinyBaseRecipe(resolve("smoke/tiny-base", overrides=overrides).config)
    source = tower.train_source()
    batch = tower.collate([source[i] for i in range(4)])
    shown_N = batch.get("shown_cells", torch.ones(len(batch["pixel_values"]) // 4).bool())
    assert shown_N.all() == (share == 0)

    changed = {name: target_N.clone() for name, target_N in batch["cell_targets"].items()}
    for target_N in changed.values():
        target_N[~shown_N] = 1
    # blank what is hidden: neither its pixels nor its targets may matter
    blank_ND = torch.where(shown_N.repeat_interleave(4)[:, None], batch["pixel_values"], 0)
    tokens = (batch["labels"][:, 1:] != -100).sum()
    losses = [
        tower.loss(batch | other, step=1, denominator=tokens)["loss"]
        for other in ({}, {"cell_targets": changed, "pixel_values": blank_ND})
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    losses[0].backward()
    unreached = [n for n, p in tower.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached
