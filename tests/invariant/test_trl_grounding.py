"""TRL's GRPOTrainer on our task: the same tokens, pixels, rewards, advantages and loss as ours."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the extra `rl` is not installed")
pytest.importorskip("peft", reason="the extra `rl` is not installed")
from transformers.utils.chat_template_utils import get_json_schema
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import add_fused_lm_head

from saccade.config.errors import InputError
from saccade.grounding.episodes import Episode
from saccade.grounding.grpo import grpo_loss
from saccade.grounding.messages import tool_schemas
from saccade.training.recipes.grounding_grpo import GrpoPhase
from saccade.training.recipes.grounding_paid import Group, paid_group
from saccade.training.trl_grounding import (
    ScreenEnvironment,
    TrlGrounding,
    measured_groups,
    train_with_trl,
    written_of,
)
from tests.grounding_policy import flat, settings, shown, some_tasks, taught

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-5
GROUP = 8
SETTINGS = (
    "training.batch_size=2", f"grounding.grpo.group={GROUP}", "grounding.grpo.filter=none",
    "grounding.grpo.reuse=2", "training.steps=2", "training.learning_rate=1e-3",
)  # fmt: skip


@dataclass
class Sampled:
    """One batch that TRL sampled and paid, and the episodes it is made of."""

    made: TrlGrounding
    batch: dict[str, Any]
    episodes: list[list[Episode]]
    groups: list[Group]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """Two groups with no, one and two crops in one batch, as TRL's trainer generates them."""
    config, backbone = settings(*SETTINGS), taught()
    backbone.model.requires_grad_(True)
    backbone.model.model.visual.requires_grad_(False)
    made = TrlGrounding(
        config, base=backbone.model, processor=backbone.processor, tasks=some_tasks(config),
        folder=tmp_path_factory.mktemp("trl"),
    )  # fmt: skip
    made.trainer.current_gradient_accumulation_steps = 1
    # ours leaves out what no policy may write, TRL's log-probabilities know nothing of it
    made.dialogue.shut = torch.zeros_like(made.dialogue.shut)
    for seed in range(20):
        torch.manual_seed(seed)
        rows = [made.row(number) for number in range(2) for _ in range(GROUP)]
        batch = made.trainer._generate_and_score_completions(rows)
        crops = {len(one.screen.views) - 1 for one in made.made}
        if crops >= {0, 1, 2}:
            break
    else:
        pytest.fail("the policy does not mix")
    groups = [made.made[:GROUP], made.made[GROUP:]]
    paid = [paid_group(one, config=config.grounding) for one in groups]
    return Sampled(made, batch, measured_groups(groups, dialogue=made.dialogue), paid)


# what is said --------------------------------------------------------------------------------


def test_the_prompt_and_what_a_tool_gives_back_are_the_same_tokens_and_pixels(
    sampled: Sampled,
) -> None:
    trainer, dialogue = sampled.made.trainer, sampled.made.dialogue
    for number, task in enumerate(sampled.made.tasks):
        row = sampled.made.row(number)
        message = prepare_multimodal_messages(row["prompt"], images=[row["image"]])
        trainer._batch_environments = [None]
        ids, _, fields = trainer._tokenize_prompts([message])
        prompt = dialogue.prompt(task)
        assert ids[0] == prompt.ids.tolist()
        pixels = torch.cat([torch.as_tensor(one) for one in fields["pixel_values"]])
        assert torch.equal(pixels.reshape(prompt.pixels_ND.shape), prompt.pixels_ND)
        screen = dialogue.screen(task)
        for box in ([0, 0, 500, 500], [9, 9, 9, 500]):
            result = screen.call("zoom", {"box": box})
            content: Any = result.text
            if result.view is not None:
                content = [{"type": "image", "image": result.view.image}]
                encoded = trainer.processing_class.image_processor(
                    images=[result.view.image], return_tensors="pt"
                )
                assert torch.equal(encoded["pixel_values"], dialogue.look(result.view).pixels_ND)
            told = [{"role": "tool", "name": "zoom", "content": content}]
            assert list(trainer._get_tool_suffix_ids(told)) == dialogue.given(result).ids.tolist()


def test_the_tool_is_described_as_our_prompts_describe_it() -> None:
    assert get_json_schema(ScreenEnvironment.zoom) == tool_schemas(["zoom"])[0]


