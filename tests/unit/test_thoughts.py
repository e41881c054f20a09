"""Continuous thoughts: the task of logic, what is fed back, the curriculum and the recipe."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.thoughts import LogicSource, ThoughtsConfig
from saccade.data.generate.logic import (
    EQUALS,
    QUESTION,
    STEPS,
    LogicQuestions,
    draw_question,
    follows,
)
from saccade.evaluation.run import evaluate_run
from saccade.models.recursion.extras.thoughts import ThoughtModel, layout_of, stage_at
from saccade.training.recipes.thoughts import ThoughtsRecipe, written
from saccade.training.run import train
from saccade.training.rundir import RunDir

SOURCE = LogicSource(type="logic", samples=50)


def settings(**changes: Any) -> ThoughtsConfig:
    return ThoughtsConfig(**{"width": 16, "heads": 2, "layers": 2, **changes})


def model(**changes: Any) -> ThoughtModel:
    torch.manual_seed(0)
    return ThoughtModel(settings(**changes), vocabulary=12)


def test_only_one_candidate_follows_and_the_chain_is_the_shortest_way() -> None:
    for position in range(30):
        found = draw_question(SOURCE, position)
        reached = follows(found.rules, found.start)
        right = [one for one in found.candidates if one in reached]
        assert right == [found.chain[-1]]
        places = (found.start, *found.chain)
        assert all(pair in found.rules for pair in pairwise(places))
        assert len(found.rules) == SOURCE.rules
        ends = {b for a, b in found.rules}
        assert set(found.candidates) <= ends  # the last rule alone tells nothing


def test_questions_are_a_function_of_their_place_and_splits_are_disjoint() -> None:
    train, test = (
        LogicQuestions(SOURCE.model_copy(update={"split": s})) for s in ("train", "test")
    )
    assert train[3].facts[QUESTION].tolist() == train[3].facts[QUESTION].tolist()
    rules = [
        {frozenset(draw_question(s.source, i).rules) for i in range(50)} for s in (train, test)
    ]
    assert not rules[0] & rules[1]
    answers = [train[i].facts["candidates"].index(train[i].facts[STEPS][-1]) for i in range(50)]
    assert 10 < sum(answers) < 40


def test_too_small_a_world_is_refused() -> None:
    with pytest.raises(ValueError, match="steps=6 needs at least"):
        LogicSource(type="logic", steps=6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train.things=8 data.train.rules=57", "has only 56 different rules; say rules="),
        ("data.train.things=40", r"data.train.things = 40: expected integer in \[6, 36\]"),
        ("thoughts.heads=3", "width=64 does not split into 3 heads of an even width; say heads=2"),
        ("thoughts.width=7", "width=7 does not split into 4 heads"),
        ("data.eval.rules=5", "steps=3 needs at least 6 rules"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("thoughts", overrides=override.split())


def test_every_letter_may_be_a_thing() -> None:
    many = LogicQuestions(LogicSource(type="logic", things=36, rules=40, samples=20))
    assert len({many[i].answer for i in range(20)}) > 5


def test_rules_too_dense_for_a_question_end_with_a_clear_message() -> None:
    source = LogicSource(type="logic", things=12, rules=60, split="test")
    with pytest.raises(InputError, match=r"data.eval.rules: no question in 1000 tries[\s\S]*fix:"):
        draw_question(source, 0)


def test_questions_about_things_the_model_does_not_know_are_refused() -> None:
    recipe = ThoughtsRecipe(resolve("smoke/thoughts").config)
    more = LogicQuestions(LogicSource(type="logic", things=20, samples=4))
    with pytest.raises(InputError, match=r"data.eval.things=20: the model knows 8 things"):
        recipe.evaluate(more, limit=2)


def test_what_the_recipe_does_not_read_is_refused() -> None:
    with pytest.raises(InputError, match=r"gradient_checkpointing=true"):
        ThoughtsRecipe(
            resolve("smoke/thoughts", overrides=["training.gradient_checkpointing=true"]).config
        )


def test_a_thought_is_the_state_before_it() -> None:
    one = model()
    ids = torch.randint(0, 12, (3, 5))
    inputs = one.thought(ids, places=2)
    first = one.hidden(one.tokens(ids))[:, -1]
    torch.testing.assert_close(inputs[:, 5], first)
    second = one.hidden(inputs[:, :6])[:, -1]
    torch.testing.assert_close(inputs[:, 6], second)
    later = torch.randint(0, 12, (3, 2))
    scores = one(ids, later, places=2)
    whole = one.hidden(torch.cat((inputs, one.tokens(later[:, :1])), 1))
    torch.testing.assert_close(scores, one.head(whole[:, -2:]))


@pytest.mark.parametrize("mode", ["thoughts", "pause"])
def test_gradient_goes_through_every_thought(mode: str) -> None:
    one = model(mode=mode)
    ids, later = torch.randint(0, 12, (3, 5)), torch.randint(0, 12, (3, 1))
    inputs = one.thought(ids, places=3)
    inputs.retain_grad()
    one.head(one.hidden(inputs)[:, -1]).logsumexp(-1).sum().backward()
    assert inputs.grad is not None
    assert bool((inputs.grad[:, -3:].abs().sum(-1) > 0).all())
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None, name
    losses = [one(ids, later, places=n).logsumexp(-1).sum().item() for n in (0, 1, 3)]
    assert len({round(loss, 5) for loss in losses}) == 3


def test_stages_replace_one_more_step_each() -> None:
    config = settings(last_share=0.4)
    stages = [stage_at(n, steps=3, total=100, config=config) for n in range(100)]
    assert stages == sorted(stages)
    assert [stages.count(n) for n in range(4)] == [20, 20, 20, 40]
    assert {stage_at(n, steps=3, total=9, config=settings(curriculum=False)) for n in range(9)} == {
        3
    }
    steps = torch.tensor([[7, 8, 9]])
    rows = {s: written(steps, layout_of(s, config=config, steps=3)).tolist() for s in range(4)}
    assert rows[0] == [[7, 8, 9, EQUALS, 9]]
    assert rows[2] == [[9, EQUALS, 9]]
    assert rows[3] == [[EQUALS, 9]]
    modes = {m: layout_of(2, config=settings(mode=m, per_step=2), steps=3) for m in
             ("thoughts", "pause", "none", "written")}  # fmt: skip
    assert {m: one.places for m, one in modes.items()} == {
        "thoughts": 4, "pause": 4, "none": 0, "written": 0,
    }  # fmt: skip
    assert modes["written"].replaced == 0


def test_a_written_answer_is_continued_symbol_by_symbol() -> None:
    one = model(mode="written")
    ids = torch.randint(0, 12, (2, 5))
    said = one.continued(ids, places=0, count=3)
    for n in range(3):
        scores = one(ids, torch.cat((said[:, :n], said[:, n : n + 1]), 1), places=0)
        assert scores[:, -1].argmax(-1).tolist() == said[:, n].tolist()


def test_other_sources_are_refused() -> None:
    with pytest.raises(InputError, match=r"data.train.type=logic"):
        ThoughtsRecipe(resolve("thoughts", overrides=["data.train.type=sudoku"]).config)


def test_a_run_trains_through_all_stages_and_is_scored(tmp_path: Path) -> None:
    place = [f"run.root={tmp_path}", "training.threads=1", "run.heartbeat_seconds=0"]
    train(resolve("smoke/thoughts", overrides=place))
    run = RunDir.open(tmp_path / "smoke-thoughts")
    found = evaluate_run(run)
    assert found["samples"] == 8
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    again = evaluate_run(run, checkpoint=run.path / "checkpoints" / "step-6")
    assert again["accuracy"] == found["accuracy"]
