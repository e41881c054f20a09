"""A bare HTTP client for the fake cloud: what is sent is exactly what a test wrote."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from saccade.cloud.fake.server import FakeCloud

PROJECT, REGION = "some-project", "us-central1"
PLACE = f"/v1/projects/{PROJECT}/locations/{REGION}"
ENDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED")


def call(
    cloud: FakeCloud | str, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """The status and the parsed answer of one request."""
    base = cloud if isinstance(cloud, str) else cloud.url
    request = urllib.request.Request(
        base + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else text


def good(cloud: FakeCloud | str, method: str, path: str, body: Any = None) -> Any:
    """The answer of a request that must succeed."""
    status, answer = call(cloud, method, path, body)
    assert status == 200, answer
    return answer


def job_body(
    code: str,
    *,
    machine: str = "n1-standard-4",
    gpu: tuple[str, int] | None = None,
    scheduling: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    helpers: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """A create request whose containers run a piece of Python."""
    spec: dict[str, Any] = {"machineType": machine}
    if gpu is not None:
        spec |= {"acceleratorType": gpu[0], "acceleratorCount": gpu[1]}
    container = {
        "imageUri": "busybox",
        "command": ["python", "-u", "-c", code],
        "env": [{"name": name, "value": value} for name, value in (env or {}).items()],
    }
    pools = [{"machineSpec": spec, "replicaCount": 1, "containerSpec": container}]
    if helpers:
        pools.append({"machineSpec": spec, "replicaCount": helpers, "containerSpec": container})
    spec_body = {"workerPoolSpecs": pools, "scheduling": scheduling or {}}
    return {"displayName": "job", "jobSpec": spec_body, **more}


def create(cloud: FakeCloud | str, body: dict[str, Any]) -> str:
    """Create a job; its path."""
    return "/v1/" + good(cloud, "POST", f"{PLACE}/customJobs", body)["name"]


def state_of(cloud: FakeCloud | str, path: str) -> str:
    """The state of a job now."""
    return good(cloud, "GET", path)["state"].removeprefix("JOB_STATE_")


def until(cloud: FakeCloud | str, path: str, *states: str, within: float = 200) -> dict[str, Any]:
    """Wait for a state, by default the job's end; the job then."""
    wanted = {f"JOB_STATE_{state}" for state in states} or set(ENDED)
    end = time.monotonic() + within
    while True:
        job = good(cloud, "GET", path)
        if job["state"] in wanted:
            return job
        assert job["state"] not in ENDED and time.monotonic() < end, job
        time.sleep(0.01)


def log_of(cloud: FakeCloud | str, path: str, *, replica: str = "") -> list[str]:
    """The lines that a job's containers wrote."""
    job_id = path.rpartition("/")[2]
    asked = {
        "resourceNames": [f"projects/{PROJECT}"],
        "filter": f'resource.type="ml_job" AND resource.labels.job_id="{job_id}"',
        "pageSize": 1000,
    }
    entries = good(cloud, "POST", "/v2/entries:list", asked).get("entries", [])
    return [
        entry["textPayload"]
        for entry in entries
        if f"/logs/workerpool{replica}" in entry["logName"]
    ]
