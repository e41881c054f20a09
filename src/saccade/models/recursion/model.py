"""The recursive model: embeddings, the recursion, and steps of thinking over a carry or a batch.

Token ids flow in; per step of thinking scores of every cell and a halting score flow out. `step`
is one training step of a persistent batch; `think` answers: all steps for every sample, with what
was said at each. Embeddings as published: a token table and the puzzle's prefix, both times
sqrt(D); learned positions, if any, are added before and the sum divided by sqrt(2). Saved as
`model.safetensors` and `recursion.json`. Left out: data, optimizers, the average of the weights.

Shapes: B slots, L cells, P prefix positions, S = P + L, D width, V vocabulary, N steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from saccade.config.errors import InputError
from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import truncated_normal_
from saccade.models.recursion.carry import Carry
from saccade.models.recursion.core import Core, Extra, Moment, State
from saccade.models.recursion.extras.capsules import CapsuleInput
from saccade.models.recursion.extras.cheap import run_ahead
from saccade.models.recursion.extras.q_halting import QHalting
from saccade.models.recursion.extras.table import make_extras
from saccade.models.recursion.halting import halted
from saccade.models.recursion.losses import StepLosses, step_losses
from saccade.models.recursion.puzzle_embedding import PuzzleEmbedding

WEIGHTS, CARD = "model.safetensors", "recursion.json"


@dataclass(frozen=True)
class Geometry:
    """The size of a task: cells of a sample, different tokens, different puzzles, capsules
    (vectors of a picture, in front of the cells) with their width, and a digest that tells which
    puzzles they are, in order (empty where all share one embedding)."""

    length: int
    vocabulary: int
    puzzles: int = 1
    capsules: int = 0
    capsule_width: int = 0
    identities: str = ""


@dataclass(frozen=True)
class Thought:
    """What one step of thinking says: scores [B, L, V], halting scores [B], and the state."""

    logits_BLV: Tensor
    halt_B: Tensor
    state: State
    advantage_B: Tensor | None = None
    """What stopping is worth over going on, where that is learned (`q_halting`)."""


class RecursiveModel(nn.Module):
    """A tiny network that improves its answer step by step."""

    def __init__(
        self, config: RecursionConfig, geometry: Geometry, *, extras: tuple[Extra, ...] = ()
    ) -> None:
        super().__init__()
        self.config, self.geometry = config, geometry
        self.front = config.puzzle_prefix + geometry.capsules
        width = config.width
        self.tokens = nn.Embedding(geometry.vocabulary, width)
        truncated_normal_(self.tokens.weight.data, std=width**-0.5)
        self.positions: nn.Parameter | None = None
        size = self.front + geometry.length
        if config.positions == "learned":
            self.positions = nn.Parameter(
                truncated_normal_(torch.empty(size, width), std=width**-0.5)
            )
        self.puzzle: PuzzleEmbedding | None = None
        if config.puzzle_prefix:
            self.puzzle = PuzzleEmbedding(
                geometry.puzzles, prefix=config.puzzle_prefix, width=width
            )
        self.core = Core(
            config, length=geometry.length, vocabulary=geometry.vocabulary, front=self.front,
            extras=(*make_extras(config), *extras),
        )  # fmt: skip
        self.capsules = None
        if geometry.capsules:
            self.capsules = CapsuleInput(geometry.capsules, geometry.capsule_width, width=width)

    @property
    def q_halting(self) -> QHalting | None:
        """The extra that learns by reward when to stop, where it is on."""
        return next((one for one in self.core.extras if isinstance(one, QHalting)), None)

    def embed(
        self, input_ids_BL: Tensor, puzzles_B: Tensor, capsules_BCE: Tensor | None = None
    ) -> Tensor:
        """x [B, S, D]: the question as the network sees it."""
        x_BSD = self.tokens(input_ids_BL)
        if self.capsules is not None:
            assert capsules_BCE is not None
            x_BSD = torch.cat((self.capsules(capsules_BCE).to(x_BSD.dtype), x_BSD), dim=1)
        if self.puzzle is not None:
            x_BSD = torch.cat((self.puzzle(puzzles_B).to(x_BSD.dtype), x_BSD), dim=1)
        if self.positions is not None:
            x_BSD = (x_BSD + self.positions) / math.sqrt(2)
        return x_BSD * math.sqrt(self.config.width)

    def start(self, slots: int) -> State:
        """The state before the first step."""
        return self.core.start(slots, positions=self.front + self.geometry.length)

    def empty_carry(self, slots: int) -> Carry:
        """A carry whose slots are all done."""
        size = self.geometry
        return Carry.empty(
            slots, start=self.start(slots), length=size.length,
            capsules=(size.capsules, size.capsule_width),
        )  # fmt: skip

    def step(
        self, carry: Carry, *, least_B: Tensor, ahead: int = 0, by_value: Tensor | None = None
    ) -> tuple[Carry, Thought, StepLosses]:
        """One step of thinking in all slots, the losses it costs, and the carry after it.

        `least_B` are steps a slot must have made before it may halt; `ahead` steps without loss go
        before (`cheap`); with `by_value` Q-values decide what is done, turned round where it is
        True. The next carry has no history.
        """
        x_BSD = self.embed(carry.input_ids, carry.puzzles, carry.capsules)
        before = run_ahead(self.core, x_BSD, carry.state, steps=ahead)
        thought = self.thought(x_BSD, before)
        logits_BLV, halt_B = thought.logits_BLV, thought.halt_B
        losses = step_losses(logits_BLV, halt_B, carry.labels, kind=self.config.loss)
        moment = Moment(
            x_BSD, before, thought.state, logits_BLV, halt_B, carry.labels, self.core, self.tokens
        )
        for extra in self.core.all_extras():
            losses.extras.update(extra.losses(moment))
        steps_B = carry.steps + 1 + ahead
        score_B = halt_B
        if by_value is not None and thought.advantage_B is not None:
            score_B = torch.where(by_value, -thought.advantage_B, thought.advantage_B)
        with torch.no_grad():
            done_B = halted(steps_B, score_B, least_B, max_steps=self.config.max_steps)
        return carry.after(thought.state.detach(), steps=steps_B, halted=done_B), thought, losses

    def thought(self, x_BSD: Tensor, state: State) -> Thought:
        """One step of thinking from an embedded question."""
        state = self.core.deep_recursion(x_BSD, state)
        logits_BLV, halt_B = self.core.read(state)
        q = self.q_halting
        return Thought(logits_BLV, halt_B, state, None if q is None else q.advantage(state))

    def think(
        self, input_ids_BL: Tensor, puzzles_B: Tensor, capsules_BCE: Tensor | None = None, *,
        steps: int,
    ) -> Iterator[Thought]:  # fmt: skip
        """What is said after each of `steps` steps; nothing halts."""
        with torch.no_grad():
            x_BSD = self.embed(input_ids_BL, puzzles_B, capsules_BCE)
        state = self.start(len(input_ids_BL))
        for _ in range(steps):
            with torch.no_grad():  # inside: the caller's own mode counts between two steps
                thought = self.thought(x_BSD, state)
            state = thought.state
            yield thought


def save_model(model: RecursiveModel, folder: Path, *, weights: dict[str, Tensor]) -> None:
    """Write weights (the model's own, or their average) and what is needed to build it again."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: one.detach().cpu().contiguous() for name, one in weights.items()}
    safetensors.torch.save_file(tensors, folder / WEIGHTS)
    card = {"geometry": asdict(model.geometry), "recursion": model.config.model_dump(mode="json")}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> RecursiveModel:
    """Build what `save_model` wrote; raises InputError when it is not there or does not fit."""
    if not (folder / CARD).is_file():
        raise InputError(f"{folder}: no recursive model here\n  fix: name a run's model folder")
    card = json.loads((folder / CARD).read_text("utf-8"))
    config = RecursionConfig.model_validate(card["recursion"])
    model = RecursiveModel(config, Geometry(**card["geometry"]))
    try:
        model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS}: does not fit {CARD}: {error}") from error
    return model.eval()
