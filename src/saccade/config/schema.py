"""The configuration tree: every knob a run has, one sentence each.

Values flow in from the resolver (packaged defaults < recipe < user YAML < `.training` <
environment < command line) as one nested mapping and leave as a frozen `Config`. The field
descriptions are the single source of the key reference, of `saccade config keys` and of error
hints. Imports pydantic only: no torch, no transformers. Secrets and infrastructure live in
`.env` (see `training_file.py`), never here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from saccade.config.grounding import GroundingConfig
from saccade.config.nodes import Budget, Fraction, Node, NonNegative, NonNegativeInt, RowField
from saccade.config.recursion import MazeSource, RecursionConfig, SudokuSource
from saccade.config.schema_data import (
    CaptionsSource,
    DataConfig,
    FolderSource,
    HubSource,
    JsonlSource,
    LayoutSource,
    ParquetSource,
    PreferenceSource,
    ProbingSource,
    ScenesSource,
    Source,
)
from saccade.config.shards import ShardsConfig
from saccade.config.stage_pretrain import PretrainConfig
from saccade.config.stages import DpoConfig, LoraConfig, SftConfig
from saccade.config.thoughts import ThoughtsConfig

__all__ = [
    "ArchConfig",
    "Budget",
    "CaptionsSource",
    "Config",
    "DataConfig",
    "DpoConfig",
    "EvalConfig",
    "FolderSource",
    "Fraction",
    "GroundingConfig",
    "HubSource",
    "JsonlSource",
    "LaunchConfig",
    "LayoutSource",
    "LoraConfig",
    "MazeSource",
    "ModelConfig",
    "Node",
    "NonNegative",
    "NonNegativeInt",
    "ParquetSource",
    "PreferenceSource",
    "PretrainConfig",
    "ProbingSource",
    "RecursionConfig",
    "RowField",
    "RunConfig",
    "ScenesSource",
    "SelectorConfig",
    "SftConfig",
    "ShardsConfig",
    "Source",
    "SudokuSource",
    "TinyBaseConfig",
    "TrackingConfig",
    "TrainingConfig",
]


class RunConfig(Node):
    name: str | None = None
    """Name of the run directory under `run.root`; default: the recipe's name."""
    root: Path = Path("runs")
    """Folder that holds all run directories."""
    seed: NonNegativeInt = 0
    """Seed of weight initialisation, sample order and generated training scenes."""
    store: str | None = None
    """Where checkpoints and the finished run are kept beside `run.root`: a folder, or
    `gs://bucket`; a run continues from there on any machine. Default: nowhere."""
    heartbeat_seconds: NonNegative = 30.0
    """Seconds between signs of life in `heartbeat.json`; 0 = none."""


class ModelConfig(Node):
    name: str = "tiny"
    """Base model: `tiny` (ships with saccade), a local folder, or a hub name such as
    `Qwen/Qwen3-VL-2B-Instruct`."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) to load."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; `auto` takes CUDA when present, `cuda` fails (exit 3) when it is not."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' number format; `auto` is bfloat16 on CUDA and float32 on CPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of the frozen base at inference."""
    min_pixels: PositiveInt | None = None
    """Upscale smaller images to this area in pixels; default: the processor's own limit."""
    max_pixels: PositiveInt | None = None
    """Downscale larger images to this area in pixels; default: the processor's own limit."""


class ArchConfig(Node):
    """Shape of a Qwen3-VL built from scratch (recipe `tiny-base` only)."""

    hidden_size: PositiveInt = 96
    """Width of the language model."""
    layers: PositiveInt = 3
    """Decoder layers of the language model."""
    heads: PositiveInt = 4
    """Query heads of the language model; key-value heads are half of them."""
    head_dim: PositiveInt = 32
    """Width of one attention head (M-RoPE splits half of it over time, height and width)."""
    vision_hidden_size: PositiveInt = 64
    """Width of the vision tower."""
    vision_layers: PositiveInt = 2
    """Blocks of the vision tower."""
    vision_heads: PositiveInt = 2
    """Heads of the vision tower."""
    patch_size: PositiveInt = 8
    """Side of one patch in pixels; 2x2 patches are merged into one visual token (one cell)."""
    deepstack_layers: list[NonNegativeInt] = [0]
    """Vision blocks whose features are added to the first decoder layers (DeepStack)."""
    vocab_size: PositiveInt = 480
    """Entries of the byte-level BPE tokenizer trained on the recipe's own questions."""


