"""`saccade cloud fake` in processes of their own: the announced address, the ends it can meet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from saccade.cloud.fake import background
from tests.fake_cloud_calls import call, create, good, job_body, log_of, state_of, until
from tests.terminal.saccade_cli import refused, saccade

SOURCE = str(Path(__file__).parents[2] / "src")
LONG = (
    "import os, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
    " start_new_session=True)\n"
    "print(os.getpid(), child.pid)\ntime.sleep(600)"
)


@contextmanager
def foreground(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", "cloud", "fake", "--state", str(folder), *words],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        assert line.startswith("export SACCADE_FAKE_CLOUD=http://127.0.0.1:"), line
        yield process, line.partition("=")[2]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def gone(pid: int, *, within: float = 100) -> bool:
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def pids_of(url: str, path: str) -> list[int]:
    until(url, path, "RUNNING")
    while not log_of(url, path):
        time.sleep(0.02)
    return [int(word) for word in log_of(url, path)[0].split()]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_server_ends_no_container_stays(tmp_path: Path, how: signal.Signals) -> None:
    with foreground(tmp_path / "state") as (process, url):
        path = create(url, job_body(LONG))
        pids = pids_of(url, path)
        process.send_signal(how)
        assert process.wait(200) == (-how if how == signal.SIGKILL else 0)
        assert all(gone(pid) for pid in pids)
    with foreground(tmp_path / "state") as (_, again):
        assert again == url, "the address that was exported still holds"
        assert state_of(again, path) == "FAILED"
        assert "preempted" in good(again, "GET", path)["error"]["message"]


def test_a_scenario_and_a_fresh_project_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text("billing: false\n")
    with foreground(tmp_path / "state", "--scenario", str(file), "--fresh") as (_, url):
        info = good(url, "GET", "/v1/projects/p/services/aiplatform.googleapis.com")
        assert info["state"] == "DISABLED"
        assert call(url, "POST", f"{info['name']}:enable".join(("/v1/", "")), {})[0] == 400


def test_a_wrong_scenario_is_one_clear_message(tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text("jbos: []\n")
    words = ("cloud", "fake", "--state", str(tmp_path / "state"), "--scenario", str(file))
    assert "jbos" in refused(saccade(*words, folder=tmp_path), code=2)


def test_the_background_server_is_started_once_found_again_and_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state"
    url = background.ensure_running(state)
    try:
        assert background.ensure_running(state) == url
        pids = pids_of(url, create(url, job_body(LONG)))
        pid = good(url, "GET", "/fake/health")["pid"]
        done = saccade("cloud", "fake", "--state", str(state), "--stop", folder=tmp_path)
        assert done.code == 0 and "has ended" in done.err
        assert all(gone(one) for one in [pid, *pids])
    finally:
        background.stop(state)
    assert background.running(state) is None
    assert not background.stop(state)
    assert background.ensure_running(state) == url
    assert background.stop(state)


def test_an_idle_background_server_ends_by_itself(tmp_path: Path) -> None:
    background.ensure_running(tmp_path, idle=0.5)
    end = time.monotonic() + 100
    while (tmp_path / "server.json").exists() and time.monotonic() < end:
        time.sleep(0.1)  # without calling it, which would count as use
    assert background.running(tmp_path) is None
