"""Launched work comes home: `saccade fetch`, pipeline stages and sweep trials as real processes.

The jobs run in a fake cloud and leave their runs in its bucket; what reads them runs here. Toy jobs
keep it fast; the slow tests train real recipes. Kills are real ones, in the middle of a fetch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.api import custom_jobs
from saccade.cloud.api.transport import connect
from saccade.cloud.fake.faults import call_line
from saccade.cloud.fake.http import Request
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.launch.log import Launch
from saccade.training.finals import AREA
from saccade.training.store import open_store
from tests.terminal.saccade_cli import refused, saccade
from tests.toy_jobs import cloud_with_bucket
from tests.toy_trainer import LAUNCH, ROOT, digest_files, toy_cloud

pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")

SET = ", ".join(word.replace("=", ": ", 1) for word in LAUNCH)
PIPELINE = """\
name: pair
stages:
  train:
    uses: train
    recipe: smoke/relevance
    target: fake
    set: {%s}
  read:
    uses: command
    command: [python, -c, %s, "${stages.train.model}", "${outputs.sums}", "${metrics}"]
    outputs: [sums]
    metrics: [files]
"""
READER = (
    "import hashlib, json, pathlib, sys;"
    " files = sorted(pathlib.Path(sys.argv[1]).rglob('*.bin'));"
    " sums = [hashlib.sha256(one.read_bytes()).hexdigest() for one in files];"
    " pathlib.Path(sys.argv[2]).write_text('\\n'.join(sums));"
    " pathlib.Path(sys.argv[3]).write_text(json.dumps({'files': len(sums)}))"
)
SWEEP = """\
name: trio
method: grid
metric: {name: accuracy, goal: maximize}
parameters: {training.learning_rate: {values: [0.3, 0.01, 0.1]}}
saccade:
  recipe: smoke/relevance
  target: fake
  set: {%s}
"""
STEPS = "training.steps: 4, training.save_every: 2, training.eval_samples: 4, eval.samples: 4"


def start(*words: str, folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    base = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *words], cwd=folder, env=base,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def until(condition: Callable[[], Any], *, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 400
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill a command and what it started, as a lost machine would."""
    found = [process.pid]
    for pid in found:
        tasks = Path(f"/proc/{pid}/task/{pid}/children")
        with suppress(OSError):  # it has just ended
            found += [int(word) for word in tasks.read_text().split()]
    for pid in found:
        with suppress(ProcessLookupError):  # it may end with the one before
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def slow_downloads(cloud: FakeCloud, *, seconds: float = 0.4) -> None:
    cloud.add_fault(r"GET .*final.*part-.*alt=media", status="slow", seconds=seconds,
                    times="always")  # fmt: skip


def stop_at(cloud: FakeCloud, match: str) -> None:
    """Let these calls hang, so that whoever makes them is killed in the middle of its work."""
    cloud.add_fault(match, status="slow", seconds=100, times="always")


def stop_once_finished(cloud: FakeCloud, match: str) -> None:
    """The same once a run is DONE: until then it is the job that reads what it has written."""

    def watch(request: Request) -> None:
        said = call_line(request) + request.body[:4096].decode("utf-8", "replace")
        if request.method in ("POST", "PUT") and "/DONE" in said:
            stop_at(cloud, match)

    cloud.world.watchers.append(watch)


def jobs_of(cloud: FakeCloud) -> int:
    return len([one for one in cloud.calls("POST .*customJobs$") if one["status"] == 200])


