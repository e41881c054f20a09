"""The second way to teach a selector: variance-preserving noise instead of an attention gate.

A visual token that matters little is drowned rather than masked: x -> sqrt(a) x + sqrt(1 - a) e,
with a the soft top-K gate and e normal noise of that image's own mean and deviation in every
channel, on the visual tokens and on every DeepStack level (arXiv 2605.28051, re-implemented from
its formula). The language model reads an ordinary sequence under its ordinary mask, and the plain
answer loss pulls the gate open where signal is missed. The gate starts soft and hardens over the
steps; at test time tokens are dropped, as always. Noise is drawn per image from (run seed, step,
sample), so a resumed run, another batch size and another number of processes draw the same.

In go visual features and a `Noise`; out come the loss and the choice behind it. Left out: the
attention gate (`gates.py`), which `RelevanceModel.forward` uses in training mode in every arm,
since a trainer that is not ours names neither step nor sample; and imitation (`teacher.py`), which
is the warm start of both arms and, alone, the third one.

Shapes: N cells of all images, C cells of one image, I images, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from saccade.config.schema import Config
from saccade.models.losses import SupervisedLoss, supervised_loss
from saccade.models.relevance.allocate import top_k
from saccade.models.relevance.gates import soft_choice
from saccade.models.relevance.glance import uncovered
from saccade.models.relevance.model import Gated, RelevanceModel, VisualFeatures
from saccade.models.relevance.prune import ImageTokens, LanguageInputs
from saccade.models.relevance.reduce import put_preview

SQRT_FLOOR = 1e-6
"""Added below the roots: the slope of a root at 0 is infinite."""


@dataclass(frozen=True)
class Noise:
    """What one step's noise is made from: how soft the gate is, and whose noise it is."""

    temperature: float
    seed: int
    step: int
    sample_ids: Sequence[str]

    @classmethod
    def at(cls, config: Config, *, step: int, sample_ids: Sequence[str]) -> Noise:
        """The noise of a run's step."""
        temperature = temperature_at(config, step=step)
        return cls(temperature, config.run.seed, step, tuple(sample_ids))

    def generator(self, image: str, *, device: torch.device) -> torch.Generator:
        """A generator of its own for each image of each sample at each step."""
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{image}".encode()).digest()
        number = int.from_bytes(digest[:8], "big") >> 1
        return torch.Generator(device=device).manual_seed(number)


def temperature_at(config: Config, *, step: int) -> float:
    """Geometric from `noise_temperature` at the end of the warm start to its `_end` at the last."""
    selector = config.selector
    last = config.training.steps - 1
    share = (step - selector.distill_steps) / max(1, last - selector.distill_steps)
    share = min(1.0, max(0.0, share))
    ratio = selector.noise_temperature_end / selector.noise_temperature
    return selector.noise_temperature * ratio**share


def noisy_answer_loss(
    model: RelevanceModel,
    features: VisualFeatures,
    *,
    keep: int | float,
    denominator: Tensor | float,
    noise: Noise,
) -> tuple[SupervisedLoss, Gated]:
    """Cross-entropy of the answers read from noisy visual tokens; see `supervised_loss`."""
    chosen = drown(model, features, keep=keep, noise=noise)
    hidden = model.base.model(**chosen.arguments, use_cache=False).last_hidden_state
    labels = chosen.inputs.labels_BS
    assert labels is not None
    loss = supervised_loss(model.base.lm_head, hidden, labels, denominator=denominator)
    return loss, chosen


def drown(
    model: RelevanceModel, features: VisualFeatures, *, keep: int | float, noise: Noise
) -> Gated:
    """Full-length inputs whose visual tokens are the noisier the less the selector wants them."""
    names = _image_names(features, noise)
    return softened(
        model,
        features,
        keep=keep,
        temperature=noise.temperature,
        change=lambda images, gates: add_noise(images, gates, names=names, noise=noise),
    )


def softened(
    model: RelevanceModel,
    features: VisualFeatures,
    *,
    keep: int | float,
    temperature: float,
    change: Callable[[ImageTokens, Sequence[Tensor]], ImageTokens],
) -> Gated:
    """Full-length inputs whose visual tokens were changed by each image's soft gates."""
    inputs, grid = features.whole(), features.grid
    assert inputs.images is not None
    kept = model.budgets(grid, keep)
    scored = model.score(features, kept=kept)
    kept_I = torch.tensor(kept, device=model.device)
    soft_N = soft_choice(scored, grid, kept_I=kept_I, temperature=temperature)
    inputs = replace(inputs, images=change(inputs.images, soft_N.split(grid.counts)))
    hard_N = top_k(scored.logits_N, cells=grid.counts, kept=kept)
    if features.preview is not None:
        inputs = put_preview(model, features, inputs, short=[True] * len(kept))
        inputs = _hide_covered(model, features, inputs, hard_N=hard_N)
    return Gated(
        scored=scored,
        hard_N=hard_N,
        soft_N=soft_N,
        kept_I=kept_I,
        inputs=inputs,
        arguments=inputs.forward_arguments(),
    )


def _hide_covered(
    model: RelevanceModel, features: VisualFeatures, inputs: LanguageInputs, *, hard_N: Tensor
) -> LanguageInputs:
    """Mask the preview's tokens where cells were chosen, as dropping them would."""
    assert features.preview is not None
    keeps = features.grid.split(hard_N)
    rest = uncovered(features.preview, keeps)
    seen_N = torch.cat(
        [F.pad(a, (0, b.numel()), value=True) for a, b in zip(rest, keeps, strict=True)]
    )
    mask_BS = inputs.attention_mask_BS
    image_BS = inputs.input_ids_BS == model.markers.image
    return replace(
        inputs,
        attention_mask_BS=mask_BS.masked_scatter(image_BS, seen_N.to(mask_BS.dtype)),
    )


def add_noise(
    images: ImageTokens, gates: Sequence[Tensor], *, names: Sequence[str], noise: Noise
) -> ImageTokens:
    """Mix every token and its DeepStack rows with noise of the same mean and variance."""
    generators = [
        noise.generator(name, device=rows.device)
        for name, rows in zip(names, images.pooled, strict=True)
    ]
    # an image's own generator runs through its tokens, then through its levels in their order
    return images.map(lambda i, rows: _mixed(rows, gates[i], generator=generators[i]))


def _mixed(rows_CD: Tensor, gate_C: Tensor, *, generator: torch.Generator) -> Tensor:
    signal_CD = rows_CD.float()
    deviation_D, mean_D = torch.std_mean(signal_CD, dim=0, correction=0)
    drawn_CD = torch.randn(signal_CD.shape, generator=generator, device=signal_CD.device)
    noise_CD = mean_D + deviation_D * drawn_CD
    gate_C1 = gate_C.float()[:, None]
    mixed_CD = (gate_C1 + SQRT_FLOOR).sqrt() * signal_CD
    mixed_CD = mixed_CD + (1 - gate_C1 + SQRT_FLOOR).sqrt() * noise_CD
    return mixed_CD.to(rows_CD.dtype)


def _image_names(features: VisualFeatures, noise: Noise) -> list[str]:
    """`SAMPLE/NUMBER` for each image: what it is called in any batch."""
    rows = features.sample_of_image_I.tolist()
    return [f"{noise.sample_ids[row]}/{rows[:i].count(row)}" for i, row in enumerate(rows)]
