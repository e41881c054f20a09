"""The verbs that work: a run trained, scored, compared and reported through the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from saccade_cli import saccade

TINY = Path(__file__).parents[2] / "src/saccade/assets/tiny-base/config.json"


def test_doctor_reports_every_check_as_json_and_masks_keys(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WANDB_API_KEY=sesame\n")
    outcome = saccade("doctor", "--json", folder=tmp_path)
    checks = {check["name"]: check for check in json.loads(outcome.out)}
    names = {"Python", "torch", "transformers", "torchvision", "CPU", "memory", "disk",
             "run folder", "CUDA", "tiny base", "W&B", "Hugging Face"}  # fmt: skip
    assert names <= set(checks)
    assert "hub" not in checks  # the network is not touched unasked
    assert "sesame" not in outcome.out
    assert "**********" in checks["W&B"]["found"]
    failed = [check for check in checks.values() if check["status"] == "fail"]
    assert outcome.code == (3 if failed else 0)
    assert all(check["fix"] for check in failed)
    assert not (tmp_path / "runs").exists()


def test_doctor_fails_on_a_broken_training_file_and_says_where(tmp_path: Path) -> None:
    (tmp_path / ".training").write_text("LERNING_RATE=1\n")
    outcome = saccade("doctor", "--json", folder=tmp_path)
    assert outcome.code == 3
    found = {check["name"]: check["found"] for check in json.loads(outcome.out)}
    assert "did you mean LEARNING_RATE?" in found["configuration"]


@pytest.mark.slow
def test_a_base_trains_from_the_command_line_and_the_same_command_finds_it_finished(
    tmp_path: Path,
) -> None:
    first = saccade("train", "smoke/tiny-base", "--json", folder=tmp_path)
    assert first.code == 0, first.err
    assert "step" in first.err
    again = saccade("train", "smoke/tiny-base", "--json", folder=tmp_path)
    assert json.loads(again.out) == json.loads(first.out)
    assert "already finished" in again.err


@pytest.mark.slow
@pytest.mark.skipif(not TINY.is_file(), reason="the tiny base is not in this checkout")
def test_the_main_job_runs_through_every_verb(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        outcome = saccade(*words, folder=tmp_path)
        assert outcome.code == 0, outcome.err
        return outcome.out

    run("train", "smoke/relevance")
    result = json.loads(run("eval", "smoke-relevance", "--limit", "4", "--json"))
    assert result["samples"] == 4
    again = json.loads(run("eval", "smoke-relevance", "--rejudge", "--json"))
    assert again["accuracy"] == result["accuracy"]
    run("compare", "smoke-relevance", "eval.samples=4", "eval.keep=[0.25]", "eval.seeds=1")
    run("data", "show", "smoke/relevance", "--limit", "1", "--out", "scene.png")
    run("look", "scene.png", "what shape is red?", "--run", "smoke-relevance")
    report = Path(run("report", "smoke-relevance").strip())
    assert (tmp_path / report).is_file()
    assert (tmp_path / "look.png").is_file()


def hear_ctrl_c() -> None:
    """A test run in the background hands its children an ignored Ctrl+C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_outside_training_leaves_with_130_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "saccade.cli", "data", "check", "data.train.scenes=1000000"]
    source = Path(__file__).parents[2] / "src"
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(source)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    assert process.stderr is not None
    assert "checking train" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=200) == 130
    assert "Traceback" not in rest