def test_no_one_and_two_crops_mix_in_one_batch_and_are_read_as_ours(sampled: Sampled) -> None:
    batch, crops = sampled.batch, [len(one.screen.views) - 1 for one in flat(sampled.episodes)]
    assert set(crops) == {0, 1, 2}
    assert batch["num_images"] == [1 + n for n in crops]
    grid, image = batch["image_grid_thw"], sampled.made.dialogue.markers.image
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    assert int((ids == image).sum()) == int((grid.prod(-1) // 4).sum()), "a cell for every token"
    for number, episode in enumerate(flat(sampled.episodes)):
        length = len(episode.ids)
        assert torch.equal(batch["completion_ids"][number, :length], episode.ids)
        if episode.finish not in ("truncated", "too many turns"):
            assert torch.equal(batch["tool_mask"][number, :length].bool(), episode.written)
        assert len(episode.turns) == len(episode.screen.views) or episode.finish != "answered"


def test_a_demonstration_is_taken_apart_into_what_was_written(sampled: Sampled) -> None:
    dialogue = sampled.made.dialogue
    for looks in (0, 1, 2):
        episode = shown(dialogue, sampled.made.tasks[0], looks=looks)
        written, spans = written_of(episode.ids, dialogue=dialogue)
        assert torch.equal(written, episode.written)
        assert [dialogue.words(episode.ids[a:b]) for a, b in spans] == episode.turns


# what is learned -----------------------------------------------------------------------------


def test_rewards_and_advantages_are_trls(sampled: Sampled) -> None:
    mine = flat([group.judged.advantages for group in sampled.groups])
    assert max(mine) > 0.05
    assert sampled.batch["advantages"].tolist() == pytest.approx(mine, abs=TOLERANCE)
    paid = sampled.made.trainer._logs["rewards"]["_reward"]
    totals = flat([[one.total for one in group.rewarded] for group in sampled.groups])
    assert list(paid)[-len(totals) :] == pytest.approx(totals, abs=TOLERANCE)


def by_episode(values_RL: torch.Tensor, packed: dict[str, Any], number: int) -> torch.Tensor:
    here_RL = (packed["episode_RL"] == number) & (packed["labels"] != -100)
    return values_RL[here_RL]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("moved", [False, True])
def test_the_loss_and_its_gradient_are_those_of_trls_trainer(
    moved: bool, temperature: float, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, batch = sampled.made, dict(sampled.batch)
    trainer, dialogue = made.trainer, made.dialogue
    model = dialogue.base
    # TRL divides by its temperature in the model's own forward pass
    monkeypatch.setattr(model, "forward", model.forward)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    kept = copy.deepcopy(model.state_dict())
    learned = [one for one in model.parameters() if one.requires_grad]
    packed = dialogue.rows(sampled.episodes)
    with torch.no_grad():
        old_RL, _ = dialogue.log_probs(packed, temperature=temperature)
        if temperature != 1:  # as if it had been sampled there
            before = batch["old_per_token_logps"] = batch["old_per_token_logps"].clone()
            for number, episode in enumerate(flat(sampled.episodes)):
                there = episode.written.nonzero()[:, 0]
                before[number, there] = by_episode(old_RL, packed, number)
        if moved:
            generator = torch.Generator().manual_seed(2)
            for one in learned:
                one.add_(torch.randn(one.shape, generator=generator) * 0.03)
    model.zero_grad()
    theirs = trainer._compute_loss(model, batch)
    theirs.backward()
    their_gradient = torch.cat([one.grad.flatten() for one in learned if one.grad is not None])
    model.zero_grad()
    new_RL, entropies_RL = dialogue.log_probs(packed, temperature=temperature)
    gains = torch.tensor(flat([group.judged.advantages for group in sampled.groups]))
    taken = torch.tensor(flat([group.learned for group in sampled.groups]))
    at_RL = packed["episode_RL"].clamp(min=0)
    told_RL = packed["labels"] != -100
    found = grpo_loss(
        new_RL, old=old_RL, advantages=gains[at_RL] * told_RL, mask=taken[at_RL] & told_RL,
        normaliser=len(gains) * trainer.max_completion_length, config=made.config.grounding.grpo,
        entropies=entropies_RL,
    )  # fmt: skip
    found.total.backward()
    gradient = torch.cat([one.grad.flatten() for one in learned if one.grad is not None])
    metrics = trainer._metrics["train" if model.training else "eval"]
    clipped = float((found.clipped_low + found.clipped_high) / found.tokens)
    model.load_state_dict(kept)
    model.zero_grad()
    assert (clipped > 0) is moved
    assert metrics["clip_ratio/region_mean"][-1] == pytest.approx(clipped, abs=TOLERANCE)
    assert float(found.total) == pytest.approx(float(theirs), abs=TOLERANCE)
    assert float(their_gradient.abs().max()) > 1e-4
    assert torch.allclose(gradient, their_gradient, atol=TOLERANCE)
    assert float(found.entropy / found.tokens) == pytest.approx(metrics["entropy"][-1], abs=1e-4)


def test_log_probabilities_of_packed_rows_are_trls_of_separate_ones(sampled: Sampled) -> None:
    packed = sampled.made.dialogue.rows(sampled.episodes)
    with torch.no_grad():
        mine_RL, _ = sampled.made.dialogue.log_probs(packed)
    for number, episode in enumerate(flat(sampled.episodes)):
        if episode.finish == "truncated":
            continue  # TRL shuts these out of attention, too
        theirs = sampled.batch["old_per_token_logps"][number, : len(episode.ids)]
        assert torch.allclose(
            by_episode(mine_RL, packed, number), theirs[episode.written], atol=1e-4
        )


# training ------------------------------------------------------------------------------------


def test_trl_trains_on_it_with_its_own_loop(tmp_path: Path) -> None:
    config, backbone = settings(*SETTINGS), taught()
    model = backbone.model
    model.requires_grad_(True)
    model.model.visual.requires_grad_(False)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    logged = train_with_trl(
        config, base=model, processor=backbone.processor, tasks=some_tasks(config), folder=tmp_path
    )
    steps = [one for one in logged if "loss" in one]
    assert len(steps) == 2
    assert 0 < steps[0]["tools/call_frequency"] <= 3, "the second step uses the episodes again"
    parts = sum(steps[0][name] for name in ("hit", "format", "call", "point", "silence"))
    assert steps[0]["reward"] == pytest.approx(parts, abs=1e-4)
    changed = [n for n, one in model.state_dict().items() if not torch.equal(one, before[n])]
    assert changed and not any("visual" in name for name in changed)


def saved(folder: Path) -> Path:
    backbone = taught()
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


def test_our_loop_takes_its_episodes_from_trl_where_that_is_asked(tmp_path: Path) -> None:
    words = (*SETTINGS, f"model.name={saved(tmp_path / 'model')}", "grounding.grpo.rollouts=trl")
    first, again = (GrpoPhase(settings(*words, "grounding.grpo.reuse=1")) for _ in range(2))
    source = first.train_source()
    samples = [source[0], source[1]]
    batches = []
    for made in (first, again):
        torch.manual_seed(len(batches))  # nothing else drawn may matter
        batches.append(made.enter(made.collate(samples), micro=0))
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    assert torch.equal(batches[0]["advantages_RL"], batches[1]["advantages_RL"])
    assert all(row["log_prob"] < 0 for row in first.rows)
    first.base.eval()
    found = first.loss(batches[0], step=0, denominator=(batches[0]["labels"] != -100).sum())
    assert float(found["rollout_gap"]) < 1e-4
    found["loss"].backward()
    learned = [one for one in first.model.parameters() if one.requires_grad]
    assert any(one.grad is not None and bool(one.grad.any()) for one in learned)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("grounding.tools=[zoom,wait]",), "offers zoom alone"),
        (("grounding.reward.confidence=0.1",), "TRL keeps"),
        (("grounding.grpo.budget=0.4",), "TRL pays"),
        (("grounding.grpo.choice=2",), "TRL's loss does not have"),
    ],
)
def test_what_trl_cannot_do_is_refused(words: Sequence[str], match: str, tmp_path: Path) -> None:
    config, backbone = settings(*words), taught()
    with pytest.raises(InputError, match=match):
        train_with_trl(
            config, base=backbone.model, processor=backbone.processor, tasks=some_tasks(config),
            folder=tmp_path,
        )  # fmt: skip
