"""The configuration of grounding: where on a screen, and when to look again (recipe `grounding`).

Part of `schema.py`. Imports pydantic only. A run of the recipe goes through three phases, each an
ordinary run beside it: `NAME-places`, `NAME-warm` and NAME itself.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.nodes import Fraction, Node, NonNegative, NonNegativeInt

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ZoomConfig(Node):
    """The tool: what a second look shows, and what it may ask for."""

    window: Fraction = 0.25
    """Smallest crop as a share of each side of what is looked at; a smaller box is widened to it.
    """
    pixels: PositiveInt = 25_600
    """Area in pixels that a crop is shown at."""
    calls: NonNegativeInt = 1
    """Most successful zooms of an episode; 0 = it must answer at once."""
    min_side: PositiveInt = 28
    """Shortest side of a crop in pixels of the screenshot."""
    max_aspect: Annotated[float, Field(ge=1.0)] = 20.0
    """Longest side of a box over its shortest, before it is widened."""


class RewardConfig(Node):
    """What an episode is paid; every part is logged apart."""

    hit: NonNegative = 1.0
    """The point lies in the target."""
    point: NonNegative = 0.2
    """Gaussian of the point's distance to the target's centre, in half sides of the target."""
    coverage: NonNegative = 0.0
    """Overlap of the two boxes as Gaussians: exp of minus their Bhattacharyya distance."""
    iou: NonNegative = 0.0
    """Intersection over union of the boxes."""
    format: Annotated[float, Field(ge=0.0, le=0.2)] = 0.1
    """An answer that can be read; at most 0.2, else form outgrows content."""
    call: NonNegative = 0.1
    """Price of one tool call, right or wrong, valid or not."""
    tool: NonNegative = 0.0
    """Bonus of a hit after a zoom on a row that is known to need one."""
    confidence: NonNegative = 0.0
    """Weight of the Brier term, 1 - (confidence - hit) squared, on measured or stated confidence.
    """
    stated: bool = False
    """Read the confidence from the answer instead of measuring it by the answer's probability."""


class PlacesConfig(Node):
    """First phase: learn to name places on screens and crops of them; nothing is zoomed yet."""

    steps: NonNegativeInt = 300
    """Optimizer steps; 0 = the base can do this already."""
    batch_size: PositiveInt = 8
    """Screens per step."""
    questions: PositiveInt = 8
    """Most questions about one screen in a step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    """Peak learning rate."""
    views: PositiveInt = 8
    """In how many ways each screen is shown: whole, then without a little of its sides."""
    crop_share: Share = 0.7
    """Share of the screens of which a crop is shown, too, as a zoom would; what it shows is asked
    of it, the rest of the screen."""
    vision: bool = True
    """Let the vision tower learn, too."""


class WarmConfig(Node):
    """Second phase: demonstrations with real crops; whether they zoom is drawn."""

    steps: NonNegativeInt = 900
    """Optimizer steps; 0 = no warm start."""
    batch_size: PositiveInt = 32
    """Demonstrations per step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-3
    """Peak learning rate."""
    zoom_share: Share = 0.5
    """Share of the demonstrations that zoom."""
    lean: Share = 0.0
    """How far that draw leans to zooming at hard targets and away from it at others: 0 = whatever
    the target's size, so that when to zoom is left to the last phase; 1 = decided by size (both at
    a `zoom_share` of 0.5)."""
    hard_side: NonNegative = 8.0
    """A target is hard whose side takes fewer pixels than this of the first look."""
    jitter: Share = 0.6
    """How far the demonstrated crop may lie off the target, as a share of what still shows it."""
    adapter: Literal["none", "lora"] = "none"
    """Train all weights, or low-rank adapters of the language model alone, for large bases."""
    vision: bool = True
    """Let the vision tower learn, too; not beside adapters."""


