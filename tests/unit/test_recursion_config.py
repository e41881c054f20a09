"""Recursive training by configuration: the arch groups, today's names and the earlier design's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade.config.errors import InputError
from saccade.config.keys import key_names
from saccade.config.recursion_names import ACCEPTED, REFUSED, pointer, translated
from saccade.config.resolve import flatten, resolve
from saccade.config.schema import Config, MazeSource, SudokuSource

ARCHES = ("sudoku6", "sudoku6-single", "sudoku9", "maze")


def complaint(*overrides: str, recipe: str = "recursion") -> str:
    with pytest.raises(InputError) as caught:
        resolve(recipe, overrides=overrides)
    return str(caught.value)


def value(config: Config, key: str) -> Any:
    return flatten(config.model_dump(mode="json"))[key]


def test_an_arch_sets_shape_task_and_schedule_and_refinements_win() -> None:
    config = resolve("recursion", overrides=["training.steps=7", "arch=sudoku9"]).config
    assert isinstance(config.data.train, SudokuSource)
    assert config.data.train.side == config.data.eval.side == 9  # type: ignore[union-attr]
    assert (config.recursion.width, config.recursion.cycles, config.training.steps) == (512, 3, 7)
    maze = resolve("recursion", overrides=["arch=maze"])
    assert isinstance(maze.config.data.train, MazeSource)
    assert maze.sources["recursion.mixer"].startswith("arch/maze.yaml:")


def test_every_arch_sets_the_same_keys_so_that_none_lingers() -> None:
    def keys(arch: str) -> set[str]:
        sources = resolve("recursion", overrides=[f"arch={arch}"]).sources
        return {key for key, where in sources.items() if where.startswith("arch/")
                and not key.startswith("data.")}  # fmt: skip

    assert keys("sudoku6") == keys("sudoku6-single")
    puzzle = {"recursion.puzzle_lr", "recursion.puzzle_weight_decay"}  # read only with a prefix
    heads = {"recursion.heads"}  # read only by attention
    assert keys("sudoku9") - puzzle == keys("sudoku6") == keys("maze") - heads


def test_the_control_differs_in_nothing_but_the_steps_of_thinking() -> None:
    plain, single = (resolve("recursion", overrides=[f"arch={arch}"]).config for arch in ARCHES[:2])
    changed = {"max_steps": 1, "eval_steps": 1}
    assert single.recursion == plain.recursion.model_copy(update=changed)
    assert single.training == plain.training
    assert single.data == plain.data


def test_training_and_measuring_puzzles_are_of_different_splits() -> None:
    for arch in ARCHES:
        data = resolve("recursion", overrides=[f"arch={arch}"]).config.data
        assert data.train.split == "train"  # type: ignore[union-attr]
        assert data.eval.split == "test"  # type: ignore[union-attr]


@pytest.mark.parametrize("old", sorted(ACCEPTED))
def test_an_accepted_old_name_means_todays_key(old: str) -> None:
    key = ACCEPTED[old]
    assert key in key_names()
    assert old not in key_names()
    now = value(resolve("recursion", overrides=["recursion.puzzle_prefix=2"]).config, key)
    text = {"recursion.positions": "learned", "run.name": "other"}.get(key)
    other = text or (str(not now).lower() if isinstance(now, bool) else str((now or 1) / 2))
    other = "1" if key == "run.seed" else other
    if isinstance(now, int) and not isinstance(now, bool):
        other = str(now * 2)
    more = ["recursion.mixer=attention", "recursion.heads=4", "recursion.width=64"]
    for name in (old, f"arch.{old}"):
        if name in key_names():
            continue  # the tiny base has such a key
        resolved = resolve("recursion", overrides=[*more, f"{name}={other}"])
        assert str(value(resolved.config, key)).lower() == str(other).lower()
        assert resolved.sources[key] == "command line"


@pytest.mark.parametrize("old", sorted(REFUSED))
def test_a_refused_old_name_points_somewhere(old: str) -> None:
    assert old not in ACCEPTED
    assert old not in key_names()
    name = old.replace("*", "start")
    assert f"{name}: no longer a key; {REFUSED[old]}" in complaint(f"{name}=1")
    for word in REFUSED[old].replace(",", " ").replace(";", " ").split():
        name = word.partition("=")[0]
        if name.startswith(("recursion.", "training.", "data.", "run.")):
            assert name in key_names(), f"{old} points to {name}"


EARLIER = """
data_paths data_paths_test evaluators global_batch_size epochs eval_interval min_eval_interval
checkpoint_every_eval checkpoint_path load_checkpoint lr lr_min_ratio lr_warmup_steps beta1 beta2
weight_decay puzzle_emb_lr puzzle_emb_weight_decay seed ema ema_rate freeze_weights optimizer_type
enable_optimizer_fallback nan_threshold_for_fallback enable_per_layer_grad_norm enable_dqn
enable_entropy_regularization enable_memory enable_mtp enable_adaptive_hcycles
enable_hierarchical_attention entropy_regularization_weight hcycle_confidence_threshold
q_head_num_actions q_head_type dqn_warmup_ratio dqn_warmup_steps
freeze_representation_during_warmup expansion_penalty_schedule expansion_penalty_start
expansion_penalty_end expansion_anneal_ratio replay_recent_fraction replay_max_age
enable_q_temperature_annealing q_temperature_start q_temperature_end q_temperature_anneal_ratio
q_temperature_schedule arch.name loss.name loss.loss_type arch.loss.name arch.loss.loss_type
H_cycles L_cycles H_layers L_layers halt_exploration_prob halt_max_steps hidden_size num_heads
num_key_value_heads expansion puzzle_emb_ndim puzzle_emb_len pos_encodings rope_theta mlp_t
no_ACT_continue forward_dtype encoder_num_layers encoder_H_cycles encoder_L_cycles
deep_supervision_steps enable_gradient_checkpointing use_ema ema_decay dqn_buffer_capacity
dqn_buffer_min_size dqn_batch_size dqn_gamma dqn_epsilon_start dqn_epsilon_end
dqn_epsilon_decay_steps dqn_warmstart_steps reward_step_penalty reward_terminal_correct
reward_terminal_incorrect q_head_hidden_size q_head_num_layers enable_latent_planning
latent_num_paths latent_planning_depth latent_use_adaptive_gate memory_capacity memory_num_heads
memory_dropout memory_reward_bonus memory_reward_threshold enable_count_curiosity
enable_rnd_curiosity curiosity_count_beta curiosity_rnd_weight enable_prioritized_replay per_alpha
per_beta mtp_num_depths mtp_loss_weight mtp_share_embeddings mtp_share_output_head
reconstruction_weight checksum_halt_threshold enable_capsule_expansion cpu_optimized use_gelu
ffn_expansion_ratio q_head_max_grad_norm gradient_accumulation_steps max_thinking_steps
task_completion_threshold ttt_steps ttt_lr lr_scheduler max_grad_norm semantic_mode
semantic_dataset semantic_eval_dataset vision.capsule.method vision.capsule.target_capsules
yolo.model dqn.gamma image_size batch_size
"""
"""Names of the earlier design's run files and model files."""


