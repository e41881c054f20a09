"""A policy behind a selector is exact: it reads what is kept of every look, where it stood.

Keeping everything changes no number and no token; keeping less gives the numbers of the base's own
forward pass over the full dialogue with the dropped cells' tokens taken out, positions unmoved.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.config.errors import InputError
from saccade.config.schema import Config
from saccade.data.boxes import Box
from saccade.data.chat import IGNORE_INDEX
from saccade.grounding.dialogue import Dialogue
from saccade.grounding.episodes import Episode
from saccade.grounding.packed import filled_up
from saccade.grounding.rollouts import roll
from saccade.models.relevance import storage
from saccade.models.relevance.prune import LanguageInputs, drop_tokens
from saccade.models.relevance.vision import encode_cells, encode_images
from tests.dialogue_example import mixed, packed, ready, settings, shown, task
from tests.tiny_models import older_backbone, random_backbone, relevance_model

TOLERANCE = 1e-4
ARMS = ["grid", "random", "saliency", "vision_attention_drop", "dpp", "saliency+mmr"]


def config_of(selector: str | None, keep: float, **grounding: Any) -> Config:
    made = settings(selector=selector, **grounding)
    chosen = made.selector.model_copy(update={"keep": keep})
    return made.model_copy(update={"selector": chosen})


def pruned(
    selector: str | None, keep: float = 0.5, *, base: Any = random_backbone, **grounding: Any
) -> Dialogue:
    made = ready(base)
    return Dialogue(made.model, made.processor, config=config_of(selector, keep, **grounding))


def trained(folder: Path, **selector: Any) -> str:
    storage.save(relevance_model(**selector), folder, include_base=False)
    return str(folder)


def flat(groups: list[list[Episode]]) -> list[Episode]:
    return [one for group in groups for one in group]


def apart(talk: Dialogue) -> list[list[Episode]]:
    """The mixed example in groups of one question each: only they share what is kept."""
    return [[one] for group in mixed(talk) for one in group]


def by_hand(talk: Dialogue, episode: Episode) -> Tensor:
    """Log-probabilities of the written tokens: everything encoded, then dropped, then read."""
    prompt, image = talk.prompt(episode.task), talk.markers.image
    pictures = talk.pictures(episode)
    ids = torch.cat([prompt.ids, episode.ids])
    full, stays = filled_up(ids, pictures, image=image, merge=talk.merge)
    grid_I3 = torch.tensor([one.grid for one in pictures])
    pixels_ND = torch.cat([one.pixels_ND for one in pictures])
    positions, _ = talk.base.model.get_rope_index(
        full[None], mm_token_type_ids=(full == image).int()[None], image_grid_thw=grid_I3
    )
    keep_N = stays[full == image]
    whole = LanguageInputs(
        full[None], torch.ones_like(full)[None], positions,
        encode_images(talk.base, pixels_ND, grid_I3).tokens,
    )  # fmt: skip
    read = drop_tokens(whole, keep_N, image_token=image, pad_token=talk.markers.pad)
    if talk.pruner is not None and talk.pruner.early:
        read = replace(read, images=encode_cells(talk.base, pixels_ND, grid_I3, keep_N))
    with torch.no_grad():
        logits_LV = talk.base(**read.forward_arguments()).logits[0].float() + talk.shut
    at = torch.arange(len(prompt.ids), len(ids))[episode.written]
    assert torch.equal(read.input_ids_BS[0], ids)
    return logits_LV.log_softmax(-1)[at - 1, ids[at]]


@pytest.mark.parametrize("selector", ["grid", "saliency", "dpp", "full"])
@pytest.mark.parametrize("base", [random_backbone, older_backbone])
def test_keeping_everything_changes_no_number_and_no_token(selector: str, base: Any) -> None:
    plain = pruned(None, base=base, grpo={"max_tokens": 24})
    whole = pruned(selector, 1.0, base=base, grpo={"max_tokens": 24})
    plain_batch, whole_batch = plain.rows(apart(plain)), whole.rows(apart(whole))
    assert bool(whole_batch.pop("kept_C").all())
    for name in ("input_ids", "position_ids", "attention_mask", "looks", "labels"):
        assert torch.equal(plain_batch[name], whole_batch[name]), name
    with torch.no_grad():
        want, got = plain.log_probs(plain_batch), whole.log_probs(whole_batch)
    assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    tasks = [task(1), task(2, width=96, height=176), task(3, width=64, height=64)]
    rolled = [
        flat(roll(talk, tasks, group=2, seeds=[[1, 2], [3, 4], [5, 6]], greedy=greedy))
        for talk in (plain, whole) for greedy in (True, False)
    ]  # fmt: skip
    for ours, theirs in ((rolled[0], rolled[2]), (rolled[1], rolled[3])):
        assert [one.ids.tolist() for one in ours] == [one.ids.tolist() for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("selector", ARMS)
def test_half_the_cells_are_really_half_the_tokens_of_every_look(selector: str) -> None:
    plain, half = pruned(None), pruned(selector)
    for looks in (0, 1, 2):
        whole, less = shown(plain, task(), looks=looks), shown(half, task(), looks=looks)
        cells = [one.cells(plain.merge) for one in plain.pictures(whole)]
        assert [one.count(half.merge) for one in half.pictures(less)] == [n // 2 for n in cells]
        told = len(plain.prompt(whole.task).ids) + len(whole.ids)
        read = len(half.prompt(less.task).ids) + len(less.ids)
        assert told - read == sum(cells) - sum(n // 2 for n in cells)
        assert less.turns == whole.turns


@pytest.mark.parametrize("base", [random_backbone, older_backbone])
def test_packed_rows_and_rollouts_have_the_numbers_of_dropping_by_hand(base: Any) -> None:
    talk = pruned("saliency", base=base, grpo={"max_tokens": 20})
    groups = apart(talk)
    for episode, (log_probs, _) in zip(flat(groups), packed(talk, groups), strict=True):
        torch.testing.assert_close(log_probs, by_hand(talk, episode), atol=TOLERANCE, rtol=0)
    tasks = [task(1), task(2, width=96, height=176)]
    for shared in (True, False):
        rolled = roll(talk, tasks, group=2, seeds=[[1, 2], [3, 4]], shared=shared)
        for episode in flat(rolled):
            noted = episode.log_probs[episode.written]
            torch.testing.assert_close(noted, by_hand(talk, episode), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("placement", ["features", "pixels"])
def test_a_trained_selector_chooses_as_its_own_model_does(placement: str, tmp_path: Path) -> None:
    folder = trained(tmp_path / "selector", placement=placement)
    talk = pruned(folder, 0.3)
    episode = shown(talk, task(), looks=1)
    ((log_probs, _),) = packed(talk, [[episode]])
    torch.testing.assert_close(log_probs, by_hand(talk, episode), atol=TOLERANCE, rtol=0)
    assert talk.pruner is not None
    model, first = talk.pruner.model, talk.pictures(episode)[0]
    prompt = talk.prompt(episode.task)
    full, _ = filled_up(prompt.ids, [first], image=talk.markers.image, merge=talk.merge)
    batch = {
        "input_ids": full[None], "attention_mask": torch.ones_like(full)[None],
        "mm_token_type_ids": (full == talk.markers.image).int()[None],
        "pixel_values": first.pixels_ND, "image_grid_thw": torch.tensor([first.grid]),
    }  # fmt: skip
    own = model.reduce(batch, keep=0.3).inputs
    assert torch.equal(own.input_ids_BS[0], prompt.ids)
    assert torch.equal(own.positions_3BS[:, 0], prompt.whole.positions_3P)
    assert own.images is not None and first.tokens is not None
    torch.testing.assert_close(own.images.pooled[0], first.tokens.pooled[0])


def test_what_is_kept_depends_on_the_question_and_on_nobody_else(tmp_path: Path) -> None:
    talk = pruned(trained(tmp_path / "selector"), 0.3)
    questions = [task(1, words=words) for words in ("the star", "something green", "it")]
    kept = [talk.prompt(one).start.pictures[0].kept_C for one in questions]
    assert any(not torch.equal(kept[0], one) for one in kept[1:])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not show its group's screenshot"):
        talk.rows([[shown(talk, one, looks=0) for one in questions]])
    alone = pruned(str(tmp_path / "selector"), 0.3)
    again = alone.prompt(questions[2]).start.pictures[0].kept_C
    assert kept[2] is not None and again is not None and torch.equal(kept[2], again)


def test_learning_reaches_the_policy_and_not_the_selector(tmp_path: Path) -> None:
    talk = pruned(trained(tmp_path / "selector"))
    talk.base.requires_grad_(True)
    talk.base.model.visual.requires_grad_(False)
    batch = talk.rows(apart(talk))
    log_probs_RL, _ = talk.log_probs(batch)
    (-log_probs_RL[batch["labels"] != IGNORE_INDEX].mean()).backward()
    assert talk.base.model.language_model.layers[0].mlp.gate_proj.weight.grad.abs().sum() > 0
    assert talk.pruner is not None
    assert all(one.grad is None for one in talk.pruner.model.selector.parameters())


def test_a_group_about_one_question_shares_its_first_look(tmp_path: Path) -> None:
    talk = pruned(trained(tmp_path / "selector"))
    group = [shown(talk, task(), looks=n, index=n) for n in (0, 1, 2)]
    for episode, (log_probs, _) in zip(group, packed(talk, [group]), strict=True):
        torch.testing.assert_close(log_probs, by_hand(talk, episode), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("selector", ["pool", "resize", "vision_attention", "early_attention"])
def test_selectors_that_replace_tokens_are_refused_with_a_way_out(selector: str) -> None:
    with pytest.raises(InputError, match=r"does not only drop[\s\S]*fix: use a trained selector"):
        pruned(selector)


def test_a_selector_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"grounding\.selector=nowhere: no such run"):
        pruned("nowhere")


def test_a_look_without_a_question_is_no_look_for_a_selector() -> None:
    talk = pruned("grid")
    view = talk.screen(task()).call("zoom", {"box": [0, 0, 500, 500]}).view
    assert view is not None and Box(*view.box).area < 1
    with pytest.raises(ValueError, match="without a question"):
        talk.look(view)


# trained behind a selector -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_a_group_is_learned_from_exactly_what_it_read(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `rl` is not installed")
    from saccade.training.recipes.grounding_grpo import GrpoPhase
    from tests.grounding_policy import settings as policy_settings
    from tests.grounding_policy import taught

    made = taught()
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    words = [
        f"model.name={tmp_path / 'model'}", "grounding.grpo.group=4", "training.batch_size=2",
        "training.threads=1", "grounding.selector=saliency", "selector.keep=0.5",
        "grounding.grpo.filter=none",
    ]  # fmt: skip
    phase = GrpoPhase(policy_settings(*words))
    source = phase.train_source()
    batch = phase.enter(phase.collate([source[0], source[1]]), micro=0)
    assert not bool(batch["kept_C"].all())
    phase.model.eval()
    written = (batch["labels"] != IGNORE_INDEX).sum()
    found = phase.loss(batch, step=0, denominator=written)
    assert float(found["rollout_gap"]) < TOLERANCE
    assert float(found["ratio"]) == pytest.approx(1, abs=1e-6)
    for refused in ("grounding.grpo.adapter=none", "grounding.grpo.rollouts=trl"):
        with pytest.raises(InputError, match=r"grounding\.selector=saliency"):
            GrpoPhase(policy_settings(*words, refused))
