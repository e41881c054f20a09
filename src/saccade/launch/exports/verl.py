"""A runnable verl experiment of a grounding configuration: rows, tools, reward, launch script.

A resolved configuration flows in; a folder flows out, with everything verl 0.9.1 needs but the
model: parquet rows, our tool and reward as two thin files that call `saccade.grounding`, and a
script with our hyper-parameters under verl's names. The model is not loaded, only its processor
and, where that is not on this machine, its family's limits. What verl does otherwise than our own
loop stands in `differences`, in the README and on the screen. Left out: the two phases before
(verl trains groups of episodes only), and running it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import Config
from saccade.data.sources import open_source
from saccade.grounding.coordinates import convention_of
from saccade.grounding.environment import MOST_LISTED, most_calls
from saccade.grounding.messages import tool_schemas
from saccade.grounding.verl_tool import SETTINGS, Settings
from saccade.launch.exports import verl_files
from saccade.launch.exports.verl_rows import SCREENS, RowWriter, Written

VERL = "0.9.1"
"""The release whose schema, options and classes are used."""
LETTERS_PER_TOKEN = 2
"""Where the tokenizer is not known: fewer than any, so that no prompt is too long."""
ROOM = 64
"""Tokens that a call, its answer's frame and the template's words take at most."""


@dataclass(frozen=True)
class Sees:
    """How the model's own processor shows pictures: side of a cell, least and greatest area."""

    cell: int
    least: int
    most: int


@dataclass(frozen=True)
class Policy:
    """What must be known of the model: its type, and how long its prompts are."""

    model_type: str
    few_tokens: bool
    length: Callable[[Sequence[Mapping[str, str]]], int]
    exact: bool


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: list[str]
    train: Written
    validation: Written
    notes: list[str]


