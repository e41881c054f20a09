"""The configuration of what may be added to a recursive model; all of it is off by default.

Part of `recursion.py`: one section per extra, each with its own switch. Imports pydantic only.
What each is worth stands in the ablation of the recipe `recursion`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from saccade.config.nodes import Fraction, Node, NonNegative, NonNegativeInt

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class PlanningConfig(Node):
    enabled: bool = False
    """Think along several latent paths after each answer and mix where they lead."""
    paths: Annotated[int, Field(ge=2)] = 4
    """Paths that start apart."""
    depth: PositiveInt = 1
    """Uses of the network along each path."""


class MemoryConfig(Node):
    enabled: bool = False
    """Read from a bank of states that led to right answers; training writes into it."""
    capacity: PositiveInt = 128
    """States kept; the least read one makes room."""
    writes: PositiveInt = 4
    """Most states written per training step."""


class CodebookConfig(Node):
    enabled: bool = False
    """Add the nearest of a learned set of codes to each cell of the answer's state."""
    codes: Annotated[int, Field(ge=2)] = 128
    """Codes."""
    width: PositiveInt = 32
    """Width of a code."""
    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Share of a code's average that stays at every step."""
    commitment: NonNegative = 0.25
    """Weight of the loss that keeps states near their codes."""
    dead_after: PositiveInt = 100
    """A code unused for so many steps starts anew at a state of the batch."""


class MtpConfig(Node):
    enabled: bool = False
    """Learn to predict the following cells' symbols, too (multi-token prediction)."""
    depths: PositiveInt = 2
    """Cells ahead."""
    weight: NonNegative = 0.3
    """Weight of that loss."""


class QHaltingConfig(Node):
    enabled: bool = False
    """Learn by reward when to stop (Double DQN), beside the head that learns what is right."""
    hidden: PositiveInt = 64
    """Width of the hidden layer of the Q-values."""
    capacity: PositiveInt = 20_000
    """Steps of thinking kept for replay."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    step_cost: NonNegative = 0.02
    """What one more step of thinking costs; a right answer at the end is worth 1."""
    target_rate: Fraction = 0.02
    """Share of the way the target network moves towards the Q-values per step."""
    explore_start: Share = 0.3
    """Chance of doing the opposite of what the Q-values say, at first."""
    explore_end: Share = 0.05
    """The same from `explore_steps` on."""
    explore_steps: PositiveInt = 500
    """Training steps over which that chance falls."""
    after: Share = 0.5
    """Share of the training after which the Q-values decide when a slot is done; before that they
    only learn."""
    weight: NonNegative = 1.0
    """Weight of the Q-values' loss; it moves nothing but them."""


class CheapConfig(Node):
    enabled: bool = False
    """Cheaper training: only the last update of the latent carries gradient, and steps without a
    loss go before the one that has it."""
    random_depth: PositiveInt = 3
    """Most steps of thinking per training step; how many is drawn."""


class NoiseConfig(Node):
    enabled: bool = False
    """Answer with several noisy rollouts and keep the one that believes most to be right."""
    rollouts: Annotated[int, Field(ge=2)] = 4
    """Rollouts; the first has no noise."""
    std: NonNegative = 0.3
    """Standard deviation of what is added to the latent before each step."""
    seed: NonNegativeInt = 0
    """Seed of the noise; it depends on the puzzle, not on the batch."""


class DistillConfig(Node):
    enabled: bool = False
    """Learn from the same model thinking longer about the same state."""
    cycles: Annotated[int, Field(ge=2)] = 2
    """The teacher's cycles, as a multiple of `cycles`."""
    weight: NonNegative = 0.5
    """Weight of following the teacher's answer."""
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    """Both answers are softened by this."""
    halt_weight: NonNegative = 0.1
    """Weight of following the teacher's halting score."""


class FlowConfig(Node):
    enabled: bool = False
    """Note in the `gradients` events how much gradient reaches each use of the network."""
