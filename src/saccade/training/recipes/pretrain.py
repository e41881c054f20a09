"""Recipe `pretrain`: teach a projector to join a vision tower and a language model.

In go samples with a picture and a caption; out comes a plain base model folder that every other
recipe loads. The schedule (`pretrain.schedule`) is a list of phases: contrastive ones match a
picture's projected tokens with the caption's states in the language model, captioning ones let the
language model write the caption behind the picture. Each phase has its resolution, the least
quality of its pairs, and the parts that learn; whatever else the schedule ever unfreezes keeps its
gradient empty in that phase, so the optimizer passes it over, and the rest is frozen. A phase is a
function of the step, and what a step sees is a function of its position, so a run resumes inside
any phase. Left out: resolutions above what the model was made for, and packing.

Shapes: B samples, L tokens, N cells of all images, D width.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.config.stage_pretrain import PretrainPhase
from saccade.data.chat import IGNORE_INDEX, ChatRenderer
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.backbone import Backbone, load_backbone, pick_device
from saccade.models.contrastive import Matcher, Pairs, micro_batch_loss, similarities
from saccade.models.losses import SupervisedLoss, supervised_loss
from saccade.models.projector import join, parts_of, refresh
from saccade.models.recompute import recomputed_layers
from saccade.training.batches import SampleOrder
from saccade.training.rundir import RunDir

PAIR_ENTRIES = ("text_ids", "text_mask", "images_of", "pair_keys", "pair_weight")
"""What a batch holds for matching."""


class PhasedSource:
    """Exactly the samples of a run, step by step; each knows its phase.

    Position p belongs to step p // samples_per_step. Within a phase the order is the usual shuffle
    of the pairs good enough for it.
    """

    ordered = True

    def __init__(
        self, source: SampleSource, *, ends: list[int], least: list[float], per_step: int, seed: int
    ) -> None:
        self.source = source
        self.ends = ends
        self.per_step = per_step
        values = _qualities(source) if max(least) > 0 else []  # reads every pair: once a run
        kept = {q: _good_groups(source, values=values, at_least=q) for q in set(least)}
        orders = {q: SampleOrder(g, seed=seed, keep_order=False) for q, g in kept.items()}
        self._orders = [orders[quality] for quality in least]

    def __len__(self) -> int:
        return self.ends[-1] * self.per_step

    def __getitem__(self, position: int, /) -> Sample:
        if not 0 <= position < len(self):
            raise IndexError(position)
        phase = bisect_right(self.ends, position // self.per_step)
        (index,) = self._orders[phase].take(position, 1)
        sample = self.source[index]
        return replace(sample, facts={**sample.facts, "phase": phase})

    def groups(self) -> list[list[int]]:
        """One group: the order is the schedule's."""
        return [list(range(len(self)))]

    def fingerprint(self) -> str:
        """The pairs' own."""
        return self.source.fingerprint()


class PretrainModel(nn.Module):
    """The joined model, and what only the contrastive loss needs."""

    def __init__(self, base: nn.Module, matcher: Matcher) -> None:
        super().__init__()
        self.base = base
        self.matcher = matcher


