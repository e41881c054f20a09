"""The Vertex target and image builds against the fake cloud: real requests, real processes."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.api import custom_jobs, registry, storage
from saccade.cloud.api.transport import (
    NotFound,
    Patience,
    ResourceExhausted,
    Unreachable,
    connect,
)
from saccade.cloud.fake.job_runs import JobRun
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.cloud.findings import Level
from saccade.config.errors import OutsideError
from saccade.launch.images import ensure_image, image_tag
from saccade.launch.machines import Strategy
from saccade.launch.package import code_root
from saccade.launch.spec import JobSpec
from saccade.launch.states import State
from saccade.launch.targets.vertex import VertexTarget
from tests.contract.target_contract import is_over, until

PROJECT, REGION = "some-project", "us-central1"
ENTRY = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("attempt", os.environ["SACCADE_ATTEMPT"], "of", os.environ["SACCADE_RUN"], flush=True)
time.sleep(float(os.environ.get("STAY", "0")))
while "GATE" in os.environ and not pathlib.Path(os.environ["GATE"]).exists():
    time.sleep(0.02)
sys.exit(int(os.environ.get("CODE", "0")))
"""


def spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "run": "relevance", "token": "tok1", "attempt": 1, "recipe": "relevance",
        "machine": "n1-standard-4", "replicas": 1, "strategy": Strategy.SPOT, "region": REGION,
        "image": "busybox", "code": "", "config": "", "store": "/nowhere",
    }  # fmt: skip
    return JobSpec(**(values | changes))


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Start a fake cloud whose containers run a stand-in of the entry point."""
    package = tmp_path / "stand-in" / "saccade" / "launch"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "entry.py").write_text(ENTRY)
    clouds: list[FakeCloud] = []

    def begin(*, deadline_s: float = 60.0, **scenario: Any) -> VertexTarget:
        env = {"PYTHONPATH": str(tmp_path / "stand-in")}
        cloud = serve(tmp_path / "cloud", scenario=Scenario(container_env=env, **scenario))
        clouds.append(cloud)
        google = connect(PROJECT, env={"SACCADE_FAKE_CLOUD": cloud.url})
        quick = google.patient(Patience(deadline_s=deadline_s, base_s=0.01, longest_s=0.1))
        return VertexTarget(google=quick, regions=(REGION,), look_pause_s=0.1)

    yield begin
    for cloud in clouds:
        cloud.close()


def jobs(target: VertexTarget) -> list[dict[str, Any]]:
    return custom_jobs.list_by_label(target.google, region=REGION, labels={"app": "saccade"})


def test_a_job_runs_writes_and_ends(start: Any) -> None:
    target = start()
    handle = target.submit(spec())
    status = until(target, handle, is_over)
    assert (status.state, status.error_code) == (State.SUCCEEDED, None)
    lines, cursor = target.logs(handle, cursor=None)
    assert "attempt 1 of relevance" in [line.text for line in lines]
    assert target.logs(handle, cursor=cursor)[0] == []
    assert target.list() == [handle]
    target.cancel(handle)  # over already: no error


def test_submitting_twice_is_one_job(start: Any) -> None:
    target = start()
    first = target.submit(spec())
    assert target.submit(spec()) == first
    assert target.submit(spec(attempt=2)) != first
    assert len(jobs(target)) == 2


@pytest.mark.parametrize("lag", [0.0, 0.15])
def test_a_lost_answer_makes_one_job(start: Any, lag: float) -> None:
    fault = {"match": r"POST .*/customJobs(\?|$)", "status": "drop", "when": "after"}
    target = start(faults=[fault], list_lag=lag)
    handle = target.submit(spec())
    time.sleep(lag)
    assert [job["name"] for job in jobs(target)] == [handle.id]


def test_a_job_that_is_listed_too_late_is_not_paid_for_twice(start: Any) -> None:
    fault = {"match": r"POST .*/customJobs(\?|$)", "status": "drop", "when": "after"}
    target = start(faults=[fault], list_lag=1.0)
    target.submit(spec(env={"STAY": "600"}))
    time.sleep(1.2)
    handle = target.submit(spec(env={"STAY": "600"}))  # finds both, and follows the oldest
    oldest = min(jobs(target), key=lambda job: job["createTime"])
    assert handle.id == oldest["name"]


def test_an_answer_that_never_comes_is_not_a_failed_job(start: Any) -> None:
    fault = {"match": r"POST .*/customJobs(\?|$)", "status": 503, "times": "always"}
    target = start(faults=[fault], deadline_s=1.0)
    with pytest.raises(Unreachable):
        target.submit(spec())
    assert jobs(target) == []


def test_zero_quota_names_its_metric(start: Any) -> None:
    metric = "custom_model_training_preemptible_nvidia_a100_gpus"
    target = start(quotas={metric: 0})
    with pytest.raises(ResourceExhausted) as error:
        target.submit(spec(machine="a2-highgpu-1g"))
    assert metric in (error.value.quota_metric or "")


def test_a_short_quota_holds_the_job_in_a_queue(start: Any) -> None:
    metric = "custom_model_training_preemptible_nvidia_a100_gpus"
    target = start(quotas={metric: 1}, quota_mode="hold")
    handle = target.submit(spec(machine="a2-highgpu-8g"))
    status = until(target, handle, lambda one: one.state is State.QUEUED_QUOTA)
    assert status.started_at is None
    target.cancel(handle)
    assert until(target, handle, is_over).state is State.CANCELLED


def test_a_region_without_machines_is_told_from_a_preemption(start: Any) -> None:
    target = start(stockouts=[{"region": REGION, "pending": 0.1}])
    status = until(target, target.submit(spec()), is_over)
    assert status.state is State.PREEMPTED
    assert status.raw["cause"] == "stockout"
    assert status.started_at is None


def test_a_preempted_job_says_so_and_a_platform_retry_is_the_same_job(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = threading.Event()

    def wait_until_seen(run: JobRun, seconds: float) -> None:
        run._set("JOB_STATE_PENDING")
        assert seen.wait(200)

    monkeypatch.setattr(JobRun, "_pending", wait_until_seen)
    taken = {"running": {"until_call": "GET .*taken"}}
    target = start(jobs=[[taken, "preempt", {"pending": 0}, {"running": {}}]])
    handle = target.submit(spec(env={"GATE": str(tmp_path / "gate")}))
    until(target, handle, lambda one: one.state is State.RUNNING)
    with suppress(NotFound):
        target.google.call("GET", "storage", "/storage/v1/b/taken")
    until(target, handle, lambda one: one.state is State.WAITING_CAPACITY)
    (tmp_path / "gate").touch()
    seen.set()
    assert until(target, handle, is_over).state is State.SUCCEEDED
    assert len(jobs(target)) == 1


def test_a_job_preempted_for_good(start: Any) -> None:
    target = start(jobs=[[{"running": 0.5}, "preempt", "stockout"]])
    status = until(target, target.submit(spec(env={"STAY": "600"})), is_over)
    assert status.state is State.PREEMPTED
    assert status.started_at is not None


@pytest.mark.parametrize(
    ("code", "state"), [("1", State.FAILED), ("143", State.PREEMPTED), ("3", State.FAILED)]
)
def test_exit_codes_come_through(start: Any, code: str, state: State) -> None:
    target = start()
    status = until(target, target.submit(spec(env={"CODE": code})), is_over)
    assert (status.state, status.error_code) == (state, int(code))


def test_cancelling_ends_the_container(start: Any) -> None:
    target = start()
    handle = target.submit(spec(env={"STAY": "600"}))
    until(target, handle, lambda one: one.state is State.RUNNING)
    target.cancel(handle)
    assert until(target, handle, is_over).state is State.CANCELLED


def test_helpers_run_beside_the_chief(start: Any) -> None:
    target = start()
    # the end of the chief is the end of the job, so all stay until all have spoken
    handle = target.submit(spec(replicas=3, env={"STAY": "600"}))
    cursor, ours = None, []
    deadline = time.monotonic() + 200
    while len(ours) < 3 and time.monotonic() < deadline:
        lines, cursor = target.logs(handle, cursor=cursor)
        ours += [line.replica for line in lines if line.text == "attempt 1 of relevance"]
        time.sleep(0.1)
    assert sorted(ours) == ["workerpool0-0", "workerpool1-0", "workerpool1-1"]
    target.cancel(handle)
    assert until(target, handle, is_over).state is State.CANCELLED


def test_an_image_that_is_not_there_blocks_before_any_spend(start: Any) -> None:
    target = start()
    missing = f"{REGION}-docker.pkg.dev/{PROJECT}/saccade/train@sha256:" + "0" * 64
    [job, image] = target.check(spec(image=missing))
    assert job.level is Level.OK
    assert image.level is Level.BLOCK
    assert target.plan(spec(image=missing))["body"]["displayName"] == "saccade-relevance-1"
    assert jobs(target) == []
    # and when nobody looked before
    status = until(target, target.submit(spec(image=missing)), is_over)
    assert (status.state, status.raw["cause"]) == (State.FAILED, "image")


def test_an_impossible_job_blocks_with_its_fix(start: Any) -> None:
    target = start()
    [found] = target.check(spec(machine="a3-highgpu-1g", strategy=Strategy.ON_DEMAND))
    assert found.level is Level.BLOCK
    assert found.fix == "launch.strategy=spot"


def build(target: VertexTarget, home: Path, said: list[str]) -> str:
    google = target.google
    source = code_root() / "constraints.txt"  # the fake cloud only looks whether there is a source
    if storage.get_bucket(google, "code-bucket") is None:
        storage.create_bucket(google, body={"name": "code-bucket"})
        storage.write_object(google, "code-bucket", "code/x.tar.gz", source.read_bytes())
    return ensure_image(
        google,
        region=REGION,
        repository="saccade",
        source=("code-bucket", "code/x.tar.gz"),
        home=home,
        say=said.append,
        poll_s=0.05,
    )


def repository(target: VertexTarget) -> None:
    labels = {"app": "saccade"}
    registry.create_repository(target.google, region=REGION, repository="saccade", labels=labels)


def test_an_image_is_built_once_and_named_by_digest(start: Any, tmp_path: Path) -> None:
    target, said = start(), list[str]()
    repository(target)
    image = build(target, tmp_path, said)
    assert image.startswith(f"{REGION}-docker.pkg.dev/{PROJECT}/saccade/train@sha256:")
    assert any(image_tag() in line for line in said)
    again: list[str] = []
    assert build(target, tmp_path, again) == image
    assert again == []
    assert target.check(spec(image=image))[1].level is Level.OK


def test_a_build_that_fails_shows_its_log(start: Any, tmp_path: Path) -> None:
    target = start(failing_builds=["deps-"])
    repository(target)
    with pytest.raises(OutsideError, match=r"the image build .* failed"):
        build(target, tmp_path, [])


def test_a_lost_answer_builds_once(start: Any, tmp_path: Path) -> None:
    fault = {"match": r"POST .*/builds(\?|$)", "status": "drop", "when": "after"}
    target = start(faults=[fault])
    repository(target)
    build(target, tmp_path, [])
    found = target.google.call("GET", "cloudbuild", f"/v1/projects/{PROJECT}/builds")
    assert len(found["builds"]) == 1


def test_nothing_that_is_sent_or_written_holds_a_secret(start: Any, tmp_path: Path) -> None:
    target = start()
    canary = "canary-5e1f00d5ecret"
    secrets = {"WANDB_API_KEY": f"projects/{PROJECT}/secrets/saccade-wandb-api-key"}
    one = replace(spec(), secrets=secrets)
    target.submit(one)
    text = json.dumps([target.plan(one), *jobs(target)])
    assert "saccade-wandb-api-key" in text
    assert canary not in text
