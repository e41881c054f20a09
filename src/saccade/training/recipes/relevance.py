"""Recipe `relevance`: train the selector of a frozen vision-language model.

In go samples; out comes a selector of a few megabytes. First the selector imitates where the base
itself looks (distillation, no answer needed); then the answers' own loss reaches it through the
attention gate with the hard choice in the forward pass, or by another arm of `selector.learning`.
Every step draws its budget from `selector.keep_curriculum` by (seed, step), so one selector serves
many budgets and a resumed run draws the same ones. Left out: training the base.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.chat import IGNORE_INDEX, ChatRenderer
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.backbone import load_backbone, pick_device
from saccade.models.recompute import recomputed_layers
from saccade.models.relevance.feature_cache import FeatureCache, TensorStore
from saccade.models.relevance.grids import CellGrid
from saccade.models.relevance.learning import Noise, noisy_answer_loss
from saccade.models.relevance.model import Gated, RelevanceModel
from saccade.models.relevance.multiply import hardness_at, multiplied_answer_loss
from saccade.scoring.accuracy import accuracy_by_kind
from saccade.training.rundir import RunDir


class RelevanceRecipe:
    """What the training loop needs to know about `relevance`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.model.attention == "flash_attention_2":
            raise InputError(
                "model.attention=flash_attention_2 cannot train a selector: the gate is an "
                "attention mask, and FlashAttention takes none"
                "\n  fix: train with model.attention=sdpa; use flash_attention_2 afterwards"
            )
        backbone = load_backbone(config.model, device=pick_device(config.model))
        self.model = RelevanceModel(backbone, config.selector, seed=config.run.seed)
        self.model.feature_cache = _open_cache(config, self.model)
        self.renderer = ChatRenderer(
            backbone.processor,
            min_pixels=config.model.min_pixels,
            max_pixels=config.model.max_pixels,
        )

    def train_source(self) -> SampleSource:
        return open_source(self.config.data.train)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        return self.renderer.batch(samples, with_answer=True)

    def phases(self) -> list[int]:
        """A step of each kind of training there is, for measuring what it needs."""
        first, last = self.config.selector.distill_steps, self.config.training.steps - 1
        return [0] if not 0 < first <= last else [0, first]

    def kept_tokens(self, grid_I3: Tensor) -> tuple[int, int]:
        """Fewest and most visual tokens kept of these images, over the budgets trained for."""
        grid = CellGrid.of(grid_I3, merge=self.model.layout.merge)
        shares = self.config.selector.keep_curriculum
        totals = [sum(self.model.budgets(grid, share)) for share in shares]
        return min(totals), max(totals)

    def keep_at(self, step: int) -> float:
        """Budget of a step: a pure function of (seed, step)."""
        shares = self.config.selector.keep_curriculum
        rng = np.random.default_rng([self.config.run.seed, step])
        return shares[int(rng.integers(len(shares)))]

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        features = self.model.encode(batch)
        keep = self.keep_at(step)
        learning = self.config.selector.learning
        if learning == "distill" or step < self.config.selector.distill_steps:
            imitation = self.model.imitation_loss(features, denominator=denominator, keep=keep)
            weight = self.config.selector.distill_weight
            share = (batch["labels"][:, 1:] != IGNORE_INDEX).sum() / denominator
            return {"loss": weight * imitation, "imitation": imitation.detach() / share}
        with recomputed_layers(self.model.base, on=self.config.training.gradient_checkpointing):
            if learning == "noise":
                noise = Noise.at(self.config, step=step, sample_ids=batch["sample_ids"])
                answer, gated = noisy_answer_loss(
                    self.model, features, keep=keep, denominator=denominator, noise=noise
                )
            elif learning == "multiply":
                hardness = hardness_at(self.config, step=step)
                answer, gated = multiplied_answer_loss(
                    self.model, features, keep=keep, denominator=denominator, hardness=hardness
                )
            else:
                answer, gated = self.model.answer_loss(features, keep=keep, denominator=denominator)
        return {
            "loss": answer.total,
            "token_accuracy": answer.token_accuracy,
            "keep": torch.tensor(keep),
            **_observations(gated),
        }

    @torch.no_grad()  # not inference_mode: FSDP2 keeps its gathered weights for the next step
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Exact-match accuracy of generated answers at the configured budget, per kind."""
        self.model.eval()

        def answer(samples: list[Sample]) -> list[str]:
            batch = self.renderer.batch(samples, with_answer=False)
            device = self.model.device
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            new_BT = self.model.generate_reduced(
                self.model.reduce(batch), max_new_tokens=self.config.eval.max_new_tokens
            )
            return self.renderer.decode(new_BT)

        return accuracy_by_kind(
            source, limit=limit, batch_size=self.config.eval.batch_size, answer=answer
        )

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """One group per part of the selector, scores apart: a dead score is named."""
        named: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.model.selector.named_parameters():
            parts = name.split(".")
            depth = 2 if parts[0] == "scores" else 1
            named[".".join(parts[:depth])].append(parameter)
        return dict(named)

    def finish(self, run: RunDir) -> None:
        self.model.eval()
        self.model.save_pretrained(run.path / "model")


def _open_cache(config: Config, model: RelevanceModel) -> FeatureCache | None:
    """The cache of visual features the configuration asks for."""
    selector = config.selector
    if selector.feature_cache is None:
        return None
    if config.training.parallel == "fsdp":
        raise InputError(
            "selector.feature_cache with training.parallel=fsdp: a sharded tower must run on every"
            " process or on none, and a cache decides that image by image"
            "\n  fix: use training.parallel=ddp, or leave selector.feature_cache out"
        )
    store = TensorStore(selector.feature_cache, max_bytes=int(selector.feature_cache_gb * 1e9))
    return FeatureCache(store, base=model.base, layout=model.layout)


def _observations(gated: Gated) -> dict[str, Tensor]:
    """What the selector is doing, for the log: weights, tensions, softness of the choice."""
    scored = gated.scored
    seen = {f"weight_{name}": value.detach().mean() for name, value in scored.weights.items()}
    for column, name in enumerate(("compress", "explore", "diversify")):
        seen[f"tension_{name}"] = scored.tension_I3[:, column].detach().mean()
    chosen = gated.soft_N.detach()[gated.hard_N]
    seen["gate_confidence"] = chosen.mean()
    return seen
