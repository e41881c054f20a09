"""Names of the earlier design of recursive training, and what became of them.

A name that had one meaning and still has it is accepted and translated to today's key; a name that
never had one (nothing read it, or several things did) or whose value would mean something else is
refused with a pointer. Only names that are no keys of today get here. `arch.NAME` and
`arch.loss.NAME` are the same as `NAME`. Nothing else flows in or out.
"""

from __future__ import annotations

ACCEPTED: dict[str, str] = {
    "H_cycles": "recursion.cycles",
    "L_cycles": "recursion.inner_cycles",
    "L_layers": "recursion.layers",
    "hidden_size": "recursion.width",
    "num_heads": "recursion.heads",
    "expansion": "recursion.expansion",
    "pos_encodings": "recursion.positions",
    "rope_theta": "recursion.rope_theta",
    "halt_max_steps": "recursion.max_steps",
    "halt_exploration_prob": "recursion.explore",
    "puzzle_emb_len": "recursion.puzzle_prefix",
    "puzzle_emb_lr": "recursion.puzzle_lr",
    "puzzle_emb_weight_decay": "recursion.puzzle_weight_decay",
    "ema": "recursion.ema",
    "use_ema": "recursion.ema",
    "ema_rate": "recursion.ema_decay",
    "ema_decay": "recursion.ema_decay",
    "beta1": "recursion.beta1",
    "beta2": "training.beta2",
    "lr": "training.learning_rate",
    "lr_min_ratio": "training.lr_min_ratio",
    "weight_decay": "training.weight_decay",
    "global_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.accumulation",
    "max_grad_norm": "training.max_grad_norm",
    "eval_interval": "training.eval_every",
    "seed": "run.seed",
    "run_name": "run.name",
}
"""Old name -> today's key, where the value keeps its meaning."""

REFUSED: dict[str, str] = {
    "epochs": "an epoch counted filled slots, not solved puzzles; say training.steps, the steps of"
    " thinking in all",
    "lr_warmup_steps": "say training.warmup_ratio, a share of training.steps",
    "mlp_t": "say recursion.mixer=mlp or recursion.mixer=attention",
    "loss_type": "say recursion.loss=stablemax or recursion.loss=softmax",
    "optimizer_type": "say recursion.optimizer=adam_atan2 or recursion.optimizer=adamw",
    "forward_dtype": "say training.precision=bf16 or training.precision=fp32",
    "H_layers": "no code ever read it: one network does both updates; its depth is"
    " recursion.layers",
    "num_key_value_heads": "no code ever read it; recursion.heads is all there is",
    "puzzle_emb_ndim": "it could only equal the width; say recursion.puzzle_prefix, the positions"
    " it fills",
    "no_ACT_continue": "halting learns whether the answer is right, as published; there is nothing"
    " to switch",
    "deep_supervision_steps": "it was never on; say recursion.max_steps",
    "max_thinking_steps": "no code ever read it; say recursion.max_steps",
    "data_paths": "say data.train.type and data.train.path",
    "data_paths_test": "say data.eval.type and data.eval.path",
    "checkpoint_path": "a run keeps its checkpoints itself; say run.root and run.name",
    "load_checkpoint": "the same command continues a run",
    "checkpoint_every_eval": "say training.save_every",
    "min_eval_interval": "say training.eval_every",
    "enable_optimizer_fallback": "a run that diverges stops and says so; it never changes its"
    " optimizer",
    "nan_threshold_for_fallback": "a run that diverges stops and says so; it never changes its"
    " optimizer",
    "enable_gradient_checkpointing": "no code ever read it; lower recursion.inner_cycles or"
    " training.batch_size",
    "task_completion_threshold": "no code ever read it",
    "yolo": "no code ever read it",
    "vision": "no code ever read it",
    "dqn": "no code ever read this section",
    "lr_scheduler": "no code ever read it; say training.schedule",
    "cpu_optimized": "no code ever read it; say training.threads",
    "evaluators": "say `saccade eval RUN` after the training",
}
"""Old name -> why it is no longer taken, and what to say instead."""

PREFIXES = ("arch.loss.", "arch.")


def plain(name: str) -> str:
    """The name without the section that the earlier design kept it in."""
    return next((name.removeprefix(one) for one in PREFIXES if name.startswith(one)), name)


def translated(name: str) -> str | None:
    """Today's key for an old name, or None."""
    return ACCEPTED.get(plain(name))


def pointer(name: str) -> str | None:
    """Why an old name is refused, or None; a section's name covers what stands below it."""
    name = plain(name)
    return REFUSED.get(name) or REFUSED.get(name.partition(".")[0])
