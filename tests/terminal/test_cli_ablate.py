"""`saccade ablate` through the real command: refusals, the plan, interruptions, the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saccade_cli import refused, saccade

from saccade.training.events import read_events, step_series
from tests.scored_run import OVERRIDES, base_folder

SETTINGS = (
    *OVERRIDES, "training.steps=12", "training.batch_size=2", "training.save_every=2",
    "selector.width=32", "selector.distill_steps=6", "run.name=try",
)  # fmt: skip


def test_a_dry_run_shows_all_trials_and_the_cost_and_writes_nothing(tmp_path: Path) -> None:
    words = ("ablate", "relevance", "--seeds", "0", "1", "--only", "learning", "--dry-run")
    outcome = saccade(*words, "--json", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    rows = json.loads(outcome.out)
    to_do = {(row["variant"], row["seed"]) for row in rows if row["state"] == "to do"}
    names = ("learned", "noise", "multiply", "distill")
    assert to_do == {(name, seed) for name in names for seed in (0, 1)}
    assert "8 trials, 0 finished" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["relevance", "--only", "nose"], "did you mean noise?"),
        (["relevance", "--seeds", "one"], "expected whole numbers"),
        (["relevance", "training.stps=1"], "did you mean training.steps?"),
        (["tiny-base"], "no ablation ships for this recipe"),
        (["relevance", "selector.learning=noise"], "are the same configuration"),
        (["--file", "absent.yaml"], "absent.yaml: cannot be read"),
        (["relevance", "stray"], "expected key=value"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_trained(
    words: list[str], message: str, tmp_path: Path
) -> None:
    assert message in refused(saccade("ablate", *words, folder=tmp_path), code=2)
    assert list(tmp_path.iterdir()) == []


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    source = Path(__file__).parents[2] / "src"
    return subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", "ablate", "relevance", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def steps(run: Path) -> list[tuple[int, float]]:
    return [(one["step"], one["loss"]) for one in step_series(read_events(run / "events.jsonl"))]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_same_command_continues_an_interrupted_ablation(
    how: signal.Signals, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"model.name={base_folder(tmp_path / 'base')}", "--only", "noise"]
    words = ("ablate", "relevance", *settings, "--json")
    for name in ("straight", "broken"):
        (tmp_path / name).mkdir()
    whole = saccade(*words, folder=tmp_path / "straight")
    assert whole.code == 0, whole.err
    process = start(tmp_path / "broken", *settings)
    run = Path("runs/ablate-try/noise/seed-0")
    deadline = time.monotonic() + 280
    while not (tmp_path / "broken" / run / "checkpoints" / "step-2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    _, messages = process.communicate(timeout=280)
    assert process.returncode == (-how if how == signal.SIGKILL else 143), messages
    assert "Traceback" not in messages
    assert not (tmp_path / "broken" / run / "DONE").exists()
    again = saccade(*words, folder=tmp_path / "broken")
    assert again.code == 0, again.err
    assert "continuing from step" in again.err
    assert steps(tmp_path / "broken" / run) == steps(tmp_path / "straight" / run)
    of = [json.loads(one.out)["variants"] for one in (whole, again)]
    assert [row["budgets"] for row in of[0]] == [row["budgets"] for row in of[1]]


@pytest.mark.slow
def test_a_trial_that_cannot_start_says_which_one_and_why(tmp_path: Path) -> None:
    outcome = saccade("ablate", "relevance", *SETTINGS, "model.name=./absent", folder=tmp_path)
    assert "learned, seed 0: " in refused(outcome, code=2)
