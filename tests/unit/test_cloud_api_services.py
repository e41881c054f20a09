"""Every thin client does its job against the local cloud, and survives faults there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from saccade.cloud.api import (
    billing,
    builds,
    custom_jobs,
    iam,
    logs,
    quotas,
    registry,
    secrets,
    services,
    storage,
)
from saccade.cloud.api.transport import (
    ApiError,
    Google,
    NotFound,
    PreconditionFailed,
    ResourceExhausted,
    ServiceDisabled,
    connect,
)
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.errors import InputError

REGION = "us-central1"
LABELS = {"app": "saccade", "token": "t1"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[FakeCloud]:
    with serve(tmp_path, scenario=Scenario(check_images=False, apis="fresh")) as running:
        google = connect("demo-project", env={"SACCADE_FAKE_CLOUD": running.url})
        services.enable(google, APIS)
        yield running


@pytest.fixture
def google(cloud: FakeCloud) -> Google:
    return connect("demo-project", env={"SACCADE_FAKE_CLOUD": cloud.url})


APIS = [
    f"{name}.googleapis.com"
    for name in (
        "aiplatform", "cloudbuild", "artifactregistry", "secretmanager", "iam", "cloudquotas",
        "cloudresourcemanager", "cloudbilling", "logging", "storage", "compute",
    )
]  # fmt: skip


def job(command: list[str] | None = None, **scheduling: Any) -> dict[str, Any]:
    pool = {
        "machineSpec": {
            "machineType": "g2-standard-8",
            "acceleratorType": "NVIDIA_L4",
            "acceleratorCount": 1,
        },
        "replicaCount": "1",
        "containerSpec": {"imageUri": "python", "command": command or ["true"]},
    }
    scheduling = {"strategy": "SPOT", "timeout": "3600s", **scheduling}
    spec = {"workerPoolSpecs": [pool], "scheduling": scheduling}
    return {"displayName": "demo", "labels": LABELS, "jobSpec": spec}


def test_apis_are_switched_on_once_and_seen(cloud: FakeCloud, google: Google) -> None:
    assert services.enabled(google, [*APIS, "run.googleapis.com"]) == frozenset(APIS)
    services.enable(google, APIS)
    assert services.enabled(google, APIS) == frozenset(APIS)


def test_a_call_to_an_api_that_is_off_names_the_setup_command(tmp_path: Path) -> None:
    off = Scenario(disabled_apis=("aiplatform.googleapis.com",))
    with serve(tmp_path, scenario=off) as cloud:
        google = connect("demo-project", env={"SACCADE_FAKE_CLOUD": cloud.url})
        with pytest.raises(ServiceDisabled, match=r"aiplatform\.googleapis\.com is off"):
            custom_jobs.create(google, region=REGION, job=job())


def test_a_job_is_made_found_by_label_cancelled_and_deleted(google: Google) -> None:
    made = custom_jobs.create(google, region=REGION, job=job(["sleep", "600"]))
    name = made["name"]
    assert custom_jobs.region_of(name) == REGION
    found = custom_jobs.list_by_label(google, region=REGION, labels=LABELS)
    assert [one["name"] for one in found] == [name]
    assert custom_jobs.list_by_label(google, region=REGION, labels={"token": "other"}) == []
    custom_jobs.cancel(google, name)
    wait_until(google, name)
    custom_jobs.cancel(google, name)  # again, after the end
    assert custom_jobs.get(google, name)["state"] == "JOB_STATE_CANCELLED"
    assert custom_jobs.delete(google, name)
    assert not custom_jobs.delete(google, name)
    with pytest.raises(NotFound):
        custom_jobs.get(google, name)


def wait_until(google: Google, name: str) -> dict[str, Any]:
    end = time.monotonic() + 200
    while (seen := custom_jobs.get(google, name))["state"] not in custom_jobs.TERMINAL:
        assert time.monotonic() < end, f"the job did not end: {seen}"
        time.sleep(0.05)
    return seen


def test_a_create_whose_answer_is_lost_makes_one_job(cloud: FakeCloud, google: Google) -> None:
    cloud.add_fault("POST .*/customJobs", status="drop", when="after")

    def found() -> dict[str, Any] | None:
        jobs = custom_jobs.list_by_label(google, region=REGION, labels=LABELS)
        return jobs[0] if jobs else None

    made = custom_jobs.create(google, region=REGION, job=job(), settle=found)
    assert found() is not None
    assert len(custom_jobs.list_by_label(google, region=REGION, labels=LABELS)) == 1
    assert made["displayName"] == "demo"


def test_a_quota_of_zero_is_reported_at_once_with_its_metric(tmp_path: Path) -> None:
    metric = "custom_model_training_preemptible_nvidia_l4_gpus"
    with serve(tmp_path, scenario=Scenario(quotas={metric: 0})) as cloud:
        google = connect("demo-project", env={"SACCADE_FAKE_CLOUD": cloud.url})
        with pytest.raises(ResourceExhausted) as caught:
            custom_jobs.create(google, region=REGION, job=job(), settle=lambda: None)
        assert caught.value.quota_metric == f"aiplatform.googleapis.com/{metric}"
        assert len(cloud.calls("POST .*/customJobs")) == 1


def test_log_lines_come_once_in_order_and_late_ones_too(google: Google) -> None:
    made = custom_jobs.create(google, region=REGION, job=job(["sh", "-c", "echo one; echo two"]))
    wait_until(google, made["name"])
    chosen = logs.job_filter(custom_jobs.job_id(made["name"]))
    first, cursor = logs.entries(google, chosen=chosen)
    assert [entry.text for entry in first if entry.text in ("one", "two")] == ["one", "two"]
    again, same = logs.entries(google, chosen=chosen, cursor=cursor)
    assert (again, same) == ([], cursor)
    late = {
        "logName": "projects/demo-project/logs/workerpool0-0",
        "resource": {
            "type": "ml_job",
            "labels": {"job_id": custom_jobs.job_id(made["name"])},
        },
        "timestamp": first[0].time,
        "insertId": "late",
        "jsonPayload": {"message": "three"},
    }
    google.call("POST", "logging", "/v2/entries:write", body={"entries": [late]})
    found, after = logs.entries(google, chosen=chosen, cursor=cursor, page_size=1)
    assert [entry.text for entry in found] == ["three"]
    assert logs.entries(google, chosen=chosen, cursor=after)[0] == []
    with pytest.raises(InputError, match="cursor"):
        logs.entries(google, chosen=chosen, cursor="nonsense")


def test_a_build_makes_an_image_that_is_found_by_its_tag(google: Google) -> None:
    assert registry.get_repository(google, region=REGION, repository="saccade") is None
    made = registry.create_repository(
        google, region=REGION, repository="saccade", labels={"app": "saccade"}
    )
    assert made["format"] == "DOCKER"
    uri = registry.image_uri(google, region=REGION, repository="saccade", image="trainer:abc")
    step = {"name": "gcr.io/cloud-builders/docker", "args": ["build", "-t", uri, "."]}
    build = builds.create(google, build={"steps": [step], "images": [uri], "tags": ["abc"]})
    for _ in range(5000):
        build = builds.get(google, build["id"])
        if build["status"] in builds.TERMINAL:
            break
        time.sleep(0.02)
    assert build["status"] == "SUCCESS"
    assert [one["id"] for one in builds.list_by_tag(google, "abc")] == [build["id"]]
    assert builds.cancel(google, build["id"])["status"] == "SUCCESS"

    def digest(image: str) -> str | None:
        return registry.image_digest(google, region=REGION, repository="saccade", image=image)

    found = digest("trainer:abc")
    assert found is not None
    assert found.startswith("sha256:")
    assert digest(f"trainer@{found}") == found
    assert digest("trainer:other") is None
    assert digest("train:abc") is None
    assert registry.delete_repository(google, region=REGION, repository="saccade")
    assert not registry.delete_repository(google, region=REGION, repository="saccade")


def test_a_build_whose_answer_is_lost_is_started_once(cloud: FakeCloud, google: Google) -> None:
    cloud.add_fault("POST .*/builds", status=503, when="after")
    build = builds.create(google, build={"steps": [{"name": "x"}], "tags": ["once"]})
    assert [one["id"] for one in builds.list_by_tag(google, "once")] == [build["id"]]


def test_a_secret_is_stored_once_per_value_and_never_printed(
    cloud: FakeCloud, google: Google
) -> None:
    value = SecretStr("canary-1234")
    assert secrets.get(google, "hf-token") is None
    secrets.create(google, "hf-token", labels={"app": "saccade"})
    cloud.add_fault(":addVersion", status="drop", when="after")
    first = secrets.add_version(google, "hf-token", value)
    assert secrets.add_version(google, "hf-token", value) == first
    assert len(secrets.versions(google, "hf-token")) == 1
    assert secrets.access(google, "hf-token").get_secret_value() == "canary-1234"
    assert "canary" not in repr(secrets.access(google, first))
    listed = secrets.list_by_label(google, labels={"app": "saccade"})
    assert [one["name"].rsplit("/", 1)[-1] for one in listed] == ["hf-token"]
    assert secrets.delete(google, "hf-token")
    assert not secrets.delete(google, "hf-token")


def test_roles_are_given_and_taken_without_touching_others(
    cloud: FakeCloud, google: Google
) -> None:
    account = iam.create_account(google, "trainer", display_name="saccade trainer")
    assert iam.get_account(google, "trainer") == account
    member = f"serviceAccount:{iam.account_email(google, 'trainer')}"
    registry.create_repository(google, region=REGION, repository="saccade", labels={})
    secrets.create(google, "hf-token", labels={})
    storage.create_bucket(google, body={"name": "demo-bucket", "location": REGION})
    places = [
        iam.project(google),
        iam.service_account(google, iam.account_email(google, "trainer")),
        iam.secret(google, "hf-token"),
        iam.repository(google, region=REGION, name="saccade"),
        iam.bucket("demo-bucket"),
    ]
    for place in places:
        before = iam.get_policy(google, place).get("bindings", [])
        assert iam.grant(google, place, role="roles/logging.logWriter", member="user:a@b.c")
        assert iam.grant(google, place, role="roles/logging.logWriter", member=member)
        assert not iam.grant(google, place, role="roles/logging.logWriter", member=member)
        assert iam.revoke(google, place, role="roles/logging.logWriter", member=member)
        assert not iam.revoke(google, place, role="roles/logging.logWriter", member=member)
        left = iam.get_policy(google, place)["bindings"]
        assert {"role": "roles/logging.logWriter", "members": ["user:a@b.c"]} in left
        assert [one for one in left if one in before] == before
    assert iam.delete_account(google, "trainer")
    assert not iam.delete_account(google, "trainer")
    assert iam.get_account(google, "trainer") is None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("status", [503, "drop"])
def test_a_grant_survives_a_lost_write(
    cloud: FakeCloud, google: Google, status: int | str, when: str
) -> None:
    cloud.add_fault(":setIamPolicy", status=status, when=when)
    place = iam.project(google)
    assert iam.grant(google, place, role="roles/viewer", member="user:a@b.c")
    policy = iam.get_policy(google, place)
    assert iam.has_binding(policy, role="roles/viewer", member="user:a@b.c")


def test_conditional_bindings_are_kept_apart() -> None:
    held = {"role": "roles/viewer", "members": ["user:a"], "condition": {"expression": "x"}}
    policy = {"bindings": [held], "etag": "e"}
    assert not iam.has_binding(policy, role="roles/viewer", member="user:a")
    changed = iam.add_binding(policy, role="roles/viewer", member="user:a")
    assert changed["bindings"] == [held, {"role": "roles/viewer", "members": ["user:a"]}]
    assert policy["bindings"] == [held]
    assert iam.remove_binding(changed, role="roles/viewer", member="user:a")["bindings"] == [held]


def test_quotas_are_numbers_per_region_and_unknown_is_not_zero(tmp_path: Path) -> None:
    metric = "custom_model_training_preemptible_nvidia_l4_gpus"
    scenario = Scenario(quotas={metric: {REGION: 2, "default": 0}}, quota_requests="grant")
    with serve(tmp_path, scenario=scenario) as cloud:
        google = connect("demo-project", env={"SACCADE_FAKE_CLOUD": cloud.url})
        quota = quotas.quotas(google)[metric]
        assert quota.limit(REGION) == 2
        assert quota.limit("europe-west4") == 0
        for _ in range(2):  # asking twice is one request
            quotas.request_quota(google, quota=quota, region=REGION, value=4, reason="training")
        assert len(quotas.requests_made(google)) == 1
        assert quotas.quotas(google)[metric].limit(REGION) == 4


def test_quota_rows_are_read_by_what_they_say() -> None:
    row = {"details": {"value": "3"}, "applicableLocations": ["us-east1", "us-west1"]}
    own = {"dimensions": {"region": "us-east1"}, "details": {"value": "7"}}
    by_model = {"dimensions": {"region": "us-west4", "model": "m"}, "details": {"value": "9"}}
    silent = {"dimensions": {"region": "us-east4"}, "details": {}}
    info = {"quotaId": "Q", "metric": "a/b", "dimensionsInfos": [own, row, by_model, silent]}
    quota = quotas.read_quota(info)
    assert quota.limit("us-east1") == 7
    assert quota.limit("us-west1") == 3
    assert quota.limit("us-west4") is None
    assert quota.limit("us-east4") is None
    everywhere = {"details": {"value": "-1"}, "applicableLocations": ["global"]}
    anywhere = quotas.read_quota({"quotaId": "Q", "dimensionsInfos": [everywhere]})
    assert anywhere.limit("us-east4") == quotas.UNLIMITED


def test_billing_and_prices_are_read(tmp_path: Path) -> None:
    with serve(tmp_path, scenario=Scenario(billing=False)) as cloud:
        google = connect("demo-project", env={"SACCADE_FAKE_CLOUD": cloud.url})
        assert not billing.billing_enabled(google)
        found = list(billing.skus(google))
        assert found
        assert all(sku["pricingInfo"] for sku in found)


def test_objects_are_written_under_conditions_and_read_back(
    cloud: FakeCloud, google: Google
) -> None:
    storage.create_bucket(google, body={"name": "demo-bucket", "location": REGION})
    name = "code/a b#%2F.tar.gz"
    made = storage.write_object(google, "demo-bucket", name, b"one", generation=storage.MUST_BE_NEW)
    assert storage.read_object(google, "demo-bucket", name) == b"one"
    assert storage.stat_object(google, "demo-bucket", name) == made
    # an equal write is done already, another content is somebody else's
    storage.write_object(google, "demo-bucket", name, b"one", generation=storage.MUST_BE_NEW)
    with pytest.raises(PreconditionFailed):
        storage.write_object(google, "demo-bucket", name, b"two", generation=storage.MUST_BE_NEW)
    cloud.add_fault("POST /upload", status="drop", when="after")
    storage.write_object(google, "demo-bucket", name, b"two", generation=int(made["generation"]))
    assert storage.read_object(google, "demo-bucket", name) == b"two"
    assert [one["name"] for one in storage.list_objects(google, "demo-bucket", prefix="code/")] == [
        name
    ]
    with pytest.raises(ApiError):
        storage.delete_bucket(google, "demo-bucket")
    assert storage.delete_object(google, "demo-bucket", name)
    assert not storage.delete_object(google, "demo-bucket", name)
    with pytest.raises(NotFound):
        storage.read_object(google, "demo-bucket", name)
    assert storage.delete_bucket(google, "demo-bucket")
    assert not storage.delete_bucket(google, "demo-bucket")


@pytest.mark.parametrize("name", ["", "/x", "a/../b", "../b", "a//b", "a/./b", "a\nb", "x" * 1025])
def test_object_names_cannot_leave_their_prefix(name: str) -> None:
    with pytest.raises(InputError):
        storage.checked_name(name)