class SelectorConfig(Node):
    """Which visual tokens to keep and how to learn it (recipe `relevance`)."""

    kind: Literal["balance", "gated"] = "balance"
    """What scores a cell: our balance of three scores, or `gated` = two query-free projections (a
    peer, after VisionSelector), which reads no key about scores, textures and tensions."""
    keep: Budget = 0.25
    """Visual tokens kept per image: a share in (0, 1] (1.0 keeps all) or a count (1 is one)."""
    min_tokens: PositiveInt = 1
    """Never keep fewer visual tokens than this per image."""
    max_tokens: PositiveInt | None = None
    """Never keep more visual tokens than this per image."""
    placement: Literal["features", "pixels", "glance"] = "features"
    """Where the choice is made: `features` = after the vision tower (the language model's cost
    shrinks); before it, so that only chosen cells are encoded: `pixels` = from textures alone,
    `glance` = from a small preview that stays in the sequence as coarse context."""
    preview_scale: Annotated[float, Field(gt=0.0, le=0.5)] = 0.469
    """Side of the preview as a share of the image's (`glance`): 0.469 = a fifth of the cells."""
    coarse: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["tension"] = 0.0
    """Share of the budget spent on pooled tokens for what is not chosen (level of detail):
    0 = drop it, 1 = pool everything, `tension` = compress/particularise decides per image."""
    region: Literal[2, 4, 8, 16] = 4
    """Side in cells of the largest pooled block; blocks halve around chosen cells."""
    max_per_region: PositiveInt | None = None
    """Most chosen cells of one region (`coarse` above 0)."""
    set_step: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Choose cells one by one (MMR): this much relevance, the rest unlikeness to what is kept
    already; empty = by score alone. Acts where tokens are dropped, not in training, nor with
    `coarse`."""
    adaptive: Annotated[float, Field(ge=1.0, le=8.0)] = 1.0
    """Let the compress/particularise tension choose each image's budget within this factor of
    `keep`, both ways (1 = fixed budget)."""
    token_price: NonNegative = 0.5
    """Loss of keeping all of an image's tokens, in nats per answer token: what an adaptive budget
    weighs against being right."""
    width: PositiveInt = 192
    """Width of the selector's own layers; 192 gives about 2M parameters at Qwen3-VL-2B width."""
    heads: PositiveInt = 4
    """Question probes that are matched with every cell (participation)."""
    question_layers: NonNegativeInt = 1
    """Transformer layers that put question tokens in context before probing."""
    query: Literal["last_turn", "all_turns"] = "last_turn"
    """User text the selector reads in a conversation: the current turn's, or all turns'."""
    scores: list[Literal["information", "salience", "participation"]] = [
        "information",
        "salience",
        "participation",
    ]
    """Scores that take part in the balance; leaving one out is the ablation."""
    balance: Literal["learned", "thirds"] = "learned"
    """How the scores are weighed: `learned` per cell, or `thirds` = the same fixed share each."""
    textures: Literal["all", "rgb"] = "all"
    """What is read of the pixels beside the vision tower's features: `all` 13 channels and the
    measures made from them, or `rgb` = each cell's mean colour and nothing derived from pixels."""
    tensions: bool = True
    """Learn the three opponent tensions (compress/particularise, exploit/explore,
    focus/diversify); off = neutral constants."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.3
    """Softness of the soft top-K used for the backward pass."""
    learning: Literal["attention_gate", "noise", "multiply", "distill"] = "attention_gate"
    """What teaches the selector after the warm start: the answers' loss through a log-gate on
    attention, through variance-preserving noise on visual tokens, or through multiplying them by a
    soft gate; or imitation of the base's own attention (`distill`) for all steps."""
    noise_temperature: Annotated[float, Field(gt=0.0)] = 2.0
    """Softness of the soft top-K at the first step of `noise` (geometric towards the last)."""
    noise_temperature_end: Annotated[float, Field(gt=0.0)] = 0.1
    """Softness of the soft top-K at the last step of `noise`."""
    keep_curriculum: Annotated[list[Fraction], Field(min_length=1)] = [0.25, 0.1, 0.05]
    """Shares drawn at random per training batch, so one selector serves many budgets; a single
    value trains for that budget only."""
    distill_weight: NonNegative = 1.0
    """Weight of the distillation loss towards the base model's own question-to-image attention."""
    distill_steps: NonNegativeInt = 250
    """Steps of pure distillation before the gate's own loss is switched on (warm start)."""
    reuse_features: bool = True
    """Compute what the frozen vision tower says about an image once for all its questions in a
    batch; off only to measure what that saves."""
    feature_cache: Path | None = None
    """Folder that keeps these features over epochs and runs (any number of runs may share it);
    default: none."""
    feature_cache_gb: Annotated[float, Field(gt=0.0)] = 20.0
    """Most the folder may hold in GB; the features unused for longest are dropped first."""

    @model_validator(mode="after")
    def _textures_fit_the_placement(self) -> SelectorConfig:
        if self.textures == "rgb" and self.placement != "features":
            raise ValueError(
                f"textures=rgb needs placement=features: placement={self.placement} judges cells"
                " by all textures before the vision tower has seen them"
            )
        return self

    @model_validator(mode="after")
    def _adaptive_budgets_are_learned_through_the_gate(self) -> SelectorConfig:
        if self.adaptive > 1 and self.learning != "attention_gate":
            raise ValueError(
                f"adaptive={self.adaptive:g} needs learning=attention_gate: learning="
                f"{self.learning} has no price on tokens that could teach a budget"
            )
        return self


