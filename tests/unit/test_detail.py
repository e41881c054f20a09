"""Level of detail: exact end points, every cell accounted for, budgets kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.models.relevance.allocate import top_k
from saccade.models.relevance.baselines import pool_rows
from saccade.models.relevance.detail import best_cells, plan_detail


def random_scores(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(seed))


@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    share=st.floats(0, 1),
    region=st.sampled_from([2, 4, 8]),
    kept=st.integers(1, 80),
)
def test_a_plan_spends_at_most_its_budget_and_counts_what_it_makes(
    height: int, width: int, share: float, region: int, kept: int
) -> None:
    kept = min(kept, height * width)
    plan = plan_detail(random_scores(height, width), kept=kept, coarse_share=share, region=region)
    assert plan.fine + plan.coarse <= kept
    names = plan.token_N[plan.token_N >= 0].unique()
    assert names.tolist() == list(range(plan.fine + plan.coarse))
    first = plan.first_N.nonzero()[:, 0]
    assert plan.token_N[first].tolist() == list(range(len(names))), "raster order of first cells"
    sizes = plan.token_N[plan.token_N >= 0].bincount()
    assert sizes.max() <= region**2 and int((sizes == 1).sum()) >= plan.fine


def test_without_coarse_tokens_it_is_dropping_bit_for_bit() -> None:
    scores, rows = random_scores(9, 7), torch.randn(63, 5)
    plan = plan_detail(scores, kept=17, coarse_share=0.0)
    keep = top_k(scores.flatten(), cells=[63], kept=[17])
    assert torch.equal(plan.first_N, keep) and plan.coarse == 0
    assert torch.equal(plan.pool(rows), rows[keep])


@pytest.mark.parametrize("region", [2, 4, 8])
def test_with_nothing_but_coarse_tokens_it_is_average_pooling_bit_for_bit(region: int) -> None:
    rows = torch.randn(16 * 24, 5)
    target = (16 // region, 24 // region)
    plan = plan_detail(
        random_scores(16, 24), kept=target[0] * target[1], coarse_share=1.0, region=region
    )
    assert plan.fine == 0 and plan.coarse == target[0] * target[1]
    assert torch.equal(plan.pool(rows), pool_rows(rows, size=(16, 24), target=target))


def test_blocks_split_around_chosen_cells_and_cover_everything_when_they_fit() -> None:
    scores = torch.zeros(8, 8)
    scores[1, 1] = 1.0
    plan = plan_detail(scores, kept=64, coarse_share=63 / 64, region=4)
    # the chosen cell, its three neighbours as one, three 2x2 blocks, three free 4x4 regions
    assert (plan.fine, plan.coarse) == (1, 7)
    assert sorted(plan.token_N.bincount().tolist()) == [1, 3, 4, 4, 4, 16, 16, 16]
    assert (plan.token_N >= 0).all()


def test_coarse_tokens_that_do_not_fit_are_the_least_relevant() -> None:
    scores = torch.arange(64.0).reshape(8, 8)
    plan = plan_detail(scores, kept=2, coarse_share=1.0, region=4)
    kept = (plan.token_N >= 0).reshape(8, 8)
    assert kept[4:].all() and not kept[:4].any()


def test_no_region_gets_more_fine_tokens_than_its_limit() -> None:
    scores = torch.zeros(8, 12)
    scores[:4, :4] = 1.0
    keep = best_cells(scores, kept=20, region=4, max_per_region=3)
    counts = keep.reshape(2, 4, 3, 4).sum((1, 3))
    assert counts.max() == 3 and int(keep.sum()) == 18
