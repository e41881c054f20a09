"""Recipe `recursion`: a tiny network that improves its answer step by step.

In go puzzles; out comes `model/` with the average of the weights. One step of training is one step
of thinking in every slot of a persistent batch (deep supervision): slots that are done take a fresh
puzzle, the others go on from where they are. The loss of a slot is the mean over its cells plus the
weighted halting loss, averaged over all slots of the step, as published (arXiv 2510.04871). Carry,
average, puzzle embeddings and optimizer are in every checkpoint. Left out: what is true of any
training (`trainers.py`), and pictures of the thinking.

Shapes: B slots, L cells, G slots of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from saccade.config.errors import InputError
from saccade.config.grids import ArcSource
from saccade.config.schema import Config, DataConfig, TrainingConfig
from saccade.data.generate.puzzles import CAPSULES, INPUT, PUZZLE, TARGET, PuzzleSource
from saccade.data.samples import Sample
from saccade.data.sources import SampleSource, open_source
from saccade.models.backbone import pick_device
from saccade.models.recursion.carry import Carry
from saccade.models.recursion.extras.cheap import steps_ahead
from saccade.models.recursion.extras.flow import verdict
from saccade.models.recursion.extras.q_halting import turned_round
from saccade.models.recursion.halting import least_steps
from saccade.models.recursion.losses import StepLosses
from saccade.models.recursion.model import Geometry, RecursiveModel, save_model
from saccade.models.recursion.puzzle_embedding import SignDescent
from saccade.models.recursion.trace import Traced, trace
from saccade.scoring.grids import StepVerdicts, metrics, summarise
from saccade.training import state
from saccade.training.adam_atan2 import AdamAtan2
from saccade.training.averages import WeightAverage
from saccade.training.batches import SampleOrder, Share
from saccade.training.checkpoints import Writer
from saccade.training.gradients import GroupReport
from saccade.training.guards import unwrapped
from saccade.training.processes import everywhere
from saccade.training.recipes.reading import (
    asks_ahead,
    read_all,
    reading_metrics,
    refuse_unless_causal,
)
from saccade.training.recipes.slots import SlotBatches, Slots, no_samples
from saccade.training.rundir import RunDir

CARRY, AVERAGE, REPLAY = "carry.pt", "average.safetensors", "replay.pt"


class RecursionRecipe:
    """What the training loop needs to know about `recursion`."""

    def __init__(self, config: Config) -> None:
        self.config, self.settings = config, config.recursion
        _refuse_what_cannot_be(config)
        self.source = puzzle_source(open_source(config.data.train), key="data.train")
        refuse_unless_causal(self.settings, self.source)
        self.geometry = geometry_of(self.source)
        if self.settings.puzzle_prefix and differing_keys(config.data):
            refuse_other_puzzles(self.geometry, open_source(config.data.eval), data=config.data)
        self.model = build_model(config, self.geometry).to(pick_device(config.model))
        self.average = WeightAverage(self.model, decay=self.settings.ema_decay)
        self.slots = Slots(self.model, share=Share(config.training.batch_size, 1, 1, 0))
        self.now = 0
        self.was_right = torch.zeros((), dtype=torch.bool)
        self.signs: SignDescent | None = None
        if self.model.puzzle is not None:
            self.signs = SignDescent(
                self.model.puzzle, lr=self.settings.puzzle_lr,
                weight_decay=self.settings.puzzle_weight_decay,
            )  # fmt: skip

    # data ----------------------------------------------------------------------------------------

    def train_source(self) -> SampleSource:
        return self.source

    def batches(
        self, order: SampleOrder, *, share: Share, steps: int, first_step: Callable[[], int]
    ) -> Sampler[list[int]]:
        """Fresh samples for the slots that are done, instead of a whole batch per step."""
        if share != self.slots.share:
            saved = self.slots._saved
            self.slots = Slots(self.model, share=share)
            if saved is not None:
                self.slots.restore(saved)
        return SlotBatches(order, slots=self.slots, steps=steps, first_step=first_step)

    def collate(self, samples: list[Sample]) -> dict[str, Any]:
        if not samples:
            return no_samples(self.geometry.length)
        return collate_puzzles(samples, geometry=self.geometry)

    def enter(self, fresh: Mapping[str, Any], *, micro: int) -> dict[str, Any]:
        """Fresh samples take their slots; what is trained on are all samples of the slots."""
        if micro == 0:  # of a batch that was only measured
            if self.model.puzzle is not None:
                self.model.puzzle.waiting.clear()
            for extra in self.model.core.all_extras():
                extra.forget()
        carry = self.slots.refill(micro, fresh)
        return {"input_ids": carry.input_ids, "labels": carry.labels, "micro": micro}

    # loss ----------------------------------------------------------------------------------------

    def loss(self, batch: dict[str, Any], *, step: int, denominator: Tensor) -> dict[str, Tensor]:
        settings, slots, self.now = self.settings, self.slots, step
        micro = batch.get("micro")
        if micro is None:  # a batch that is only measured: it belongs to no slots
            size = len(batch["labels"])
            carry = self.model.empty_carry(size).refilled(batch, start=self.model.start(size))
            least_B = torch.zeros(size, dtype=torch.long, device=carry.steps.device)
            after, _, found = self.model.step(carry, least_B=least_B)
        else:
            carry = slots.carries[micro]
            after, found = self._think(carry, micro=micro, step=step)
            slots.carries[micro] = after
        self.was_right = found.right_B.any() | self.was_right.to(found.right_B.device)
        own = self.config.training.batch_size * self.config.training.accumulation
        total = found.answer_B.sum() + settings.halt_weight * found.halt_B.sum()
        total = total + sum(term_B.sum() for term_B in found.extras.values())
        # the loop weighs metrics by supervised cells, but these are means over slots
        cells = (carry.labels != -100).sum().clamp(min=1)
        mean = denominator / (own * cells)
        seen = {
            "answer_loss": found.answer_B.sum(),
            "halt_loss": found.halt_B.sum(),
            "exact": found.right_B.sum(),
            "cells": found.cells_B.sum(),
            "halted": after.halted.sum(),
            "halted_right": (after.halted & found.right_B).sum(),
            "thinking_steps": after.steps.sum(),
            **{f"{name}_loss": term_B.sum() for name, term_B in found.extras.items()},
        }
        return {"loss": total / own, **{name: value * mean for name, value in seen.items()}}

    def _think(self, carry: Carry, *, micro: int, step: int) -> tuple[Carry, StepLosses]:
        """One step of thinking in the slots of a micro-batch, with everything that is drawn."""
        settings, slots, q = self.settings, self.slots, self.model.q_halting
        seed, first, size = self.config.run.seed, slots.first_slot(micro), len(carry)

        def own(drawn_G: Tensor) -> Tensor:
            return drawn_G[first : first + size].to(carry.steps.device)

        least_B = own(least_steps(
            slots.total, seed=seed, step=step, chance=settings.explore,
            max_steps=settings.max_steps,
        ))  # fmt: skip
        ahead, by_value = 0, None
        if settings.cheap.enabled:
            ahead = steps_ahead(seed=seed, step=step, most=settings.cheap.random_depth)
        if q is not None:
            q.practise(seed=seed, step=step, slots=slots.total, first=first, count=size)
            if step >= settings.q_halting.after * self.config.training.steps:
                rule = settings.q_halting
                by_value = own(turned_round(
                    slots.total, seed=seed, step=step, start=rule.explore_start,
                    end=rule.explore_end, over=rule.explore_steps,
                ))  # fmt: skip
        after, _, found = self.model.step(carry, least_B=least_B, ahead=ahead, by_value=by_value)
        if q is not None:
            q.note(
                carry.state, after.state, went_on_B=carry.steps > 0, halted_B=after.halted,
                right_B=found.right_B,
            )  # fmt: skip
        return after, found

    # optimizer -----------------------------------------------------------------------------------

    def make_optimizer(self, training: TrainingConfig) -> torch.optim.Optimizer:
        """One group with one decay for everything, as published."""
        values: dict[str, Any] = {
            "lr": training.learning_rate,
            "betas": (self.settings.beta1, training.beta2),
            "weight_decay": training.weight_decay,
        }
        trained = [one for one in self.model.parameters() if one.requires_grad]
        if self.settings.optimizer == "adamw":
            return torch.optim.AdamW(trained, **values)
        return AdamAtan2(trained, **values)

    def updated(self, *, learning_rate: float) -> None:
        """After each update: puzzle embeddings by sign descent, then the average."""
        if self.signs is not None:
            self.signs.step(factor=learning_rate / self.config.training.learning_rate)
        for extra in self.model.core.all_extras():
            extra.learn(everywhere, step=self.now)
        self.average.update(self.model)

    def flows(self) -> dict[str, GroupReport]:
        """How much gradient reached each use of the network, where that is asked for."""
        flow = self.model.core.flow
        found = flow.read() if flow is not None else {}
        largest = max(found.values(), default=0.0) or 1.0
        return {
            f"flow.{name}": GroupReport(norm, norm / largest, verdict(norm, largest=largest))
            for name, norm in found.items()
        }

    # measuring -----------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the average of its weights for the block, where there is one."""
        if not self.settings.ema:
            yield
            return
        with self.average.in_place_of(self.model):
            yield

    def evaluate(self, source: SampleSource, *, limit: int) -> dict[str, float]:
        self.model.eval()
        wanted: dict[str, Any] = {
            "count": min(limit, len(source)), "steps": self.settings.eval_steps,
            "batch_size": self.config.eval.batch_size,
        }  # fmt: skip
        reads, data = asks_ahead(self.source), self.config.data
        with self.averaged():
            read = read_all(self.model, source, **wanted) if reads else []
            traced = [] if reads else answer_all(self.model, source, data=data, **wanted)
        self.model.train()
        if reads:
            return reading_metrics(read)
        confidence = self.settings.halt_confidence
        verdicts = [StepVerdicts(t.right, t.cells, t.halt, same=t.same) for _, t in traced]
        return metrics(summarise(verdicts, confidence=confidence))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        core = self.model.core
        named = {"tokens": list(self.model.tokens.parameters())}
        if self.model.positions is not None:
            named["positions"] = [self.model.positions]
        for number, block in enumerate(core.blocks):
            for part, layers in block.named_children():
                named[f"block{number}.{part}"] = list(layers.parameters())
        for extra in core.all_extras():
            named[type(extra).__name__] = list(extra.parameters())
        if self.model.capsules is not None:
            named["capsules"] = list(self.model.capsules.parameters())
        named["answer_head"] = list(core.answer_head.parameters())
        named["halt_head"] = list(core.halt_head.parameters())
        return {name: parameters for name, parameters in named.items() if parameters}

    def resting(self, step: int) -> list[str]:
        """What has nothing to learn from yet: some extras, and halting before a first success.

        The first right answers raise the gradient of the halting score a hundredfold.
        """
        extras = self.model.core.all_extras()
        idle = [type(extra).__name__ for extra in extras if extra.rests()]
        return idle if self.was_right else [*idle, "halt_head"]

    # state ---------------------------------------------------------------------------------------

    def checkpoint_files(self, gather: Callable[[Any], list[Any]]) -> dict[str, Writer]:
        """What a checkpoint holds besides weights and optimizer; called on every process."""
        parts = gather(self.slots.saved())
        carry = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        files = {
            CARRY: state.torch_writer(carry),
            AVERAGE: state.tensors_writer(self.average.tensors),
        }
        if self.model.q_halting is not None:
            files[REPLAY] = state.torch_writer(self.model.q_halting.replay.saved())
        return files

    def restore(self, checkpoint: Path) -> None:
        """Take up carry and average of a checkpoint."""
        self.slots.restore(state.read_torch(checkpoint / CARRY))
        self.average.load(state.read_tensors(checkpoint / AVERAGE))
        if self.model.q_halting is not None:
            self.model.q_halting.replay.restore(state.read_torch(checkpoint / REPLAY))

    def finish(self, run: RunDir) -> None:
        with self.averaged():
            save_model(self.model, run.path / "model", weights=self.model.state_dict())