class TrainingConfig(Node):
    steps: PositiveInt = 400
    """Optimizer steps in all."""
    batch_size: PositiveInt = 16
    """Samples per forward pass and process."""
    accumulation: PositiveInt = 1
    """Forward passes per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 3e-3
    """Peak learning rate of AdamW."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay of matrices (never of gains, biases or embeddings)."""
    beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
    """Second-moment decay of AdamW."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the steps over which the learning rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate decay after the warm-up."""
    lr_min_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the peak rate that the decay ends at."""
    max_grad_norm: NonNegative = 1.0
    """Clip the global gradient norm to this; 0 switches clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of the training step; `auto` is bf16 on CUDA, fp32 on CPU."""
    gradient_checkpointing: bool = False
    """Keep only each language-model layer's input for the backward pass and compute the layer
    again there: less memory, more time, the same losses."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: `ddp` gives each the whole base, `fsdp` a share of it (FSDP2)."""
    save_every: PositiveInt = 50
    """Steps between checkpoints (the guarantee against preemption)."""
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept; at least 2, so a damaged one has a predecessor."""
    eval_every: NonNegativeInt = 0
    """Steps between held-out evaluations during training; 0 evaluates only at the end."""
    eval_samples: PositiveInt = 128
    """Held-out samples scored by an evaluation during training."""
    log_every: PositiveInt = 1
    """Steps between loss events."""
    workers: NonNegativeInt = 0
    """Data-loading processes."""
    threads: NonNegativeInt = 0
    """CPU threads for torch; 0 takes the idle cores."""


class TinyBaseConfig(Node):
    """What only the recipe `tiny-base` reads."""

    start: Literal["scratch", "model"] = "scratch"
    """Initial weights: `scratch` builds `arch` at random, `model` continues from `model.name`."""
    train: Literal["all", "vision", "language"] = "all"
    """What is trained: `vision` the vision tower by the cell loss alone, `language` everything but
    the tower's blocks, `all` everything."""
    cell_loss_weight: NonNegative = 1.0
    """Weight of the auxiliary loss that names each cell's content from its visual token."""
    look_loss_weight: NonNegative = 0.5
    """Weight of the auxiliary loss that draws the middle layer's attention to the answer cells."""
    hole_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the pictures with holes: cells that no answer needs are hidden at random; with
    `train=vision` the tower never sees the hidden ones."""
    small_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.35
    """Share of the steps trained on small scenes before the full size (curriculum)."""
    small_cells: PositiveInt = 80
    """Area in cells of the small scenes."""
    small_objects: PositiveInt = 4
    """Objects in the small scenes."""
    export: Path | None = None
    """Write the finished model, tokenizer and card to this folder."""


class EvalConfig(Node):
    keep: Annotated[list[Budget], Field(min_length=1)] = [0.25, 0.1, 0.05]
    """Budgets of `saccade compare`."""
    arms: list[str] = [
        "trained", "full", "random", "grid", "pool", "resize", "saliency",
        "information", "salience", "participation",
    ]  # fmt: skip
    """Selectors that `saccade compare` measures (see `saccade compare --help`)."""
    samples: PositiveInt = 400
    """Held-out samples scored per arm and budget."""
    batch_size: PositiveInt = 16
    """Samples per forward pass."""
    max_new_tokens: PositiveInt = 8
    """Longest answer generated."""
    metric: Literal[
        "auto", "accuracy", "exact_match", "vqa_official", "vqa_evalai", "anls",
        "relaxed_accuracy", "cider", "bleu1", "bleu2", "bleu3", "bleu4", "rouge_l",
    ] = "auto"  # fmt: skip
    """How answers are scored; `auto` is the benchmark's own metric, else `accuracy` (the verdict
    of the question's kind)."""
    vocabulary: str = "coco"
    """Objects that caption hallucination looks for: `coco`, `scenes`, or a JSON file of them."""
    seeds: PositiveInt = 3
    """Repetitions of the arms that draw at random."""