class GrpoConfig(Node):
    """Third phase: groups of sampled episodes, each paid what it is worth."""

    group: Annotated[int, Field(ge=2)] = 8
    """Episodes per screenshot and question; one alone would have no baseline."""
    adapter: Literal["lora", "none"] = "lora"
    """Train low-rank adapters, or the whole language model."""
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    """Of the sampling, and of the distribution that is learned."""
    max_tokens: PositiveInt = 96
    """Most tokens an episode may write in all its turns; the crops' tokens do not count."""
    beta: NonNegative = 0.0
    """Weight of the KL term towards the model before this phase (0 needs no second pass)."""
    epsilon: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """How far a token's probability ratio may fall below 1 before its gradient is cut."""
    epsilon_high: Annotated[float, Field(gt=0.0)] = 0.28
    """The same above 1 (clip-higher)."""
    reuse: PositiveInt = 1
    """Optimizer steps made with the same episodes."""
    filter: Literal["wrong", "same", "none"] = "wrong"
    """Groups left out, judged by right or wrong alone: `wrong` = nobody was right; `same` = also
    those where everybody was, which then teach no thrift; `none` leaves all in."""
    entropy: NonNegative = 0.0
    """Weight of an entropy bonus, the mean over the step's learned tokens."""
    curiosity: Share = 0.0
    """Least share of a group that should zoom: below it a right answer after a zoom is paid the
    difference."""
    budget: Share | None = None
    """Share of the episodes that may zoom. Set, a step prices a zoom at what zooming brought its
    groups on average, corrected by how far they are from the budget: how often to look is held
    there, and which questions get the looks is left to learn. `reward.call` hardly matters then.
    """
    choice: NonNegative = 0.0
    """Weight of the choice to look beside the tokens (each weighs 1): at each token up to the mark
    that opens the first zoom, of having opened one or not, whatever else was written. Among some
    twenty tokens of places the choice is one, and learned last."""
    easy_steps: Share = 0.0
    """Share of the steps over which hard targets come in one by one, easy ones first."""
    rollouts: Literal["shared", "plain", "trl"] = "shared"
    """How episodes are made: `shared` = screenshot and question are read once per group, `plain` =
    once per episode, `trl` = by TRL's own GRPOTrainer and environment_factory."""
    first_answers: bool = True
    """Ask each question once more without a look, greedily, so that every call is kept with the
    confidence and the verdict before it."""
    patience: PositiveInt = 25
    """Steps after which a collapse stops the run."""
    min_answers: Share = 0.9
    """Collapse: a smaller share of the episodes than this answers."""
    min_entropy: NonNegative = 1e-4
    """Collapse: the entropy per token stays below this, in nats."""
    stop_on_tool_rate: bool = False
    """Collapse: nobody zooms, or everybody does (right on screens of one difficulty)."""


class GroundingConfig(Node):
    """Find what an instruction names on a screenshot, and look again where that pays."""

    phase: Literal["places", "warm", "grpo"] = "grpo"
    """Which phase this run is; `saccade train grounding` makes those before it first."""
    answer: Literal["box", "point"] = "box"
    """What an answer is; a box is clicked in its middle."""
    coordinates: Literal["auto", "0-1", "0-1000", "pixels"] = "auto"
    """What numbers mean; `auto` is the model family's own (Qwen3-VL 0-1000, Qwen2.5-VL pixels of
    the resized picture). Always of the latest picture shown."""
    tools: list[Literal["zoom", "inspect", "wait"]] = ["zoom"]
    """Tools offered; `inspect` reads the accessibility tree of generated pages, `wait` lets a page
    finish loading."""
    selector: str | None = None
    """Who prunes every look to `selector.keep` (the pruned model as policy): a run of recipe
    relevance, or an untrained selector that only drops tokens (`grid`, `random`, `saliency`, ...).
    The first two phases learn from whole looks all the same."""
    look_loss: NonNegative = 0.5
    """Weight of the loss that draws attention to the target while its place is named; the first
    two phases, where boxes are known."""
    cell_loss: NonNegative = 0.5
    """Weight of the loss that names from each visual token what lies there (phase `places`)."""
    tau_prices: list[float] = [0.05, 0.1, 0.15, 0.2]
    """Prices of a look for which validation chooses the confidence below which to zoom."""
    zoom: ZoomConfig = ZoomConfig()
    reward: RewardConfig = RewardConfig()
    places: PlacesConfig = PlacesConfig()
    warm: WarmConfig = WarmConfig()
    grpo: GrpoConfig = GrpoConfig()

    @model_validator(mode="after")
    def _silence_never_pays(self) -> GroundingConfig:
        paid = self.reward
        if paid.hit + paid.point + paid.coverage + paid.iou == 0:
            raise ValueError(
                "reward.hit, point, coverage and iou are all 0: nothing pays for being right"
            )
        return self
