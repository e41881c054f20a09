"""Vertex AI: what a spec becomes, and what Vertex's states and errors become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from saccade.config.errors import InputError
from saccade.launch.machines import MACHINES, Strategy
from saccade.launch.spec import JobSpec
from saccade.launch.states import State
from saccade.launch.targets.vertex_body import (
    console_url,
    custom_job_body,
    environment,
    job_labels,
    quota_metric,
    status_of,
)

IMAGE = "us-central1-docker.pkg.dev/p/saccade/train@sha256:" + "a" * 64


def spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "run": "relevance", "token": "tok1", "attempt": 2, "recipe": "relevance",
        "machine": "a2-highgpu-1g", "replicas": 1, "strategy": Strategy.SPOT,
        "region": "us-central1", "image": IMAGE, "code": "gs://b/code/x.tar.gz",
        "config": "gs://b/launches/tok1/config.yaml", "store": "gs://b",
        "secrets": {"WANDB_API_KEY": "projects/p/secrets/saccade-wandb-api-key/versions/latest"},
        "service_account": "saccade-trainer@p.iam.gserviceaccount.com",
    }  # fmt: skip
    return JobSpec(**(values | changes))


def failed(message: str, *, code: int = 13, started: bool = True) -> dict[str, Any]:
    job: dict[str, Any] = {
        "name": "projects/1/locations/us-central1/customJobs/7",
        "state": "JOB_STATE_FAILED",
        "error": {"code": code, "message": message},
        "endTime": "2026-11-20T10:01:00Z",
    }
    return job | ({"startTime": "2026-11-20T10:00:00.123456789Z"} if started else {})


def test_one_machine_is_one_pool_with_everything_derived_from_its_name() -> None:
    body = custom_job_body(spec())
    [pool] = body["jobSpec"]["workerPoolSpecs"]
    assert pool["machineSpec"] == {
        "machineType": "a2-highgpu-1g",
        "acceleratorType": "NVIDIA_TESLA_A100",
        "acceleratorCount": 1,
    }
    assert pool["containerSpec"]["command"] == ["python", "-m", "saccade.launch.entry"]
    assert pool["replicaCount"] == 1
    assert pool["diskSpec"] == {"bootDiskType": "pd-ssd", "bootDiskSizeGb": 100}
    assert body["jobSpec"]["serviceAccount"].startswith("saccade-trainer@")
    assert body["jobSpec"]["baseOutputDirectory"] == {"outputUriPrefix": "gs://b/runs/relevance"}
    assert body["labels"] == {
        "app": "saccade", "run": "relevance", "token": "tok1", "attempt": "2",
    }  # fmt: skip


def test_several_machines_are_a_chief_and_its_helpers() -> None:
    body = custom_job_body(spec(replicas=4, machine="a2-highgpu-8g"))
    pools = body["jobSpec"]["workerPoolSpecs"]
    assert [pool["replicaCount"] for pool in pools] == [1, 3]
    assert pools[0]["machineSpec"] == pools[1]["machineSpec"]
    assert pools[0]["machineSpec"]["acceleratorCount"] == 8
    scheduling = body["jobSpec"]["scheduling"]
    assert scheduling["restartJobOnWorkerRestart"] is True
    assert scheduling["disableRetries"] is False  # it would switch the restart off again


@pytest.mark.parametrize(
    ("strategy", "name", "wait", "no_retries"),
    [
        (Strategy.SPOT, "SPOT", False, False),
        (Strategy.FLEX_START, "FLEX_START", True, True),
        (Strategy.ON_DEMAND, "STANDARD", False, True),
    ],
)
def test_only_flex_start_has_a_longest_wait(
    strategy: Strategy, name: str, wait: bool, no_retries: bool
) -> None:
    scheduling = custom_job_body(spec(strategy=strategy))["jobSpec"]["scheduling"]
    assert scheduling["strategy"] == name
    assert ("maxWaitDuration" in scheduling) is wait
    assert scheduling["timeout"] == "86400s"
    assert scheduling["disableRetries"] is no_retries


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_has_a_body_for_each_of_its_strategies(name: str) -> None:
    for strategy in MACHINES[name].strategies:
        pool = custom_job_body(spec(machine=name, strategy=strategy))["jobSpec"]["workerPoolSpecs"][
            0
        ]
        env = {one["name"]: one["value"] for one in pool["containerSpec"]["env"]}
        assert env["SACCADE_GPUS"] == str(MACHINES[name].gpus)


def test_secrets_go_as_names_and_values_are_refused() -> None:
    text = json.dumps(custom_job_body(spec()))
    assert "WANDB_API_KEY=projects/p/secrets/saccade-wandb-api-key/versions/latest" in text
    with pytest.raises(InputError, match="saccade cloud setup --only secrets") as error:
        custom_job_body(spec(env={"WANDB_API_KEY": "canary-5e1f00d"}))
    assert "canary" not in str(error.value)


def test_the_spec_may_set_what_the_entry_point_reads() -> None:
    made = environment(spec(env={"SACCADE_GPUS": "0", "HF_HUB_OFFLINE": "1"}), gpus=8)
    assert made["SACCADE_GPUS"] == "0"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["SACCADE_ATTEMPT"] == "2"


def test_labels_fit_googles_rules() -> None:
    made = job_labels(spec(run="My Run/With.Everything" * 9, labels={"team": "Vision & Co"}))
    assert made["team"] == "vision---co"
    assert len(made["run"]) == 63
    assert made["run"].startswith("my-run-with-everything")
    with pytest.raises(InputError, match="small letter"):
        job_labels(spec(labels={"Team": "x"}))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image": None}, "names no image"),
        ({"machine": "a3-highgpu-1g", "strategy": Strategy.ON_DEMAND}, "launch.strategy=spot"),
        ({"machine": "n1-standard-4", "strategy": Strategy.FLEX_START}, "rented as spot"),
        ({"timeout_s": 8 * 24 * 3600}, "launch.timeout_hours=168"),
        ({"machine": "a2-highgpu-3g"}, "a2-highgpu-"),
    ],
)
def test_what_vertex_would_refuse_is_refused_before(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        custom_job_body(spec(**changes))


@pytest.mark.parametrize(
    ("state", "ours"),
    [
        ("QUEUED", State.QUEUED_QUOTA), ("PENDING", State.WAITING_CAPACITY),
        ("RUNNING", State.RUNNING), ("UPDATING", State.RUNNING), ("CANCELLING", State.RUNNING),
        ("PAUSED", State.WAITING_CAPACITY), ("SUCCEEDED", State.SUCCEEDED),
        ("CANCELLED", State.CANCELLED), ("EXPIRED", State.FAILED),
        ("PARTIALLY_SUCCEEDED", State.SUCCEEDED),
    ],
)  # fmt: skip
def test_every_state_has_a_meaning(state: str, ours: State) -> None:
    found = status_of({"state": f"JOB_STATE_{state}", "startTime": "2026-11-20T10:00:00Z"})
    assert found.state is ours


@pytest.mark.parametrize(
    ("message", "started", "state", "cause", "code"),
    [
        ("Training failed with error: STOCKOUT: preempted", True, State.PREEMPTED, "preempted", 13),
        ("Resources are insufficient in region: us-central1. Please try a different region.",
         False, State.PREEMPTED, "stockout", 13),
        ("The replica workerpool0-0 exited with a non-zero status of 1.",
         True, State.FAILED, "container", 1),
        ("The replica workerpool0-0 exited with a non-zero status of 143.",
         True, State.PREEMPTED, "preempted", 143),
        ("The replica workerpool0-0 exited with a non-zero status of 137. Termination reason: "
         "quota file not found", True, State.FAILED, "container", 137),
        ("Failed to pull image: ErrImagePull: us-docker.pkg.dev/p/r/train", False,
         State.FAILED, "image", 13),
        ("The image us-docker.pkg.dev/p/r/train@sha256:0 does not exist", False,
         State.FAILED, "image", 13),
        ("The following quota metrics exceed quota limits: "
         "aiplatform.googleapis.com/custom_model_training_nvidia_a100_gpus", False,
         State.FAILED, "quota", 13),
        ("Internal error occurred for the current attempt", True, State.FAILED, "platform", 13),
    ],
)  # fmt: skip
def test_errors_are_told_apart(
    message: str, started: bool, state: State, cause: str, code: int
) -> None:
    found = status_of(failed(message, started=started))
    assert (found.state, found.raw["cause"], found.error_code) == (state, cause, code)
    assert message.split(".")[0] in found.detail


def test_a_retry_by_the_platform_is_still_the_same_job() -> None:
    job = failed("STOCKOUT: the machine was preempted") | {"state": "JOB_STATE_PENDING"}
    found = status_of(job)
    assert found.state is State.WAITING_CAPACITY  # never PREEMPTED: that would submit a second job
    assert found.raw["cause"] == "preempted"


def test_a_quota_error_names_its_metric() -> None:
    message = "aiplatform.googleapis.com/custom_model_training_preemptible_nvidia_l4_gpus exceeded"
    assert quota_metric(message) == "custom_model_training_preemptible_nvidia_l4_gpus"
    assert quota_metric("something else") is None


def test_times_are_read_to_the_second_with_or_without_decimals() -> None:
    found = status_of(failed("x"))
    assert found.started_at is not None
    assert found.ended_at is not None
    assert 59.0 < found.ended_at - found.started_at < 60.0


def test_the_console_has_a_page_for_a_job() -> None:
    url = console_url("projects/1/locations/europe-west4/customJobs/77", project="p")
    assert url.endswith("/locations/europe-west4/training/77?project=p")
