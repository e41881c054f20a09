"""Jobs of the fake cloud: real processes, real signals, timelines, quota, stock-outs, restarts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from tests.fake_cloud_calls import (
    PLACE,
    call,
    create,
    good,
    job_body,
    log_of,
    state_of,
    until,
)

SLEEP = "import time\nprint('up')\ntime.sleep(600)"
PATIENT = """
import signal, sys, time
def stop(number, frame):
    print('saved')
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
for step in range(1, 20000):
    print('step', step)
    time.sleep(0.01)
"""
A100 = {"machine": "a2-highgpu-1g", "gpu": ("NVIDIA_TESLA_A100", 1)}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[FakeCloud]:
    with serve(tmp_path, scenario=Scenario(grace_seconds=30)) as running:
        yield running


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, *, within: float = 100) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


def test_a_container_that_exits_0_makes_its_job_succeed_and_its_lines_are_logged(
    cloud: FakeCloud,
) -> None:
    path = create(cloud, job_body("import sys\nprint('hello')\nprint('oops', file=sys.stderr)"))
    job = until(cloud, path, "SUCCEEDED")
    assert job["startTime"] <= job["endTime"]
    assert "error" not in job
    assert sorted(log_of(cloud, path)) == ["hello", "oops"]


def test_another_exit_code_fails_the_job_and_names_the_replica(cloud: FakeCloud) -> None:
    job = until(cloud, create(cloud, job_body("raise SystemExit(7)")), "FAILED")
    assert job["error"]["code"] == 3
    assert "replica workerpool0-0 exited with a non-zero status of 7" in job["error"]["message"]


def test_a_container_sees_what_vertex_sets_and_nothing_of_the_user(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-key")
    code = "import json, os\nprint(json.dumps(dict(os.environ)))"
    body = job_body(code, env={"SACCADE_GPUS": "1", "MINE": "x"}, helpers=2)
    body["jobSpec"]["baseOutputDirectory"] = {"outputUriPrefix": "gs://b/out/"}
    path = create(cloud, body)
    until(cloud, path, "SUCCEEDED")
    env = json.loads(log_of(cloud, path, replica="0-0")[0])
    assert env["MINE"] == "x"
    assert env["SACCADE_GPUS"] == "0", "there are no GPUs here"
    assert env["SACCADE_FAKE_CLOUD"] == env["STORAGE_EMULATOR_HOST"] == cloud.url
    assert env["AIP_CHECKPOINT_DIR"] == "gs://b/out/checkpoints/"
    assert env["CLOUD_ML_JOB_ID"] == path.rpartition("/")[2]
    assert "canary-key" not in json.dumps(env)
    assert env["HOME"] != os.environ.get("HOME")
    cluster = json.loads(env["CLUSTER_SPEC"])
    assert [len(cluster["cluster"][f"workerpool{n}"]) for n in (0, 1)] == [1, 2]
    assert cluster["task"] == {"type": "workerpool0", "index": 0, "trial": ""}


def test_every_replica_of_every_pool_is_a_process_and_the_chief_decides(
    cloud: FakeCloud, tmp_path: Path
) -> None:
    # the chief leaves once both helpers have spoken, however long they took to start
    code = (
        "import json, os, pathlib, time\n"
        "task = json.loads(os.environ['CLUSTER_SPEC'])['task']\n"
        "print(task['type'], task['index'], flush=True)\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "if task['type'] != 'workerpool0':\n"
        "    (here / f\"spoke-{task['index']}\").touch()\n"
        "    time.sleep(600)\n"
        "while len(list(here.glob('spoke-*'))) < 2:\n"
        "    time.sleep(0.05)\n"
    )
    path = create(cloud, job_body(code, helpers=2))
    until(cloud, path, "SUCCEEDED")
    assert sorted(log_of(cloud, path)) == ["workerpool0 0", "workerpool1 0", "workerpool1 1"]


def test_one_failing_helper_fails_the_job(cloud: FakeCloud) -> None:
    code = (
        "import json, os, time\n"
        "task = json.loads(os.environ['CLUSTER_SPEC'])['task']\n"
        "time.sleep(600) if task['type'] == 'workerpool0' else exit(5)"
    )
    job = until(cloud, create(cloud, job_body(code, helpers=1)), "FAILED")
    assert "replica workerpool1-0 exited with a non-zero status of 5" in job["error"]["message"]


def test_cancelling_terminates_the_container_and_what_it_started(cloud: FakeCloud) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " start_new_session=True)\n"
        "print(os.getpid(), child.pid)\ntime.sleep(600)"
    )
    path = create(cloud, job_body(code))
    until(cloud, path, "RUNNING")
    while not log_of(cloud, path):
        time.sleep(0.01)
    pids = [int(word) for word in log_of(cloud, path)[0].split()]
    good(cloud, "POST", f"{path}:cancel", {})
    assert state_of(cloud, path) in ("CANCELLING", "CANCELLED")
    assert "endTime" in until(cloud, path, "CANCELLED")
    assert all(gone(pid) for pid in pids)
    status, answer = call(cloud, "POST", f"{path}:cancel", {})
    assert (status, answer["error"]["status"]) == (400, "FAILED_PRECONDITION")


def test_a_job_that_waits_is_cancelled_at_once(tmp_path: Path) -> None:
    with serve(tmp_path, scenario=Scenario(pending_seconds=60)) as cloud:
        path = create(cloud, job_body(SLEEP))
        good(cloud, "POST", f"{path}:cancel", {})
        assert state_of(cloud, path) == "CANCELLED"


def states_of(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """All states that jobs will come to, and whether they had been started by then."""
    states: list[tuple[str, bool]] = []
    put = cloud.world.store.put

    def put_and_note(collection: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if collection == "customJobs":
            state = document["state"].removeprefix("JOB_STATE_")
            if not states or states[-1][0] != state:
                states.append((state, "startTime" in document))
        return put(collection, name, document)

    monkeypatch.setattr(cloud.world.store, "put", put_and_note)
    return states


def test_a_timeline_preempts_at_a_step_and_the_same_job_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeline = [
        {"queued": 0.05},
        {"running": {"until_step": 5}},
        {"preempt": {"grace": 30}},
        {"pending": 0.05},
        {"running": {"until_step": 3}},
        {"preempt": {"grace": 30}},
        {"pending": 0.05},
        "running",
    ]
    # the first two attempts have no end of their own that a slow machine could let them reach
    begun = tmp_path / "begun"
    count = (
        f"import pathlib\nbegun = pathlib.Path({str(begun)!r})\nbegun.mkdir(exist_ok=True)\n"
        "attempt = len(list(begun.iterdir())) + 1\n(begun / str(attempt)).touch()\n"
    )
    code = count + PATIENT.replace("20000", "20000 if attempt < 3 else 30")
    with serve(tmp_path, scenario=Scenario.model_validate({"jobs": [timeline]})) as cloud:
        states = states_of(cloud, monkeypatch)
        path = create(cloud, job_body(code))
        until(cloud, path, "SUCCEEDED")
        lines = log_of(cloud, path)
    # whoever asks now and then may miss one of them
    assert states == [
        ("PENDING", False), ("QUEUED", False), ("RUNNING", True), ("PENDING", True),
        ("RUNNING", True), ("PENDING", True), ("RUNNING", True), ("SUCCEEDED", True),
    ]  # fmt: skip
    assert lines.count("step 1") == 3
    assert lines.count("saved") == 2


def test_a_preempted_job_without_a_retry_fails_with_a_stockout_text(cloud: FakeCloud) -> None:
    path = create(cloud, job_body(PATIENT))
    until(cloud, path, "RUNNING")
    while not log_of(cloud, path):
        time.sleep(0.01)
    good(cloud, "POST", f"/fake/jobs/{path.rpartition('/')[2]}/preempt", {})
    job = until(cloud, path, "FAILED")
    assert job["error"]["code"] == 8
    assert "preempted" in job["error"]["message"] and "STOCKOUT" in job["error"]["message"]
    assert log_of(cloud, path)[-1] == "saved"


def test_a_container_that_ignores_sigterm_is_killed_when_the_grace_ends(cloud: FakeCloud) -> None:
    code = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(os.getpid())\ntime.sleep(600)"
    )
    path = create(cloud, job_body(code))
    until(cloud, path, "RUNNING")
    while not log_of(cloud, path):
        time.sleep(0.01)
    begin = time.monotonic()
    cloud.preempt(path.rpartition("/")[2], grace=0.3)
    until(cloud, path, "FAILED")
    assert 0.25 < time.monotonic() - begin < 25, "its own grace ended it, not the usual 30 seconds"
    assert gone(int(log_of(cloud, path)[0]))


def test_a_preemption_can_wait_for_a_call(tmp_path: Path) -> None:
    timeline = [{"running": {"until_call": "POST /upload/storage/.*step-20"}}, "preempt"]
    with serve(tmp_path, scenario=Scenario.model_validate({"jobs": [timeline]})) as cloud:
        path = create(cloud, job_body(PATIENT))
        until(cloud, path, "RUNNING")
        while not log_of(cloud, path):
            time.sleep(0.01)
        call(cloud, "POST", "/upload/storage/v1/b/none/o?uploadType=media&name=step-10", {})
        time.sleep(0.1)
        assert state_of(cloud, path) == "RUNNING"
        call(cloud, "POST", "/upload/storage/v1/b/none/o?uploadType=media&name=step-20", {})
        until(cloud, path, "FAILED")


def test_a_preemption_can_wait_for_the_bytes_of_a_resumable_upload(tmp_path: Path) -> None:
    timeline = [{"running": {"until_call": "PUT /upload/storage/.*step-20/model"}}, "preempt"]
    with serve(tmp_path, scenario=Scenario.model_validate({"jobs": [timeline]})) as cloud:
        path = create(cloud, job_body(PATIENT))
        until(cloud, path, "RUNNING")
        call(cloud, "POST", "/storage/v1/b?project=p", {"name": "bucket-a"})
        begin = "/upload/storage/v1/b/bucket-a/o?uploadType=resumable"
        call(cloud, "POST", begin, {"name": "step-20/model.safetensors"})
        session = next((tmp_path / "storage" / "uploads").glob("*.json")).stem
        assert state_of(cloud, path) == "RUNNING"
        call(cloud, "PUT", f"{begin}&upload_id={session}", {})
        until(cloud, path, "FAILED")
        found = cloud.calls("object=step-20/model")
        assert [one["method"] for one in found] == ["POST", "PUT"]


def test_each_job_takes_its_own_timeline(tmp_path: Path) -> None:
    scenario = {"jobs": [["stockout"], [{"fail": "Internal error"}], ["running"]]}
    with serve(tmp_path, scenario=Scenario.model_validate(scenario)) as cloud:
        first, second, *rest = (create(cloud, job_body("pass")) for _ in range(4))
        assert "Resources are insufficient" in until(cloud, first)["error"]["message"]
        assert until(cloud, second)["error"] == {"code": 13, "message": "Internal error"}
        for path in rest:
            until(cloud, path, "SUCCEEDED")


def test_a_stockout_hits_its_region_machine_and_strategy_only(tmp_path: Path) -> None:
    stockouts = [{"region": "us-.*", "machine": "a2-.*", "strategy": "SPOT", "pending": 0.05}]
    scenario = Scenario.model_validate({"stockouts": stockouts})
    with serve(tmp_path, scenario=scenario) as cloud:
        spot = create(cloud, job_body("pass", scheduling={"strategy": "SPOT"}, **A100))
        flex = create(cloud, job_body("pass", scheduling={"strategy": "FLEX_START"}, **A100))
        assert "us-central1" in until(cloud, spot, "FAILED")["error"]["message"]
        until(cloud, flex, "SUCCEEDED")


def test_a_job_over_its_timeout_is_ended(cloud: FakeCloud) -> None:
    job = until(cloud, create(cloud, job_body(SLEEP, scheduling={"timeout": "0.3s"})), "FAILED")
    assert job["error"]["code"] == 4


def test_no_quota_is_refused_with_429_and_the_metric(tmp_path: Path) -> None:
    metric = "custom_model_training_preemptible_nvidia_a100_gpus"
    with serve(tmp_path, scenario=Scenario(quotas={metric: {"us-central1": 0}})) as cloud:
        body = job_body("pass", scheduling={"strategy": "SPOT"}, **A100)
        status, answer = call(cloud, "POST", f"{PLACE}/customJobs", body)
        assert (status, answer["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert metric in answer["error"]["message"]
        assert answer["error"]["details"][0]["metadata"]["quota_limit_value"] == "0"
        elsewhere = PLACE.replace("us-central1", "europe-west4")
        good(cloud, "POST", f"{elsewhere}/customJobs", body)


def test_a_job_is_held_queued_while_another_has_the_quota(tmp_path: Path) -> None:
    with serve(tmp_path, scenario=Scenario(default_quota=1, grace_seconds=30)) as cloud:
        first = create(cloud, job_body(SLEEP, **A100))
        until(cloud, first, "RUNNING")
        second = create(cloud, job_body("pass", **A100))
        until(cloud, second, "QUEUED")
        time.sleep(0.2)
        assert state_of(cloud, second) == "QUEUED"
        good(cloud, "POST", f"{first}:cancel", {})
        until(cloud, second, "SUCCEEDED")


def test_a_missing_image_fails_the_job_before_its_container(cloud: FakeCloud) -> None:
    body = job_body("pass")
    container = body["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]
    container["imageUri"] = "us-central1-docker.pkg.dev/some-project/saccade/train:1"
    job = until(cloud, create(cloud, body), "FAILED")
    assert "ErrImagePull" in job["error"]["message"]
    good(cloud, "POST", f"{PLACE}/repositories?repositoryId=saccade", {"format": "DOCKER"})
    cloud.register_image(container["imageUri"])
    until(cloud, create(cloud, body), "SUCCEEDED")


def test_jobs_are_listed_by_label_newest_first_in_pages(cloud: FakeCloud) -> None:
    names = [
        create(cloud, job_body("pass", labels={"run": f"r{n % 2}", "n": str(n)}))[4:]
        for n in range(5)
    ]
    wanted = quote('labels.run="r0"')
    query = f"{PLACE}/customJobs?pageSize=2&filter={wanted}"
    page = good(cloud, "GET", query)
    rest = good(cloud, "GET", f"{query}&pageToken={quote(page['nextPageToken'])}")
    assert [job["name"] for job in page["customJobs"] + rest["customJobs"]] == names[::-2]
    assert "nextPageToken" not in rest
    other = quote('labels.n="3" AND NOT state="JOB_STATE_PAUSED"')
    assert len(good(cloud, "GET", f"{PLACE}/customJobs?filter={other}")["customJobs"]) == 1
    status, _ = call(cloud, "GET", f"{PLACE}/customJobs?filter={quote('labels.n=(')}")
    assert status == 400


def test_new_jobs_appear_in_lists_late_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(tmp_path, scenario=Scenario(list_lag=1000)) as cloud:
        path = create(cloud, job_body("pass"))
        assert good(cloud, "GET", f"{PLACE}/customJobs") == {}
        assert good(cloud, "GET", path)["displayName"] == "job"
        monkeypatch.setattr(cloud.world, "now", lambda: time.time() + 1000)
        assert len(good(cloud, "GET", f"{PLACE}/customJobs")["customJobs"]) == 1


def test_numbers_and_names_of_enums_are_both_read_and_written(cloud: FakeCloud) -> None:
    body = job_body("pass", scheduling={"strategy": 4, "timeout": "3600s"}, **A100)
    body["jobSpec"]["workerPoolSpecs"][0]["machineSpec"]["acceleratorType"] = 8
    body["jobSpec"]["workerPoolSpecs"][0]["replicaCount"] = "1"
    path = create(cloud, body)
    names = good(cloud, "GET", path)["jobSpec"]
    numbers = good(cloud, "GET", f"{path}?$alt=json;enum-encoding=int")["jobSpec"]
    assert names["scheduling"]["strategy"] == "SPOT"
    assert numbers["scheduling"]["strategy"] == 4
    assert numbers["workerPoolSpecs"][0]["machineSpec"]["acceleratorType"] == 8
    assert numbers["workerPoolSpecs"][0]["replicaCount"] == "1", "int64 travels as text"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_preemptible": True}, 'Unknown name "use_preemptible"'),
        ({"machineSpec": {"machineType": "a2-highgpu-1g"}}, "requires accelerator type"),
        ({"machineSpec": {"machineType": "b9-huge"}}, "is not supported"),
        ({"replicaCount": 2}, "worker pool 0"),
        ({"diskSpec": {"bootDiskSizeGb": 10}}, "boot_disk_size_gb"),
        ({"containerSpec": {}}, "image_uri"),
        ({"machineSpec": {"machineType": "n1-standard-4", "acceleratorType": "GPU"}}, "Invalid"),
    ],
)
def test_what_vertex_refuses_is_refused(cloud: FakeCloud, change: dict, words: str) -> None:
    body = job_body("pass")
    body["jobSpec"]["workerPoolSpecs"][0] |= change
    status, answer = call(cloud, "POST", f"{PLACE}/customJobs", body)
    assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert words in answer["error"]["message"]


def test_labels_durations_and_accounts_are_checked(cloud: FakeCloud) -> None:
    wrong: list[dict[str, Any]] = [
        {"labels": {"Run": "x"}},
        {"labels": {"run": "A b"}},
        {"scheduling": {"timeout": "1h"}},
        {"scheduling": {"maxWaitDuration": "60s"}},
    ]
    for more in wrong:
        assert call(cloud, "POST", f"{PLACE}/customJobs", job_body("pass", **more))[0] == 400, more
    body = job_body("pass")
    body["jobSpec"]["serviceAccount"] = "nobody@some-project.iam.gserviceaccount.com"
    status, answer = call(cloud, "POST", f"{PLACE}/customJobs", body)
    assert status == 400 and "does not exist" in answer["error"]["message"]


def test_a_job_is_deleted_only_when_it_is_over(cloud: FakeCloud) -> None:
    path = create(cloud, job_body(SLEEP))
    assert call(cloud, "DELETE", path)[0] == 400
    good(cloud, "POST", f"{path}:cancel", {})
    until(cloud, path, "CANCELLED")
    operation = good(cloud, "DELETE", path)
    assert operation["done"] and good(cloud, "GET", f"/v1/{operation['name']}")["done"]
    assert call(cloud, "GET", path)[0] == 404


def test_a_restart_keeps_finished_jobs_goes_on_with_waiting_ones_and_loses_running_ones(
    tmp_path: Path,
) -> None:
    timelines = [[], [], [{"pending": 600}]]
    with serve(tmp_path, scenario=Scenario.model_validate({"jobs": timelines})) as cloud:
        done = create(cloud, job_body("print('kept')"))
        until(cloud, done, "SUCCEEDED")
        running = create(cloud, job_body("import os\nprint(os.getpid())\n" + SLEEP))
        until(cloud, running, "RUNNING")
        while not log_of(cloud, running):
            time.sleep(0.01)
        pid = int(log_of(cloud, running)[0])
        waiting = create(cloud, job_body("print('later')"))
        until(cloud, waiting, "PENDING")
    assert gone(pid)
    with serve(tmp_path) as cloud:
        assert log_of(cloud, done) == ["kept"]
        assert state_of(cloud, done) == "SUCCEEDED"
        assert "preempted" in until(cloud, running, "FAILED")["error"]["message"]
        until(cloud, waiting, "SUCCEEDED")


def test_two_hundred_jobs_are_listed_quickly(tmp_path: Path) -> None:
    with serve(tmp_path, scenario=Scenario(pending_seconds=60, default_quota=10**6)) as cloud:
        cloud.world.scenario = cloud.world.scenario.model_copy(
            update={"quotas": {"custom_model_training_n1_cpus": 10**6}}
        )
        for n in range(200):
            create(cloud, job_body("pass", labels={"n": str(n)}))
        begin = time.process_time()  # of client and server; a busy machine does not count
        assert len(good(cloud, "GET", f"{PLACE}/customJobs?pageSize=500")["customJobs"]) == 200
        assert time.process_time() - begin < 1.0
