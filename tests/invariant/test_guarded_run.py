"""What stops or bends a real run: poisoned samples, broken rows, changed data, a failing sink."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_run import ForkedRun

from saccade.training.events import read_events, step_series


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["type"] == kind]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    tmp_path: Path, accumulation: int
) -> None:
    folder = tmp_path / "run"
    shape = [f"training.batch_size={8 // accumulation}", f"training.accumulation={accumulation}"]
    clean = ForkedRun(folder.parent / "clean", shape)
    assert clean.wait() == 0
    order = [event["sample_ids"] for event in step_series(events(tmp_path / "clean", "step"))]
    # 80 samples and 8 per step: each sample comes up once in the first ten steps
    poisoned = order[7][3]
    run = ForkedRun(folder, shape, env={"TOY_POISONED": poisoned.removeprefix("toy-")})
    assert run.wait() == 1
    assert "Traceback" not in run.output()
    (failed,) = events(folder, "failed")
    for part in ("step 8", "loss is nan", poisoned, "step-5"):
        assert part in failed["message"]
        assert part in run.output()
    assert len(events(folder, "step")) == 7
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-5"]


def test_a_broken_row_stops_with_its_name(tmp_path: Path) -> None:
    run = ForkedRun(tmp_path / "run", env={"TOY_BROKEN": "13"})
    assert run.wait() == 2
    assert "toy row 13: the row is broken" in run.output()
    assert "Traceback" not in run.output()
    assert "toy row 13" in events(tmp_path / "run", "failed")[0]["message"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_row_can_be_skipped_with_one_warning(tmp_path: Path, workers: int) -> None:
    settings = ["data.on_error=skip", f"training.workers={workers}"]
    run = ForkedRun(tmp_path / "run", settings, env={"TOY_BROKEN": "13"})
    assert run.wait() == 0, run.output()
    (warning,) = events(tmp_path / "run", "warning")
    assert "skipped a broken row: toy row 13" in warning["message"]
    assert all(len(event["sample_ids"]) == 8 for event in events(tmp_path / "run", "step"))


def test_a_sink_that_fails_never_stops_the_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "wrong"}
    run = ForkedRun(tmp_path / "run", ["tracking.wandb=online"], env=env)
    assert run.wait() == 0, run.output()
    assert "W&B is off" in events(tmp_path / "run", "warning")[0]["message"]


def test_every_event_type_of_a_run_carries_what_readers_need(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert ForkedRun(folder).wait() == 0
    log = read_events(folder / "events.jsonl")
    kinds = [event["type"] for event in log]
    assert kinds[0] == "run_start"
    assert kinds[1] == "plan"
    assert kinds[-1] == "done"
    plan, done = log[1], log[-1]
    assert plan["trainable_parameters"] == sum(plan["groups"].values())
    assert plan["parameters"] == plan["trainable_parameters"] + 20
    assert done["metrics"]["accuracy"] == events(folder, "eval")[-1]["metrics"]["accuracy"]
    assert [event["step"] for event in events(folder, "gradients")] == [10, 20, 30]
    for event in events(folder, "gradients"):
        assert set(event["groups"]) == {"embed", "body", "head"}
        assert all(group["state"] == "ok" for group in event["groups"].values())
    rates = [event["learning_rate"] for event in events(folder, "step")]
    assert max(rates) == pytest.approx(0.01)
    assert rates[-1] < 0.001
