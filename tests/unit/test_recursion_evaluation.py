"""What is made of thinking afterwards: votes over ARC variants, pictures, rows of an ablation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.grids import ArcSource
from saccade.config.recursion import RecursionConfig
from saccade.config.resolve import resolve
from saccade.data.generate.puzzles import INPUT
from saccade.data.grids.source import ArcPuzzles
from saccade.evaluation.thinking import right_at
from saccade.evaluation.thinking_plot import most_interesting, save_thinking, shown_steps
from saccade.evaluation.voting import SUBMISSION, vote, voting_line
from saccade.models.recursion.trace import Traced
from saccade.pipeline.ablate import plan_ablation
from saccade.pipeline.variants import find_ablation
from saccade.scoring.grids import StepVerdicts, by_kind, summarise
from saccade.training.recipes.recursion import RecursionRecipe
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
