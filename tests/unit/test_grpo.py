"""GRPO's arithmetic: by hand, beside TRL's own trainer, masks, clipping, KL, left-out groups."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saccade.config.grounding import GrpoConfig
from saccade.grounding.grpo import (
    LookWorth,
    TokenLoss,
    advantages,
    choice_log_probs,
    grpo_loss,
    leanings,
)

TOLERANCE = 1e-5
ROWS, TOKENS, MOST = 4, 7, 12
SETTINGS = {
    "plain": GrpoConfig(),
    "one clip for both sides": GrpoConfig(epsilon=0.1, epsilon_high=0.1),
    "towards the model before": GrpoConfig(beta=0.04),
    "with an entropy bonus": GrpoConfig(entropy=0.01),
    "everything": GrpoConfig(epsilon=0.15, epsilon_high=0.4, beta=0.1, entropy=0.02),
}


def batch(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(scale: float) -> torch.Tensor:
        return torch.randn(ROWS, TOKENS, generator=generator) * scale

    new = -drawn(1.0).abs()
    mask = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    mask[0, 5:] = mask[1, 2:4] = mask[3] = False  # padding, a tool's answer, a truncated episode
    return {
        "log_probs": new, "old": new + drawn(0.3), "reference": new + drawn(0.5), "mask": mask,
        "advantages": torch.tensor([0.5, -0.7, 0.2, 1.0])[:, None].expand(-1, TOKENS),
        "entropies": drawn(1.0).abs(),
    }  # fmt: skip


def ours(data: dict[str, torch.Tensor], config: GrpoConfig) -> TokenLoss:
    return grpo_loss(
        data["log_probs"], **{name: one for name, one in data.items() if name != "log_probs"},
        normaliser=ROWS * MOST, entropy_normaliser=data["mask"].sum(), config=config,
    )  # fmt: skip


def by_hand(data: dict[str, torch.Tensor], config: GrpoConfig) -> float:
    """The formula in plain Python, token by token."""
    total = entropy = 0.0
    tokens = int(data["mask"].sum())
    for row in range(ROWS):
        for token in range(TOKENS):
            if not data["mask"][row, token]:
                continue
            new, old, before = (
                float(data[n][row, token]) for n in ("log_probs", "old", "reference")
            )
            gain, ratio = float(data["advantages"][row, token]), math.exp(new - old)
            clipped = min(max(ratio, 1 - config.epsilon), 1 + config.epsilon_high)
            total -= min(ratio * gain, clipped * gain)
            total += config.beta * (math.exp(before - new) - (before - new) - 1) * ratio
            entropy += float(data["entropies"][row, token])
    return total / (ROWS * MOST) - config.entropy * entropy / tokens


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_is_the_one_computed_by_hand(name: str) -> None:
    data = batch()
    assert float(ours(data, SETTINGS[name]).total) == pytest.approx(
        by_hand(data, SETTINGS[name]), abs=TOLERANCE
    )


def test_tokens_outside_the_mask_are_never_read() -> None:
    data, config = batch(), SETTINGS["everything"]
    before = ours(data, config)
    log_probs = data["log_probs"].masked_fill(~data["mask"], -math.inf).requires_grad_()
    rest = {n: data[n].masked_fill(~data["mask"], math.nan) for n in ("old", "reference")}
    rest["entropies"] = data["entropies"].masked_fill(~data["mask"], math.nan)
    after = ours({**data, **rest, "log_probs": log_probs}, config)
    assert torch.equal(before.total, after.total)
    (gradient,) = torch.autograd.grad(after.total, log_probs)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[~data["mask"]] == 0).all())
    assert bool((gradient[data["mask"]] != 0).any())


def test_a_clipped_token_gets_no_gradient_and_is_counted() -> None:
    data, config = batch(), GrpoConfig(epsilon=0.2, epsilon_high=0.28)
    data["old"] = data["log_probs"] + torch.where(torch.arange(TOKENS) < 3, -0.5, 0.5)
    data["mask"] = torch.ones_like(data["mask"])
    log_probs = data["log_probs"].clone().requires_grad_()
    found = ours({**data, "log_probs": log_probs}, config)
    (gradient,) = torch.autograd.grad(found.total, log_probs)
    up = (data["advantages"] > 0) & (torch.arange(TOKENS) < 3)
    down = (data["advantages"] < 0) & (torch.arange(TOKENS) >= 3)
    assert torch.equal(gradient == 0, up | down)
    assert int(found.clipped_high) == int(up.sum()) and int(found.clipped_low) == int(down.sum())


def test_before_any_update_the_gradient_is_minus_advantage_times_log_probability() -> None:
    data = batch()
    log_probs = data["log_probs"].clone().requires_grad_()
    found = ours({**data, "log_probs": log_probs, "old": data["log_probs"]}, GrpoConfig())
    (gradient,) = torch.autograd.grad(found.total, log_probs)
    expected = -(data["advantages"] * data["mask"]) / (ROWS * MOST)
    assert torch.allclose(gradient, expected, atol=1e-7)
    assert float(found.ratio / found.tokens) == pytest.approx(1)


def test_a_kl_term_without_a_reference_is_refused() -> None:
    data = {**batch()}
    del data["reference"]
    with pytest.raises(ValueError, match="needs the reference"):
        ours(data, GrpoConfig(beta=0.1))


# groups --------------------------------------------------------------------------------------


def test_an_advantage_is_the_distance_to_the_groups_mean_and_nothing_is_divided() -> None:
    judged = advantages([1.0, 0.0, 0.5, 0.1], hits=[True, False, False, False], config=GrpoConfig())
    assert judged.advantages == pytest.approx([0.6, -0.4, 0.1, -0.3])
    assert judged.kept and not judged.constant and judged.teaches


@pytest.mark.parametrize(
    ("filter", "hits", "kept"),
    [
        ("wrong", [False] * 4, False), ("wrong", [True] * 4, True),
        ("wrong", [True, False, False, False], True),
        ("same", [False] * 4, False), ("same", [True] * 4, False),
        ("same", [True, True, True, False], True),
        ("none", [False] * 4, True), ("none", [True] * 4, True),
    ],
)  # fmt: skip
def test_groups_are_left_out_by_right_and_wrong_alone(
    filter: str, hits: list[bool], kept: bool
) -> None:
    config = GrpoConfig.model_validate({"filter": filter})
    judged = advantages([0.3, 0.2, 0.1, 0.0], hits=hits, config=config)
    assert judged.kept is kept and judged.teaches is kept
    assert judged.advantages == pytest.approx([0.15, 0.05, -0.05, -0.15])


def test_a_constant_reward_teaches_nothing_and_is_counted() -> None:
    third = 1 / 3
    judged = advantages([third] * 3, hits=[True] * 3, config=GrpoConfig())
    assert judged.advantages == [0.0] * 3 and judged.constant and not judged.teaches


def test_a_group_of_one_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="not a group"):
        advantages([1.0], hits=[True], config=GrpoConfig())


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=9), st.floats(-3, 3))
def test_advantages_sum_to_zero_and_ignore_what_everybody_gets(
    rewards: list[float], more: float
) -> None:
    hits = [True] * len(rewards)
    judged = advantages(rewards, hits=hits, config=GrpoConfig())
    assert sum(judged.advantages) == pytest.approx(0, abs=1e-9)
    shifted = advantages([one + more for one in rewards], hits=hits, config=GrpoConfig())
    if judged.constant == shifted.constant:
        assert shifted.advantages == pytest.approx(judged.advantages, abs=1e-9)


# TRL -----------------------------------------------------------------------------------------


def trl_trainer(config: GrpoConfig, *, folder: Path, score: Any = None) -> Any:
    """TRL's trainer on a small base with the configured loss."""
    trl = pytest.importorskip("trl", reason="the extra `rl` is not installed")
    from tests.trainer_data import asked_scenes, own_backbone, trainer_settings

    backbone = own_backbone()
    backbone.model.requires_grad_(True)
    settings = trainer_settings(
        folder, per_device_train_batch_size=ROWS, num_generations=2, max_completion_length=MOST,
        loss_type="dr_grpo", scale_rewards="none", epsilon=config.epsilon,
        epsilon_high=config.epsilon_high, entropy_coef=config.entropy, num_iterations=2,
        mask_truncated_completions=True,
    )  # fmt: skip
    settings.pop("activation_checkpointing")
    trainer = trl.GRPOTrainer(
        model=backbone.model,
        reward_funcs=score or (lambda completions, **_: [0.0] * len(completions)),
        args=trl.GRPOConfig(**settings),
        train_dataset=asked_scenes(),
        processing_class=backbone.processor,
    )
    trainer.beta = config.beta  # asked for earlier, it loads a reference by name; ours is given
    return trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_is_that_of_trls_trainer_on_the_same_batch(name: str, tmp_path: Path) -> None:
    config = SETTINGS[name]
    trainer = trl_trainer(config, folder=tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    fixed, vocabulary = batch(), 300
    ids = torch.randint(
        10, vocabulary, (ROWS, 5 + TOKENS), generator=torch.Generator().manual_seed(1)
    )
    inputs = {
        "prompt_ids": ids[:, :5], "prompt_mask": torch.ones(ROWS, 5, dtype=torch.long),
        "completion_ids": ids[:, 5:], "completion_mask": torch.ones(ROWS, TOKENS, dtype=torch.long),
        "tool_mask": fixed["mask"].long(), "advantages": fixed["advantages"][:, 0],
        "num_items_in_batch": fixed["mask"].sum(),
    }  # fmt: skip
    trainer.model.eval()
    with torch.no_grad():
        log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, torch.ones_like(ids), TOKENS, compute_entropy=True
        )
        shift = {n: fixed[n] - fixed["log_probs"] for n in ("old", "reference")}
        data = {
            **fixed, "log_probs": log_probs, "entropies": entropies,
            "old": log_probs + shift["old"], "reference": log_probs + shift["reference"],
        }  # fmt: skip
        inputs |= {"old_per_token_logps": data["old"], "ref_per_token_logps": data["reference"]}
        theirs = trainer._compute_loss(trainer.model, inputs)
    mine = ours(data, config)
    assert abs(float(theirs)) > 1e-3
    assert float(mine.total) == pytest.approx(float(theirs), abs=TOLERANCE)
    seen = trainer._metrics["eval"]
    tokens = float(mine.tokens)
    assert seen["entropy"][-1] == pytest.approx(float(mine.entropy) / tokens, abs=TOLERANCE)
    for side in ("low", "high"):
        count = float(getattr(mine, f"clipped_{side}"))
        assert seen[f"clip_ratio/{side}_mean"][-1] == pytest.approx(count / tokens, abs=TOLERANCE)
    if config.beta:
        assert seen["kl"][-1] == pytest.approx(float(mine.kl) / tokens, abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore")
def test_advantages_are_those_of_trls_trainer(tmp_path: Path) -> None:
    drawn = random.Random(4)
    paid: list[float] = []

    def score(completions: list[Any], **_: Any) -> list[float]:
        paid[:] = [drawn.choice([0.0, 0.3, 1.2]) for _ in completions]
        return list(paid)

    trainer = trl_trainer(GrpoConfig(), folder=tmp_path, score=score)
    rows = [trainer.train_dataset[i // 2] for i in range(ROWS)]
    made = trainer._generate_and_score_completions(rows)
    mine = [
        value
        for start in range(0, ROWS, 2)
        for value in advantages(
            paid[start : start + 2], hits=[True, False], config=GrpoConfig()
        ).advantages
    ]
    assert any(mine) and made["advantages"].tolist() == pytest.approx(mine, abs=TOLERANCE)


# the choice to look --------------------------------------------------------------------------


def test_having_called_or_not_is_one_choice_between_two() -> None:
    """Whatever else a token might have been: log p where it called, log(1 - p) where not."""
    logits_TV = torch.randn(6, 9, generator=torch.Generator().manual_seed(2)).requires_grad_()
    call, chosen_T = 4, torch.tensor([4, 0, 4, 1, 2, 8])
    log_probs_TV = logits_TV.log_softmax(-1)
    found = choice_log_probs(log_probs_TV[:, call], called=chosen_T == call)
    others = [one for one in range(9) if one != call]
    want = torch.where(
        chosen_T == call, log_probs_TV[:, call], log_probs_TV[:, others].logsumexp(-1)
    )
    assert torch.allclose(found, want, atol=1e-6)
    mine, theirs = (torch.autograd.grad(one.sum(), logits_TV, retain_graph=True)[0]
                    for one in (found, want))  # fmt: skip
    assert torch.allclose(mine, theirs, atol=1e-6)
    gaps_TV = mine[chosen_T != call][:, others] / mine[chosen_T != call][:, [call]]
    assert bool((gaps_TV < 0).all()), "all that is no call gains together"


@pytest.mark.parametrize("sure", [0.0, -1e-9, -1e9])
def test_a_call_that_is_certain_or_impossible_leaves_numbers(sure: float) -> None:
    mark = torch.full((2,), sure, requires_grad=True)
    found = choice_log_probs(mark, called=torch.tensor([True, False]))
    found.sum().backward()
    assert bool(found.isfinite().all()) and mark.grad is not None
    assert bool(mark.grad.isfinite().all())


# the price of a look -------------------------------------------------------------------------


def worth(groups: list[tuple[list[float], list[bool]]]) -> LookWorth:
    """What looking brought groups of (advantages, who looked)."""
    each = (LookWorth.of(gains, looked=looked, learned=[True] * len(gains))
            for gains, looked in groups)  # fmt: skip
    return sum(each, LookWorth())


def test_a_look_that_brings_the_same_everywhere_is_priced_at_just_that() -> None:
    """A look is worth 0.4 in both groups, and half of the episodes look, as the budget says."""
    group = [0.2, 0.2, -0.2, -0.2], [True, True, False, False]
    assert worth([group, group]).price(budget=0.5) == pytest.approx(0.4)


def test_more_looks_than_the_budget_make_a_look_dearer_and_fewer_make_it_cheaper() -> None:
    group = [0.1, -0.1, 0.1, -0.1], [True, False, True, False]
    prices = [worth([group]).price(budget=budget) for budget in (0.25, 0.5, 0.75)]
    assert prices == pytest.approx([0.7, 0.2, -0.3])


@given(st.lists(st.lists(st.tuples(st.floats(-2, 2), st.booleans()), min_size=2, max_size=8),
                min_size=1, max_size=6))  # fmt: skip
def test_at_the_budget_a_step_does_not_make_all_looks_likelier_or_less_likely(
    drawn: list[list[tuple[float, bool]]],
) -> None:
    groups = []
    for one in drawn:
        rewards = [reward for reward, _ in one]
        mean = sum(rewards) / len(rewards)
        groups.append(([reward - mean for reward in rewards], [looked for _, looked in one]))
    found = worth(groups)
    price = found.price(budget=found.looked / found.episodes)
    push = 0.0
    for gains, looked in groups:
        for gain, lean in zip(gains, leanings(looked), strict=True):
            push += (gain - price * lean) * lean
    assert push == pytest.approx(0.0, abs=1e-6)


def test_a_step_in_which_nothing_is_learned_has_only_its_distance_to_the_budget() -> None:
    assert LookWorth(looked=6, episodes=8).price(budget=0.5) == pytest.approx(0.5)
    assert LookWorth().price(budget=0.5) == 0.0
