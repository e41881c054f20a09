"""Names of the earlier design of recursive training, and what became of them.

A name that had one meaning and still has it is accepted and translated to today's key; a name that
never had one (nothing read it, or several things did) or whose value would mean something else is
refused with a pointer. Only names that are no keys of today get here, and only where one of
`RECIPES` is trained: elsewhere they are unknown keys like any other. `arch.NAME`, `loss.NAME` and
`arch.loss.NAME` are the same as `NAME`. Nothing else flows in or out.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

RECIPES = ("recursion",)
"""Recipes that take these names."""

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
    "enable_latent_planning": "recursion.planning.enabled",
    "latent_num_paths": "recursion.planning.paths",
    "latent_planning_depth": "recursion.planning.depth",
    "enable_memory": "recursion.memory.enabled",
    "memory_capacity": "recursion.memory.capacity",
    "enable_mtp": "recursion.mtp.enabled",
    "mtp_num_depths": "recursion.mtp.depths",
    "mtp_loss_weight": "recursion.mtp.weight",
    "enable_dqn": "recursion.q_halting.enabled",
    "dqn_buffer_capacity": "recursion.q_halting.capacity",
    "dqn_gamma": "recursion.q_halting.gamma",
    "dqn_epsilon_start": "recursion.q_halting.explore_start",
    "dqn_epsilon_end": "recursion.q_halting.explore_end",
    "dqn_epsilon_decay_steps": "recursion.q_halting.explore_steps",
    "dqn_warmup_ratio": "recursion.q_halting.after",
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
    "latent_use_adaptive_gate": "the paths' gate always learns; say recursion.planning.enabled",
    "memory_num_heads": "the bank is read by one head",
    "memory_dropout": "no code ever read it; say recursion.memory.writes",
    "memory_reward_bonus": "reading is judged by the loss alone; say recursion.memory.enabled",
    "memory_reward_threshold": "a state is written when its answer is right; say"
    " recursion.memory.writes",
    "mtp_share_embeddings": "both are always shared; say recursion.mtp.enabled",
    "mtp_share_output_head": "both are always shared; say recursion.mtp.enabled",
    "reward_step_penalty": "say recursion.q_halting.step_cost, a positive number",
    "reward_terminal_correct": "a right answer is worth 1; say recursion.q_halting.step_cost",
    "reward_terminal_incorrect": "a wrong answer is worth 0; say recursion.q_halting.step_cost",
    "dqn_warmup_steps": "say recursion.q_halting.after, a share of training.steps",
    "dqn_buffer_min_size": "learning starts with the first steps kept; say"
    " recursion.q_halting.capacity",
    "dqn_batch_size": "each step replays as many steps as there are slots; say training.batch_size",
    "dqn_warmstart_steps": "it only wrote to the log; say recursion.q_halting.after",
    "freeze_representation_during_warmup": "the Q-values never move the network; say"
    " recursion.q_halting.enabled",
    "q_head_type": "one kind of head is left; say recursion.q_halting.hidden",
    "q_head_hidden_size": "say recursion.q_halting.hidden",
    "q_head_num_layers": "there is one hidden layer; say recursion.q_halting.hidden",
    "q_head_num_actions": "there are two actions, go on and stop",
    "enable_q_temperature_annealing": "no code ever read the temperature; say"
    " recursion.q_halting.explore_end",
    "enable_prioritized_replay": "it was bypassed whenever it was on; replay is uniform",
    "per_alpha": "it was bypassed whenever it was on; replay is uniform",
    "per_beta": "it was bypassed whenever it was on; replay is uniform",
    "replay_recent_fraction": "replay is uniform; say recursion.q_halting.capacity",
    "replay_max_age": "no code ever read it; say recursion.q_halting.capacity",
    "enable_count_curiosity": "it got no data; say recursion.explore",
    "enable_rnd_curiosity": "it got no gradient; say recursion.explore",
    "enable_entropy_regularization": "no code ever read it; say recursion.explore",
    "enable_adaptive_hcycles": "leaving early is halting; say recursion.halt_confidence",
    "hcycle_confidence_threshold": "it was a logit; say recursion.halt_confidence, a probability",
    "enable_hierarchical_attention": "no code ever read it",
    "enable_capsule_expansion": "it never ran; capsules are read as they are: arch=multimodal",
    "checksum_halt_threshold": "checksums said nothing about the answer; say"
    " recursion.halt_confidence",
    "reconstruction_weight": "capsules have targets of their own now: arch=multimodal",
    "enable_per_layer_grad_norm": "every group's gradient is always noted; for every use of the"
    " network say recursion.flow.enabled",
    "evaluators": "say `saccade eval RUN` after the training",
    "arch.name": "there is one network; its shape and task are arch=sudoku6 and the like",
    "loss.name": "there is one loss; say recursion.loss=stablemax or recursion.loss=softmax",
    "batch_size": "it was the samples of a step in one script and those of a replay in another; say"
    " training.batch_size",
    "image_size": "no code ever read it; pictures become capsules when shards are built:"
    " arch=multimodal",
    "encoder_num_layers": "pictures are encoded when shards are built: arch=multimodal",
    "encoder_H_cycles": "pictures are encoded when shards are built, without recursion:"
    " arch=multimodal",
    "encoder_L_cycles": "pictures are encoded when shards are built, without recursion:"
    " arch=multimodal",
    "use_gelu": "blocks are SwiGLU, as published; say recursion.expansion for their width",
    "ffn_expansion_ratio": "say recursion.expansion, of which SwiGLU takes two thirds",
    "freeze_weights": "the published switch trained puzzle embeddings alone; nothing does that now:"
    " the network always learns (training.learning_rate)",
    "entropy_regularization_weight": "no code ever read it; say recursion.explore",
    "expansion_*": "capsules were never expanded; they are read as they are: arch=multimodal",
    "q_temperature_*": "no code ever read the temperature; say recursion.q_halting.explore_end",
    "curiosity_*": "curiosity got no data and no gradient; say recursion.explore",
    "semantic_*": "say data.train.type and data.train.path; arch=multimodal reads pictures",
    "ttt_*": "nothing trains while it answers; say recursion.eval_steps to think longer",
    "*_max_grad_norm": "no code ever read it; say training.max_grad_norm",
}
"""Old name (`*` stands for any ending or beginning) -> why it is no longer taken, and what to say
instead."""

PREFIXES = ("arch.loss.", "arch.", "loss.")


def plain(name: str) -> str:
    """The name without the section that the earlier design kept it in."""
    return next((name.removeprefix(one) for one in PREFIXES if name.startswith(one)), name)


def translated(name: str) -> str | None:
    """Today's key for an old name, or None."""
    return ACCEPTED.get(plain(name))


def pointer(name: str) -> str | None:
    """Why an old name is refused, or None; a section's name covers what stands below it."""
    own = plain(name)
    for one in (name, name.removeprefix("arch."), own, own.partition(".")[0]):
        if one in REFUSED:
            return REFUSED[one]
    return next((why for like, why in REFUSED.items() if fnmatchcase(own, like)), None)
