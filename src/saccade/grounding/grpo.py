"""GRPO as arithmetic: what an episode is worth beside its group, and the loss of its tokens.

Rewards of groups flow in and become advantages, and a price of a look where looks have a budget;
log-probabilities, advantages and masks of any shape flow in and become one loss with what is worth
logging. The formulas are those of TRL's GRPOTrainer (1.16, `loss_type="dr_grpo"`,
`scale_rewards="none"`): reward minus the group's mean, never divided by a spread, and a sum over
tokens divided by a constant, so that neither a group of nearly equal rewards nor a long episode
speaks louder. The price, and the choice as a log-probability of its own, are ours. Left out:
models, sampling, rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from saccade.config.grounding import GrpoConfig

SAME = 1e-6
"""Rewards of a group that differ by less are equal: nothing is learned from them."""
NEAR = 1e-6
"""Nearest to 0 that a log-probability of calling comes: that of not calling stays finite."""
PULL = 2.0
"""By how much a look grows dearer (in rewards) per share of the episodes above the budget."""


@dataclass(frozen=True)
class Judged:
    """A group's episodes among themselves."""

    advantages: list[float]
    """Reward minus the mean of the group."""
    kept: bool
    """Whether the group is learned from; judged by right or wrong alone."""
    constant: bool
    """Everybody got the same: the advantages are 0."""

    @property
    def teaches(self) -> bool:
        """Whether the group moves the policy at all."""
        return self.kept and not self.constant


def advantages(rewards: Sequence[float], *, hits: Sequence[bool], config: GrpoConfig) -> Judged:
    """Judge one group of episodes; raises ValueError for fewer than two (no baseline)."""
    if len(rewards) < 2 or len(rewards) != len(hits):
        raise ValueError(f"{len(rewards)} rewards and {len(hits)} verdicts are not a group")
    mean = sum(rewards) / len(rewards)
    constant = max(rewards) - min(rewards) < SAME
    left_out = (config.filter != "none" and not any(hits)) or (
        config.filter == "same" and all(hits)
    )
    values = [0.0 if constant else reward - mean for reward in rewards]
    return Judged(values, kept=not left_out, constant=constant)


@dataclass(frozen=True)
class LookWorth:
    """What looking again brought the groups of a step; sums that may be added up.

    With a the advantage of an episode and d whether it looked (1 or 0) minus the share of its group
    that did: `worth` is the sum of a d and `spread` that of d^2 over what is learned from, `looked`
    and `episodes` count everything that was sampled.
    """

    worth: float = 0.0
    spread: float = 0.0
    looked: float = 0.0
    episodes: float = 0.0

    @classmethod
    def of(
        cls, advantages: Sequence[float], *, looked: Sequence[bool], learned: Sequence[bool]
    ) -> LookWorth:
        """The sums over one group, of which the episodes `learned` are learned from."""
        of_each = zip(advantages, leanings(looked), learned, strict=True)
        kept = [(gain, lean) for gain, lean, counts in of_each if counts]
        return cls(
            worth=sum(gain * lean for gain, lean in kept),
            spread=sum(lean**2 for _, lean in kept),
            looked=sum(looked), episodes=len(looked),
        )  # fmt: skip

    def __add__(self, other: LookWorth) -> LookWorth:
        return LookWorth(
            self.worth + other.worth, self.spread + other.spread,
            self.looked + other.looked, self.episodes + other.episodes,
        )  # fmt: skip

    def price(self, *, budget: float) -> float:
        """What a look must cost in this step to keep their number at the budget.

        Every advantage is to lose `price * d`. The first part is the slope of a over d: without it
        the step would make all looks likelier or all less likely together, which a policy learns
        many times faster than to tell questions apart (what its states share outweighs what sets
        them apart), until nobody looks or everybody does and nothing is left to compare. The second
        part draws the number of looks to the budget, by `PULL` rewards per share of the episodes.
        """
        if not self.episodes:
            return 0.0
        slope = self.worth / self.spread if self.spread else 0.0
        return slope + PULL * (self.looked / self.episodes - budget)


def leanings(looked: Sequence[bool]) -> list[float]:
    """Per episode of a group: whether it looked, minus the share that did."""
    mean = sum(looked) / len(looked)
    return [one - mean for one in looked]


def choice_log_probs(call_log_probs: Tensor, *, called: Tensor) -> Tensor:
    """Log-probability of calling, where a token opened a call, and of not calling elsewhere.

    `call_log_probs` is that of the mark which opens a call. What else might have been written does
    not matter: log(1 - p) is the sum over all of it.
    """
    sure = call_log_probs.clamp(max=-NEAR)
    return torch.where(called, call_log_probs, torch.log(-torch.expm1(sure)))


@dataclass(frozen=True)
class TokenLoss:
    """The loss with its graph, and sums over the learned tokens without theirs."""

    total: Tensor
    ratio: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    kl: Tensor
    entropy: Tensor
    tokens: Tensor


def grpo_loss(
    log_probs: Tensor,
    *,
    old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    normaliser: float | Tensor,
    config: GrpoConfig,
    reference: Tensor | None = None,
    entropies: Tensor | None = None,
    entropy_normaliser: float | Tensor = 1.0,
) -> TokenLoss:
    """Clipped policy loss per token, plus KL, minus entropy; all tensors have one shape.

    `mask` says which tokens are learned; elsewhere nothing is read, not even NaN. The policy and
    KL terms are divided by `normaliser` (episodes of the step x most tokens of an episode), the
    entropy bonus by `entropy_normaliser` (TRL: the learned tokens). `config.beta` > 0 needs
    `reference`, log-probabilities of the model before; the KL estimate is k3 times the ratio, which
    keeps it unbiased when the tokens were sampled by an older policy (TRL's default).
    """
    mask = mask.bool()
    log_probs = log_probs.masked_fill(~mask, 0.0)
    ratio = torch.exp(log_probs - old.masked_fill(~mask, 0.0))
    low, high = 1 - config.epsilon, 1 + config.epsilon_high
    loss = -torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
    kl = torch.zeros_like(ratio)
    if config.beta:
        if reference is None:
            raise ValueError("a KL term needs the reference's log-probabilities")
        towards = reference.masked_fill(~mask, 0.0) - log_probs
        kl = (torch.exp(towards) - towards - 1) * ratio
        loss = loss + config.beta * kl
    total = (loss * mask).sum() / normaliser
    spread = torch.zeros_like(ratio) if entropies is None else entropies.masked_fill(~mask, 0.0)
    if config.entropy:
        total = total - config.entropy * spread.sum() / entropy_normaliser
    with torch.no_grad():
        return TokenLoss(
            total=total,
            ratio=(ratio * mask).sum(),
            clipped_low=((ratio < low) & (advantages < 0) & mask).sum(),
            clipped_high=((ratio > high) & (advantages > 0) & mask).sum(),
            kl=(kl * mask).sum(),
            entropy=spread.detach().sum(),
            tokens=mask.sum(),
        )
