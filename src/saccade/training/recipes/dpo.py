"""Recipe `dpo`: learn from pairs of a preferred and a rejected answer about an image.

In go samples with a rejected answer (`data/preferences.py`); out come an adapter and a merged
model. The loss is DPO's, -log sigmoid(beta * margin), with the margin of implicit rewards against
the reference, and a mean over the step's pairs. The reference is the same model with its adapter
switched off: no second copy, and the images are encoded once for both. TRL's loss on the same
batch is equal. Left out: other losses of the family, and training without an adapter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from saccade.config.schema import Config
from saccade.data.preferences import pair_batch
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.losses import answer_log_probs, preference_margins
from saccade.training.recipes.before import BesideBefore
from saccade.training.recipes.learner import Learner, Reading
from saccade.training.rundir import RunDir


class DpoRecipe:
    """What the training loop needs to know about `dpo`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.learner = Learner(config, lora=True, selector=config.dpo.selector)
        self.model: nn.Module = self.learner.model
        self.processor = self.learner.processor
        self.measured = BesideBefore(self.learner)

    def train_source(self) -> SampleSource:
        return open_source(self.config.data.train)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        return pair_batch(self.learner.renderer, samples)

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        policy_B, reference_B = self.log_probs(batch)
        margin_P = preference_margins(policy_B, reference_B, beta=self.config.dpo.beta)
        total = -nn.functional.logsigmoid(margin_P).sum() / denominator
        moved_P2 = (policy_B - reference_B).detach().unflatten(0, (-1, 2)).mean(0)
        return {
            "loss": total,
            "preference_margin": margin_P.detach().mean(),
            "preference_accuracy": (margin_P.detach() > 0).float().mean(),
            "chosen_log_ratio": moved_P2[0],
            "rejected_log_ratio": moved_P2[1],
        }

    def log_probs(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """[B] each: log-probability of every answer under the model, and under the reference."""
        reading = self.learner.read(batch, labels=batch["answer_labels"])
        with torch.no_grad(), self.learner.as_it_was():
            reference_B = self._of_answers(reading)
        return self._of_answers(reading), reference_B

    def _of_answers(self, reading: Reading) -> Tensor:
        states_BSD = self.learner.states(reading)
        return answer_log_probs(self.learner.base.lm_head, states_BSD, reading.labels_BS)

    @torch.no_grad()  # not inference_mode: FSDP2 keeps its gathered weights for the next step
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Margins on held-out pairs, and the accuracy of generated answers beside the input's.

        `preference_margin` is the mean difference of implicit rewards (0 for the input model) and
        `preference_accuracy` the share of pairs where it is positive; `preference_likelier` is the
        share whose preferred answer has the higher probability, with the input model's beside it.
        """
        seen: dict[str, list[float]] = defaultdict(list)

        def compare(samples: list[Sample]) -> None:
            batch = self.collate(samples)
            device = self.learner.base.device
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            for name, values in self._preferences(moved).items():
                seen[name] += values.tolist()

        scores = self.measured.accuracy(source, limit=limit, also=compare)
        return {**scores, **{name: sum(values) / len(values) for name, values in seen.items()}}

    def _preferences(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        policy_B, reference_B = self.log_probs(batch)
        margin_P = preference_margins(policy_B, reference_B, beta=self.config.dpo.beta)
        pairs_P2, was_P2 = policy_B.unflatten(0, (-1, 2)), reference_B.unflatten(0, (-1, 2))
        return {
            "preference_margin": margin_P,
            "preference_accuracy": (margin_P > 0).float(),
            "preference_likelier": (pairs_P2[:, 0] > pairs_P2[:, 1]).float(),
            "preference_likelier_before": (was_P2[:, 0] > was_P2[:, 1]).float(),
        }

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return self.learner.groups()

    def finish(self, run: RunDir) -> None:
        self.learner.save(run)
