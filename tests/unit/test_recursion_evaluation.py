"""What is made of thinking afterwards: votes over ARC variants, pictures, rows of an ablation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.cli_inputs import open_run
from saccade.config.errors import InputError
from saccade.config.grids import ArcSource
from saccade.config.recursion import RecursionConfig
from saccade.config.resolve import resolve
from saccade.data.generate.puzzles import IGNORED, INPUT, puzzle_sample
from saccade.data.grids.source import ArcPuzzles
from saccade.evaluation.run import evaluate_run, rejudge
from saccade.evaluation.thinking import judged, right_at, stored
from saccade.evaluation.thinking_plot import most_interesting, save_thinking, shown_steps
from saccade.evaluation.voting import SUBMISSION, vote, voting_line
from saccade.models.recursion.model import load_model
from saccade.models.recursion.trace import Traced
from saccade.pipeline.ablate import plan_ablation
from saccade.pipeline.variants import find_ablation
from saccade.scoring.grids import StepVerdicts, by_kind, summarise
from saccade.training.guards import StoppableSource
from saccade.training.recipes.recursion import RecursionRecipe, answer_all
from saccade.training.run import train
from saccade.training.rundir import RunDir

TASKS = {
    "flip": {"train": [([[1, 2]], [[2, 1]]), ([[3, 4]], [[4, 3]])], "test": [([[5, 1]], [[1, 5]])]},
    "keep": {"train": [([[6, 6]], [[6, 6]]), ([[7, 2]], [[7, 2]])], "test": [([[8, 9]], [[8, 9]])]},
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in TASKS.items():
        pairs = {
            part: [{"input": a, "output": b} for a, b in task[part]] for part in ("train", "test")
        }
        (folder / f"{name}.json").write_text(json.dumps(pairs))
    return folder


def said(answer: np.ndarray, *, halt: float) -> Traced:
    return Traced(
        np.stack([answer * 0, answer]), (False, True), (0.0, 1.0), (-1.0, halt), (1.0, 0.1)
    )


def test_right_answers_of_most_variants_win_the_vote(tasks: Path, tmp_path: Path) -> None:
    config = ArcSource(type="arc", path=tasks, split="test", augmentations=4, seed=1)
    source = ArcPuzzles(config)
    found = []
    for position in range(len(source)):
        sample = source[position]
        right = source.arrays.labels[position]
        wrong = sample.facts[INPUT]
        # of each task one variant is wrong, and very sure of it
        answer, halt = (wrong, 9.0) if position in (0, len(source) - 1) else (right, 0.0)
        found.append((sample, said(np.asarray(answer), halt=halt)))
    run = RunDir(tmp_path)
    result = vote(run, source, found)
    assert result["tasks"] == 2
    assert result["pass_at"]["1"] == result["two_attempts"] == 1.0
    assert result["copy_input"] == 0.5
    assert result["majority_colour"] == 0.0
    assert "copying the input: 50.0 %" in voting_line(result)
    submission = json.loads((tmp_path / SUBMISSION).read_text())
    assert submission["flip"][0]["attempt_1"] == [[1, 5]]


def test_tasks_that_were_not_asked_are_left_out_and_counted(tasks: Path, tmp_path: Path) -> None:
    source = ArcPuzzles(ArcSource(type="arc", path=tasks, split="test"))
    sample = source[0]
    result = vote(RunDir(tmp_path), source, [(sample, said(source.arrays.labels[0], halt=0.0))])
    assert (result["tasks"], result["left_out"]) == (1, 1)


def test_arc_trains_by_configuration_alone(tasks: Path) -> None:
    overrides = [
        "arch=arc", f"data.train.path={tasks}", f"data.eval.path={tasks}", "model.device=cpu",
        "recursion.width=16", "recursion.heads=2",
    ]  # fmt: skip
    recipe = RecursionRecipe(resolve("recursion", overrides=overrides).config)
    assert recipe.model.puzzle is not None
    assert recipe.geometry.puzzles > 2
    test = ArcPuzzles(recipe.config.data.eval)  # type: ignore[arg-type]
    assert test.arrays.identifiers == recipe.source.arrays.identifiers  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"name a folder of ARC tasks"):
        RecursionRecipe(resolve("recursion", overrides=["arch=arc"]).config)


SMALL = ("arch=arc", "model.device=cpu", "recursion.width=16", "recursion.heads=2")


def arc_recipe(tasks: Path, *overrides: str) -> RecursionRecipe:
    folders = (f"data.train.path={tasks}", f"data.eval.path={tasks}")
    return RecursionRecipe(resolve("recursion", overrides=[*SMALL, *folders, *overrides]).config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.eval.augmentations=3", r"data.eval.augmentations: .*\n  fix: .*augmentations=7"),
        ("data.eval.augmentations=40", r"data.eval.augmentations: .*\n  fix: .*augmentations=7"),
        ("data.eval.seed=1", r"data.eval.seed: .*\n  fix: data.eval.seed=0"),
        ("data.eval.tasks=1", r"data.eval.tasks: .*\n  fix: data.eval.tasks=null \(`--limit`"),
        ("data.train.also=[{more}]", r"data.eval.also: .*\n  fix: data.eval.also=\[.*more\]"),
        ("data.eval.path={more}", r"data.eval.path: .*\n  fix: data.eval.path=.*tasks"),
    ],
)
def test_other_puzzles_than_those_with_embeddings_are_refused(
    tasks: Path, override: str, message: str
) -> None:
    more = tasks.parent / "more"
    more.mkdir()
    pair = {"input": [[1, 2, 3]], "output": [[3, 2, 1]]}
    # the same names with other tasks behind them
    for name in TASKS:
        (more / f"{name}.json").write_text(json.dumps({"train": [pair], "test": [pair]}))
    with pytest.raises(InputError, match=message):
        arc_recipe(tasks, override.format(more=more))
    arc_recipe(tasks, override.format(more=more), "recursion.puzzle_prefix=0")  # shares one


def test_a_trained_run_is_measured_on_its_own_variants_alone(tasks: Path, tmp_path: Path) -> None:
    place = [f"run.root={tmp_path}", "run.name=arc", "run.heartbeat_seconds=0"]
    short = ["training.steps=2", "training.batch_size=4", "training.threads=1", "eval.batch_size=8",
             "recursion.eval_steps=2", "training.eval_samples=4"]  # fmt: skip
    folders = [f"data.train.path={tasks}", f"data.eval.path={tasks}"]
    train(resolve("recursion", overrides=[*SMALL, *folders, *place, *short]))
    run = RunDir.open(tmp_path / "arc")
    found = evaluate_run(run)
    assert found["voting"]["tasks"] == 2
    assert rejudge(run) == found
    for checkpoint in (None, run.path / "checkpoints" / "step-2"):
        other = open_run(str(run.path), ["data.eval.augmentations=2"])
        with pytest.raises(InputError, match=r"fix: data.eval.augmentations=7"):
            evaluate_run(other, checkpoint=checkpoint)


def test_the_same_tasks_elsewhere_are_the_same_puzzles(tasks: Path) -> None:
    moved = tasks.parent / "moved"
    moved.mkdir()
    for file in tasks.iterdir():
        (moved / file.name).write_text(file.read_text())
    own = arc_recipe(tasks, f"data.eval.path={moved}")
    source = ArcPuzzles(own.config.data.eval)  # type: ignore[arg-type]
    read_through = StoppableSource(source, stop=lambda: False, on_read=lambda: None)
    assert own.evaluate(read_through, limit=2)["accuracy"] >= 0
    with pytest.raises(InputError, match="other puzzles"):
        source.digest = "other"
        own.evaluate(read_through, limit=2)


def test_an_exported_model_knows_its_puzzles(tasks: Path, tmp_path: Path) -> None:
    own = arc_recipe(tasks)
    own.finish(RunDir(tmp_path))
    model = load_model(tmp_path / "model")
    for changes in ({"augmentations": 40}, {"seed": 5}):
        other = ArcPuzzles(own.config.data.eval.model_copy(update=changes))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"data.eval: .*other puzzles than those trained on"):
            answer_all(model, other, count=1, steps=1, batch_size=1)
    source = ArcPuzzles(own.config.data.eval)  # type: ignore[arg-type]
    assert len(answer_all(model, source, count=2, steps=1, batch_size=2)) == 2


def test_letters_that_stand_for_several_symbols_hide_no_mistake() -> None:
    accent, tilde, question = 3, 2, 1
    target = np.array([accent, question, IGNORED])
    sample = puzzle_sample(
        "s", given=np.zeros(3, int), target=target, letters=" ?~~~~", columns=3, kind="k"
    )
    answers = np.array([[tilde, question, 0], [accent, 5, 0], [accent, question, 1]])
    traced = Traced(
        answers, (False, False, True), (0.5, 0.5, 1.0), (-1e-7, 1e-7, 3.0), (1.0, 1.0, 1.0)
    )
    row = stored(sample, traced)
    assert row["answers"][0][:2] == row["target"][:2]  # as people see it
    assert row["right"] == [False, False, True]
    assert row["halt"] == [-1e-7, 1e-7, 3.0]
    again = judged(json.loads(json.dumps(row["symbols"])))
    assert again == {"right": row["right"], "cells": row["cells"]}


# pictures ----------------------------------------------------------------------------------------


def row(number: int, *answers: str, kind: str = "guesses0") -> dict[str, Any]:
    target = "12\n21"
    right = [one == target for one in answers]
    cells = [sum(a == b for a, b in zip(one, target, strict=True) if b != "\n") / 4
             for one in answers]  # fmt: skip
    return {
        "id": f"p{number}", "kind": kind, "question": "1.\n..", "target": target,
        "answers": list(answers), "right": right, "cells": cells,
        "halt": [1.0] * len(answers), "change": [1.0] * len(answers),
        "symbols": {
            "target": [*map(ord, target)], "answers": [[*map(ord, one)] for one in answers],
        },
    }  # fmt: skip


def test_the_puzzle_shown_is_the_one_that_took_longest() -> None:
    rows = [row(1, *["12\n21"] * 3), row(2, "11\n11", "12\n11", "12\n21"), row(3, *["11\n11"] * 3)]
    assert most_interesting(rows)["id"] == "p2"
    assert most_interesting([rows[2]])["id"] == "p3"
    assert shown_steps(rows[1]) == [1, 2, 3]
    assert shown_steps(rows[0]) == [1]
    many = row(4, *(f"1{n}\n21" for n in range(9)), "12\n21")
    assert len(shown_steps(many)) == 6
    assert shown_steps(many)[-1] == 10


def test_pictures_are_written_and_the_film_has_a_frame_per_step(tmp_path: Path) -> None:
    rows = [row(1, "11\n11", "12\n11", "12\n21"), row(2, *["12\n21"] * 3, kind="arc")]
    verdicts = [StepVerdicts(r["right"], r["cells"], r["halt"], r["kind"]) for r in rows]
    result = {**summarise(verdicts), "kinds": by_kind(verdicts)}
    files = save_thinking(result, rows, folder=tmp_path)
    assert [file.name for file in files] == ["thinking.png", "puzzle.png", "puzzle.gif"]
    with Image.open(files[2]) as film:
        assert film.n_frames == 4  # type: ignore[attr-defined]


# ablation ----------------------------------------------------------------------------------------


def test_rows_of_an_ablation_are_steps_and_halting(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rows = [row(1, "11\n11", "12\n21", "12\n21"), row(2, *["11\n11"] * 3)]
    run.predictions_file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = right_at(run, {"halting": {"confidence": 0.95}})
    assert found["step 1"] == {"p1": 0, "p2": 0}
    assert found["step 3"] == {"p1": 1, "p2": 0}
    assert found["halting"] == {"p1": 1, "p2": 0}


def test_the_ablation_has_a_row_for_every_extra() -> None:
    def resolver(*, on_top: Any) -> Any:
        return resolve("recursion", overrides=["arch=sudoku4"], on_top=on_top)

    ablation = find_ablation("recursion")
    plan = plan_ablation(ablation, resolve=resolver)
    switched = set()
    for trial in plan.trials:
        settings = trial.resolved.config.recursion
        on = {name for name, one in settings if getattr(one, "enabled", False)}
        assert len(on) <= 1
        switched |= on
    every = {name for name, one in RecursionConfig() if hasattr(one, "enabled")}
    assert switched == every - {"flow"}  # which only watches
