"""Recipe `tiny-base`: train a tiny Qwen3-VL from scratch, or any Qwen-VL in full.

In go samples; out comes a plain base model folder (weights, tokenizer, processor) that every
other recipe loads. All questions about an image share one packed row. On generated scenes an
auxiliary loss names each cell's content from its visual token: without it the language loss alone
stays at chance for a very long time, because nothing tells the vision tower what to represent. A
second one draws the middle layer's attention to the cells that carry the answer. Part of the
pictures have holes (`holes.py`), so that the base can read what a selector leaves of one. All three
use facts only the generator knows, and none exists at inference. `tiny_base.train` picks the part
that learns: first the vision tower by itself (a step needs no language model), then the language
model behind a tower whose blocks stand still.
Left out: LoRA and freezing (those are stages).

Shapes: R rows (images), L tokens, N cells of all images, D width, V vocabulary.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.config.schema import Config, ScenesSource
from saccade.data.chat import IGNORE_INDEX, ChatRenderer
from saccade.data.generate.scenes import CELL_TARGETS, SceneSource, cell_targets, vocabulary_texts
from saccade.data.packing import PackedRows, pack
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.backbone import load_backbone, pick_device
from saccade.models.losses import supervised_loss
from saccade.models.packed import additive, packed_inputs
from saccade.models.relevance.teacher import eager_attention
from saccade.models.relevance.vision import encode_cells
from saccade.models.tiny import build_model, build_processor, build_tokenizer, tiny_config
from saccade.scoring.accuracy import accuracy_by_kind
from saccade.training.recipes.holes import Needs, cells_to_encode, punch_holes

BACKGROUND_WEIGHT = 0.1
"""Cells without the attribute outnumber the others by far; they count this much."""


class CellReader(nn.Module):
    """Linear read-outs of a cell's content from its visual token, one per attribute."""

    def __init__(self, width: int, *, targets: Mapping[str, int] = CELL_TARGETS) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in targets.items()})

    def forward(self, cells_ND: Tensor, targets: dict[str, Tensor], *, counts: list[int]) -> Tensor:
        """[images]: weighted cross-entropy of an image's cells; target 0 is "nothing of it"."""
        per_head = []
        for name, head in self.heads.items():
            target_N = targets[name]
            weight_N = torch.where(target_N == 0, BACKGROUND_WEIGHT, 1.0)
            each_N = nn.functional.cross_entropy(head(cells_ND.float()), target_N, reduction="none")
            parts = zip((each_N * weight_N).split(counts), weight_N.split(counts), strict=True)
            per_head.append(torch.stack([loss.sum() / weight.sum() for loss, weight in parts]))
        return torch.stack(per_head).mean(0)


