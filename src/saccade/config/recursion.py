"""The configuration of recursive models: the recipe `recursion` and the puzzles it is proved on.

Part of `schema.py`. Imports pydantic only. Names of the earlier design that mean one of these keys
are translated in `recursion_names.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.nodes import Node, NonNegative, NonNegativeInt
from saccade.config.recursion_extras import (
    CheapConfig,
    CodebookConfig,
    DistillConfig,
    FlowConfig,
    MemoryConfig,
    MtpConfig,
    NoiseConfig,
    PlanningConfig,
    QHaltingConfig,
)


class RecursionConfig(Node):
    """A tiny network that improves its answer step by step (recipe `recursion`)."""

    width: PositiveInt = 512
    """Width of answer, latent and embeddings."""
    layers: PositiveInt = 2
    """Blocks of the one network that does every update."""
    heads: PositiveInt = 8
    """Attention heads (`mixer=attention`)."""
    expansion: Annotated[float, Field(gt=0.0)] = 4.0
    """Inner width of the feed-forward layers: 2/3 of this times the width."""
    ffn_multiple: PositiveInt = 256
    """Inner widths are rounded up to a multiple of this."""
    mixer: Literal["attention", "mlp"] = "attention"
    """What mixes positions: attention, or a feed-forward layer across positions (fixed length)."""
    positions: Literal["rope", "learned", "none"] = "rope"
    """How positions are told apart: rotation inside attention, a learned table, or not at all."""
    causal: bool = False
    """Let a position see itself and those before it only, as text needs (`mixer=attention`)."""
    rope_theta: Annotated[float, Field(gt=0.0)] = 10_000.0
    """Base of the rotation's wavelengths."""
    cycles: PositiveInt = 3
    """T: cycles of a step of thinking; all but the last carry no gradient."""
    inner_cycles: PositiveInt = 6
    """n: updates of the latent before each update of the answer."""
    max_steps: PositiveInt = 16
    """Most steps of thinking about one sample in training (deep supervision)."""
    eval_steps: PositiveInt = 16
    """Steps of thinking when answering; accuracy is told for each."""
    explore: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Chance per training step that a sample must go on for a drawn number of steps at least."""
    halt_weight: NonNegative = 0.5
    """Weight of the halting loss, which learns whether the answer is right."""
    halt_confidence: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.95
    """When answering, a sample stops as soon as its answer is right with this probability, or is
    more likely right than not and the same as one step before. Training stops at 0.5."""
    loss: Literal["stablemax", "softmax"] = "stablemax"
    """How scores become probabilities in the answer's loss."""
    optimizer: Literal["adam_atan2", "adamw"] = "adam_atan2"
    """What updates the weights; puzzle embeddings have their own."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """First-moment decay of the optimizer (the second is `training.beta2`)."""
    ema: bool = True
    """Answer with an exponential average of the weights."""
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Share of the average that stays at every step; the first weights fade within a few times
    1 / (1 - this) steps, so a short training wants less than the published 0.999."""
    puzzle_prefix: NonNegativeInt = 0
    """Positions in front that hold the puzzle's own learned embedding; 0 = puzzles have none."""
    puzzle_lr: NonNegative = 1e-2
    """Peak learning rate of the puzzle embeddings (sign descent)."""
    puzzle_weight_decay: NonNegative = 0.1
    """Decoupled weight decay of the puzzle embeddings that a step touches."""
    planning: PlanningConfig = PlanningConfig()
    memory: MemoryConfig = MemoryConfig()
    codebook: CodebookConfig = CodebookConfig()
    mtp: MtpConfig = MtpConfig()
    q_halting: QHaltingConfig = QHaltingConfig()
    cheap: CheapConfig = CheapConfig()
    noise: NoiseConfig = NoiseConfig()
    distill: DistillConfig = DistillConfig()
    flow: FlowConfig = FlowConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> RecursionConfig:
        if self.mixer == "attention" and self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} does not split into {self.heads} heads of an even width"
            )
        if self.causal and (self.mixer == "mlp" or self.planning.enabled):
            raise ValueError(
                "causal=true needs mixer=attention and planning.enabled=false: a token MLP and the"
                " mixture of paths look at all positions"
            )
        if self.mixer == "mlp" and self.positions == "rope":
            raise ValueError("positions=rope needs mixer=attention; use positions=none")
        return self


class SudokuSource(Node):
    """Sudoku drawn on the fly, each with one solution; no files."""

    type: Literal["sudoku"]
    """Kind of source."""
    split: Literal["train", "validation", "test"] = "train"
    """Disjoint streams: no solution of one split, nor one with its digits renamed, occurs in
    another, in whatever variant."""
    side: Literal[4, 6, 9] = 6
    """Cells on a side; boxes are 2x2, 2x3 or 3x3."""
    puzzles: PositiveInt = 1000
    """Different puzzles."""
    variants: PositiveInt = 1
    """Versions of each puzzle: digits renamed, rows and columns exchanged within the rules."""
    clues: PositiveInt = 10
    """Given cells to dig down to; a puzzle keeps more where fewer would allow two solutions."""
    max_clues: PositiveInt | None = None
    """Draw again where more cells than this stay given; default: two more than `clues`."""
    min_guesses: NonNegativeInt = 0
    """Draw again where a solver that fills in what is forced needs fewer guesses than this."""
    seed: NonNegativeInt = 0
    """Seed of the stream of puzzles."""


class MazeSource(Node):
    """Mazes with one path between start and goal, drawn on the fly; no files."""

    type: Literal["maze"]
    """Kind of source."""
    split: Literal["train", "validation", "test"] = "train"
    """Disjoint streams: no maze of one split occurs in another, turned or mirrored."""
    side: Annotated[int, Field(ge=5)] = 11
    """Cells on a side, walls included; odd."""
    mazes: PositiveInt = 1000
    """Different mazes."""
    variants: Annotated[int, Field(ge=1, le=8)] = 1
    """Versions of each maze: turned and mirrored."""
    min_path: PositiveInt = 10
    """Draw again where the path is shorter than this."""
    seed: NonNegativeInt = 0
    """Seed of the stream of mazes."""

    @model_validator(mode="after")
    def _sides_are_odd(self) -> MazeSource:
        if self.side % 2 == 0:
            raise ValueError(f"side={self.side}: walls and paths alternate, so it must be odd")
        return self
