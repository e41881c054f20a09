"""The official Google clients, pointed at the local cloud, see and do what ours see and do.

Each resource is made by one side and read by the other, and every call of ours, queries and bodies
alike, must parse as the official request with unknown fields refused. The official packages are
large and used nowhere else: without the extra `oracle` these tests are skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from pydantic import SecretStr

from saccade.cloud.api import (
    billing,
    builds,
    console,
    custom_jobs,
    iam,
    logs,
    quotas,
    registry,
    secrets,
    services,
    storage,
)
from saccade.cloud.api.transport import Google, connect
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from tests.official_types import (
    aiplatform_v1,
    artifactregistry_v1,
    billing_v1,
    cloudbuild_v1,
    cloudquotas_v1,
    logging_v2,
    official,
    official_storage,
    parse,
    resourcemanager_v3,
    secretmanager_v1,
    service_usage_v1,
)

exceptions = official("google.api_core.exceptions")
options = official("google.api_core.client_options")

PROJECT, REGION = "demo-project", "us-central1"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
LABELS = {"app": "saccade", "token": "t1"}
METRIC = "custom_model_training_preemptible_nvidia_l4_gpus"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCloud]:
    scenario = Scenario(check_images=False, quotas={METRIC: {REGION: 2, "default": 0}})
    with serve(tmp_path_factory.mktemp("cloud"), scenario=scenario) as running:
        yield running


@pytest.fixture(scope="module")
def google(cloud: FakeCloud) -> Google:
    return connect(PROJECT, env={"SACCADE_FAKE_CLOUD": cloud.url})


def client(kind: Any, cloud: FakeCloud) -> Any:
    """An official client that speaks REST to the local cloud."""
    there = options.ClientOptions(api_endpoint=cloud.url)
    return kind(credentials=AnonymousCredentials(), transport="rest", client_options=there)


def same(kind: Any, ours: dict[str, Any], theirs: Any) -> None:
    """What we read is, field for field, what the official client read."""
    read = kind.from_json(json.dumps(ours), ignore_unknown_fields=False)
    assert kind.to_dict(read) == kind.to_dict(theirs)


def body_of_a_job(*command: str) -> dict[str, Any]:
    pool = {
        "machineSpec": {
            "machineType": "g2-standard-8",
            "acceleratorType": "NVIDIA_L4",
            "acceleratorCount": 1,
        },
        "replicaCount": "1",
        "diskSpec": {"bootDiskType": "pd-ssd", "bootDiskSizeGb": 100},
        "containerSpec": {
            "imageUri": "python",
            "command": list(command),
            "env": [{"name": "SACCADE_RUN", "value": "demo"}],
        },
    }
    scheduling = {"strategy": "SPOT", "timeout": "3600s", "disableRetries": False}
    spec = {"workerPoolSpecs": [pool], "scheduling": scheduling}
    return {"displayName": "demo", "labels": LABELS, "jobSpec": spec}


def ended(google: Google, name: str) -> dict[str, Any]:
    end = time.monotonic() + 200
    while (seen := custom_jobs.get(google, name))["state"] not in custom_jobs.TERMINAL:
        assert time.monotonic() < end, f"the job did not end: {seen}"
        time.sleep(0.05)
    return seen


def test_jobs_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = client(aiplatform_v1.JobServiceClient, cloud)
    body = body_of_a_job("sh", "-c", "echo hello; exit 0")
    wanted = aiplatform_v1.CustomJob.from_json(json.dumps(body), ignore_unknown_fields=False)
    ours = custom_jobs.create(google, region=REGION, job=body)
    theirs = official.create_custom_job(parent=PARENT, custom_job=wanted)
    spec = aiplatform_v1.CustomJob.from_json(json.dumps(ours), ignore_unknown_fields=False)
    assert spec.job_spec == theirs.job_spec
    assert spec.labels == theirs.labels
    assert theirs.job_spec.scheduling.strategy == aiplatform_v1.Scheduling.Strategy.SPOT
    for name in (ours["name"], theirs.name):
        same(aiplatform_v1.CustomJob, ended(google, name), official.get_custom_job(name=name))
    found = official.list_custom_jobs(
        request={"parent": PARENT, "filter": 'labels.token="t1" AND labels.app="saccade"'}
    )
    listed = custom_jobs.list_by_label(google, region=REGION, labels=LABELS)
    assert [job["name"] for job in listed] == [job.name for job in found]
    assert {job["name"] for job in listed} == {ours["name"], theirs.name}


def test_jobs_cancelled_and_deleted_by_one_side_are_so_for_the_other(
    cloud: FakeCloud, google: Google
) -> None:
    official = client(aiplatform_v1.JobServiceClient, cloud)
    first = custom_jobs.create(google, region=REGION, job=body_of_a_job("sleep", "600"))
    second = custom_jobs.create(google, region=REGION, job=body_of_a_job("sleep", "600"))
    official.cancel_custom_job(name=first["name"])
    custom_jobs.cancel(google, second["name"])
    for name in (first["name"], second["name"]):
        assert ended(google, name)["state"] == "JOB_STATE_CANCELLED"
        state = official.get_custom_job(name=name).state
        assert state == aiplatform_v1.JobState.JOB_STATE_CANCELLED
    official.delete_custom_job(name=first["name"]).result(timeout=200)
    assert not custom_jobs.delete(google, first["name"])
    assert custom_jobs.delete(google, second["name"])
    with pytest.raises(exceptions.NotFound):
        official.get_custom_job(name=second["name"])


def test_a_field_that_vertex_does_not_know_is_refused_everywhere(
    cloud: FakeCloud, google: Google
) -> None:
    body = body_of_a_job("true")
    body["jobSpec"]["scheduling"]["use_preemptible"] = True
    with pytest.raises(Exception, match="use_preemptible"):
        aiplatform_v1.CustomJob.from_json(json.dumps(body), ignore_unknown_fields=False)
    with pytest.raises(Exception, match="use_preemptible"):
        custom_jobs.create(google, region=REGION, job=body)


def test_the_official_console_link_is_ours(google: Google) -> None:
    utils = official("google.cloud.aiplatform.utils.console_utils")
    made = custom_jobs.create(google, region=REGION, job=body_of_a_job("true"))
    ident = custom_jobs.job_id(made["name"])
    name = f"{PARENT}/customJobs/{ident}"
    assert console.job(made["name"], project=PROJECT) == utils.custom_job_console_uri(name)


def test_builds_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = client(cloudbuild_v1.CloudBuildClient, cloud)
    registry.create_repository(google, region=REGION, repository="builds", labels={})
    uri = f"{REGION}-docker.pkg.dev/{PROJECT}/builds/trainer:one"
    body = {
        "steps": [{"name": "gcr.io/cloud-builders/docker", "args": ["build", "-t", uri, "."]}],
        "images": [uri],
        "tags": ["one"],
        "timeout": "1800s",
        "options": {"logging": "CLOUD_LOGGING_ONLY", "machineType": "E2_HIGHCPU_8"},
    }
    wanted = cloudbuild_v1.Build.from_json(json.dumps(body), ignore_unknown_fields=False)
    ours = builds.create(google, build=body)
    theirs = official.create_build(project_id=PROJECT, build=wanted).result(timeout=200)
    assert theirs.status == cloudbuild_v1.Build.Status.SUCCESS
    for ident in (ours["id"], theirs.id):
        while builds.get(google, ident)["status"] not in builds.TERMINAL:
            time.sleep(0.05)
        read = official.get_build(project_id=PROJECT, id=ident)
        same(cloudbuild_v1.Build, builds.get(google, ident), read)
    found = official.list_builds(request={"project_id": PROJECT, "filter": 'tags="one"'})
    assert {one.id for one in found} == {one["id"] for one in builds.list_by_tag(google, "one")}


def test_repositories_and_images_are_the_same_from_both_sides(
    cloud: FakeCloud, google: Google
) -> None:
    official = client(artifactregistry_v1.ArtifactRegistryClient, cloud)
    ours = registry.create_repository(google, region=REGION, repository="ours", labels=LABELS)
    wanted = artifactregistry_v1.Repository(format_="DOCKER", labels=LABELS)
    operation = official.create_repository(parent=PARENT, repository=wanted, repository_id="theirs")
    theirs = operation.result(timeout=200)
    read = official.get_repository(name=ours["name"])
    same(artifactregistry_v1.Repository, ours, read)
    assert (read.format_, read.labels) == (theirs.format_, theirs.labels)
    digest = cloud.register_image(f"{REGION}-docker.pkg.dev/{PROJECT}/ours/trainer:v1")
    (image,) = official.list_docker_images(parent=ours["name"])
    assert image.uri.endswith(f"trainer@{digest}")
    assert registry.image_digest(google, region=REGION, repository="ours", image="trainer:v1") == (
        digest
    )
    official.delete_repository(name=theirs.name).result(timeout=200)
    assert registry.get_repository(google, region=REGION, repository="theirs") is None
    assert registry.delete_repository(google, region=REGION, repository="ours")
    with pytest.raises(exceptions.NotFound):
        official.get_repository(name=ours["name"])


def test_secrets_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = client(secretmanager_v1.SecretManagerServiceClient, cloud)
    ours = secrets.create(google, "hf-token", labels=LABELS)
    same(secretmanager_v1.Secret, ours, official.get_secret(name=ours["name"]))
    first = secrets.add_version(google, "hf-token", SecretStr("one"))
    assert official.access_secret_version(name=first).payload.data == b"one"
    official.add_secret_version(parent=ours["name"], payload={"data": b"two"})
    assert secrets.access(google, "hf-token").get_secret_value() == "two"
    found = official.list_secret_versions(parent=ours["name"])
    assert [one.name for one in found] == [
        one["name"] for one in secrets.versions(google, "hf-token")
    ]
    wanted = {"replication": {"automatic": {}}, "labels": LABELS}
    official.create_secret(parent=f"projects/{PROJECT}", secret_id="wandb", secret=wanted)
    listed = official.list_secrets(
        request={"parent": f"projects/{PROJECT}", "filter": "labels.app=saccade"}
    )
    assert [one.name for one in listed] == [
        one["name"] for one in secrets.list_by_label(google, labels={"app": "saccade"})
    ]
    official.delete_secret(name=ours["name"])
    assert secrets.get(google, "hf-token") is None
    assert secrets.delete(google, "wandb")


def test_policies_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = client(resourcemanager_v3.ProjectsClient, cloud)
    where = f"projects/{PROJECT}"
    iam.grant(google, iam.project(google), role="roles/viewer", member="user:a@b.c")
    policy = official.get_iam_policy(resource=where)
    assert [(one.role, list(one.members)) for one in policy.bindings] == [
        ("roles/viewer", ["user:a@b.c"])
    ]
    policy.bindings.add(role="roles/logging.viewer", members=["user:d@e.f"])
    official.set_iam_policy(request={"resource": where, "policy": policy})
    ours = iam.get_policy(google, iam.project(google))
    assert iam.has_binding(ours, role="roles/logging.viewer", member="user:d@e.f")
    policy.bindings.add(role="roles/owner", members=["user:late@b.c"])
    with pytest.raises(exceptions.Conflict):  # written with the old etag
        official.set_iam_policy(request={"resource": where, "policy": policy})
    read = official.get_project(name=where)
    assert read.project_id == PROJECT


def test_policies_of_secrets_and_repositories_are_the_same(
    cloud: FakeCloud, google: Google
) -> None:
    secrets.create(google, "guarded", labels={})
    registry.create_repository(google, region=REGION, repository="guarded", labels={})
    places = [
        (iam.secret(google, "guarded"), secretmanager_v1.SecretManagerServiceClient),
        (iam.repository(google, region=REGION, name="guarded"),
         artifactregistry_v1.ArtifactRegistryClient),
    ]  # fmt: skip
    for place, kind in places:
        iam.grant(google, place, role="roles/viewer", member="user:a@b.c")
        request = {"resource": place.path.removeprefix("/v1/")}
        policy = client(kind, cloud).get_iam_policy(request=request)
        assert [(one.role, list(one.members)) for one in policy.bindings] == [
            ("roles/viewer", ["user:a@b.c"])
        ]


def test_apis_are_switched_on_alike(cloud: FakeCloud, google: Google) -> None:
    official = client(service_usage_v1.ServiceUsageClient, cloud)
    names = ["aiplatform.googleapis.com", "run.googleapis.com"]
    services.enable(google, names)
    found = official.batch_get_services(
        request={
            "parent": f"projects/{PROJECT}",
            "names": [f"projects/{PROJECT}/services/{name}" for name in names],
        }
    )
    on = {one.config.name for one in found.services if one.state.name == "ENABLED"}
    assert on == services.enabled(google, names) == set(names)
    request = {"parent": f"projects/{PROJECT}", "service_ids": ["dns.googleapis.com"]}
    official.batch_enable_services(request=request).result(timeout=200)
    assert services.enabled(google, ["dns.googleapis.com"]) == {"dns.googleapis.com"}


def test_quotas_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = client(cloudquotas_v1.CloudQuotasClient, cloud)
    where = f"projects/{PROJECT}/locations/global"
    theirs = {
        info.quota_id: info
        for info in official.list_quota_infos(parent=f"{where}/services/{quotas.VERTEX}")
    }
    ours = quotas.quota_infos(google)
    assert {info["quotaId"] for info in ours} == set(theirs)
    for info in ours:
        same(cloudquotas_v1.QuotaInfo, info, theirs[info["quotaId"]])
    quota = quotas.quotas(google)[METRIC]
    assert quota.limit(REGION) == 2
    assert quota.limit("europe-west4") == 0
    quotas.request_quota(google, quota=quota, region=REGION, value=4, reason="training")
    (asked,) = official.list_quota_preferences(parent=where)
    same(cloudquotas_v1.QuotaPreference, quotas.requests_made(google)[0], asked)
    assert asked.quota_config.preferred_value == 4


def test_billing_and_prices_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = client(billing_v1.CloudBillingClient, cloud)
    info = official.get_project_billing_info(name=f"projects/{PROJECT}")
    assert info.billing_enabled is billing.billing_enabled(google) is True
    catalogue = client(billing_v1.CloudCatalogClient, cloud)
    theirs = list(catalogue.list_skus(parent=f"services/{billing.COMPUTE_ENGINE}"))
    ours = list(billing.skus(google))
    assert len(ours) == len(theirs) > 0
    for sku, read in zip(ours, theirs, strict=True):
        same(billing_v1.Sku, sku, read)


def test_log_entries_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    made = custom_jobs.create(
        google, region=REGION, job=body_of_a_job("sh", "-c", "echo one; echo two >&2")
    )
    ended(google, made["name"])
    chosen = logs.job_filter(custom_jobs.job_id(made["name"]))
    official = logging_v2.Client(
        project=PROJECT, credentials=AnonymousCredentials(), _use_grpc=False,
        client_options=options.ClientOptions(api_endpoint=cloud.url),
    )  # fmt: skip
    theirs = list(official.list_entries(filter_=chosen, order_by=logging_v2.ASCENDING))
    ours, _ = logs.entries(google, chosen=chosen)
    assert [entry.insert_id for entry in theirs] == [entry.insert_id for entry in ours]
    assert {"one", "two"} <= {entry.text for entry in ours}
    assert all(entry.resource.type == "ml_job" for entry in theirs)


def test_buckets_and_objects_are_the_same_from_both_sides(cloud: FakeCloud, google: Google) -> None:
    official = official_storage.Client(
        project=PROJECT, credentials=AnonymousCredentials(),
        client_options=options.ClientOptions(api_endpoint=cloud.url),
    )  # fmt: skip
    rule = {"action": {"type": "Delete"}, "condition": {"age": 30, "matchesPrefix": ["attempts/"]}}
    body = {
        "name": "demo-bucket", "location": REGION.upper(), "labels": LABELS,
        "iamConfiguration": {"uniformBucketLevelAccess": {"enabled": True}},
        "lifecycle": {"rule": [rule]}, "softDeletePolicy": {"retentionDurationSeconds": "0"},
    }  # fmt: skip
    storage.create_bucket(google, body=body)
    bucket = official.get_bucket("demo-bucket")
    assert list(bucket.lifecycle_rules) == [rule]
    assert bucket.labels == LABELS
    assert bucket.location == REGION.upper()
    assert bucket.iam_configuration.uniform_bucket_level_access_enabled
    made = storage.write_object(google, "demo-bucket", "runs/a b#1", b"one", generation=0)
    blob = bucket.get_blob("runs/a b#1")
    assert blob is not None
    assert (blob.generation, blob.md5_hash) == (int(made["generation"]), made["md5Hash"])
    assert blob.download_as_bytes() == b"one"
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(b"two", if_generation_match=0)
    blob.upload_from_string(b"two", if_generation_match=blob.generation)
    assert storage.read_object(google, "demo-bucket", "runs/a b#1") == b"two"
    assert [one["name"] for one in storage.list_objects(google, "demo-bucket")] == [
        one.name for one in official.list_blobs("demo-bucket")
    ]
    blob.delete()
    assert not storage.delete_object(google, "demo-bucket", "runs/a b#1")
    assert storage.delete_bucket(google, "demo-bucket")
    assert official.lookup_bucket("demo-bucket") is None


def test_every_call_above_is_an_official_request(cloud: FakeCloud) -> None:
    calls = [call for call in cloud.calls() if call["status"] != 400]  # one was wrong on purpose
    parsed = [parse(call) for call in calls]
    kinds = {type(request).__name__ for request in parsed if request is not None}
    assert len(kinds) > 25
