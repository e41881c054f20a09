"""SIGKILL at any moment of `saccade launch` and `saccade watch` loses neither job nor money.

The real command line runs in processes of its own against a fake cloud, and is killed at seeded
moments; a last command then has to find the one job that goes on, with the time it held machines
in the log as the cloud itself counts it. The fast variant kills 4 times, the slow one 20 times.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from saccade.launch import costs
from saccade.launch.log import Launch, launches
from saccade.launch.states import State
from saccade.launch.targets.vertex_body import seconds
from saccade.launch.view import fold
from tests.toy_jobs import Toys, toys

SOURCE = str(Path(__file__).parents[2] / "src")
OFF_BY_S = 2.5
"""A look at the job happens each half second, and this machine may be busy."""


def start(cloud: Toys, *words: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_KEY")}
    env = kept | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"} | cloud.env
    return subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", *words], cwd=cloud.folder, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def launching(cloud: Toys) -> list[str]:
    # the token is given: the code of this checkout may change while the test runs
    return ["launch", "smoke/relevance", *cloud.words(), "--yes", "--token", "t"]


def watching(cloud: Toys) -> list[str]:
    return ["watch", "mine", "--root", f"{cloud.folder}/runs"]


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def killed_somewhere(cloud: Toys, chance: random.Random, *, times: int, longest: float) -> None:
    """Kill a launch or a watch at some moment between its start and `longest` seconds."""
    for number in range(times):
        words = launching(cloud) if number == 0 or chance.random() < 0.6 else watching(cloud)
        process = start(cloud, *words)
        time.sleep(chance.uniform(0.1, longest))
        process.kill()
        process.communicate()


def the_launch(cloud: Toys) -> Launch:
    (launch,) = launches(cloud.folder / "runs")
    return launch


def held_by_the_cloud(jobs: list[dict[str, Any]]) -> float:
    """Seconds in which the fake's jobs held machines."""
    return sum(
        (seconds(job.get("endTime")) or time.time()) - (seconds(job["startTime"]) or 0.0)
        for job in jobs
        if job.get("startTime")
    )


def check_money(cloud: Toys, launch: Launch) -> None:
    """The log's held time and cost are the cloud's, whichever way the log is read."""
    view, now = launch.view(), time.time()
    assert fold(launch.events(), key=launch.key) == view  # what was kept is what was logged
    held = held_by_the_cloud(cloud.jobs())
    assert costs.held_s(view, now=now) == pytest.approx(held, abs=OFF_BY_S)
    assert view.here is not None
    assert costs.cost(view, now=now) == pytest.approx(
        costs.held_s(view, now=now) / 3600 * (view.here.usd_per_hour or 0.0), rel=0.05
    )
    assert (costs.cost(view, now=now) or 0.0) > 0.0


def kill_and_complete(folder: Path, *, times: int, longest: float, seed: int) -> None:
    with toys(folder) as cloud:
        cloud.script(("beat", [7, 5]), ("sleep", 900))
        killed_somewhere(cloud, random.Random(seed), times=times, longest=longest)
        code, _, err = finished(start(cloud, *launching(cloud), "--detach"))
        assert code == 0, err
        launch = the_launch(cloud)
        until = time.monotonic() + 200
        while launch.view().state is not State.RUNNING and time.monotonic() < until:
            code, _, err = finished(start(cloud, *watching(cloud), "--once"))
            assert code == 0, err
        (job,) = cloud.jobs()  # no second one was ever made
        view = launch.view()
        assert (view.state, view.attempt, view.preemptions) == (State.RUNNING, 1, 0)
        assert view.handle is not None
        assert view.handle.id == job["name"]
        cancel = start(cloud, "cancel", "mine", "--yes", "--root", f"{cloud.folder}/runs")
        code, _, err = finished(cancel)
        assert code == 0, err
        assert cloud.open_jobs() == []
        assert launch.view().state is State.CANCELLED
        check_money(cloud, launch)


def test_four_kills_of_launch_and_watch_lose_neither_job_nor_money(tmp_path: Path) -> None:
    kill_and_complete(tmp_path, times=4, longest=3.0, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills_of_launch_and_watch_lose_neither_job_nor_money(
    tmp_path: Path, seed: int
) -> None:
    kill_and_complete(tmp_path, times=20, longest=6.0, seed=seed)


@pytest.mark.slow
def test_kills_while_jobs_are_preempted_lose_no_attempt_and_no_cost(tmp_path: Path) -> None:
    """Every kill falls into a watch that has a preemption to deal with."""
    chance = random.Random(3)
    with toys(tmp_path) as cloud:
        for attempt in range(1, 5):
            saved = attempt * 10
            cloud.script(("beat", [saved + 1, saved]), ("sleep", 900), attempt=attempt)
        last = ("sleep", 0.5), ("beat", [60, 60]), ("done", 60), ("exit", 0)
        cloud.script(("beat", [51, 50]), *last, attempt=5)
        code, _, err = finished(start(cloud, *launching(cloud), "--detach"))
        assert code == 0, err
        launch = the_launch(cloud)
        for attempt in range(1, 5):
            watch_until(cloud, launch, attempt=attempt)
            handle = launch.view().handle
            assert handle is not None
            cloud.cloud.preempt(handle.id.rpartition("/")[2])
            for _ in range(2):
                process = start(cloud, *watching(cloud))
                time.sleep(chance.uniform(0.3, 2.5))
                process.kill()
                process.communicate()
        code, out, err = finished(start(cloud, *watching(cloud), "--json"))
        assert code == 0, err
        shown = json.loads(out)
        assert (shown["state"], shown["attempt"], shown["preemptions"]) == ("SUCCEEDED", 5, 4)
        jobs = cloud.jobs()
        assert [job["labels"]["attempt"] for job in jobs] == ["1", "2", "3", "4", "5"]
        events = launch.events()
        assert [event["attempt"] for event in events if event["type"] == "preempted"] == [
            1, 2, 3, 4,
        ]  # fmt: skip
        held = costs.held_s(launch.view(), now=time.time())
        # each preemption may be seen late, but the platform's own times are used
        assert held == pytest.approx(held_by_the_cloud(jobs), abs=5 * OFF_BY_S)


def watch_until(cloud: Toys, launch: Launch, *, attempt: int) -> None:
    until = time.monotonic() + 200
    while time.monotonic() < until:
        view = launch.view()
        if view.attempt == attempt and view.beat and view.beat.attempt == attempt:
            return
        code, _, err = finished(start(cloud, *watching(cloud), "--once"))
        assert code == 0, err
    raise AssertionError(f"attempt {attempt} was not reached: {launch.view()}")