def test_a_launched_run_is_fetched_by_one_verb(tmp_path: Path) -> None:
    with toy_cloud(tmp_path) as (_, env):
        words = ("launch", "smoke/relevance", "launch.target=fake", "run.name=mine", *LAUNCH)
        done = saccade(*words, "--yes", folder=tmp_path, env=env)
        assert done.code == 0, done.err
        assert done.err.count("SUCCEEDED") == 1, done.err
        assert "bring it here: saccade fetch mine" in done.err
        assert "bring it here: saccade fetch mine" in saccade("jobs", folder=tmp_path, env=env).err
        got = saccade("fetch", "mine", "--json", folder=tmp_path, env=env)
        assert got.code == 0, got.err
        found = json.loads(got.out)
        assert (found["finished"], found["step"], found["run"]) == (True, 30, "mine")
        home = tmp_path / "runs" / "mine"
        assert json.loads((home / "DONE").read_text())["target_step"] == 30
        assert "bring it here" not in saccade("jobs", folder=tmp_path, env=env).err
        address = "gs://fake-project-saccade-us-central1/runs/mine"
        again = saccade("fetch", address, "--to", "elsewhere", folder=tmp_path, env=env)
        assert again.code == 0, again.err
        assert digest_files(tmp_path / "elsewhere") == digest_files(home)
        (home / "DONE").write_text('{"target_step": 30, "metrics": {}}')
        text = refused(saccade("fetch", "mine", folder=tmp_path, env=env), code=2)
        assert "holds another run than" in text
        assert "fix: fetch into another folder with --to FOLDER" in text


def test_what_cannot_come_home_is_said_before_anything_is_spent(tmp_path: Path) -> None:
    words = ("launch", "smoke/relevance", "--yes", "--to", "elsewhere")
    text = refused(saccade(*words, folder=tmp_path), code=2)
    assert "there is no store to fetch it from" in text
    text = refused(saccade(*words, "--detach", folder=tmp_path), code=2)
    assert "use `saccade fetch` later" in text
    assert not (tmp_path / "runs").exists()
    assert "no launches" in refused(saccade("fetch", folder=tmp_path), code=2)


def pair(folder: Path) -> Path:
    folder.mkdir()
    (folder / "pair.yaml").write_text(PIPELINE % (SET, json.dumps(READER)))
    return folder


def sums_of(folder: Path) -> str:
    return next((folder / "runs" / "pair").glob("read-*/outputs/sums")).read_text()


def test_the_next_stage_reads_what_a_launched_one_made_also_after_a_kill_in_the_fetch(
    tmp_path: Path,
) -> None:
    words, calm, killed = ("pipeline", "run", "pair.yaml"), pair(tmp_path / "a"), tmp_path / "b"
    with toy_cloud(calm, step_seconds=0.1) as (cloud, env):
        done = saccade(*words, "--json", folder=calm, env=env)
        assert done.code == 0, done.err
    assert {row["stage"]: row["metrics"] for row in json.loads(done.out)}["read"] == {"files": 8}
    with toy_cloud(pair(killed), step_seconds=0.1) as (cloud, env):
        stop_once_finished(cloud, r"GET .*final.*part-[3-7].*alt=media")
        process = start(*words, folder=killed, env=env)
        staged = f"runs/pair/train-*/{AREA}/model/part-2.bin"
        until(lambda: list(killed.glob(staged)), process=process)
        kill_all(process)
        cloud.world.faults.clear()
        (stage,) = (killed / "runs" / "pair").glob("train-*")
        assert not (stage / "DONE").exists()
        assert not (stage / "model" / "part-0.bin").exists()
        done = saccade(*words, "--json", folder=killed, env=env)
        assert done.code == 0, done.err
        assert jobs_of(cloud) == 1
    assert [row["state"] for row in json.loads(done.out)] == ["finished", "finished"]
    assert sums_of(killed) == sums_of(calm)
    assert not list(stage.rglob(".tmp-*"))


CHAIN = """\
name: chain
stages:
  first:
    uses: train
    recipe: smoke/relevance
    target: fake
    set: {%s}
  second:
    uses: train
    recipe: smoke/relevance
    target: fake
    set: {%s, model.name: "${stages.first.model}"}
  read:
    uses: command
    command: [python, -c, %s, "${stages.second.model}", "${outputs.sums}", "${metrics}"]
    outputs: [sums]
    metrics: [files]
"""


