"""The docker target: real processes behind a stand-in of the `docker` command, and a real daemon.

The stand-in (`tests/fake_docker.py`) runs everywhere. Where the real client is installed, it reads
the same words, so an option that docker does not know fails here; a daemon is used if one answers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.api.errors import Unreachable
from saccade.cloud.findings import Level
from saccade.config.errors import OutsideError
from saccade.launch.machines import Strategy
from saccade.launch.package import pack
from saccade.launch.spec import JobSpec
from saccade.launch.states import State
from saccade.launch.targets.docker import DockerTarget
from tests.contract.target_contract import is_over, until

STAND_IN = Path(__file__).parents[1] / "fake_docker.py"
IMAGE = "saccade-train:test"
CANARY = "canary-5e1f00d5ecret"
RESOLVE = (
    "import sys; from saccade.config.resolve import resolve; "
    "sys.stdout.write(resolve(sys.argv[1], overrides=sys.argv[2:]).to_yaml())"
)
ENTRY = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
store = pathlib.Path(os.environ["SACCADE_STORE"])
(store / "seen").write_text(pathlib.Path(os.environ["SACCADE_CONFIG"]).read_text())
for pair in filter(None, os.environ["SACCADE_SECRETS"].split(",")):
    name, _, place = pair.partition("=file:")
    (store / name).write_text(str(len(pathlib.Path(place).read_text())))
print("attempt", os.environ["SACCADE_ATTEMPT"], flush=True)
time.sleep(float(os.environ.get("STAY", "0")))
print("ends", flush=True)
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "docker-state"
    (folder / "containers").mkdir(parents=True)
    (folder / "images").write_text(IMAGE + "\n")
    return folder


@pytest.fixture
def target(tmp_path: Path, state: Path) -> Iterator[DockerTarget]:
    tools, package = tmp_path / "tools", tmp_path / "stand-in" / "saccade" / "launch"
    tools.mkdir()
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "entry.py").write_text(ENTRY)
    (tools / "docker").write_text(f'#!/bin/bash\nexec {sys.executable} {STAND_IN} "$@"\n')
    (tools / "docker").chmod(0o755)
    env = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FAKE_DOCKER": str(state), "PYTHONPATH": str(tmp_path / "stand-in"),
        "WANDB_API_KEY": CANARY,
    }  # fmt: skip
    one = DockerTarget(env=env, home=tmp_path / "home", docker=str(tools / "docker"))
    yield one
    for handle in one.list():
        one.cancel(handle)
        one.cancel(handle)


def spec(tmp_path: Path, **changes: Any) -> JobSpec:
    (tmp_path / "config.yaml").write_text("recipe: relevance\n")
    (tmp_path / "code.tar.gz").write_bytes(b"code")
    values: dict[str, Any] = {
        "run": "relevance", "token": "tok1", "attempt": 1, "recipe": "relevance",
        "machine": "local", "replicas": 1, "strategy": Strategy.ON_DEMAND, "region": "local",
        "image": IMAGE, "code": str(tmp_path / "code.tar.gz"),
        "config": str(tmp_path / "config.yaml"), "store": str(tmp_path / "store"),
        "secrets": {"WANDB_API_KEY": "here"},
    }  # fmt: skip
    made = dict(changes)
    made["env"] = {"SACCADE_GPUS": "0"} | changes.get("env", {})
    return JobSpec(**(values | made))


def test_a_job_sees_its_mounts_and_ends(target: DockerTarget, tmp_path: Path) -> None:
    handle = target.submit(spec(tmp_path))
    status = until(target, handle, is_over)
    assert (status.state, status.error_code) == (State.SUCCEEDED, 0), target.logs(
        handle, cursor=None
    )
    assert (tmp_path / "store" / "seen").read_text() == "recipe: relevance\n"
    assert target.list() == [handle]
    target.cancel(handle)  # over already: no error


def test_a_secret_is_a_file_for_the_job_and_gone_afterwards(
    target: DockerTarget, tmp_path: Path, state: Path
) -> None:
    one = spec(tmp_path, env={"STAY": "1"})
    handle = target.submit(one)
    [file] = (tmp_path / "home" / "secrets").rglob("WANDB_API_KEY")
    assert file.read_text() == CANARY
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0
    until(target, handle, is_over)
    assert (tmp_path / "store" / "WANDB_API_KEY").read_text() == str(len(CANARY))
    assert not file.exists()
    inspected = next(state.rglob("state.json")).read_text()
    words = json.dumps(target.plan(one)) + (state / "calls").read_text() + inspected
    assert "WANDB_API_KEY=file:/run/secrets/WANDB_API_KEY" in words
    assert CANARY not in words


def test_submitting_twice_is_one_container(target: DockerTarget, tmp_path: Path) -> None:
    first = target.submit(spec(tmp_path))
    assert target.submit(spec(tmp_path)) == first
    assert target.submit(spec(tmp_path, attempt=2)) != first


def test_logs_go_on_where_they_stopped(target: DockerTarget, tmp_path: Path) -> None:
    handle = target.submit(spec(tmp_path, env={"STAY": "1"}))
    cursor, texts = None, []
    while "ends" not in texts:
        lines, cursor = target.logs(handle, cursor=cursor)
        texts += [line.text for line in lines]
    assert texts == ["attempt 1", "ends"]
    assert target.logs(handle, cursor=cursor) == ([], cursor)


@pytest.mark.parametrize(
    ("code", "state_"), [("1", State.FAILED), ("3", State.FAILED), ("143", State.PREEMPTED)]
)
def test_exit_codes_come_through(
    target: DockerTarget, tmp_path: Path, code: str, state_: State
) -> None:
    status = until(target, target.submit(spec(tmp_path, env={"CODE": code})), is_over)
    assert (status.state, status.error_code) == (state_, int(code))


def test_cancelling_is_told_from_a_preemption(target: DockerTarget, tmp_path: Path) -> None:
    handle = target.submit(spec(tmp_path, env={"STAY": "600"}))
    while not target.logs(handle, cursor=None)[0]:
        time.sleep(0.05)
    target.cancel(handle)
    status = until(target, handle, is_over)
    assert (status.state, status.error_code) == (State.CANCELLED, 143)


def test_a_job_may_not_run_for_ever(target: DockerTarget, tmp_path: Path) -> None:
    handle = target.submit(spec(tmp_path, env={"STAY": "600", "CODE": "0"}, timeout_s=1))
    status = until(target, handle, is_over)
    assert status.state is State.FAILED
    assert "timeout_hours" in status.detail


def test_a_daemon_that_does_not_answer_says_nothing_about_the_job(
    target: DockerTarget, tmp_path: Path, state: Path
) -> None:
    handle = target.submit(spec(tmp_path))
    (state / "down").touch()
    with pytest.raises(Unreachable, match="systemctl start docker"):
        target.poll(handle)
    [found] = target.check(spec(tmp_path))
    assert found.level is Level.BLOCK
    (state / "down").unlink()
    assert until(target, handle, is_over).state is State.SUCCEEDED


def test_a_removed_container_is_a_failure_not_a_success(
    target: DockerTarget, tmp_path: Path, state: Path
) -> None:
    handle = target.submit(spec(tmp_path))
    until(target, handle, is_over)
    next(state.rglob("state.json")).unlink()
    assert target.poll(handle).state is State.FAILED


def test_an_image_that_cannot_be_had_leaves_nothing(target: DockerTarget, tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="pull access denied"):
        target.submit(spec(tmp_path, image="nowhere/train:1"))
    assert target.list() == []


def test_checks_name_what_is_missing(target: DockerTarget, tmp_path: Path, state: Path) -> None:
    def levels(one: JobSpec) -> dict[str, Level]:
        return {found.name: found.level for found in target.check(one)}

    good = levels(spec(tmp_path))
    assert good == {"docker": Level.OK, "image": Level.OK}
    gpus = spec(tmp_path, env={"SACCADE_GPUS": "4"})
    assert levels(gpus)["gpus"] is Level.BLOCK
    (state / "nvidia").touch()
    assert levels(gpus)["gpus"] is Level.OK
    assert target.plan(gpus)["shell"].count("--gpus 4") == 1
    assert levels(spec(tmp_path, replicas=2))["replicas"] is Level.BLOCK
    assert levels(spec(tmp_path, code=str(tmp_path / "gone.tar.gz")))["files"] is Level.BLOCK
    lost = DockerTarget(env={"PATH": "/nowhere"}, home=tmp_path, docker="docker")
    assert lost.check(spec(tmp_path))[0].message == "there is no `docker` command"


def test_the_fake_cloud_is_reached_from_inside(target: DockerTarget, tmp_path: Path) -> None:
    target.env = dict(target.env) | {"SACCADE_FAKE_CLOUD": "http://127.0.0.1:9"}
    words = target.plan(spec(tmp_path))["command"]
    assert words[words.index("--network") + 1] == "host"
    assert "STORAGE_EMULATOR_HOST=http://127.0.0.1:9" in words


@pytest.mark.slow
def test_the_real_entry_point_trains_from_the_archive(target: DockerTarget, tmp_path: Path) -> None:
    """The whole way: packed code, resolved configuration, mounted store, DONE."""
    words = [
        "smoke/relevance",
        "training.steps=4",
        "training.save_every=2",
        "training.eval_every=0",
    ]
    shown = subprocess.run(
        [sys.executable, "-c", RESOLVE, *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (tmp_path / "resolved.yaml").write_text(shown.stdout)
    archive = pack(folder=tmp_path / "code")
    target.env = {
        name: value for name, value in dict(target.env).items() if name != "PYTHONPATH"
    } | {"PYTHONPATH": str(archive.source / "src")}  # fmt: skip
    handle = target.submit(
        spec(
            tmp_path, code=str(archive.path), config=str(tmp_path / "resolved.yaml"),
            env={"OMP_NUM_THREADS": "1"},
        )
    )  # fmt: skip
    status = until(target, handle, is_over, seconds=500)
    lines = [line.text for line in target.logs(handle, cursor=None)[0]]
    assert (status.state, status.error_code) == (State.SUCCEEDED, 0), "\n".join(lines)
    assert (tmp_path / "store" / "runs" / "relevance" / "DONE").is_file()
    assert any(archive.sha256[:12] in line for line in lines)
    assert CANARY not in "\n".join(lines)


@pytest.mark.skipif(shutil.which("docker") is None, reason="the docker client is not installed")
def test_the_real_client_knows_every_option(target: DockerTarget, tmp_path: Path) -> None:
    real = str(shutil.which("docker"))
    gone = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "PATH": os.environ["PATH"]}
    container = "0" * 64
    gpus = spec(tmp_path, env={"SACCADE_GPUS": "2"})
    calls = [
        target.plan(gpus)["command"][1:],
        ["kill", "--signal", "TERM", container], ["stop", "-t", "10", container],
        ["logs", "--timestamps", "--since", "2026-01-01T00:00:00.5Z", container],
        ["inspect", "--type", "container", container], ["rename", container, "other"],
        ["ps", "--all", "--no-trunc", "--filter", "label=a=b", "--format", "{{.ID}}"],
    ]  # fmt: skip
    for words in calls:
        done = subprocess.run(
            [real, *words], env=gone, capture_output=True, text=True, timeout=30, check=False
        )
        said = done.stdout + done.stderr
        assert "unknown" not in said.lower(), said
        assert "daemon" in said.lower(), said


def daemon() -> bool:
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    return done.returncode == 0 and "python" in subprocess.run(
        ["docker", "images", "--format", "{{.Repository}}"],
        capture_output=True, text=True, timeout=20, check=False,
    ).stdout.split()  # fmt: skip


@pytest.mark.slow
def test_a_real_daemon_runs_the_same_job(tmp_path: Path) -> None:
    if not daemon():
        pytest.skip("no docker daemon with a python image answers here")
    target = DockerTarget(env=dict(os.environ), home=tmp_path / "home")
    one = spec(tmp_path, image="python", secrets={}, token=tmp_path.name[-8:])
    handle = target.submit(one)
    try:
        # the plain python image has no saccade: what counts is that its end is read
        status = until(target, handle, is_over)
        assert (status.state, status.error_code) == (State.FAILED, 1)
    finally:
        subprocess.run(["docker", "rm", "--force", handle.id], capture_output=True, check=False)