class PretrainRecipe:
    """What the training loop needs to know about `pretrain`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.phases_of_run = config.pretrain.phases()
        steps = config.training.steps
        self.ends = [round(phase.until * steps) for phase in self.phases_of_run]
        backbone = _joined(config)
        self.processor, self.base = backbone.processor, backbone.model
        self._whole: Pairs | None = None
        matcher = Matcher(
            self.base.config.text_config.hidden_size, temperature=config.pretrain.temperature
        )
        self.model = PretrainModel(self.base, matcher.to(self.base.device))
        self._active = [self._trained_in(phase) for phase in self.phases_of_run]
        ever = set().union(*self._active)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in ever)
        self._refuse_what_cannot_recompute(ever)
        self.renderers = [self._renderer(phase) for phase in self.phases_of_run]

    @property
    def matches(self) -> bool:
        """Whether any phase is contrastive."""
        return any(map(_matches, self.phases_of_run))

    def train_source(self) -> SampleSource:
        training = self.config.training
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        return PhasedSource(
            open_source(self.config.data.train),
            ends=self.ends,
            least=[phase.data.min_quality for phase in self.phases_of_run],
            per_step=training.batch_size * training.accumulation * processes,
            seed=self.config.run.seed,
        )

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        phase = int(samples[0].facts.get("phase", 0))
        if self.phases_of_run[phase].task == "caption":
            batch = self.renderers[phase].batch(samples, with_answer=True)
            if _matches(self.phases_of_run[phase]):
                pairs = self.pair_batch(samples, renderer=self.renderers[phase])
                tokens_B = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1)
                batch |= {name: pairs[name] for name in PAIR_ENTRIES}
                batch["pair_weight"] = tokens_B.float()
        else:
            pairs = self.pair_batch(samples, renderer=self.renderers[phase])
            batch = pairs | {"input_ids": pairs["text_ids"], "attention_mask": pairs["text_mask"]}
        return batch | {"phase": phase}

    def pair_batch(self, samples: list[Sample], *, renderer: ChatRenderer) -> dict[str, Any]:
        """Pictures and caption tokens apart; one supervised item (`labels`) per pair."""
        encoded = [renderer.encode(sample, with_answer=False) for sample in samples]
        for sample, one in zip(samples, encoded, strict=True):
            if one.grid_I3 is None or not sample.answer.strip():
                raise DataError(
                    "pretraining needs a picture and its caption",
                    where=str(sample.facts.get("where") or f"sample {sample.id}"),
                    fix="fill both in, or drop the row",
                )
        end = renderer.markers.turn_end
        texts = [renderer.tokenizer(s.answer, add_special_tokens=False) for s in samples]
        ids = [torch.tensor([*text["input_ids"], end]) for text in texts]
        # padding on the right: a causal model's earlier states never see it
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "text_ids": pad(ids, batch_first=True, padding_value=renderer.markers.pad),
            "text_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": torch.zeros(len(samples), 1, dtype=torch.long),
            "pixel_values": torch.cat([e.pixels_ND for e in encoded if e.pixels_ND is not None]),
            "image_grid_thw": torch.cat([e.grid_I3 for e in encoded if e.grid_I3 is not None]),
            "images_of": torch.tensor([len(sample.images) for sample in samples]),
            "pair_keys": torch.tensor(
                [[_key(s.image_key or s.id), _key(s.answer)] for s in samples]
            ),
            "pair_weight": torch.ones(len(samples)),
            "sample_ids": [sample.id for sample in samples],
        }

    # losses ----------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        phase = self.phases_of_run[batch["phase"]]
        with self._only(self._active[batch["phase"]]):
            seen = self._see(batch)
            matching: dict[str, Tensor] = {}
            if _matches(phase):
                matching = self._matching_loss(batch, seen, denominator=denominator)
            if phase.task == "contrastive":
                return matching
            answer = self.caption_loss(batch, seen, denominator=denominator)
        total = answer.total
        if matching:
            total = total + phase.matching * matching["loss"]
        return matching | {
            "loss": total,
            "caption_loss": answer.total.detach() / (answer.tokens / denominator),
            "token_accuracy": answer.token_accuracy,
        }

    def caption_loss(
        self, batch: dict[str, Any], seen: Any, *, denominator: Tensor | float
    ) -> SupervisedLoss:
        """Next-token cross-entropy of the captions behind their pictures."""
        names = ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")
        inputs = {name: batch[name] for name in names if name in batch}
        inputs["mm_encoder_outputs"] = {"image": seen}
        recompute = self.config.training.gradient_checkpointing and torch.is_grad_enabled()
        with recomputed_layers(self.base, on=recompute):
            hidden_BLD = self.base.model(**inputs, use_cache=False).last_hidden_state
        head = self.base.lm_head
        return supervised_loss(head, hidden_BLD, batch["labels"], denominator=denominator)

    def _see(self, batch: dict[str, Any]) -> Any:
        """What the tower and the projector make of a batch's pictures."""
        return self.base.model.get_image_features(
            batch["pixel_values"], batch["image_grid_thw"], return_dict=True
        )

    def _matching_loss(
        self, batch: dict[str, Any], seen: Any, *, denominator: Tensor
    ) -> dict[str, Tensor]:
        own = self.pairs(batch, seen)
        rows_B = batch.get("pair_rows")
        whole = own.detached() if rows_B is None or self._whole is None else self._whole
        if rows_B is None:
            rows_B = torch.arange(len(own.image_ND), device=own.image_ND.device)
        log_scale = self.model.matcher.log_scale
        total = micro_batch_loss(whole, own, rows_B, log_scale) / denominator
        share = own.weight_N.sum() / denominator
        with torch.no_grad():
            score_BN = similarities(whole.with_rows(own, rows_B), log_scale)[rows_B]
            right = (score_BN.argmax(1) == rows_B).float().mean()
        return {
            "loss": total,
            "contrastive_loss": total.detach() / share,
            "pair_accuracy": right,
            "temperature": (-log_scale.detach()).exp(),
        }

    def pairs(self, batch: dict[str, Any], seen: Any) -> Pairs:
        """Unit vectors of a batch's pictures and captions."""
        learns = any(p.requires_grad for p in self.base.model.language_model.parameters())
        with nullcontext() if learns and torch.is_grad_enabled() else torch.no_grad():
            states_BLD = self.base.model.language_model(
                input_ids=batch["text_ids"], attention_mask=batch["text_mask"], use_cache=False
            ).last_hidden_state
        real_BL1 = batch["text_mask"][..., None].to(states_BLD.dtype)
        text_BD = self.model.matcher.text((states_BLD * real_BL1).sum(1) / real_BL1.sum(1))
        return Pairs(
            _unit(self._pictures(batch, seen)), _unit(text_BD),
            batch["pair_keys"], batch["pair_weight"],
        )  # fmt: skip

    def _pictures(self, batch: dict[str, Any], seen: Any) -> Tensor:
        """[B, D]: mean over a sample's cells of all that the projector adds to the residual stream.

        That is the merger's token and, at their layers, the DeepStack mergers' additions to it.
        """
        levels = [seen.pooler_output, *seen.deepstack_features]
        cells = torch.stack([torch.cat(list(level)) for level in levels]).sum(0)
        counts = [len(one) for one in seen.pooler_output]
        of_sample = torch.repeat_interleave(batch["images_of"]).tolist()
        per_sample: list[list[Tensor]] = [[] for _ in batch["sample_ids"]]
        for sample, rows in zip(of_sample, cells.split(counts), strict=True):
            per_sample[sample].append(rows)
        return torch.stack([torch.cat(rows).mean(0) for rows in per_sample])

    @torch.no_grad()
    def prepare_step(self, batches: list[dict[str, Any]]) -> None:
        """Vectors of all pairs of a step, before its first micro-batch: everybody's negatives.

        Adds `pair_rows` to each batch: where its pairs stand among all.
        """
        self._whole = None
        if not _matches(self.phases_of_run[batches[0]["phase"]]):
            return
        device = self.base.device
        moved = [
            {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            for batch in batches
        ]
        own = Pairs.joined([self.pairs(batch, self._see(batch)) for batch in moved])
        world = dist.get_world_size() if dist.is_initialized() else 1
        start = len(own.image_ND) * (dist.get_rank() if world > 1 else 0)
        self._whole = _from_all(own, world=world)
        for batch in batches:
            size = len(batch["text_ids"])
            batch["pair_rows"] = torch.arange(start, start + size)
            start += size

    # evaluation ------------------------------------------------------------------------------

    @torch.no_grad()  # not inference_mode: FSDP2 keeps its gathered weights for the next step
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Retrieval among the first `limit` held-out pairs, and the loss of their captions."""
        self.model.eval()
        renderer, size = self.renderers[-1], self.config.eval.batch_size
        end = min(limit, len(source))
        pairs, sums = [], defaultdict[str, float](float)
        for start in range(0, end, size):
            samples = [source[i] for i in range(start, min(start + size, end))]
            captions = self._moved(renderer.batch(samples, with_answer=True))
            tokens = int((captions["labels"][:, 1:] != IGNORE_INDEX).sum())
            seen = self._see(captions)
            loss = self.caption_loss(captions, seen, denominator=1.0)
            sums["caption_loss"] += float(loss.total)
            sums["caption_accuracy"] += float(loss.token_accuracy) * tokens
            sums["tokens"] += tokens
            if self.matches:
                batch = self._moved(self.pair_batch(samples, renderer=renderer))
                pairs.append(self.pairs(batch, seen))
        tokens = max(1.0, sums.pop("tokens"))
        metrics = {name: value / tokens for name, value in sums.items()}
        return (recalls(Pairs.joined(pairs)) if pairs else {}) | metrics

    def groups(self) -> dict[str, list[nn.Parameter]]:
        named: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                named[_group(name)].append(parameter)
        return dict(named)

    def resting(self, step: int) -> set[str]:
        """Groups that do not learn at this step, which is no fault of theirs."""
        active = self._active[self.phase_at(step)]
        everything = {n for n, p in self.model.named_parameters() if p.requires_grad}
        return {_group(name) for name in everything} - {_group(name) for name in active}

    def phase_at(self, step: int) -> int:
        """The phase of the step after `step` steps."""
        return min(bisect_right(self.ends, step), len(self.ends) - 1)

    def finish(self, run: RunDir) -> None:
        """Write the joined model to the run; the contrastive head stays behind."""
        folder = run.path / "model"
        base = self.base
        if self.config.training.parallel == "fsdp":
            # frozen layers are shared out and the other processes gone: they are where they were
            base = _joined(self.config).model
            trained = {n: p for n, p in self.base.named_parameters() if p.requires_grad}
            with torch.no_grad():
                for name, parameter in base.named_parameters():
                    if name in trained:
                        parameter.copy_(trained[name])
        base.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    # helpers ---------------------------------------------------------------------------------

    def _trained_in(self, phase: PretrainPhase) -> set[str]:
        names = {f"base.{name}" for name in parts_of(self.base, phase.train)}
        if _matches(phase):
            names |= {f"matcher.{name}" for name, _ in self.model.matcher.named_parameters()}
        return names

    @contextmanager
    def _only(self, active: set[str]) -> Iterator[None]:
        """Within the block nothing else records a graph; afterwards all is trainable as before.

        Optimizer, checkpoints and DDP know one fixed set of trained tensors. In a phase some of
        them get no gradient at all, and AdamW leaves such tensors and their moments alone.
        """
        named = self.model.named_parameters()
        resting = [p for name, p in named if p.requires_grad and name not in active]
        for parameter in resting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)

    def _renderer(self, phase: PretrainPhase) -> ChatRenderer:
        model = self.config.model
        return ChatRenderer(
            self.processor,
            min_pixels=model.min_pixels,
            max_pixels=phase.max_pixels or model.max_pixels,
        )

    def _moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.base.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _refuse_what_cannot_recompute(self, ever: set[str]) -> None:
        if self.config.training.gradient_checkpointing and any(".layers." in n for n in ever):
            raise InputError(
                "training.gradient_checkpointing with a schedule that trains language blocks in"
                " some phases: a layer computed again later would not know what rested"
                "\n  fix: leave gradient_checkpointing out, or language out of `train`"
            )


def recalls(pairs: Pairs) -> dict[str, float]:
    """Share of pictures whose best caption is theirs, the reverse, and the worse one over chance.

    An equal caption (or picture) counts as right; chance is one in all candidates.
    """
    score_NN = pairs.image_ND @ pairs.text_ND.T
    same_NN = (pairs.keys_N2[:, None] == pairs.keys_N2[None]).any(-1)
    count = len(score_NN)
    row_N = torch.arange(count, device=score_NN.device)
    to_text = float(same_NN[row_N, score_NN.argmax(1)].float().mean())
    to_image = float(same_NN[score_NN.argmax(0), row_N].float().mean())
    return {
        "recall_at_1": to_text,
        "recall_at_1_image": to_image,
        "recall_over_chance": min(to_text, to_image) / float(same_NN.float().mean()),
    }


def _matches(phase: PretrainPhase) -> bool:
    return phase.task == "contrastive" or phase.matching > 0


def _joined(config: Config) -> Backbone:
    pretrain, seed = config.pretrain, config.run.seed
    if pretrain.vision or pretrain.language:
        return join(
            config.model,
            vision=pretrain.vision or config.model.name,
            language=pretrain.language or config.model.name,
            seed=seed,
        )
    backbone = load_backbone(config.model, device=pick_device(config.model))
    if backbone.model.config.model_type != "qwen3_vl":
        raise InputError(
            f"model.name={config.model.name}: pretrain needs a model of type qwen3_vl, this is"
            f" {backbone.model.config.model_type}\n  fix: name a Qwen3-VL"
        )
    if pretrain.projector == "fresh":
        refresh(backbone, seed=seed)
    return backbone


def _qualities(source: SampleSource) -> list[float]:
    known = getattr(source, "qualities", None)
    return list(known()) if known else [_quality(source, i) for i in range(len(source))]


def _good_groups(source: SampleSource, *, values: list[float], at_least: float) -> list[list[int]]:
    if at_least <= 0:
        return source.groups()
    kept = [[i for i in group if values[i] >= at_least] for group in source.groups()]
    kept = [group for group in kept if group]
    if not kept:
        raise InputError(
            f"pretrain.schedule: no pair of data.train has quality {at_least:g} or more"
            f" (the best has {max(values):g})\n  fix: lower data.min_quality"
        )
    return kept


def _quality(source: SampleSource, position: int) -> float:
    try:
        return float(source[position].facts.get("quality", 1.0))
    except DataError:
        return 1.0  # reported, with its advice, when its turn comes


def _from_all(own: Pairs, *, world: int) -> Pairs:
    if world == 1:
        return own

    def gathered(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    parts = (own.image_ND, own.text_ND, own.keys_N2, own.weight_N)
    return Pairs(*map(gathered, parts))


def _unit(vector_BD: Tensor) -> Tensor:
    return nn.functional.normalize(vector_BD.float(), dim=-1)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _group(name: str) -> str:
    """`base.model.visual.blocks.1.attn...` -> `visual.blocks.1`."""
    words = name.removeprefix("base.model.").split(".")
    depth = 3 if len(words) > 2 and words[2].isdigit() else 2
    return ".".join(words[:depth])