@pytest.mark.parametrize("old", EARLIER.split())
def test_every_name_of_the_earlier_design_is_translated_or_points_on(old: str) -> None:
    assert (translated(old) is None) != (pointer(old) is None)
    if pointer(old):
        assert f"{old}: no longer a key;" in complaint(f"{old}=1")


@pytest.mark.parametrize("recipe", ["relevance", "thoughts", "sft", "tiny-base"])
def test_other_recipes_know_no_old_names(recipe: str) -> None:
    for name in ("ema=true", "H_cycles=2", "mlp_t=true", "arch.loss.name=x", "batch_size=2"):
        told = complaint(name, recipe=recipe)
        assert "unknown key" in told
        assert "no longer a key" not in told


def test_old_names_are_known_to_every_way_of_asking_for_the_recipe(tmp_path: Path) -> None:
    assert not resolve("smoke/recursion", overrides=["ema=false"]).config.recursion.ema
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: recursion\nema: false\n")
    assert not resolve(None, file=file).config.recursion.ema
    file.write_text("ema: false\n")
    with pytest.raises(InputError, match=r"mine.yaml:1: ema = False: unknown key"):
        resolve("relevance", file=file)


def test_the_later_of_an_old_name_and_todays_wins() -> None:
    for words, cycles in (
        ("H_cycles=2 recursion.cycles=4", 4),
        ("recursion.cycles=4 H_cycles=2", 2),
    ):
        assert resolve("recursion", overrides=words.split()).config.recursion.cycles == cycles


def test_old_names_work_in_yaml_with_their_sections(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text(
        "recipe: recursion\nglobal_batch_size: 24\nema: true\narch:\n  H_cycles: 2\n  loss:\n"
        "    loss_type: stablemax_cross_entropy\n"
    )
    with pytest.raises(InputError, match=r"old.yaml:7: arch.loss.loss_type: no longer a key"):
        resolve(str(file))
    file.write_text(file.read_text().split("  loss:")[0])
    resolved = resolve(str(file))
    assert resolved.config.training.batch_size == 24
    assert resolved.config.recursion.cycles == 2
    assert resolved.sources["recursion.cycles"] == f"{file}:5"


def test_a_wrong_value_of_an_old_name_shows_both_names() -> None:
    assert "H_cycles (recursion.cycles) = x: expected integer >= 1" in complaint("H_cycles=x")


def test_an_unknown_name_stays_unknown() -> None:
    assert translated("H_cycels") is None
    assert "unknown key" in complaint("H_cycels=2")


def test_the_tiny_bases_shape_is_no_recursions() -> None:
    assert "say recursion.width" in complaint("arch.hidden_size=64")
    assert "say recursion.width" in complaint("arch=tiny", "arch.layers=5")


def test_parts_that_do_not_fit_are_refused() -> None:
    attention = "recursion.mixer=attention"
    assert "does not split into 7 heads" in complaint(attention, "recursion.heads=7")
    assert "positions=rope needs mixer=attention" in complaint("recursion.positions=rope")


def test_the_decay_of_the_learning_rate_ends_at_its_floor() -> None:
    from saccade.training.optimizers import learning_rate_factor

    for schedule in ("cosine", "linear"):
        factor = [
            learning_rate_factor(n, steps=100, warmup=10, schedule=schedule, floor=0.2)
            for n in (0, 10, 55, 100)
        ]
        assert factor == pytest.approx([0.1, 1.0, 0.6, 0.2])