def chain(folder: Path) -> Path:
    folder.mkdir()
    (folder / "chain.yaml").write_text(CHAIN % (SET, SET, json.dumps(READER)))
    return folder


def made_by(folder: Path, stage: str) -> dict[str, bytes]:
    (found,) = (folder / "runs" / "chain").glob(f"{stage}-*/model")
    return digest_files(found)


def test_a_launched_stage_reads_what_the_one_before_made_also_after_a_kill_in_the_upload(
    tmp_path: Path,
) -> None:
    words, calm, killed = ("pipeline", "run", "chain.yaml"), chain(tmp_path / "a"), tmp_path / "b"
    with toy_cloud(calm, step_seconds=0.05) as (cloud, env):
        done = saccade(*words, "--json", folder=calm, env=env)
        assert done.code == 0, done.err
        (log,) = (calm / "runs" / "chain" / ".launches").glob("second-*")
        handle = Launch(log).view().handle
        assert handle is not None
        body = json.dumps(custom_jobs.get(connect(None, env=env), handle.id))
    assert "SACCADE_INPUTS" in body
    assert str(tmp_path) not in body
    assert made_by(calm, "first") != made_by(calm, "second")
    (config,) = (calm / "runs" / "chain").glob("second-*/config.yaml")
    assert config.parent.name + "/inputs/first.model\n" in config.read_text()
    with toy_cloud(chain(killed), step_seconds=0.05) as (cloud, env):
        stop_at(cloud, r"GET .*inputs.*part-[5-7]")
        process = start(*words, folder=killed, env=env)
        until(lambda: cloud.calls(r"GET .*inputs.*part-4"), process=process)
        kill_all(process)
        cloud.world.faults.clear()
        assert jobs_of(cloud) == 1
        there = open_store("gs://fake-project-saccade-us-central1", env=env).names("inputs/")
        assert there
        assert not [name for name in there if name.endswith("COMPLETE")]
        done = saccade(*words, "--json", folder=killed, env=env)
        assert done.code == 0, done.err
        assert jobs_of(cloud) == 2
    assert [row["state"] for row in json.loads(done.out)] == ["finished"] * 3
    assert made_by(killed, "second") == made_by(calm, "second")


@pytest.mark.slow
def test_three_launched_trials_come_home_also_after_a_kill_in_a_fetch(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "trio.yaml").write_text(SWEEP % SET)
    with toy_cloud(tmp_path, step_seconds=0.1) as (cloud, env):
        slow_downloads(cloud)
        process = start("sweep", "trio.yaml", folder=tmp_path, env=env)
        staged = f"runs/trio/trial-1/{AREA}/model/part-2.bin"
        until((tmp_path / staged).exists, process=process)
        kill_all(process)
        assert not (tmp_path / "runs" / "trio" / "trial-1" / "DONE").exists()
        done = saccade("sweep", "trio.yaml", "--json", folder=tmp_path, env=env)
        assert done.code == 0, done.err
        assert jobs_of(cloud) == 3
    summary = json.loads(done.out)
    assert summary["counts"]["finished"] == 3
    values = {
        row["parameters"]["training.learning_rate"]: row["value"] for row in summary["trials"]
    }
    assert values == pytest.approx({0.3: 1 / 1.29, 0.01: 1.0, 0.1: 1 / 1.09})
    for number in range(3):
        trial = tmp_path / "runs" / "trio" / f"trial-{number}"
        assert (trial / "DONE").is_file()
        assert len(list((trial / "model").glob("*.bin"))) == 8


