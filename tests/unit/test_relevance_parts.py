"""The pieces of relevance that can be checked by hand: textures, budgets, lattices, baselines."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.config.errors import InputError
from saccade.models.relevance.allocate import budget, lattice, top_k
from saccade.models.relevance.baselines import ARMS, pool_rows
from saccade.models.relevance.grids import CellGrid, block_mean, box_mean, standardise
from saccade.models.relevance.textures import (
    CHANNELS,
    PatchLayout,
    compute_textures,
    patchify,
    unpatchify,
)
from tests.tiny_models import mixed_samples, random_backbone, relevance_model, renderer, sample

LAYOUT = PatchLayout(patch=8, merge=2, temporal=2, mean=(0.5,) * 3, std=(0.5,) * 3)


def textures_of(image_3HW: torch.Tensor):
    rows = patchify((image_3HW - 0.5) / 0.5, LAYOUT)
    grid = torch.tensor([[1, image_3HW.shape[1] // 8, image_3HW.shape[2] // 8]])
    return compute_textures(rows, grid, layout=LAYOUT)


def test_patch_rows_and_images_are_inverse_and_match_the_processor() -> None:
    processor = random_backbone().processor.image_processor
    picture = sample(0, (64, 96)).images[0]
    out = processor(images=[picture], return_tensors="pt")
    thw = tuple(out["image_grid_thw"][0].tolist())
    image = unpatchify(out["pixel_values"], thw, LAYOUT)
    assert image.shape == (3, 64, 96)
    assert torch.equal(patchify(image, LAYOUT), out["pixel_values"])


def test_the_thirteen_channels_are_distinct_and_in_range() -> None:
    generator = torch.Generator().manual_seed(0)
    image = (
        torch.rand(3, 6, 8, generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    )
    image = (image + 0.1 * torch.rand(3, 96, 128, generator=generator)).clamp(0, 1)
    channels = textures_of(image).channels_NC
    assert channels.shape == (48, len(CHANNELS)) == (48, 13)
    assert channels.isfinite().all() and channels.min() >= -1 and channels.max() <= 2
    centred = channels - channels.mean(0)
    correlation = torch.corrcoef(centred.T).abs() - torch.eye(13)
    assert correlation.max() < 0.995


def test_a_lone_square_is_salient_and_noise_costs_bits() -> None:
    flat = torch.full((3, 160, 160), 0.5)
    square = flat.clone()
    square[0, 64:80, 64:80] = 1.0
    saliency = textures_of(square).channel("saliency").reshape(10, 10)
    assert saliency.argmax() == 4 * 10 + 4
    assert textures_of(flat).bits_N.max() < 1e-3
    noisy = flat.clone()
    noisy[:, 0:16, 0:16] = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    textures = textures_of(noisy)
    assert textures.bits_N.argmax() == 0 and textures.channel("entropy").argmax() == 0


def test_the_colour_few_cells_have_is_the_rare_one_however_strong_the_other_is() -> None:
    image = torch.full((3, 256, 256), 0.6)
    red, blue = (torch.tensor(rgb)[:, None, None] for rgb in ((0.9, 0.1, 0.1), (0.1, 0.3, 0.8)))
    for at in range(0, 224, 64):
        image[:, at : at + 32, :128] = red
    image[:, 96:128, 192:224] = blue
    rarity = textures_of(image).rarity_N.reshape(16, 16)
    assert int(rarity.argmax()) in {6 * 16 + 12, 6 * 16 + 13, 7 * 16 + 12, 7 * 16 + 13}
    assert rarity[:2, :8].mean() < rarity[6:8, 12:14].mean() - 1, "in bits"
    assert rarity[12:, 10:].mean() < rarity[:2, :8].mean()


def test_textures_of_an_image_do_not_depend_on_its_batch() -> None:
    processor = random_backbone().processor.image_processor
    pictures = [image for one in mixed_samples() for image in one.images]
    both = processor(images=pictures, return_tensors="pt")
    together = compute_textures(both["pixel_values"], both["image_grid_thw"], layout=LAYOUT)
    alone = [
        compute_textures(one["pixel_values"], one["image_grid_thw"], layout=LAYOUT).channels_NC
        for one in (processor(images=[p], return_tensors="pt") for p in pictures)
    ]
    assert torch.equal(together.channels_NC, torch.cat(alone))


@given(cells=st.integers(1, 2000), keep=st.floats(0.001, 1.0) | st.integers(1, 3000))
def test_a_budget_keeps_at_least_one_cell_and_never_more_than_there_are(
    cells: int, keep: float
) -> None:
    assert 1 <= budget(cells, keep) <= cells


def test_budgets_are_shares_or_counts_within_their_limits() -> None:
    assert budget(256, 0.25) == 64
    assert budget(256, 40) == 40 and budget(16, 40) == 16
    assert budget(256, 1) == 1 and budget(256, 1.0) == 256
    assert budget(256, 0.01, min_tokens=8) == 8
    assert budget(256, 0.5, max_tokens=100) == 100


def test_top_k_is_per_image_and_breaks_ties_to_the_lower_index() -> None:
    scores = torch.tensor([1.0, 1, 1, 1, 5, 9, 7])
    keep = top_k(scores, cells=[4, 3], kept=[2, 1])
    assert keep.tolist() == [True, True, False, False, False, True, False]


@given(height=st.integers(1, 40), width=st.integers(1, 40), kept=st.integers(1, 400))
def test_a_lattice_fits_its_budget_and_the_grid(height: int, width: int, kept: int) -> None:
    rows, columns = lattice(height, width, kept=kept)
    assert 1 <= rows <= height and 1 <= columns <= width and rows * columns <= kept


def test_means_over_windows_count_valid_cells_only() -> None:
    valid = torch.zeros(1, 4, 5, dtype=torch.bool)
    valid[0, :2, :3] = True
    ones = torch.ones(1, 4, 5, 1) * valid[..., None]
    assert torch.allclose(box_mean(ones, valid, radius=2)[valid], torch.ones(6, 1))
    assert torch.allclose(block_mean(ones, valid, side=4)[valid], torch.ones(6, 1))
    flat = standardise(torch.full((1, 4, 5), 7.0), valid)
    assert (flat == 0).all()


def test_packing_and_padding_of_grids_are_inverse() -> None:
    grid = CellGrid.of(torch.tensor([[1, 4, 6], [1, 2, 10]]), merge=2)
    assert grid.counts == [6, 5]
    packed = torch.arange(22.0).reshape(11, 2)
    assert torch.equal(grid.pack(grid.pad(packed)), packed)


def test_every_arm_spends_at_most_its_budget_and_reports_it() -> None:
    model, render = relevance_model(), renderer()
    batch = render.batch(mixed_samples(), with_answer=False)
    features = model.encode(batch)
    for name in ARMS:
        reduced = model.reduce(batch, arm=name, keep=0.25, features=features)
        spent = int((reduced.inputs.input_ids_BS == model.markers.image).sum())
        late = reduced.late_lengths or reduced.sequence_lengths  # dropped inside the model
        spent -= sum(reduced.sequence_lengths) - sum(late)
        assert spent == sum(image.kept for image in reduced.images)
        if name == "full":
            assert [i.kept for i in reduced.images] == [i.full for i in reduced.images]
        else:
            limits = model.budgets(features.grid, 0.25)
            assert all(i.kept <= k for i, k in zip(reduced.images, limits, strict=True)), name
        out = model.generate_reduced(reduced, max_new_tokens=2)
        assert out.shape[0] == 3


def test_arms_that_choose_cells_keep_the_budget_exactly() -> None:
    model, render = relevance_model(), renderer()
    batch = render.batch(mixed_samples(), with_answer=False)
    features = model.encode(batch)
    expected = model.budgets(features.grid, 0.3)
    for name in ("trained", "random", "grid", "saliency", "information", "participation"):
        reduced = model.reduce(batch, arm=name, keep=0.3, features=features)
        assert [image.kept for image in reduced.images] == expected, name


def test_the_random_arm_depends_on_seed_and_sample_not_on_the_batch() -> None:
    model, render = relevance_model(), renderer()
    samples = mixed_samples()

    def kept(batch: dict, seed: int) -> list[torch.Tensor]:
        reduced = model.reduce(batch, arm="random", keep=0.3, seed=seed)
        return [image.keep_HW for image in reduced.images if image.keep_HW is not None]

    together = kept(render.batch(samples, with_answer=False), 0)
    alone = [k for one in samples for k in kept(render.batch([one], with_answer=False), 0)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    other = kept(render.batch(samples, with_answer=False), 1)
    assert not all(torch.equal(a, b) for a, b in zip(together, other, strict=True))


def test_pooling_to_the_full_grid_changes_nothing_and_halving_averages() -> None:
    rows = torch.arange(32.0).reshape(16, 2)
    assert torch.equal(pool_rows(rows, size=(4, 4), target=(4, 4)), rows)
    halved = pool_rows(rows, size=(4, 4), target=(2, 2))
    assert torch.equal(halved[0], rows[[0, 1, 4, 5]].mean(0))


def test_resizing_to_the_full_budget_is_the_full_model() -> None:
    model, render = relevance_model(), renderer()
    batch = render.batch([sample(0, (64, 96))], with_answer=False)
    full = model.reduce(batch, arm="full")
    resized = model.reduce(batch, arm="resize", keep=1.0)
    with torch.no_grad():
        a = model.base(**full.inputs.forward_arguments()).logits
        b = model.base(**resized.inputs.forward_arguments()).logits
    assert float((a - b).abs().max()) < 1e-3


def test_an_unknown_arm_and_a_missing_score_are_input_errors() -> None:
    model, render = relevance_model(scores=["salience", "participation"]), renderer()
    batch = render.batch([sample(0, (64, 96))], with_answer=False)
    with pytest.raises(InputError, match="unknown selector"):
        model.reduce(batch, arm="magic")
    with pytest.raises(InputError, match="without the score"):
        model.reduce(batch, arm="information")
