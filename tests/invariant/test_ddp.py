"""Two gloo processes: stop together, resume together, and only the first one writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_run import ForkedRun

from saccade.training.events import read_events, step_series
from tests.free_port import free_port

TOY = Path(__file__).with_name("toy_run.py")
SETTINGS = ("training.batch_size=4", "training.eval_every=0", "training.steps=20")


def start(
    folder: Path, *overrides: str, hold: tuple[str, int] | None = None
) -> list[ForkedRun]:  # fmt: skip
    port = free_port()
    runs = []
    for rank in range(2):
        env = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        log = folder.parent / f"{folder.name}-{rank}.log"
        runs.append(ForkedRun(folder, [*SETTINGS, *overrides], env=env, log=log, hold=hold))
    return runs


def finish(folder: Path, *overrides: str) -> None:
    for run in start(folder, *overrides):
        assert run.wait() == 0, run.output()


def history(folder: Path) -> list[tuple[object, ...]]:
    names = ("step", "loss", "grad_norm", "sample_ids")
    series = step_series(read_events(folder / "events.jsonl"))
    return [tuple(str(event[name]) for name in names) for event in series]


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / "step-20" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight") / "run"
    finish(folder)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_either_process_stops_both_at_the_same_step(
    straight: Path, tmp_path: Path, rank: int
) -> None:
    folder = tmp_path / "run"
    runs = start(folder, hold=("step", 7))  # the first one writes events; the other waits for it
    deadline = time.monotonic() + 200
    while not runs[0].held.exists():
        assert time.monotonic() < deadline, [run.output() for run in runs]
        time.sleep(0.001)
    runs[rank].send_signal(signal.SIGTERM)
    runs[0].go_on()
    assert [run.wait() for run in runs] == [143, 143], [run.output() for run in runs]
    finish(folder)
    assert history(folder) == history(straight)
    assert weights(folder) == weights(straight)


def test_each_step_is_logged_once_with_the_samples_of_both(straight: Path) -> None:
    events = read_events(straight / "events.jsonl")
    assert [event["step"] for event in events if event["type"] == "step"] == list(range(1, 21))
    assert all(len(event["sample_ids"]) == 8 for event in step_series(events))
    assert [event["type"] for event in events].count("plan") == 1


@pytest.mark.slow
def test_torchrun_starts_and_finishes_the_same_run(straight: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--standalone", str(TOY), str(tmp_path / "run"), *SETTINGS]
    source = str(Path(__file__).resolve().parents[2] / "src")
    env = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert history(tmp_path / "run") == history(straight)