@pytest.mark.slow
def test_a_launched_trial_reports_while_it_runs_and_is_stopped_early(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    stopping = "early_terminate: {type: hyperband, min_iter: 1, eta: 2}\n"
    more = "training.steps: 30, training.eval_every: 10"
    text = SWEEP.replace("saccade:\n", stopping + "saccade:\n") % f"{SET}, {more}"
    text = text.replace("[0.3, 0.01, 0.1]", "[0.01, 0.9]")
    (tmp_path / "trio.yaml").write_text(text)
    with toy_cloud(tmp_path, step_seconds=3.0) as (cloud, env):
        done = saccade("sweep", "trio.yaml", "--json", folder=tmp_path, env=env)
        assert done.code == 0, done.err
        bodies = json.dumps(cloud.calls("customJobs"))
    summary = json.loads(done.out)
    assert summary["counts"]["stopped"] == 1, done.err
    assert ":cancel" in bodies
    assert not (tmp_path / "runs" / "trio" / "trial-1" / "DONE").exists()


@contextmanager
def real_cloud(folder: Path) -> Iterator[dict[str, str]]:
    """A fake cloud whose containers train, set up for launching; the environment to use."""
    scenario = Scenario(container_env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"})
    with serve(folder / "cloud", scenario=scenario) as cloud:
        env = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(folder / "home")}
        cloud_with_bucket(env)
        yield env


def rows_of_real_pipeline(text: str, *, folder: Path) -> dict[str, dict[str, Any]]:
    """Run a pipeline whose stages really train in the fake cloud; its rows by stage."""
    (folder / "real.yaml").write_text(text)
    with real_cloud(folder) as env:
        done = saccade("pipeline", "run", "real.yaml", "--json", folder=folder, env=env)
        assert done.code == 0, done.err
    return {row["stage"]: row for row in json.loads(done.out)}


@pytest.mark.slow
def test_a_real_stage_trained_elsewhere_is_scored_here(tmp_path: Path) -> None:
    text = (
        "name: real\nstages:\n  train:\n    uses: train\n    recipe: smoke/relevance\n"
        f"    target: fake\n    set: {{{SET}, {STEPS}}}\n"
        "  evaluate:\n    uses: evaluate\n    inputs: {run: '${stages.train.run}'}\n"
    )
    rows = rows_of_real_pipeline(text, folder=tmp_path)
    assert rows["evaluate"]["metrics"]["samples"] >= 4
    assert 0 <= rows["evaluate"]["metrics"]["accuracy"] <= 1
    (run,) = (tmp_path / "runs" / "real").glob("train-*")
    shown = saccade("report", str(run), folder=tmp_path)
    assert shown.code == 0, shown.err


@pytest.mark.slow
def test_a_real_stage_learns_elsewhere_from_what_another_learned_elsewhere(tmp_path: Path) -> None:
    text = (
        "name: real\nstages:\n  first:\n    uses: train\n    recipe: smoke/sft\n"
        f"    target: fake\n    set: {{{SET}, {STEPS}}}\n"
        "  second:\n    uses: train\n    recipe: smoke/relevance\n    target: fake\n"
        f"    set: {{{SET}, {STEPS}, model.name: '${{stages.first.model}}'}}\n"
        "  evaluate:\n    uses: evaluate\n    inputs: {run: '${stages.second.run}'}\n"
    )
    rows = rows_of_real_pipeline(text, folder=tmp_path)
    assert rows["evaluate"]["metrics"]["samples"] >= 4
    (run,) = (tmp_path / "runs" / "real").glob("second-*")
    base = json.loads((run / "model" / "relevance.json").read_text())["base"]
    assert (tmp_path / base).is_dir()  # the copy here, not the one of the job
    assert base.endswith("inputs/first.model")


@pytest.mark.slow
def test_three_real_trials_trained_elsewhere_are_compared_here(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "trio.yaml").write_text(SWEEP % f"{SET}, {STEPS}")
    with real_cloud(tmp_path) as env:
        done = saccade("sweep", "trio.yaml", "--json", folder=tmp_path, env=env)
        assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["counts"]["finished"] == 3
    assert all(0 <= row["value"] <= 1 for row in summary["trials"])
    assert (tmp_path / "runs" / "trio" / "history.png").is_file()
