"""Recipe `sft`: supervised fine-tuning on answers, by LoRA or of the whole language model.

In go samples; out come an adapter and a merged model that every other recipe can start from. Only
the answer and its end mark are supervised (`data/chat.py`); the loss is TRL's (mean negative
log-likelihood over the step's supervised tokens), computed at those positions alone. With
`sft.selector` the model learns to answer from the visual tokens a trained selector leaves. Left
out: training the selector (`relevance`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.chat import ChatMarkers, Encoded
from saccade.data.packing import pack, prefix_length
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.losses import supervised_loss
from saccade.models.packed import additive, packed_inputs
from saccade.training.recipes.before import BesideBefore
from saccade.training.recipes.learner import Learner
from saccade.training.rundir import RunDir


class SftRecipe:
    """What the training loop needs to know about `sft`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        settings = config.sft
        if settings.packing and config.model.attention == "flash_attention_2":
            raise InputError(
                "sft.packing with model.attention=flash_attention_2: what packed questions may see"
                " of each other is an attention mask, and FlashAttention takes none"
                "\n  fix: model.attention=sdpa, or sft.packing=false"
            )
        self.learner = Learner(
            config,
            lora=settings.adapter == "lora",
            selector=settings.selector,
            vision=settings.vision,
            parts=settings.train,
        )
        self.model: nn.Module = self.learner.model
        self.processor = self.learner.processor
        self.measured = BesideBefore(self.learner)

    def train_source(self) -> SampleSource:
        return open_source(self.config.data.train)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        if not self.config.sft.packing:
            return self.learner.renderer.batch(samples, with_answer=True)
        return self._packed(samples)

    def _packed(self, samples: list[Sample]) -> dict[str, Any]:
        """One row per image: its prefix, then each question with its answer."""
        renderer, base = self.learner.renderer, self.learner.base
        encoded = [renderer.encode(sample, with_answer=True) for sample in samples]
        groups = _same_prefix(encoded, samples, markers=renderer.markers)
        rows = pack(groups, markers=renderer.markers)
        mask = additive(rows.block_mask(), dtype=base.dtype)
        inputs = packed_inputs(rows, base=base, markers=renderer.markers)
        return inputs | {"attention_mask": mask, "sample_ids": [sample.id for sample in samples]}

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        reading = self.learner.read(batch, labels=batch["labels"])
        states_BSD = self.learner.states(reading)
        answer = supervised_loss(
            self.learner.base.lm_head, states_BSD, reading.labels_BS, denominator=denominator
        )
        return {"loss": answer.total, "token_accuracy": answer.token_accuracy}

    @torch.no_grad()
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Exact-match accuracy per kind, and the input model's on the same samples."""
        return self.measured.accuracy(source, limit=limit)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return self.learner.groups()

    def finish(self, run: RunDir) -> None:
        self.learner.save(run)


def _same_prefix(
    encoded: list[Encoded], samples: list[Sample], *, markers: ChatMarkers
) -> list[list[Encoded]]:
    """Neighbours whose words up to the end of the last image are the same; text stands alone."""
    groups: list[list[Encoded]] = []
    last: tuple[str | None, Tensor] | None = None
    for one, sample in zip(encoded, samples, strict=True):
        prefix = one.input_ids_L[: prefix_length(one, markers=markers)]
        shared = last is not None and sample.image_key is not None and last[0] == sample.image_key
        if shared and last is not None and torch.equal(last[1], prefix):
            groups[-1].append(one)
        else:
            groups.append([one])
        last = sample.image_key, prefix
    return groups
