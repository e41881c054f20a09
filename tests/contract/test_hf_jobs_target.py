"""The hf-jobs target: the real client of Hugging Face against a loopback server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.api.errors import Unreachable
from saccade.cloud.findings import Level
from saccade.config.errors import InputError, OutsideError
from saccade.launch.machines import MACHINES, Strategy
from saccade.launch.spec import JobSpec
from saccade.launch.states import State
from saccade.launch.targets.hf_jobs import FLAVORS, HfJobsTarget, flavor_of
from tests.contract.target_contract import is_over, until
from tests.fake_hf_jobs import NAME, TOKEN, FakeJobs

CANARY = "canary-5e1f00d5ecret"
ROOT = "hf://buckets/somebody/runs"
ENTRY = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
config = pathlib.Path(os.environ["SACCADE_CONFIG"]).read_text()
print("attempt", os.environ["SACCADE_ATTEMPT"], config, len(os.environ["WANDB_API_KEY"]))
sys.stdout.flush()
time.sleep(float(os.environ.get("STAY", "0")))
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJobs]:
    from huggingface_hub import constants

    # the switch of all tests would refuse the loopback server, too
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    package = tmp_path / "stand-in" / "saccade" / "launch"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "entry.py").write_text(ENTRY)
    store = tmp_path / "bucket"
    (store / "launches").mkdir(parents=True)
    (store / "launches" / "config.yaml").write_text("relevance")
    with FakeJobs(store=store, env={"PYTHONPATH": str(tmp_path / "stand-in")}) as fake:
        yield fake


@pytest.fixture
def target(server: FakeJobs) -> HfJobsTarget:
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "WANDB_API_KEY": CANARY}
    return HfJobsTarget(env=env, look_pause_s=0.05)


def spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "run": "relevance", "token": "tok1", "attempt": 1, "recipe": "relevance",
        "machine": "g2-standard-8", "replicas": 1, "strategy": Strategy.ON_DEMAND,
        "region": "local", "image": "saccade/train@sha256:1", "code": f"{ROOT}/code/x.tar.gz",
        "config": f"{ROOT}/launches/config.yaml", "store": ROOT,
        "secrets": {"WANDB_API_KEY": "here"},
    }  # fmt: skip
    return JobSpec(**(values | changes))


def test_a_job_runs_writes_and_ends(target: HfJobsTarget) -> None:
    handle = target.submit(spec())
    status = until(target, handle, is_over)
    assert status.state is State.SUCCEEDED
    lines, cursor = target.logs(handle, cursor=None)
    assert [line.text for line in lines] == [f"attempt 1 relevance {len(CANARY)}"]
    assert target.logs(handle, cursor=cursor) == ([], cursor)
    assert target.list() == [handle]
    assert handle.url is not None
    assert handle.url.endswith(f"/jobs/{NAME}/{handle.id}")
    target.cancel(handle)  # over already: no error


def test_the_request_is_what_the_service_documents(target: HfJobsTarget, server: FakeJobs) -> None:
    target.submit(spec())
    [body] = server.bodies
    assert body["flavor"] == "l4x1"
    assert body["timeoutSeconds"] == 24 * 3600  # never its default of 30 minutes
    assert body["command"] == ["python", "-m", "saccade.launch.entry"]
    assert body["volumes"] == [{"type": "bucket", "source": "somebody/runs", "mountPath": "/store"}]
    assert body["environment"]["SACCADE_CODE"] == "/store/code/x.tar.gz"
    assert body["environment"]["SACCADE_GPUS"] == "1"
    assert body["labels"]["token"] == "tok1"


def test_secrets_go_to_the_services_own_store_only(target: HfJobsTarget, server: FakeJobs) -> None:
    handle = target.submit(spec())
    [body] = server.bodies
    assert body.pop("secrets") == {"WANDB_API_KEY": CANARY}
    assert CANARY not in json.dumps(body)
    assert CANARY not in json.dumps(target.plan(spec()))
    assert CANARY not in json.dumps([handle.to_json(), server.jobs])


def test_without_an_image_the_pinned_dependencies_are_installed(target: HfJobsTarget) -> None:
    made = target.plan(spec(image=None))["arguments"]
    assert made["command"][:2] == ["bash", "-c"]
    assert "-c constraints.txt" in made["command"][2]


def test_submitting_twice_is_one_job(target: HfJobsTarget, server: FakeJobs) -> None:
    first = target.submit(spec())
    assert target.submit(spec()) == first
    assert target.submit(spec(attempt=2)) != first
    assert len(server.bodies) == 2


def test_a_lost_answer_makes_one_job(target: HfJobsTarget, server: FakeJobs) -> None:
    server.lose = 1
    handle = target.submit(spec())
    assert [handle.id] == list(server.jobs)


@pytest.mark.parametrize(
    ("code", "state"), [("1", State.FAILED), ("143", State.PREEMPTED), ("3", State.FAILED)]
)
def test_exit_codes_come_through(target: HfJobsTarget, code: str, state: State) -> None:
    status = until(target, target.submit(spec(env={"CODE": code})), is_over)
    assert (status.state, status.error_code) == (state, int(code))


def test_cancelling_is_told_from_a_failure(target: HfJobsTarget) -> None:
    handle = target.submit(spec(env={"STAY": "600"}))
    until(target, handle, lambda one: one.state is State.RUNNING)
    target.cancel(handle)
    assert until(target, handle, is_over).state is State.CANCELLED


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_service_that_is_down_says_nothing_about_the_job(
    target: HfJobsTarget, server: FakeJobs, status: int
) -> None:
    handle = target.submit(spec())
    server.status = status
    with pytest.raises(Unreachable):
        target.poll(handle)
    server.status = 0
    assert until(target, handle, is_over).state is State.SUCCEEDED


def test_no_connection_says_nothing_about_the_job(target: HfJobsTarget) -> None:
    handle = target.submit(spec())
    target.env = dict(target.env) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    with pytest.raises(Unreachable):
        target.poll(handle)


def test_a_job_that_is_gone_is_a_failure(target: HfJobsTarget, server: FakeJobs) -> None:
    handle = target.submit(spec())
    until(target, handle, is_over)
    server.jobs.clear()
    assert target.poll(handle).state is State.FAILED
    target.cancel(handle)


def test_money_and_tokens_have_their_own_messages(target: HfJobsTarget, server: FakeJobs) -> None:
    server.status = 402
    with pytest.raises(OutsideError, match="settings/billing"):
        target.submit(spec())
    server.status = 0
    target.env = dict(target.env) | {"HF_TOKEN": "hf_wrong"}
    with pytest.raises(OutsideError, match=r"HF_TOKEN=hf_\.\.\. into .env"):
        target.submit(spec())
    found = {one.name: one.level for one in HfJobsTarget(env=target.env).check(spec())}
    assert found["credentials"] is Level.BLOCK


def test_checks_name_what_this_service_cannot_do(target: HfJobsTarget) -> None:
    def levels(one: JobSpec) -> dict[str, Level]:
        return {found.name: found.level for found in target.check(one)}

    assert levels(spec()) == {"hardware": Level.OK, "credentials": Level.OK}
    assert levels(spec(strategy=Strategy.SPOT))["strategy"] is Level.WARN
    assert levels(spec(replicas=2))["replicas"] is Level.BLOCK
    assert levels(spec(machine="a3-highgpu-8g"))["job"] is Level.BLOCK
    assert levels(spec(store="gs://bucket"))["job"] is Level.BLOCK


def test_every_flavor_exists_in_the_official_client() -> None:
    from huggingface_hub import JobHardware

    known = {one.value for one in JobHardware}
    assert set(FLAVORS.values()) <= known
    able = [
        one for one in MACHINES.values() if (one.accelerator_type, one.gpus) in FLAVORS
    ]  # fmt: skip
    assert {flavor_of(one.name) for one in able} <= known
    with pytest.raises(InputError, match="Hugging Face rents no 8 x H100"):
        flavor_of("a3-highgpu-8g")
