"""Example data of a report, shared by the unit and the browser tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from saccade.data.samples import Sample
from saccade.evaluation.cells import Cell, plan_cells
from saccade.evaluation.records import Prediction
from saccade.evaluation.summary import Measured, comparison_rows
from saccade.microscope.explain import Explanation, View
from saccade.models.flops import published_config
from saccade.models.relevance.baselines import ARMS


def prediction(number: int, *, correct: bool, arm: str = "grid", kept: int = 64) -> Prediction:
    return Prediction(
        id=f"q{number}",
        group=f"image{number // 4}",
        kind=("color", "word")[number % 2],
        question="what color is the star?",
        answers=("red",),
        prediction="red" if correct else "blue",
        correct=correct,
        full=(256,),
        kept=(kept,),
        tokens=kept + 20,
        answer_cells_kept=0.5,
        arm=arm,
        keep=0.25,
        encoded=(kept if arm == "resize" else 256,),
    )


def answers(arm: str, rights: int, *, of: int = 40, kept: int = 64) -> list[Prediction]:
    return [prediction(i, correct=i < rights, arm=arm, kept=kept) for i in range(of)]


def comparison() -> dict[str, Any]:
    cells = plan_cells(
        ["trained", "full", "random", "resize"], [0.25], random_arms=["random"], seeds=2
    )
    rights = {"trained": 36, "full": 38, "random": 12, "resize": 20}
    found = {
        cell: answers(
            cell.arm, rights[cell.arm] + cell.seed, kept=256 if cell.arm == "full" else 64
        )
        for cell in cells
    }
    equal_cost = Cell("resize", 0.25, 0.6, matched="flops")
    found[equal_cost] = answers("resize", 30, kept=150)
    cost = {"encoder_ms": 4.0, "selector_ms": 1.0, "prefill_ms": 5.0, "selector_flops": 1e9}
    costs = Measured(
        {
            ("full", 1.0): {**cost, "selector_flops": 0.0, "total_ms": 20.0},
            ("trained", 0.25): {**cost, "total_ms": 10.0},
        }
    )
    grouped = [[c for c in found if (c.arm, c.matched) == key] for key in
               dict.fromkeys((c.arm, c.matched) for c in found)]  # fmt: skip
    config = published_config("2b")
    rows = comparison_rows(grouped, found, arms=ARMS, config=config, costs=costs)
    return {"samples": 40, "budgets": [0.25], "skipped": [], **rows}


def view(rows: int = 3, columns: int = 5) -> View:
    rng = np.random.default_rng(0)
    names = ("information", "salience", "participation", "balance")
    maps = {name: rng.normal(size=(rows, columns)) for name in names}
    maps |= {f"weight_{name}": np.full((rows, columns), 1 / 3) for name in names[:3]}
    keep_HW = np.zeros((rows, columns), dtype=bool)
    keep_HW[1, 2] = True
    return View(
        image=Image.new("RGB", (columns * 16, rows * 16), "gray"),
        full=rows * columns,
        kept=1,
        keep_HW=keep_HW,
        maps=maps,
        tensions={"compress": 0.1, "explore": 0.2, "diversify": 0.3},
        answer_cells=(7, 8),
    )


def explanation(question: str = "what color is the star?", *, correct: bool = True) -> Explanation:
    answer = Prediction(
        id="a", group="g", kind="color", question=question, answers=("red",),
        prediction="red" if correct else "blue", correct=correct, full=(15,), kept=(1,),
        tokens=20, answer_cells_kept=0.5, arm="trained", keep=0.1,
    )  # fmt: skip
    sample = Sample(id="a", question=question, answers=("red",), kind="color")
    return Explanation(sample, (view(),), answer, answer, 0.1)


def training_events() -> list[dict[str, Any]]:
    steps = [
        {"type": "step", "time": 10.0 + i, "step": i, "loss": 2.0 / i, "learning_rate": 1e-3}
        for i in range(1, 9)
    ]
    return [
        *steps,
        {"type": "resume", "time": 19.0, "step": 4},
        {"type": "gradients", "time": 19.5, "step": 8, "groups": {"cells": {"norm": 0.0}}},
        {
            "type": "eval",
            "time": 20.0,
            "step": 8,
            "metrics": {"accuracy": 0.5, "accuracy_word": None},
        },
    ]
