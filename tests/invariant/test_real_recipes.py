"""Every shipped recipe keeps the promises of the loop: exact resume, and one loss however cut.

A recipe inherits these tests by standing in `RECIPES`, with overrides behind it where it has
several ways to learn. The smoke twins run on a random base, in forks that are really killed.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import ForkedRun

from saccade.config.resolve import resolve
from saccade.training.events import read_events, step_series
from saccade.training.run import train
from tests.free_port import free_port

RECIPES = (
    "smoke/relevance",
    "smoke/relevance selector.learning=noise",
    "smoke/relevance selector.learning=distill",
    "smoke/gated",
    "smoke/tiny-base",
    "smoke/tiny-base-vision",
    "smoke/pretrain",
    "smoke/sft",
    "smoke/sft sft.adapter=none",
    "smoke/dpo",
    "smoke/recursion",
    "smoke/recursion recursion.mixer=attention recursion.positions=learned",
    "smoke/thoughts",
    "smoke/recursion recursion.memory.enabled=true recursion.codebook.enabled=true",
    "smoke/recursion recursion.q_halting.enabled=true recursion.cheap.enabled=true",
    "smoke/grounding grounding.phase=places",
    "smoke/grounding grounding.phase=warm grounding.places.steps=0",
    "smoke/grounding grounding.places.steps=0 grounding.warm.steps=0 grounding.grpo.choice=5",
)
COMMON = (
    "training.threads=1",
    "training.eval_samples=4",
    "training.steps=6",
    "selector.distill_steps=4",  # the gate opens after the interruption
)


def train_recipe(recipe: str, base: Path, folder: Path, overrides: Sequence[str]) -> Any:
    place = (f"run.root={folder.parent}", f"run.name={folder.name}", f"model.name={base}")
    name, *own = recipe.split()
    return train(resolve(name, overrides=[*COMMON, *own, *place, *overrides]))


def start(
    recipe: str, base: Path, folder: Path, *overrides: str, env: dict[str, str] | None = None,
    hold: tuple[str, int] | None = None,
) -> ForkedRun:  # fmt: skip
    log = folder.parent / f"{folder.name}-{(env or {}).get('RANK', '0')}.log"
    work = partial(train_recipe, recipe, base)
    return ForkedRun(folder, overrides, env=env, log=log, train=work, hold=hold)


def finish(recipe: str, base: Path, folder: Path, *overrides: str) -> Path:
    run = start(recipe, base, folder, *overrides)
    assert run.wait() == 0, run.output()
    return folder


def steps(folder: Path) -> list[dict[str, Any]]:
    return step_series(read_events(folder / "events.jsonl"))


def final_sums(folder: Path) -> dict[str, str]:
    listing = json.loads((folder / "checkpoints" / "step-6" / "checksums.json").read_text())
    return {name: entry["sha256"] for name, entry in listing["files"].items()}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_equals_an_unbroken_one(
    recipe: str, how: signal.Signals, base: Path, tmp_path: Path
) -> None:
    straight = finish(recipe, base, tmp_path / "straight")
    broken = tmp_path / "broken"
    run = start(recipe, base, broken, hold=("step", 4))
    deadline = time.monotonic() + 200
    while not run.held.exists():
        assert run.poll() is None and time.monotonic() < deadline, run.output()
        time.sleep(0.001)
    assert (broken / "checkpoints" / "step-3").exists()
    run.send_signal(how)
    run.go_on()
    assert run.wait() in (-signal.SIGKILL, 143), run.output()
    finish(recipe, base, broken)
    names = ("step", "loss", "metrics", "learning_rate", "grad_norm", "sample_ids")
    assert [[s[n] for n in names] for s in steps(straight)] == [
        [s[n] for n in names] for s in steps(broken)
    ]
    assert final_sums(straight) == final_sums(broken)


def two_ranks(recipe: str, base: Path, folder: Path, *overrides: str) -> Path:
    port = str(free_port())
    runs = []
    for rank in ("0", "1"):
        env = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        runs.append(start(recipe, base, folder, *overrides, env=env))
    for run in runs:
        assert run.wait() == 0, run.output()
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_samples_at_once_are_four_times_two_and_two_processes(
    recipe: str, base: Path, tmp_path: Path
) -> None:
    # Adam turns rounding into full steps where a gradient is zero but for noise: keep them small
    # and a dropout mask depends on how a batch is cut
    slow = ("training.learning_rate=3e-4", "training.batch_size=4", "lora.dropout=0")
    whole = finish(recipe, base, tmp_path / "8x1", *slow, "training.batch_size=8")
    cut = finish(recipe, base, tmp_path / "4x2", *slow, "training.accumulation=2")
    ranks = two_ranks(recipe, base, tmp_path / "ranks", *slow)
    for one, other, third in zip(steps(whole), steps(cut), steps(ranks), strict=True):
        assert one["sample_ids"] == other["sample_ids"]
        assert sorted(one["sample_ids"]) == sorted(third["sample_ids"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3, abs=1e-4)
        assert one["loss"] == pytest.approx(third["loss"], rel=1e-3, abs=1e-4)
    assert torch.isfinite(torch.tensor([s["loss"] for s in steps(whole)])).all()