def export_verl(
    config: Config,
    *,
    folder: Path,
    sees: Sees,
    samples: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Exported:
    """Write the experiment; files of an earlier export in `folder` are replaced.

    Raises InputError for what verl cannot do, and for a model that cannot call tools.
    """
    refuse_what_verl_cannot(config)
    policy = policy_of(config)
    settings = settings_of(config, sees=sees, policy=policy)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(settings.text(), encoding="utf-8")
    writer = RowWriter(
        folder, settings, told=not policy.few_tokens, length=policy.length,
        skip_broken=config.data.on_error == "skip",
    )  # fmt: skip
    done = []
    for split, source, limit in (
        ("train", config.data.train, samples),
        ("validation", config.data.eval, config.training.eval_samples),
    ):
        opened = open_source(source)
        try:
            done.append(writer.write(opened, split=split, limit=limit, progress=progress))
        finally:
            getattr(opened, "close", _nothing)()  # a browser that drew pages
    train, validation = done
    lengths = (rounded(max(train.tokens, validation.tokens)), response_tokens(settings))
    notes = differences(config, policy=policy)
    values = arguments(config, settings=settings, lengths=lengths, rows=train.rows)
    files = verl_files.files_of(
        config, arguments=values, notes=notes, version=VERL, rows=train.rows
    )
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    names = ["train.parquet", "validation.parquet", SETTINGS, *files]
    return Exported([*names, f"{SCREENS}/"], train=train, validation=validation, notes=notes)


def refuse_what_verl_cannot(config: Config) -> None:
    """Raises InputError, with what to change, for settings that verl would not obey."""
    grounding = config.grounding
    reasons = {
        "recipe": (
            config.recipe != "grounding",
            f"recipe={config.recipe}: only grounding is exported to verl",
            "saccade export verl grounding",
        ),
        "curiosity": (
            grounding.grpo.curiosity > 0,
            "grounding.grpo.curiosity is paid by group, and verl pays one episode at a time",
            "grounding.grpo.curiosity=0",
        ),
        "budget": (
            grounding.grpo.budget is not None,
            "grounding.grpo.budget finds a price over all groups of a step, and verl pays one"
            " episode at a time",
            "grounding.grpo.budget=null, which pays grounding.reward.call",
        ),
        "choice": (
            grounding.grpo.choice > 0,
            "grounding.grpo.choice is a term that verl's loss does not have",
            "grounding.grpo.choice=0",
        ),
        "confidence": (
            grounding.reward.confidence > 0 and not grounding.reward.stated,
            "grounding.reward.confidence is measured by the answer's probability, which verl does"
            " not give to a reward",
            "grounding.reward.stated=true, or grounding.reward.confidence=0",
        ),
        "tool": (
            grounding.reward.tool > 0,
            "grounding.reward.tool needs to know which rows need a zoom, and the rows do not say",
            "grounding.reward.tool=0",
        ),
        "selector": (
            grounding.selector is not None,
            "grounding.selector prunes looks, which no engine of verl does",
            "grounding.selector=null",
        ),
        "schedule": (
            config.training.schedule == "linear",
            "training.schedule=linear: verl knows constant and cosine",
            "training.schedule=cosine",
        ),
    }
    for broken, what, fix in reasons.values():
        if broken:
            raise InputError(f"{what}\n  fix: {fix}")


def policy_of(config: Config) -> Policy:
    """What is known of the model; its weights are not read.

    Raises InputError for a model whose chat template knows no tools.
    """
    from transformers import AutoConfig

    from saccade.models.backbone import locate
    from saccade.models.processing import load_processor
    from saccade.models.tools import FEW_TOKENS, knows_tools

    model, where = config.model, locate(config.model.name)
    schemas = tool_schemas(_offered(config))
    try:
        model_type = AutoConfig.from_pretrained(where, revision=model.revision).model_type
        processor = load_processor(where, revision=model.revision)
    except OSError as error:
        if config.grounding.coordinates == "auto":
            reason = str(error).splitlines()[0]
            raise OutsideError(
                f"model.name={model.name}: cannot be read ({reason}), so how it writes coordinates"
                " is not known\n  fix: grounding.coordinates=0-1000 (Qwen3-VL) or pixels"
                " (Qwen2.5-VL), or export where the model can be reached"
            ) from error
        words = len(str(schemas))

        def guessed(messages: Sequence[Mapping[str, str]]) -> int:
            said = words + sum(len(one["content"]) + 40 for one in messages)
            return said // LETTERS_PER_TOKEN + ROOM

        return Policy("", few_tokens=False, length=guessed, exact=False)
    if not knows_tools(processor):
        raise InputError(
            f"model.name={model.name}: its chat template knows no tools"
            "\n  fix: model=qwen3-vl-2b, or model.name=runs/NAME-warm/model of a finished warm-up"
        )
    tokenizer = processor.tokenizer

    def measured(messages: Sequence[Mapping[str, str]]) -> int:
        text = tokenizer.apply_chat_template(
            list(messages), chat_template=processor.chat_template or tokenizer.chat_template,
            tools=schemas or None, add_generation_prompt=True, tokenize=False,
        )  # fmt: skip
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 2

    few = len(tokenizer) < FEW_TOKENS
    return Policy(model_type, few_tokens=few, length=measured, exact=True)


def settings_of(config: Config, *, sees: Sees, policy: Policy) -> Settings:
    """What is offered, paid and shown; raises InputError for looks the processor cannot show."""
    least = max(config.model.min_pixels or 0, sees.least)
    most = min(config.model.max_pixels or sees.most, sees.most)
    if most < least:
        raise InputError(
            f"model.max_pixels={config.model.max_pixels}: the model's own processor, which verl"
            f" uses, shows no picture below {sees.least} pixels"
            f"\n  fix: model.max_pixels={4 * sees.least}, or a model folder whose"
            " preprocessor_config.json allows less"
        )
    convention = convention_of(config.grounding.coordinates, model_type=policy.model_type)
    tools = _offered(config)
    return Settings(
        grounding=config.grounding.model_copy(update={"tools": tools}),
        convention=convention,
        cell=sees.cell,
        first=(least, most),
        crop=(sees.least, sees.most),
    )


def response_tokens(settings: Settings) -> int:
    """Room for an episode: what it may write, and all that tools may give, which verl counts."""
    grounding, cell = settings.grounding, settings.cell**2
    shown = 0
    if "zoom" in grounding.tools:
        # a crop keeps its shape and is rounded to cells: at most twice the area asked for
        shown += grounding.zoom.calls * 2 * max(grounding.zoom.pixels, settings.crop[0]) // cell
    if "wait" in grounding.tools:
        shown += settings.first[1] // cell
    if "inspect" in grounding.tools:
        shown += MOST_LISTED * ROOM
    frames = most_calls(grounding) * ROOM if grounding.tools else 0
    return rounded(grounding.grpo.max_tokens + shown + frames)


def rounded(tokens: int) -> int:
    """The next multiple of 64."""
    return -(-tokens // 64) * 64


def arguments(
    config: Config, *, settings: Settings, lengths: tuple[int, int], rows: int
) -> dict[str, dict[str, Any]]:
    """verl's options by section, from ours; `$NAME` is filled in by the script."""
    training = config.training
    questions = training.batch_size * training.accumulation
    if rows < questions:
        raise InputError(
            f"{rows} rows are less than one step's {questions} (training.batch_size x"
            " accumulation)\n  fix: more rows, or a smaller training.batch_size"
        )
    return {
        "rows": {
            "data.train_files": "$HERE/train.parquet",
            "data.val_files": "$HERE/validation.parquet",
            "data.train_batch_size": questions,
            "data.max_prompt_length": lengths[0],
            "data.max_response_length": lengths[1],
            "data.image_patch_size": settings.cell // 2,
            "data.truncation": "error",
            "data.shuffle": True,
            "data.seed": config.run.seed,
        },
        "model": _model(config),
        "loss": _loss(config),
        "steps": _steps(config, questions=questions),
        "episodes": _episodes(config, settings=settings, longest=sum(lengths)),
        "reward": {
            "reward.custom_reward_function.path": "$HERE/saccade_reward.py",
            "reward.custom_reward_function.name": "compute_score",
            "reward.num_workers": 2,
        },
    }


def differences(config: Config, *, policy: Policy) -> list[str]:
    """What verl does otherwise than `saccade train`, as far as the configuration asks for it."""
    grpo = config.grounding.grpo
    found = {
        "verl has no loss mask for episodes that were cut off at the longest response: they are"
        " paid as silence, and learned from.": True,
        "Tokens that no policy should write (placeholders of pictures, beginnings of turns) are not"
        " shut out of verl's sampling.": True,
        "The most tokens of an episode are a limit on written and given tokens together"
        " (data.max_response_length).": True,
        "Groups that are left out are replaced by new ones in verl; ours make a step smaller.":
            grpo.filter != "none",
        "verl 0.9.1 reads actor.freeze_vision_tower nowhere: with grounding.grpo.adapter=none the"
        " vision tower is trained, too. With lora it stays as it is.": grpo.adapter == "none",
        f"verl's adapters have no dropout (ours: {config.lora.dropout:g}).":
            grpo.adapter == "lora" and config.lora.dropout > 0,
        "No curriculum: rows come in random order (grounding.grpo.easy_steps).":
            grpo.easy_steps > 0,
        "No collapse detectors: watch reward, critic/score and response_length yourself.": True,
        "The model's files are not on this machine: the longest prompt is guessed, and cells and"
        " areas are Qwen3-VL's. `saccade_check.py` measures before the first step.":
            not policy.exact,
    }  # fmt: skip
    return [note for note, holds in found.items() if holds]


def _offered(config: Config) -> list[Any]:
    grounding = config.grounding
    return [name for name in grounding.tools if name != "zoom" or grounding.zoom.calls]


def _loss(config: Config) -> dict[str, Any]:
    """dr_grpo under verl's names: no spread in the denominator, a constant divisor."""
    actor, grpo = "actor_rollout_ref.actor", config.grounding.grpo
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": False,
        "algorithm.use_kl_in_reward": False,
        **_filter(config),
        f"{actor}.loss_agg_mode": "seq-mean-token-sum-norm",
        f"{actor}.loss_scale_factor": grpo.max_tokens,
        f"{actor}.clip_ratio": grpo.epsilon,
        f"{actor}.clip_ratio_low": grpo.epsilon,
        f"{actor}.clip_ratio_high": grpo.epsilon_high,
        # verl's second clip of bad episodes, which we do not have: too far out to be reached
        f"{actor}.clip_ratio_c": 1000.0,
        f"{actor}.use_kl_loss": grpo.beta > 0,
        f"{actor}.kl_loss_coef": grpo.beta,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.entropy_coeff": grpo.entropy,
    }


def _episodes(config: Config, *, settings: Settings, longest: int) -> dict[str, Any]:
    """How episodes are sampled, by verl's tool agent loop."""
    rollout, grpo = "actor_rollout_ref.rollout", config.grounding.grpo
    return {
        f"{rollout}.name": "$ENGINE",
        f"{rollout}.n": grpo.group,
        f"{rollout}.temperature": grpo.temperature,
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.gpu_memory_utilization": "$ENGINE_MEMORY",
        f"{rollout}.max_model_len": longest,
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.seed": config.run.seed,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": "$MICRO",
        f"{rollout}.agent.default_agent_loop": "tool_agent",
        f"{rollout}.multi_turn.enable": True,
        f"{rollout}.multi_turn.format": "hermes",
        f"{rollout}.multi_turn.tool_config_path": "$HERE/tools.yaml",
        f"{rollout}.multi_turn.max_assistant_turns": most_calls(settings.grounding) + 1,
        f"{rollout}.multi_turn.max_parallel_calls": 1,
        f"{rollout}.multi_turn.max_tool_response_length": 4 * MOST_LISTED * ROOM,
    }


def _filter(config: Config) -> dict[str, Any]:
    """Groups left out. verl drops those in which a number is the same for all: `teaches` is, where
    nobody was right; `acc` is, where all were right, too."""
    kind = config.grounding.grpo.filter
    if kind == "none":
        return {"algorithm.filter_groups.enable": False}
    metric = {"wrong": "teaches", "same": "acc"}[kind]
    return {"algorithm.filter_groups.enable": True, "algorithm.filter_groups.metric": metric}


def _model(config: Config) -> dict[str, Any]:
    model = "actor_rollout_ref.model"
    values: dict[str, Any] = {
        f"{model}.path": "$MODEL",
        f"{model}.enable_gradient_checkpointing": config.training.gradient_checkpointing,
    }
    if config.grounding.grpo.adapter == "none":
        return values
    lora = config.lora
    if lora.alpha != int(lora.alpha):
        raise InputError(
            f"lora.alpha={lora.alpha:g}: verl takes whole numbers\n  fix: lora.alpha=32"
        )
    return {
        **values,
        f"{model}.lora_rank": lora.rank,
        f"{model}.lora_alpha": int(lora.alpha),
        f"{model}.target_modules": f"[{','.join(lora.target_modules)}]",
        f"{model}.exclude_modules": "'.*visual.*'",
        # the engine is sent whole weights: vLLM cannot add adapters to every Qwen-VL
        f"{model}.lora.merge": True,
        "actor_rollout_ref.actor.fsdp_config.model_dtype": "bfloat16",
    }


def _steps(config: Config, *, questions: int) -> dict[str, Any]:
    training, actor = config.training, "actor_rollout_ref.actor"
    every = training.eval_every or training.save_every
    optim = f"{actor}.optim"
    logger = "[console,wandb]" if config.tracking.wandb == "online" else "[console]"
    return {
        f"{actor}.ppo_mini_batch_size": questions,
        f"{actor}.ppo_micro_batch_size_per_gpu": "$MICRO",
        f"{actor}.ppo_epochs": config.grounding.grpo.reuse,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": "$MICRO",
        f"{optim}.lr": training.learning_rate,
        f"{optim}.weight_decay": training.weight_decay,
        f"{optim}.betas": f"[0.9,{training.beta2:g}]",
        f"{optim}.lr_scheduler_type": training.schedule,
        f"{optim}.lr_warmup_steps_ratio": training.warmup_ratio,
        f"{optim}.min_lr_ratio": training.lr_min_ratio,
        # 0 would cut every gradient to nothing
        f"{optim}.clip_grad": training.max_grad_norm or 1e9,
        "trainer.total_training_steps": training.steps,
        "trainer.total_epochs": 1000,
        "trainer.save_freq": training.save_every,
        "trainer.max_actor_ckpt_to_keep": training.keep_checkpoints,
        "trainer.test_freq": every,
        "trainer.resume_mode": "auto",
        "trainer.project_name": config.tracking.project,
        "trainer.experiment_name": config.run.name or config.recipe,
        "trainer.default_local_dir": "$HERE/checkpoints",
        "trainer.logger": logger,
        "trainer.nnodes": "$NODES",
        "trainer.n_gpus_per_node": "$GPUS",
    }


def _nothing() -> None:
    """A source without a browser needs no closing."""