class TrackingConfig(Node):
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """W&B logging; `auto` is online with WANDB_API_KEY, off without."""
    project: str = "saccade"
    """W&B project."""
    entity: str | None = None
    """W&B user or team."""


class LaunchConfig(Node):
    """Where `saccade launch` runs the training, and what it may cost."""

    target: Literal["local", "docker", "vertex", "hf-jobs", "fake"] = "local"
    """Where to run: this machine, a container on it, Vertex AI, Hugging Face Jobs, or `fake` = the
    local imitation of Google Cloud, which needs no account."""
    machine: str = "a2-highgpu-1g"
    """Machine type (see `saccade prices`); `local` and `docker` use this machine's GPUs."""
    replicas: PositiveInt = 1
    """Machines that train together."""
    strategy: Literal["spot", "flex-start", "on-demand", "cheapest"] = "spot"
    """How the machine is rented: `spot` may be taken back, `flex-start` waits in a queue and is
    then kept, `on-demand` costs most; `cheapest` ranks all three."""
    regions: list[str] = []
    """Regions that may be used; empty = every one that has the machine, cheapest first."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """Jobs a launch may start in all before it gives up."""
    wait_minutes: Annotated[float, Field(gt=0.0)] = 60.0
    """Longest wait for a machine in one region before the next one is tried."""
    backoff_seconds: NonNegative = 30.0
    """Pause before a preempted job is submitted again; doubles up to ten minutes."""
    budget: Annotated[float, Field(gt=0.0)] | None = None
    """Most the launch may cost in US dollars over all attempts: a warning at 80 %, and at 100 % the
    job is cancelled after its next checkpoint."""
    hours: Annotated[float, Field(gt=0.0)] | None = None
    """Expected hours of training, for the estimate; empty = only the price per hour is known."""
    timeout_hours: Annotated[float, Field(gt=0.0, le=168.0)] = 24.0
    """Longest one job may run; a hard stop by the platform itself."""
    disk_gb: Annotated[int, Field(ge=50, le=64000)] = 100
    """Boot disk of each machine in GB; holds the image, the base model and checkpoints."""
    image: str | None = None
    """Container image by digest; empty = the one built from this checkout's dependencies."""
    project: str | None = None
    """Google Cloud project; empty = GOOGLE_CLOUD_PROJECT."""
    queue: str = "saccade"
    """W&B Launch queue that `saccade export wandb-queue` writes."""


class Config(Node):
    """The whole configuration of one run."""

    recipe: Literal[
        "relevance", "tiny-base", "sft", "dpo", "pretrain", "recursion", "thoughts", "grounding"
    ] = "relevance"  # fmt: skip
    """What is trained."""
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    arch: ArchConfig = ArchConfig()
    selector: SelectorConfig = SelectorConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    tiny_base: TinyBaseConfig = TinyBaseConfig()
    pretrain: PretrainConfig = PretrainConfig()
    lora: LoraConfig = LoraConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    recursion: RecursionConfig = RecursionConfig()
    thoughts: ThoughtsConfig = ThoughtsConfig()
    grounding: GroundingConfig = GroundingConfig()
    shards: ShardsConfig = ShardsConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _the_tiny_bases_shape_is_not_a_recursions(self) -> Config:
        if self.recipe == "recursion" and self.arch != ArchConfig():
            raise ValueError(
                "arch.* is the shape of the tiny base, which the recipe recursion has none of; say"
                " recursion.width, recursion.layers and so on, or arch=sudoku6"
            )
        return self