def build_model(config: Config, geometry: Geometry) -> RecursiveModel:
    """A model with weights drawn by the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return RecursiveModel(config.recursion, geometry)


def puzzle_source(source: Any, *, key: str) -> Any:
    """The source, if its samples are grids; raises InputError else."""
    if not all(hasattr(source, name) for name in ("length", "vocabulary", "identities")):
        raise InputError(
            f"{key}: the recipe recursion learns from grids of symbols, and this source has none"
            f"\n  fix: {key}.type=sudoku or {key}.type=maze, or arch=sudoku6"
        )
    return source


def geometry_of(source: PuzzleSource) -> Geometry:
    """The model's size as the source wants it."""
    capsules, width = getattr(source, "capsules", (0, 0))
    digest = getattr(source, "digest", "")
    return Geometry(source.length, source.vocabulary, source.identities, capsules, width, digest)


def differing_keys(data: DataConfig) -> list[str]:
    """Keys that decide which puzzles there are, and differ between training and measuring."""
    train, held_out = data.train, data.eval
    if not isinstance(train, ArcSource) or not isinstance(held_out, ArcSource):
        return []
    names = [name for name in ArcSource.model_fields if name != "split"]
    return [name for name in names if getattr(train, name) != getattr(held_out, name)]


def refuse_other_puzzles(
    geometry: Geometry, source: Any, *, data: DataConfig | None = None
) -> None:
    """Raise InputError where puzzles would be asked under the embeddings of others."""
    told = geometry.identities or geometry.puzzles == 1  # else a model from before this was noted
    if not told or getattr(unwrapped(source), "digest", "") == geometry.identities:
        return
    names = differing_keys(data) if data is not None else []
    keys = ", ".join(f"data.eval.{name}" for name in names) or "data.eval"
    trained = [f"data.eval.{name}={typed(getattr(data.train, name))}" for name in names if data]
    raise InputError(
        f"{keys}: these are other puzzles than those trained on; each of those has an embedding of"
        " its own, and these would be asked under the embeddings of others\n  fix:"
        f" {' '.join(trained) or 'ask the puzzles of data.train'} (`--limit` asks fewer of them)"
    )


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    return "null" if value is None else str(value)


