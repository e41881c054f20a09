"""Launching whatever goes wrong: a fault at every call, then the same command again; one job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from saccade.cloud.api import custom_jobs, storage
from saccade.cloud.api.transport import connect
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.errors import SaccadeError
from saccade.config.resolve import resolve
from saccade.launch import begin
from saccade.launch.drive import Driver, tick
from saccade.launch.plan import plan_launch
from saccade.launch.states import State
from saccade.launch.view import LaunchView

IMAGE = "docker.io/library/elsewhere@sha256:" + "0" * 64
ROUNDS = 150
REGIONS = ("us-central1", "europe-west4", "us-west4")
FAULTS = [
    pytest.param({"status": 503}, id="an outage"),
    pytest.param({"status": "drop"}, id="a broken connection"),
    pytest.param({"status": "drop", "when": "after"}, id="a lost answer"),
    pytest.param({"status": 429}, id="too many requests"),
    pytest.param({"status": 403}, id="a refusal"),
]


@contextmanager
def ready(folder: Path) -> Iterator[tuple[FakeCloud, dict[str, str]]]:
    """A project with its bucket, whose containers run until they are stopped."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text("import time; time.sleep(600)\n")
    scenario = Scenario(container_env={"PYTHONPATH": str(folder)}, grace_seconds=0.1)
    with serve(folder / "cloud", scenario=scenario) as cloud:
        env = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(folder.parent / "home")}
        google = connect(None, env=env)
        body = {"name": "fake-project-saccade-us-central1", "location": "us-central1"}
        storage.create_bucket(google, body=body)
        google.call(
            "POST", "iam", "/v1/projects/fake-project/serviceAccounts",
            body={"accountId": "saccade-trainer"},
        )  # fmt: skip
        yield cloud, env


def launched(folder: Path, env: dict[str, str], *, rounds: int = ROUNDS) -> LaunchView:
    """What `saccade launch --yes` does, up to a few rounds of watching."""
    words = [f"run.root={folder}/runs", "run.name=mine", "launch.target=fake",
             f"launch.image={IMAGE}"]  # fmt: skip
    plan = plan_launch(resolve("smoke/relevance", overrides=words), env=env, token="t")
    standing = begin.standing(plan)
    driver = Driver(plan.launch, plan.target, env=env)
    if standing in (begin.Standing.NEW, begin.Standing.ENDED):
        begin.refuse_blocked(plan)
        driver = begin.begin(plan, say=lambda text: None)
    view = driver.launch.view()
    for _ in range(rounds):
        time.sleep(0.1)
        view = tick(driver)
        if view.over or (view.state is State.RUNNING and view.unreachable_since is None):
            break
    return view


def open_jobs(env: dict[str, str]) -> list[str]:
    google = connect(None, env=env)
    return [
        job["name"]
        for region in REGIONS
        for job in custom_jobs.list_by_label(google, region=region, labels={"app": "saccade"})
        if job["state"] not in ("JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_SUCCEEDED")
    ]


def calls_of_a_launch(folder: Path) -> int:
    with ready(folder / "count") as (cloud, env):
        before = len(cloud.calls())
        assert launched(folder / "count", env).state is State.RUNNING
        return len(cloud.calls()) - before


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_call_of_a_launch_leaves_what_the_next_one_completes(
    tmp_path: Path, fault: dict[str, object]
) -> None:
    for position in range(calls_of_a_launch(tmp_path)):
        folder = tmp_path / str(position)
        with ready(folder) as (cloud, env):
            cloud.add_fault(".", after=position, **fault)
            try:
                launched(folder, env)
            except SaccadeError as error:
                assert "\n  fix: " in str(error), error
            cloud.world.faults.clear()
            view = launched(folder, env)
            assert view.state is State.RUNNING, (position, view.message)
            found = open_jobs(env)
            assert [view.handle and view.handle.id] == found, (position, found)


@pytest.mark.slow
def test_a_single_outage_anywhere_is_survived_without_a_second_command(tmp_path: Path) -> None:
    for position in range(calls_of_a_launch(tmp_path)):
        folder = tmp_path / str(position)
        with ready(folder) as (cloud, env):
            cloud.add_fault(".", after=position, status=503)
            assert launched(folder, env).state is State.RUNNING, position
            assert len(open_jobs(env)) == 1


def test_a_service_that_never_answers_is_an_overlay_with_an_age_and_changes_nothing(
    tmp_path: Path,
) -> None:
    with ready(tmp_path / "one") as (cloud, env):
        view = launched(tmp_path / "one", env)
        assert view.state is State.RUNNING
        # a refusal of every look is no answer about the job either, and needs no patience
        cloud.add_fault("GET .*customJobs", status=403, times="always")
        dark = launched(tmp_path / "one", env, rounds=3)
        assert dark.state is State.RUNNING
        assert dark.unreachable_since is not None
        assert (dark.preemptions, dark.attempt) == (0, 1)
        cloud.world.faults.clear()
        assert launched(tmp_path / "one", env).unreachable_since is None


def test_a_place_without_quota_is_left_and_the_last_one_names_the_metric(tmp_path: Path) -> None:
    with ready(tmp_path / "one") as (cloud, env):
        cloud.add_fault(
            "POST .*customJobs", status=429, times="always", reason="RESOURCE_EXHAUSTED",
            message="The following quotas are exceeded: aiplatform.googleapis.com/"
            "custom_model_training_preemptible_nvidia_a100_gpus",
        )  # fmt: skip
        view = launched(tmp_path / "one", env)
        assert (view.state, view.exit_code) == (State.FAILED, 3)
        assert "places refused the job" in view.message
        assert "custom_model_training_preemptible_nvidia_a100_gpus" in view.message
        assert "fix: saccade cloud setup --only quota" in view.message
        assert open_jobs(env) == []
