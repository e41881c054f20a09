"""N steps straight equal k steps, an interruption, and the rest: to the last bit on CPU.

The toy recipe (dropout from the global random state, evaluations that draw) runs in forks that are
really killed. Compared: every loss, gradient norm, learning rate, sample id and evaluation, and
each file of the final checkpoint (weights, optimizer, schedule, random states).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_run import ForkedRun

from saccade.training.events import read_events, step_series


def wait_for(run: ForkedRun, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert run.poll() is None, run.output()
        assert time.monotonic() < deadline, run.output()
        time.sleep(0.001)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder / "events.jsonl") if event["type"] == kind]


def history(folder: Path) -> list[Any]:
    """Everything a run measured, by step, without times."""
    log = read_events(folder / "events.jsonl")
    names = ("step", "loss", "metrics", "learning_rate", "grad_norm", "sample_ids")
    steps = [[event[name] for name in names] for event in step_series(log)]
    evaluations = [[e["step"], e["metrics"]] for e in step_series(log, type="eval")]
    return [steps, evaluations]


def final_files(folder: Path, step: int = 30) -> dict[str, str]:
    listing = json.loads((folder / "checkpoints" / f"step-{step}" / "checksums.json").read_text())
    return {name: entry["sha256"] for name, entry in listing["files"].items()}


def assert_equal_runs(one: Path, other: Path) -> None:
    assert history(one) == history(other)
    assert final_files(one) == final_files(other)


def finish(folder: Path, *overrides: str) -> ForkedRun:
    run = ForkedRun(folder, overrides)
    assert run.wait() == 0, run.output()
    return run


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    finish(folder)
    return folder


def test_two_straight_runs_are_equal(straight: Path, tmp_path: Path) -> None:
    finish(tmp_path / "run")
    assert_equal_runs(straight, tmp_path / "run")


def test_nothing_is_written_outside_the_known_files(straight: Path) -> None:
    assert {path.name for path in straight.iterdir()} == {
        ".lock", "config.yaml", "provenance.json", "events.jsonl", "checkpoints", "DONE",
        "final.pt", "heartbeat.json",
    }  # fmt: skip
    kept = {path.name for path in (straight / "checkpoints").iterdir()}
    assert kept == {"step-25", "step-30"}


@pytest.mark.parametrize("kill_at", [3, 8, 17])
def test_a_run_killed_between_steps_ends_like_the_unbroken_one(
    straight: Path, tmp_path: Path, kill_at: int
) -> None:
    folder = tmp_path / "run"
    run = ForkedRun(folder, hold=("step", kill_at))
    wait_for(run, lambda: len(events(folder, "step")) >= kill_at)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    finish(folder)
    assert_equal_runs(straight, folder)
    (resumed,) = events(folder, "resume")
    assert resumed["step"] % 5 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_at_the_step_boundary_and_exits_143(
    straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    run = ForkedRun(folder, hold=("step", 12))
    wait_for(run, run.held.exists)
    run.send_signal(number)
    run.go_on()
    assert run.wait() == 143
    (stopped,) = events(folder, "preempted")
    assert (folder / "checkpoints" / f"step-{stopped['step']}").is_dir()
    assert f"stopped by {number.name} at step {stopped['step']}" in run.output()
    assert "run the same command" in run.output()
    assert not (folder / "DONE").exists()
    finish(folder)
    assert events(folder, "resume")[0]["step"] == stopped["step"]
    assert_equal_runs(straight, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("step", [10, 30])
def test_a_stop_during_an_evaluation_is_made_up_for(
    straight: Path, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    folder = tmp_path / "run"
    run = ForkedRun(folder, hold=("evaluation", step // 10))
    wait_for(run, run.held.exists)
    assert step in [event["step"] for event in events(folder, "checkpoint")]
    run.send_signal(number)
    run.go_on()
    assert run.wait() == (143 if number == signal.SIGTERM else -number), run.output()
    assert step not in [event["step"] for event in events(folder, "eval")]
    finish(folder)
    assert_equal_runs(straight, folder)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "unmarked"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    straight: Path, tmp_path: Path, harm: str
) -> None:
    folder = tmp_path / "run"
    run = ForkedRun(folder, hold=("step", 17))
    wait_for(run, lambda: len(events(folder, "checkpoint")) >= 3)
    run.send_signal(signal.SIGKILL)
    run.wait()
    newest = max(
        (path for path in (folder / "checkpoints").glob("step-*")),
        key=lambda path: int(path.name.split("-")[1]),
    )
    weights = newest / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if harm == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        data[-5] ^= 16
        weights.write_bytes(data)
    else:
        (newest / "COMPLETE").unlink()
    finish(folder)
    (warning,) = events(folder, "warning")
    named = "COMPLETE" if harm == "unmarked" else "model.safetensors"
    assert f"{newest.name}/{named}" in warning["message"]
    assert events(folder, "resume")[0]["step"] == int(newest.name.split("-")[1]) - 5
    assert_equal_runs(straight, folder)


def test_a_finished_run_does_nothing_and_says_so(straight: Path) -> None:
    before = (straight / "events.jsonl").read_bytes()
    run = finish(straight)
    assert "already finished at step 30" in " ".join(run.output().split())
    assert (straight / "events.jsonl").read_bytes() == before


def test_other_values_are_refused_with_the_key(straight: Path) -> None:
    run = ForkedRun(straight, ["training.learning_rate=0.5"])
    assert run.wait() == 2
    assert "training.learning_rate: 0.01 -> 0.5" in run.output()
    assert "Traceback" not in run.output().split("already finished")[-1]


def test_another_batch_shape_may_continue_but_another_size_may_not(
    straight: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = ForkedRun(folder, hold=("step", 12))
    wait_for(run, lambda: len(events(folder, "checkpoint")) >= 2)
    run.send_signal(signal.SIGKILL)
    run.wait()
    refused = ForkedRun(folder, ["training.batch_size=4"])
    assert refused.wait() == 2
    assert "was trained with 8 samples per step, now there are 4" in refused.output()
    finish(folder, "training.batch_size=4", "training.accumulation=2")
    order = [event["sample_ids"] for event in step_series(events(folder, "step"))]
    assert order == [event["sample_ids"] for event in step_series(events(straight, "step"))]


def test_a_second_process_on_the_same_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = ForkedRun(folder, ["training.steps=5000"])
    wait_for(first, lambda: len(events(folder, "step")) >= 1)
    second = ForkedRun(folder, ["training.steps=5000"])
    assert second.wait() == 2
    assert f"pid {first.pid}) is training" in second.output()
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL


def test_data_loading_processes_change_nothing(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = ForkedRun(folder, ["training.workers=2"], hold=("step", 8))
    wait_for(run, lambda: len(events(folder, "step")) >= 7)
    run.send_signal(signal.SIGKILL)
    run.wait()
    finish(folder, "training.workers=2")
    assert_equal_runs(straight, folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_run_that_fills_the_disk_exits_3_and_continues_when_there_is_room(
    small_disk: Path, straight: Path
) -> None:
    folder = small_disk / "run"
    run = ForkedRun(folder, log=small_disk.parent / "run.log", hold=("step", 7))
    wait_for(run, run.held.exists)
    ballast = small_disk / "ballast"
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    run.go_on()
    assert run.wait() == 3, run.output()
    assert "no space left" in run.output()
    assert "is intact" in run.output()
    assert "Traceback" not in run.output()
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    ballast.unlink()
    finish(folder)
    assert_equal_runs(straight, folder)