def collate_puzzles(samples: list[Sample], *, geometry: Geometry) -> dict[str, Tensor]:
    """Arrays of samples as tensors; raises InputError when they do not fit the model."""
    given = np.stack([sample.facts[INPUT] for sample in samples])
    target = np.stack([sample.facts[TARGET] for sample in samples])
    if given.shape[1] != geometry.length or int(given.max()) >= geometry.vocabulary:
        raise InputError(
            f"{samples[0].id}: {given.shape[1]} cells with symbols up to {int(given.max())} do not"
            f" fit a model for {geometry.length} cells and {geometry.vocabulary} symbols"
            "\n  fix: train and measure on puzzles of the same size"
        )
    return {
        "input_ids": torch.from_numpy(given),
        "labels": torch.from_numpy(target),
        "puzzles": torch.tensor([sample.facts[PUZZLE] for sample in samples]),
        "capsules": _capsules(samples, geometry=geometry),
    }


def _capsules(samples: list[Sample], *, geometry: Geometry) -> Tensor:
    if not geometry.capsules:
        return torch.zeros(len(samples), 0, 0)
    return torch.from_numpy(np.stack([sample.facts[CAPSULES] for sample in samples]))


def answer_all(
    model: RecursiveModel,
    source: SampleSource,
    *,
    count: int,
    steps: int,
    batch_size: int,
    data: DataConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[Sample, Traced]]:
    """Think about the first `count` samples of a source; they are read one at a time.

    Raises InputError where they are other puzzles than the model has embeddings for.
    """
    if model.puzzle is not None:
        refuse_other_puzzles(model.geometry, source, data=data)
    device = next(model.parameters()).device
    found: list[tuple[Sample, Traced]] = []
    for start in range(0, count, batch_size):
        samples = [source[i] for i in range(start, min(start + batch_size, count))]
        batch = collate_puzzles(samples, geometry=model.geometry)
        moved = (batch[k].to(device) for k in ("input_ids", "labels", "puzzles", "capsules"))
        found += zip(samples, trace(model, *moved, steps=steps), strict=True)
        progress(len(found), count)
    return found


def _refuse_what_cannot_be(config: Config) -> None:
    if config.training.workers:
        raise InputError(
            f"training.workers={config.training.workers}: which puzzle comes next is known only"
            " when a slot is done, so nothing can be loaded ahead\n  fix: training.workers=0"
        )
    if config.training.gradient_checkpointing:
        raise InputError(
            "training.gradient_checkpointing=true: only a language model's layers are computed"
            " again, and this recipe has none\n  fix: leave it out; less memory take"
            " recursion.inner_cycles or training.batch_size, with training.accumulation"
        )
    if config.training.parallel == "fsdp":
        raise InputError(
            "training.parallel=fsdp shards a frozen base, and this recipe trains all of it"
            "\n  fix: use training.parallel=ddp"
        )
