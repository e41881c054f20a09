"""`saccade launch` and its companions as a person meets them: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import serve
from saccade.launch import costs
from saccade.launch.log import launches
from tests.terminal.saccade_cli import refused, saccade

SOURCE = str(Path(__file__).parents[2] / "src")
WORDS = ("launch", "smoke/relevance", "run.name=mine", "model.device=cpu")
BROKEN = (*WORDS, "data.train.type=jsonl", "data.train.path=absent.jsonl")
IMAGE = "docker.io/library/elsewhere@sha256:" + "0" * 64


def rows(folder: Path, **env: str) -> list[dict[str, Any]]:
    done = saccade("jobs", "--json", folder=folder, env=env)
    assert done.code == 0, done.err
    return json.loads(done.out)


def start(*words: str, folder: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    base = os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *words], cwd=folder, env=base | (env or {}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_ctrl_c,
    )  # fmt: skip


def _hears_ctrl_c() -> None:
    # a background shell lets its children ignore SIGINT, and Python then leaves it ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def test_a_dry_run_shows_the_job_and_makes_nothing(tmp_path: Path) -> None:
    done = saccade(*WORDS, "--dry-run", "--json", folder=tmp_path)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["target"] == "local"
    assert plan["request"]["command"][-2] == "train"
    assert not (tmp_path / "runs").exists()


def test_without_a_terminal_and_without_yes_nothing_is_launched(tmp_path: Path) -> None:
    done = saccade(*WORDS, folder=tmp_path)
    assert done.code == 2
    assert "fix: add --yes" in done.err
    assert not (tmp_path / "runs").exists()


def test_nothing_launched_yet_is_said_kindly(tmp_path: Path) -> None:
    assert saccade("jobs", folder=tmp_path).code == 0
    assert "start one with `saccade launch`" in refused(saccade("watch", folder=tmp_path), code=2)
    text = refused(saccade("cancel", "mine", "--yes", folder=tmp_path), code=2)
    assert "mine: no such launch" in text


def test_a_job_that_dies_early_ends_with_its_log_and_its_exit_code(tmp_path: Path) -> None:
    left = saccade(*BROKEN, "--yes", "--detach", folder=tmp_path)
    assert left.code == 0, left.err
    assert "nobody is watching; run `saccade watch mine`" in left.err
    assert [(row["run"], row["watched_by"]) for row in rows(tmp_path)] == [("mine", None)]
    done = saccade("watch", folder=tmp_path)
    assert done.code == 2, done.err
    assert "FAILED at STARTING (exit code 2" in done.err
    assert "absent.jsonl" in done.err
    assert "absent.jsonl" in saccade("logs", "mine", folder=tmp_path).out
    assert [row["state"] for row in rows(tmp_path)] == ["FAILED"]


def test_leaving_a_watch_leaves_the_job_and_cancel_ends_it(tmp_path: Path) -> None:
    words = (*WORDS, "training.steps=100000")  # it does not end by itself
    watching = start(*words, "--yes", folder=tmp_path)
    until = time.monotonic() + 400
    found: list[dict[str, Any]] = []
    while time.monotonic() < until:
        found = rows(tmp_path) if (tmp_path / "runs" / ".launches").exists() else []
        if found and found[0]["state"] == "RUNNING":
            break
    assert found[0]["watched_by"] == watching.pid
    watching.send_signal(signal.SIGINT)
    code, err = ended(watching)
    assert code == 143
    assert "you left; the job goes on (RUNNING)" in err
    assert "nobody is watching; run `saccade watch mine`" in err
    again = saccade(*words, "--yes", "--detach", folder=tmp_path)
    assert "is launched already; going on with it" in again.err
    once = saccade("watch", "mine", "--once", "--json", folder=tmp_path)
    assert once.code == 0, once.err
    assert json.loads(once.out)["state"] == "RUNNING"
    assert "add --yes" in refused(saccade("cancel", "mine", folder=tmp_path), code=2)
    assert saccade("cancel", "mine", "--yes", folder=tmp_path).code == 0
    row = rows(tmp_path)[0]
    assert (row["state"], row["attempt"], row["exit_code"]) == ("CANCELLED", 1, 143)


TIMELINES = [
    # taken twice: once the platform restarts the job itself, then it gives up on it
    [{"running": {"until_step": 14}}, "preempt", {"pending": 0.5}, {"running": {"until_step": 26}},
     "preempt"],
    # taken without time to save, while checkpoints are being uploaded
    [{"running": {"until_step": 36}}, {"preempt": {"grace": 0.05}}],
    ["running"],
]  # fmt: skip


@pytest.mark.slow
def test_a_launch_that_is_preempted_three_times_ends_with_done_its_cost_and_every_loss_named(
    tmp_path: Path,
) -> None:
    scenario = Scenario.model_validate(
        {"jobs": TIMELINES, "container_env": {"PYTHONPATH": SOURCE}, "grace_seconds": 20}
    )
    with serve(tmp_path / "cloud", scenario=scenario) as cloud:
        env = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(tmp_path / "home")}
        assert saccade("cloud", "setup", "--yes", folder=tmp_path, env=env).code == 0
        launched = start(
            *WORDS, "launch.target=fake", f"launch.image={IMAGE}", "launch.backoff_seconds=0",
            "training.steps=50", "training.save_every=5", "run.heartbeat_seconds=1", "--yes",
            folder=tmp_path, env=env,
        )  # fmt: skip
        out, err = launched.communicate(timeout=1500)
        assert launched.returncode == 0, out + err
    launch = launches(tmp_path / "runs")[0]
    view = launch.view()
    assert (view.state, view.attempt, view.preemptions) == ("SUCCEEDED", 3, 3)
    assert view.message == "DONE at step 50"
    lost = [event for event in launch.events() if event["type"] == "preempted"]
    assert [event["attempt"] for event in lost] == [1, 1, 2]
    assert all("last checkpoint" in event["message"] for event in lost)
    now = time.time()
    per_attempt = [row["usd"] for row in costs.attempts(view, now=now)]
    assert len(per_attempt) == 3
    assert costs.cost(view, now=now) == pytest.approx(sum(float(one or 0) for one in per_attempt),
                                                      abs=1e-3)  # fmt: skip
    assert (costs.cost(view, now=now) or 0) > 0
