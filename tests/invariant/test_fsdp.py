"""FSDP2 over two gloo processes: the frozen base is shared out, and nothing else changes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from test_real_recipes import start, steps
from torch import nn
from torch.distributed.tensor import DTensor
from toy_run import ForkedRun

from saccade.config.errors import InputError
from saccade.training.events import read_events
from saccade.training.sharding import average_gradients, shard_frozen
from tests.free_port import free_port
from tests.tiny_models import random_backbone, relevance_model

RECIPE = "smoke/relevance"
# Adam turns rounding into full steps where a gradient is zero but for noise: keep them small
SLOW = ("training.learning_rate=3e-4", "training.batch_size=4", "training.eval_every=3")
FSDP = ("training.parallel=fsdp",)
ALONE = ("training.batch_size=8", "training.parallel=ddp")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    random_backbone().model.save_pretrained(folder)
    random_backbone().processor.save_pretrained(folder)
    return folder


def start_two(
    recipe: str, model: Path, folder: Path, *overrides: str, hold: tuple[str, int] | None = None
) -> list[ForkedRun]:
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port}  # fmt: skip
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **group} for rank in ("0", "1")]
    return [start(recipe, model, folder, *overrides, env=env, hold=hold) for env in ranks]


def finished(folder: Path, runs: list[ForkedRun]) -> Path:
    assert [run.wait() for run in runs] == [0] * len(runs), [run.output() for run in runs]
    return folder


HOLD = ("step", 4)
"""Where runs that `stop_after_step_3` stops wait for it."""


def stop_after_step_3(folder: Path, runs: list[ForkedRun]) -> None:
    deadline = time.monotonic() + 200
    while not runs[0].held.exists():
        assert time.monotonic() < deadline, runs[0].output()
        time.sleep(0.001)
    assert (folder / "checkpoints" / "step-3").exists()
    runs[-1].send_signal(signal.SIGTERM)
    runs[0].go_on()
    assert [run.wait() for run in runs] == [143] * len(runs), [run.output() for run in runs]


def assert_same_losses(folder: Path, other: Path) -> None:
    for one, two in zip(steps(folder), steps(other), strict=True):
        assert sorted(one["sample_ids"]) == sorted(two["sample_ids"])
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3, abs=1e-4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "checkpoints" / "step-6" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return finished(folder, [start(RECIPE, model, folder, *SLOW, *ALONE)])


@pytest.fixture(scope="module")
def sharded(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "run"
    return finished(folder, start_two(RECIPE, model, folder, *SLOW, *FSDP))


def test_two_sharded_processes_compute_the_losses_of_one(whole: Path, sharded: Path) -> None:
    assert_same_losses(whole, sharded)
    mine, theirs = weights(whole), weights(sharded)
    assert list(mine) == list(theirs)
    for name, one in mine.items():
        torch.testing.assert_close(theirs[name], one, rtol=0.05, atol=2e-3)


def test_evaluations_of_a_sharded_base_are_those_of_one_process(whole: Path, sharded: Path) -> None:
    def evaluations(folder: Path) -> list[dict[str, Any]]:
        events = read_events(folder / "events.jsonl")
        return [event for event in events if event["type"] == "eval"]

    assert [one["step"] for one in evaluations(sharded)] == [3, 6]
    assert evaluations(sharded)[-1]["metrics"].keys() == evaluations(whole)[-1]["metrics"].keys()
    assert json.loads((sharded / "DONE").read_text())["target_step"] == 6


def test_a_sharded_run_continues_in_one_process(whole: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop_after_step_3(folder, start_two(RECIPE, model, folder, *SLOW, *FSDP, hold=HOLD))
    finished(folder, [start(RECIPE, model, folder, *SLOW, *ALONE)])
    assert any(event["type"] == "resume" for event in read_events(folder / "events.jsonl"))
    assert_same_losses(whole, folder)


def test_a_run_of_one_process_continues_sharded(whole: Path, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop_after_step_3(folder, [start(RECIPE, model, folder, *SLOW, *ALONE, hold=HOLD)])
    finished(folder, start_two(RECIPE, model, folder, *SLOW, *FSDP))
    assert any(event["type"] == "resume" for event in read_events(folder / "events.jsonl"))
    assert_same_losses(whole, folder)


def test_a_recipe_that_trains_its_base_refuses_to_be_sharded(model: Path, tmp_path: Path) -> None:
    runs = start_two("smoke/tiny-base", model, tmp_path / "run", *FSDP)
    assert [run.wait() for run in runs] == [InputError.exit_code] * 2
    assert "training.parallel=fsdp shards a frozen base" in runs[0].output()


def test_what_is_frozen_is_sharded_and_what_is_trained_is_whole(tmp_path: Path) -> None:
    """In this process: a group of one has the same structure as a group of two."""
    model = relevance_model(random_backbone.__wrapped__())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        shard_frozen(model, device=torch.device("cpu"))
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor) != name.startswith("selector."), name
        first, *others = model.selector.parameters()
        for parameter in others:
            parameter.grad = torch.ones_like(parameter)
        average_gradients(model.parameters())
        assert first.grad is None  # no process reached it: the optimizer leaves it alone
        assert all(one.grad is not None and (one.grad == 1).all() for one in others)
        with pytest.raises(InputError, match="trains all of it"):
            shard_frozen(nn.Linear(2, 2), device=torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def average_as(rank: int, folder: Path, overrides: Sequence[str]) -> None:
    """One process of two: it reaches part 0, both reach part 1, nobody reaches part 2."""
    url = f"file://{folder.parent}/group"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    parts = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    if rank == 0:
        parts[0].grad = torch.full((2,), 4.0)
    parts[1].grad = torch.full((2,), 1.0 + rank)
    average_gradients(parts)
    torch.save([part.grad for part in parts], folder.with_suffix(".pt"))
    dist.destroy_process_group()


def test_a_part_one_process_did_not_reach_counts_there_as_zero(tmp_path: Path) -> None:
    runs = [ForkedRun(tmp_path / str(rank), train=partial(average_as, rank)) for rank in (0, 1)]
    assert [run.wait() for run in runs] == [0, 0], [run.output() for run in runs]
    for rank in (0, 1):
        one, both, none = torch.load(tmp_path / f"{rank}.pt")
        assert one.tolist() == [2.0, 2.0]
        assert both.tolist() == [1.5, 1.5]
        assert none is None