def groups_of_whole(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """One group per block of a base that is trained whole, and one for each part outside them."""
    named: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = ".".join(p for p in name.split(".")[:5] if p not in ("base", "model"))
            named[part.removesuffix(".weight").removesuffix(".bias")].append(parameter)
    return dict(named)


def _needs(group: list[Sample], targets: dict[str, list[int]]) -> Needs:
    """What the questions about one image need of it; nothing is known but of generated scenes."""
    first = group[0]
    return Needs(
        key=first.image_key or first.id,
        grid=first.facts.get("grid", (0, 0)),
        things=[cell for cell, category in enumerate(targets.get("category", ())) if category],
        questions=[(sample.id, sample.facts.get("answer_cells") or ()) for sample in group],
    )


class TinyBaseModel(nn.Module):
    """The base and, for generated scenes, the auxiliary reader: everything that is trained."""

    def __init__(self, base: nn.Module, reader: CellReader) -> None:
        super().__init__()
        self.base = base
        self.reader = reader


def _choose_trained(base: Any, *, part: str) -> None:
    """Let the chosen part learn: what a stage's loss does not reach must not count as trained."""
    tower = base.model.visual
    base.requires_grad_(part != "vision")
    if part == "vision":
        tower.requires_grad_(True)
        tower.deepstack_merger_list.requires_grad_(False)
    elif part == "language":
        for frozen in (tower.patch_embed, tower.pos_embed, tower.blocks):
            frozen.requires_grad_(False)


class CurriculumSource:
    """Small scenes first, then full-size ones; the order is the curriculum, so never shuffled."""

    ordered = True

    def __init__(self, config: Config, full: ScenesSource) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        samples_per_step = config.training.batch_size * config.training.accumulation * processes
        images_per_step = samples_per_step // full.questions
        self.first = round(config.tiny_base.small_share * config.training.steps) * images_per_step
        changes = {
            "min_cells": config.tiny_base.small_cells * 3 // 4,
            "max_cells": config.tiny_base.small_cells * 5 // 4,
            "min_objects": max(1, config.tiny_base.small_objects - 1),
            "max_objects": config.tiny_base.small_objects + 1,
            "scenes": max(1, self.first),
        }
        self.questions = full.questions
        self.small = SceneSource(full.model_copy(update=changes))
        total = max(full.scenes, config.training.steps * images_per_step)
        self.full = SceneSource(full.model_copy(update={"scenes": total}))

    def __len__(self) -> int:
        return len(self.full)

    def __getitem__(self, position: int) -> Sample:
        source = self.small if position // self.questions < self.first else self.full
        return source[position]

    def groups(self) -> list[list[int]]:
        return self.full.groups()

    def fingerprint(self) -> str:
        return f"{self.small.fingerprint()}+{self.full.fingerprint()}"


class TinyBaseRecipe:
    """What the training loop needs to know about `tiny-base`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        device = pick_device(config.model)
        if config.tiny_base.train == "vision" and config.data.train.type != "scenes":
            raise InputError(
                f"tiny_base.train=vision learns from the facts of generated scenes, and "
                f"data.train.type is {config.data.train.type}"
                "\n  fix: data=scenes, or tiny_base.train=all"
            )
        if config.tiny_base.start == "scratch":
            tokenizer = build_tokenizer(vocabulary_texts(), vocab_size=config.arch.vocab_size)
            self.processor = build_processor(config.arch, tokenizer)
            base: Any = build_model(tiny_config(config.arch, tokenizer), seed=config.run.seed)
        else:
            backbone = load_backbone(config.model, device=device)
            self.processor, base = backbone.processor, backbone.model
        self.part = config.tiny_base.train
        _choose_trained(base, part=self.part)
        self.renderer = ChatRenderer(
            self.processor, min_pixels=config.model.min_pixels, max_pixels=config.model.max_pixels
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            reader = CellReader(base.config.text_config.hidden_size)
        # without scenes nothing trains the reader, and an untrained tensor is not "trainable"
        reader.requires_grad_(config.data.train.type == "scenes")
        self.model = TinyBaseModel(base, reader).to(device)
        self.base = base

    def train_source(self) -> SampleSource:
        source = self.config.data.train
        starts_small = self.config.tiny_base.small_share > 0
        if starts_small and isinstance(source, ScenesSource) and source.type == "scenes":
            return CurriculumSource(self.config, source)
        return open_source(source)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        groups = [list(group) for _, group in groupby(samples, key=lambda s: s.image_key or s.id)]
        encoded = [[self.renderer.encode(s, with_answer=True) for s in group] for group in groups]
        rows = pack(encoded, markers=self.renderer.markers)
        facts = [group[0].facts for group in groups]
        targets = [cell_targets(known["scene"]) if "scene" in known else {} for known in facts]
        batch = packed_inputs(rows, base=self.base, markers=self.renderer.markers) | {
            "attention_mask": rows.block_mask(),
            "sample_ids": [sample.id for sample in samples],
        }
        batch |= self._look_targets(groups, rows)
        if all(targets):
            batch["cell_targets"] = {
                name: torch.tensor([label for one in targets for label in one[name]])
                for name in CELL_TARGETS
            }
        if self.config.tiny_base.hole_share > 0:
            self._hide(batch, groups=groups, rows=rows, targets=targets)
        return batch

    def _hide(
        self,
        batch: dict[str, Any],
        *,
        groups: list[list[Sample]],
        rows: PackedRows,
        targets: list[dict[str, list[int]]],
    ) -> None:
        """Make holes in part of the pictures: in the tower's input, or in what questions see."""
        share = self.config.tiny_base.hole_share
        needs = [_needs(group, known) for group, known in zip(groups, targets, strict=True)]
        if self.part == "vision":
            batch["shown_cells"] = cells_to_encode(needs, share=share)
            return
        batch["attention_mask"] = punch_holes(
            batch["attention_mask"],
            rows=rows,
            image_RL=rows.input_ids_RL == self.renderer.markers.image,
            needs=needs,
            share=share,
        )

    def _look_targets(self, groups: list[list[Sample]], rows: PackedRows) -> dict[str, Tensor]:
        """Per question with known answer cells: row, last prompt token, the cells' tokens."""
        row_Q, asking_Q, tokens_Q, cells_QL = [], [], [], []
        image_RL = rows.input_ids_RL == self.renderer.markers.image
        learned_RL = rows.labels_RL != IGNORE_INDEX
        for row, group in enumerate(groups):
            tokens = image_RL[row].nonzero()[:, 0]
            for number, sample in enumerate(group, start=1):
                cells = sample.facts.get("answer_cells")
                if not cells:
                    continue
                first = (learned_RL[row] & (rows.segment_RL[row] == number)).nonzero()[0, 0]
                here_L = torch.zeros(rows.input_ids_RL.shape[1], dtype=torch.bool)
                here_L[tokens[cells]] = True
                row_Q.append(row)
                asking_Q.append(int(first) - 1)
                tokens_Q.append(int((learned_RL[row] & (rows.segment_RL[row] == number)).sum()))
                cells_QL.append(here_L)
        if not row_Q:
            return {}
        return {
            "look_row": torch.tensor(row_Q),
            "look_from": torch.tensor(asking_Q),
            "look_tokens": torch.tensor(tokens_Q),
            "look_at": torch.stack(cells_QL),
        }

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        base, settings = self.base, self.config.tiny_base
        if self.part == "vision":
            return self._vision_loss(batch, denominator)
        features = None
        if "pixel_values" in batch:
            features = base.model.get_image_features(
                batch["pixel_values"], batch["image_grid_thw"], return_dict=True
            )
        look = "look_at" in batch and settings.look_loss_weight > 0
        with eager_attention(base) if look else nullcontext():
            out = base.model(
                input_ids=batch["input_ids"],
                attention_mask=additive(batch["attention_mask"], dtype=base.dtype),
                position_ids=batch["position_ids"],
                mm_encoder_outputs={"image": features} if features is not None else None,
                output_attentions=look,
                use_cache=False,
            )
        answer = supervised_loss(
            base.lm_head, out.last_hidden_state, batch["labels"], denominator=denominator
        )
        metrics = {"loss": answer.total, "token_accuracy": answer.token_accuracy}
        # each auxiliary counts an image or a question by its supervised tokens, like the answers,
        # so that the sum over micro-batches does not depend on how a step is cut into them
        share = answer.tokens / denominator
        if look:
            look_Q = self._look_losses(out.attentions, batch)
            look_loss = (look_Q * batch["look_tokens"]).sum() / denominator
            metrics["loss"] = metrics["loss"] + settings.look_loss_weight * look_loss
            metrics["look_loss"] = look_loss.detach() / share
        if "cell_targets" in batch and features is not None and settings.cell_loss_weight > 0:
            cell_loss = self._cell_loss(
                features.pooler_output, batch["cell_targets"], batch, denominator
            )
            metrics["loss"] = metrics["loss"] + settings.cell_loss_weight * cell_loss
            metrics["cell_loss"] = cell_loss.detach() / share
        return metrics

    def _vision_loss(self, batch: dict[str, Any], denominator: Tensor) -> dict[str, Tensor]:
        """What the shown cells contain, from a tower that never sees the others."""
        pixels, grid, targets = (
            batch[name] for name in ("pixel_values", "image_grid_thw", "cell_targets")
        )
        if "shown_cells" in batch:
            shown_N = batch["shown_cells"]
            cells = encode_cells(self.base, pixels, grid, shown_N).pooled
            targets = {name: target_N[shown_N] for name, target_N in targets.items()}
        else:
            cells = self.base.model.get_image_features(pixels, grid, return_dict=True).pooler_output
        loss = self._cell_loss(cells, targets, batch, denominator)
        share = (batch["labels"][:, 1:] != IGNORE_INDEX).sum() / denominator
        return {"loss": loss, "cell_loss": loss.detach() / share}

    def _cell_loss(
        self,
        cells: tuple[Tensor, ...],
        targets: dict[str, Tensor],
        batch: dict[str, Any],
        denominator: Tensor,
    ) -> Tensor:
        cell_R = self.model.reader(torch.cat(cells), targets, counts=[len(rows) for rows in cells])
        tokens_R = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1)
        return (cell_R * tokens_R).sum() / denominator

    @staticmethod
    def _look_losses(attentions: tuple[Tensor, ...], batch: dict[str, Any]) -> Tensor:
        """[Q]: -log of the attention half the middle layer's heads pay to the answer's cells."""
        layer_RHLL = attentions[len(attentions) // 2]
        heads = max(1, layer_RHLL.shape[1] // 2)
        paid_QHL = layer_RHLL[batch["look_row"], :heads, batch["look_from"]]
        mass_QH = (paid_QHL * batch["look_at"][:, None]).sum(-1)
        return -mass_QH.clamp_min(1e-6).log().mean(1)

    @torch.inference_mode()
    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Exact-match accuracy of generated answers, in all and per question kind.

        A stage that trains the tower alone has no answers yet: it measures the named cells.
        """
        base = self.base.eval()
        if self.part == "vision":
            return self._named_cells(source, limit=limit)

        def answer(samples: list[Sample]) -> list[str]:
            batch = self.renderer.batch(samples, with_answer=False)
            inputs = {
                name: value.to(base.device)
                for name, value in batch.items()
                if isinstance(value, Tensor) and name != "labels"
            }
            new = base.generate(**inputs, max_new_tokens=self.config.eval.max_new_tokens)
            return self.renderer.decode(new[:, batch["input_ids"].shape[1] :])

        return accuracy_by_kind(
            source, limit=limit, batch_size=self.config.eval.batch_size, answer=answer
        )

    def _named_cells(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        """Share of the cells showing something that the reader names rightly, per attribute."""
        right, shown = Counter[str](), Counter[str]()
        firsts = [group[0] for group in source.groups() if group[0] < limit]
        for position in firsts:
            batch = self.collate([source[position]])
            device = self.base.device
            features = self.base.model.get_image_features(
                batch["pixel_values"].to(device), batch["image_grid_thw"].to(device),
                return_dict=True,
            )  # fmt: skip
            cells_ND = torch.cat(list(features.pooler_output)).float()
            for name, head in self.model.reader.heads.items():
                target_N = batch["cell_targets"][name].to(device)
                named_N = head(cells_ND).argmax(-1) == target_N
                right[name] += int(named_N[target_N > 0].sum())
                shown[name] += int((target_N > 0).sum())
        scores = {f"accuracy_{name}": right[name] / max(1, shown[name]) for name in CELL_TARGETS}
        return {"accuracy": sum(scores.values()) / len(scores), **scores}

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return groups_of_whole(self.model)

    def finish(self, run: Any) -> None:
        """Write the base model folder to the run, and to `tiny_base.export` when asked."""
        folder = run.path / "model"
        self.base.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        if self.config.tiny_base.export is not None:
            shutil.copytree(folder, self.config.tiny_base.export, dirs_exist_ok=True)
