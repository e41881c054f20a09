"""One batch of 8, two of 4 accumulated, and two processes with 4 train alike.

Loss, metrics and updated weights agree up to rounding, though every sample has another number of
supervised tokens. The mutants at the end are what the usual averages would do; they must differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_run import ForkedRun

from saccade.training.events import read_events, step_series
from tests.free_port import free_port

STEPS = 6
SETTINGS = (f"training.steps={STEPS}", "training.eval_every=0")
EXACT = {"TOY_DROPOUT": "0"}
"""Dropout masks depend on how a batch is cut, so it is off here."""


def run_alone(folder: Path, *overrides: str, env: dict[str, str] | None = None) -> Path:
    run = ForkedRun(folder, [*SETTINGS, *overrides], env=EXACT | (env or {}))
    assert run.wait() == 0, run.output()
    return folder


def run_ranks(folder: Path, *overrides: str, ranks: int = 2) -> Path:
    port = free_port()
    runs = []
    for rank in range(ranks):
        env = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        log = folder.parent / f"{folder.name}-{rank}.log"
        runs.append(ForkedRun(folder, [*SETTINGS, *overrides], env=EXACT | env, log=log))
    for run in runs:
        assert run.wait() == 0, run.output()
    return folder


def steps(folder: Path) -> list[dict[str, Any]]:
    return step_series(read_events(folder / "events.jsonl"))


def weights(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / "model.safetensors")


def assert_alike(one: Path, other: Path) -> None:
    for first, second in zip(steps(one), steps(other), strict=True):
        assert first["sample_ids"] == second["sample_ids"]
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
        assert first["metrics"] == pytest.approx(second["metrics"], abs=1e-5)
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_alone(tmp_path_factory.mktemp("whole") / "run", "training.batch_size=8")


def test_accumulation_equals_one_large_batch(whole: Path, tmp_path: Path) -> None:
    shape = ("training.batch_size=4", "training.accumulation=2")
    assert_alike(whole, run_alone(tmp_path / "run", *shape))


def test_eight_micro_batches_of_one_equal_one_large_batch(whole: Path, tmp_path: Path) -> None:
    shape = ("training.batch_size=1", "training.accumulation=8")
    assert_alike(whole, run_alone(tmp_path / "run", *shape))


def test_two_processes_equal_one_large_batch(whole: Path, tmp_path: Path) -> None:
    assert_alike(whole, run_ranks(tmp_path / "run", "training.batch_size=4"))


def test_two_processes_with_accumulation_equal_one_large_batch(whole: Path, tmp_path: Path) -> None:
    shape = ("training.batch_size=2", "training.accumulation=2")
    assert_alike(whole, run_ranks(tmp_path / "run", *shape))


def test_the_token_mean_metric_does_not_depend_on_the_batch_shape(whole: Path) -> None:
    for event in steps(whole):
        assert event["metrics"]["token_loss"] == pytest.approx(event["loss"], abs=1e-6)


@pytest.mark.parametrize("mutant", ["micro-mean", "rank-mean"])
def test_the_usual_averages_would_be_noticed(whole: Path, tmp_path: Path, mutant: str) -> None:
    folder, env = tmp_path / "run", {"TOY_MUTANT": mutant}
    shape = ("training.batch_size=4", "training.accumulation=2")
    with pytest.raises(AssertionError):
        assert_alike(whole, run_alone(folder, *shape, env=env))
