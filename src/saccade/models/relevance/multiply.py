"""The third way to teach a selector: multiply tokens by a soft gate (as VisionSelector does).

After arXiv 2510.16598, from its formula: in training each visual token and its DeepStack rows are
multiplied by the soft top-K gate, and a binary cross-entropy pulls the gate towards the hard
choice, with a weight that rises from 0.1 to 3 over the steps, because at test time tokens are
dropped and not faded. Published with the scorer of `gated.py`; any selector may learn this way.
A model that normalises its inputs hardly notices a faded token, which is the weakness this route
is compared for. Left out: the other routes (`gates.py`, `learning.py`).

Shapes: N cells of all images, I images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.config.schema import Config
from saccade.data.chat import IGNORE_INDEX
from saccade.models.losses import SupervisedLoss, supervised_loss
from saccade.models.relevance.learning import softened
from saccade.models.relevance.model import Gated, RelevanceModel, VisualFeatures

FIRST_WEIGHT, LAST_WEIGHT = 0.1, 3.0
"""Weight of the cross-entropy between soft and hard choice, at the first and the last step."""


def hardness_at(config: Config, *, step: int) -> float:
    """Weight of the cross-entropy at a step: linear over the steps after the warm start."""
    first, last = config.selector.distill_steps, config.training.steps - 1
    share = min(1.0, max(0.0, (step - first) / max(1, last - first)))
    return FIRST_WEIGHT + (LAST_WEIGHT - FIRST_WEIGHT) * share


def multiplied_answer_loss(
    model: RelevanceModel,
    features: VisualFeatures,
    *,
    keep: int | float,
    denominator: Tensor | float,
    hardness: float,
) -> tuple[SupervisedLoss, Gated]:
    """Answers' cross-entropy on faded tokens, plus `hardness` x that of soft against hard choice.

    Images count by their sample's supervised tokens / `denominator`, as in the answer loss.
    """
    chosen = fade(model, features, keep=keep)
    hidden = model.base.model(**chosen.arguments, use_cache=False).last_hidden_state
    labels, own = chosen.inputs.labels_BS, features.inputs.labels_BS
    assert labels is not None and own is not None
    loss = supervised_loss(model.base.lm_head, hidden, labels, denominator=denominator)
    undecided_I = torch.stack(
        [
            F.binary_cross_entropy(soft.clamp(1e-6, 1 - 1e-6), hard.to(soft.dtype))
            for soft, hard in zip(
                chosen.soft_N.split(features.grid.counts),
                chosen.hard_N.split(features.grid.counts),
                strict=True,
            )
        ]
    )
    tokens_B = (own[:, 1:] != IGNORE_INDEX).sum(1)
    undecided = (undecided_I * tokens_B[features.sample_of_image_I]).sum() / denominator
    return replace(loss, total=loss.total + hardness * undecided), chosen


def fade(model: RelevanceModel, features: VisualFeatures, *, keep: int | float) -> Gated:
    """Full-length inputs whose visual tokens are multiplied by their soft gate."""
    return softened(
        model,
        features,
        keep=keep,
        temperature=model.selector_config.temperature,
        change=lambda images, gates: images.map(
            lambda i, rows: rows * gates[i][:, None].to(rows.dtype)
        ),
    )
