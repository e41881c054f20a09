"""The recipe `recursion`: what it refuses, measures, saves, and how its runs are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.data.sources import open_source
from saccade.evaluation.run import evaluate_run, rejudge
from saccade.evaluation.thinking import thinking_table
from saccade.models.recursion.model import load_model
from saccade.scoring.grids import metrics
from saccade.training.averages import WeightAverage
from saccade.training.recipes.recursion import AVERAGE, CARRY, RecursionRecipe
from saccade.training.run import train
from saccade.training.rundir import RunDir
from saccade.training.state import read_tensors, read_torch


def recipe(*overrides: str) -> RecursionRecipe:
    return RecursionRecipe(resolve("smoke/recursion", overrides=overrides).config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("runs")
    overrides = [f"run.root={folder}", "training.threads=1", "run.heartbeat_seconds=0"]
    train(resolve("smoke/recursion", overrides=overrides))
    return RunDir.open(folder / "smoke-recursion")


def test_sources_without_grids_and_loading_ahead_are_refused() -> None:
    with pytest.raises(InputError, match=r"learns from grids"):
        recipe("data.train.type=scenes")
    with pytest.raises(InputError, match=r"training.workers=0"):
        recipe("training.workers=2")
    with pytest.raises(InputError, match=r"training.parallel=ddp"):
        recipe("training.parallel=fsdp")
    with pytest.raises(InputError, match=r"gradient_checkpointing=true[\s\S]*fix: leave it out"):
        recipe("training.gradient_checkpointing=true")


def test_measuring_on_puzzles_of_another_size_is_refused() -> None:
    own = recipe("data.eval.side=6", "data.eval.clues=12")
    with pytest.raises(InputError, match=r"36 cells .* do not fit a model for 16 cells"):
        own.evaluate(open_source(own.config.data.eval), limit=2)


def test_every_trained_tensor_is_watched_and_moves() -> None:
    own = recipe()
    watched = {id(one) for group in own.groups().values() for one in group}
    named = {n: p for n, p in own.model.named_parameters() if p.requires_grad}
    assert watched == {id(one) for one in named.values()}
    optimizer = own.make_optimizer(own.config.training)
    before = {name: one.detach().clone() for name, one in named.items()}
    table = own.model.puzzle
    assert table is not None
    samples = [own.source[i] for i in range(4)]
    for step in range(2):
        batch = own.enter(own.collate(samples if not step else []), micro=0)
        own.loss(batch, step=step, denominator=torch.tensor(64.0))["loss"].backward()
        optimizer.step()
        own.updated(learning_rate=own.config.training.learning_rate)
    for name, one in named.items():
        assert not torch.equal(before[name], one), name
    assert float(table.table_ND.abs().sum()) > 0


def test_a_step_without_fresh_samples_goes_on_thinking() -> None:
    own = recipe("recursion.explore=0")
    own.enter(own.collate([own.source[i] for i in range(4)]), micro=0)
    before = own.slots.carries[0]
    batch = own.enter(own.collate([]) if not bool(before.halted.any()) else {}, micro=0)
    own.loss(batch, step=1, denominator=torch.tensor(64.0))
    assert own.slots.carries[0].steps.tolist() == [1, 1, 1, 1]
    assert own.slots.positions(0) == []


def test_the_halting_score_is_not_judged_before_anything_was_right() -> None:
    own = recipe()
    batch = own.enter(own.collate([own.source[i] for i in range(4)]), micro=0)
    own.loss(batch, step=0, denominator=torch.tensor(64.0))
    assert own.resting(0) == ["halt_head"]
    carry = own.slots.carries[0]
    carry.labels.fill_(-100)  # nothing is asked, so everything is right
    own.loss({**batch, "labels": carry.labels}, step=1, denominator=torch.tensor(64.0))
    assert own.resting(1) == []


def test_measuring_a_batch_leaves_the_slots_alone() -> None:
    own = recipe()
    batch = own.collate([own.source[i] for i in range(3)])
    own.loss(batch, step=0, denominator=torch.tensor(48.0))["loss"].backward()
    assert bool(own.slots.carries[0].halted.all())
    own.enter(own.collate([own.source[i] for i in range(4)]), micro=0)
    assert own.model.puzzle is not None
    assert own.model.puzzle.waiting == []


def test_a_checkpoint_holds_carry_average_and_puzzles(trained: RunDir) -> None:
    folder = trained.path / "checkpoints" / "step-6"
    carry = read_torch(folder / CARRY)
    assert carry["y"].shape == (4, 18, 32)
    assert int(carry["taken"].min()) >= 2
    average, weights = read_tensors(folder / AVERAGE), read_tensors(folder / "model.safetensors")
    assert "puzzle.table_ND" in weights
    assert float(weights["puzzle.table_ND"].abs().sum()) > 0
    name = "core.answer_head.weight"
    assert not torch.equal(average[name], weights[name])
    exported = load_model(trained.path / "model").state_dict()
    assert torch.equal(exported[name], average[name])
    assert torch.equal(exported["puzzle.table_ND"], weights["puzzle.table_ND"])


def test_a_run_is_scored_step_by_step_and_can_be_judged_again(trained: RunDir) -> None:
    found = evaluate_run(trained)
    assert found["samples"] == 8
    assert len(found["accuracy_by_step"]) == len(found["cells_by_step"]) == 4
    assert sum(found["halting"]["histogram"].values()) == 8
    assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    rows = [json.loads(line) for line in trained.predictions_file.read_text().splitlines()]
    assert len(rows) == 8
    assert len(rows[0]["answers"]) == len(rows[0]["halt"]) == len(rows[0]["change"]) == 4
    assert rejudge(trained) == found
    rows[0]["symbols"]["answers"][-1] = rows[0]["symbols"]["target"]
    trained.predictions_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rejudge(trained)["accuracy"] == pytest.approx(found["accuracy"] + 1 / 8)
    assert thinking_table(found).row_count >= 1
    del rows[0]["symbols"]
    trained.predictions_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"stored as text alone[\s\S]*saccade eval"):
        rejudge(trained)


def test_a_run_is_scored_as_its_training_told(trained: RunDir) -> None:
    events = map(json.loads, (trained.path / "events.jsonl").read_text().splitlines())
    told = [event["metrics"] for event in events if event["type"] == "done"][-1]
    found = metrics(evaluate_run(trained, limit=4))  # as many as `training.eval_samples`
    assert set(found) <= set(told)
    assert found == {name: told[name] for name in found}


def test_a_checkpoint_is_scored_with_its_average(trained: RunDir) -> None:
    finished = evaluate_run(trained)
    last = evaluate_run(trained, checkpoint=trained.path / "checkpoints" / "step-6")
    names: list[Any] = ["accuracy_by_step", "cells_by_step", "halting", "kinds"]
    assert [finished[name] for name in names] == [last[name] for name in names]


def test_other_verbs_say_that_this_model_sees_no_images(trained: RunDir) -> None:
    from saccade.evaluation.load import load_run

    with pytest.raises(InputError, match=r"saccade eval"):
        load_run(trained)


def test_without_an_average_the_weights_themselves_answer(tmp_path: Path) -> None:
    own = recipe("recursion.ema=false")
    with torch.no_grad():
        own.model.core.answer_head.weight += 1
    own.finish(RunDir(tmp_path))
    saved = load_model(tmp_path / "model").core.answer_head.weight
    assert torch.equal(saved, own.model.core.answer_head.weight)
    assert isinstance(own.average, WeightAverage)
