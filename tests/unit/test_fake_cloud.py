"""The fake cloud's services apart from jobs and storage: shapes, names, errors, order of events."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from saccade.cloud.fake import filters
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from tests.fake_cloud_calls import PLACE, PROJECT, call, create, good, job_body, until

ROOT = f"/v1/projects/{PROJECT}"
ACCOUNT = f"saccade-trainer@{PROJECT}.iam.gserviceaccount.com"
IMAGE = f"us-central1-docker.pkg.dev/{PROJECT}/saccade/train:v1"
BUILD = {"steps": [{"name": "docker", "args": ["build", "."]}], "images": [IMAGE], "tags": ["v1"]}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[FakeCloud]:
    with serve(tmp_path, scenario=Scenario(build_seconds=0.05)) as running:
        yield running


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeCloud, float], None]:
    """Set a cloud's clock ahead: what takes its time there takes none here."""

    def ahead(cloud: FakeCloud, seconds: float) -> None:
        monkeypatch.setattr(cloud.world, "now", lambda: time.time() + seconds)

    return ahead


def built(cloud: FakeCloud, body: dict) -> dict:
    operation = good(cloud, "POST", f"{ROOT}/builds", body)
    build_id = operation["metadata"]["build"]["id"]
    end = time.monotonic() + 200
    while True:
        build = good(cloud, "GET", f"{ROOT}/builds/{build_id}")
        if build["status"] not in ("QUEUED", "WORKING"):
            assert good(cloud, "GET", f"/v1/{operation['name']}")["done"]
            return build
        assert time.monotonic() < end, build
        time.sleep(0.01)


def repository(cloud: FakeCloud, **more: object) -> dict:
    return good(
        cloud, "POST", f"{PLACE}/repositories?repositoryId=saccade", {"format": "DOCKER", **more}
    )


def test_a_repository_is_made_once_changed_and_deleted_with_its_images(cloud: FakeCloud) -> None:
    made = repository(cloud, labels={"app": "saccade"})
    assert made["done"] and made["response"]["format"] == "DOCKER"
    path = f"{PLACE}/repositories/saccade"
    assert (
        call(cloud, "POST", f"{PLACE}/repositories?repositoryId=saccade", {"format": 1})[0] == 409
    )
    changed = good(cloud, "PATCH", f"{path}?updateMask=labels", {"labels": {"app": "other"}})
    assert changed["labels"] == {"app": "other"}
    digest = cloud.register_image(IMAGE)
    images = good(cloud, "GET", f"{path}/dockerImages")["dockerImages"]
    assert [image["tags"] for image in images] == [["v1"]]
    assert images[0]["uri"].endswith(f"/saccade/train@{digest}")
    assert good(cloud, "GET", f"{path}/packages/train/tags/v1")["version"].endswith(digest)
    assert good(cloud, "DELETE", path)["done"]
    status, answer = call(cloud, "GET", f"{path}/dockerImages")
    assert (status, answer["error"]["status"]) == (404, "NOT_FOUND")


def test_operations_take_their_time_when_asked_for(
    tmp_path: Path, later: Callable[[FakeCloud, float], None]
) -> None:
    with serve(tmp_path, scenario=Scenario(operation_seconds=1000)) as cloud:
        made = repository(cloud)
        assert "done" not in made
        assert "response" not in good(cloud, "GET", f"/v1/{made['name']}")
        later(cloud, 1000)
        assert good(cloud, "GET", f"/v1/{made['name']}")["done"]
        assert call(cloud, "GET", "/v1/operations/none")[0] == 404


def test_a_build_registers_its_image_and_logs_its_steps(cloud: FakeCloud) -> None:
    repository(cloud)
    build = built(cloud, BUILD)
    assert build["status"] == "SUCCESS"
    digest = build["results"]["images"][0]["digest"]
    found = good(cloud, "GET", f"{PLACE}/repositories/saccade/dockerImages")["dockerImages"]
    assert found[0]["uri"].endswith(digest)
    wanted = f'resource.type="build" AND resource.labels.build_id="{build["id"]}"'
    asked = {"resourceNames": [f"projects/{PROJECT}"], "filter": wanted}
    lines = [
        entry["textPayload"] for entry in good(cloud, "POST", "/v2/entries:list", asked)["entries"]
    ]
    assert lines[0].startswith("starting build") and lines[-1] == "DONE"
    query = quote('tags="v1"')
    tagged = good(cloud, "GET", f"{ROOT}/builds?filter={query}")["builds"]
    assert [one["id"] for one in tagged] == [build["id"]]
    assert built(cloud, BUILD)["results"]["images"][0]["digest"] == digest, "same build, same image"


def test_a_build_and_its_operation_end_in_one_moment(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(cloud)
    update = cloud.world.store.update

    def slowly(collection: str, name: str, change: Callable[[dict], dict | None]) -> dict | None:
        result = update(collection, name, change)
        time.sleep(0.1)
        return result

    monkeypatch.setattr(cloud.world.store, "update", slowly)
    built(cloud, BUILD)  # asks for the operation as soon as the build says that it is over


def test_builds_fail_without_a_repository_a_source_or_by_the_scenario(cloud: FakeCloud) -> None:
    assert "not found" in built(cloud, BUILD)["failureInfo"]["detail"]
    repository(cloud)
    source = {"storageSource": {"bucket": "none", "object": "code.tar.gz"}}
    assert "gs://none/code.tar.gz" in built(cloud, BUILD | {"source": source})["statusDetail"]
    cloud.set_scenario(Scenario(build_seconds=0.05, failing_builds=("train:v1",)))
    assert "exited with status 1" in built(cloud, BUILD)["statusDetail"]
    assert built(cloud, BUILD | {"images": []})["status"] == "SUCCESS"


def test_a_build_can_be_cancelled_and_is_checked(cloud: FakeCloud) -> None:
    cloud.set_scenario(Scenario(build_seconds=60))
    made = good(cloud, "POST", f"{ROOT}/builds", BUILD)["metadata"]["build"]
    path = f"{ROOT}/builds/{made['id']}"
    assert good(cloud, "POST", f"{path}:cancel", {})["status"] == "CANCELLED"
    assert call(cloud, "POST", f"{ROOT}/builds", {"steps": []})[0] == 400
    status, answer = call(cloud, "POST", f"{ROOT}/builds", BUILD | {"serviceAccount": "x"})
    assert status == 400 and "CLOUD_LOGGING_ONLY" in answer["error"]["message"]


def test_secrets_have_versions_and_only_enabled_ones_are_read(cloud: FakeCloud) -> None:
    path = f"{ROOT}/secrets"
    automatic = {"replication": {"automatic": {}}, "labels": {"app": "saccade"}}
    made = good(cloud, "POST", f"{path}?secretId=wandb", automatic)
    assert made["name"].startswith("projects/") and PROJECT not in made["name"], "by number"
    assert call(cloud, "POST", f"{path}?secretId=wandb", automatic)[0] == 409
    assert call(cloud, "GET", f"{path}/wandb/versions/latest:access")[0] == 404
    for text in (b"old", b"canary-new"):
        payload = {"payload": {"data": base64.b64encode(text).decode()}}
        good(cloud, "POST", f"{path}/wandb:addVersion", payload)
    read = good(cloud, "GET", f"/v1/{made['name']}/versions/latest:access")
    assert base64.b64decode(read["payload"]["data"]) == b"canary-new"
    assert good(cloud, "GET", f"{path}/wandb/versions/1")["state"] == "ENABLED"
    assert good(cloud, "POST", f"{path}/wandb/versions/2:disable", {})["state"] == "DISABLED"
    status, answer = call(cloud, "GET", f"{path}/wandb/versions/2:access")
    assert (status, answer["error"]["status"]) == (400, "FAILED_PRECONDITION")
    wrong = {"payload": {"data": "aGk=", "dataCrc32c": "1"}}
    assert call(cloud, "POST", f"{path}/wandb:addVersion", wrong)[0] == 400
    assert good(cloud, "GET", f"{path}?filter={quote('labels.app=saccade')}")["secrets"]
    encoded = base64.b64encode(b"canary-new").decode()
    assert encoded not in str(cloud.calls()), "payloads are never recorded"
    good(cloud, "DELETE", f"{path}/wandb")
    assert call(cloud, "GET", f"{path}/wandb")[0] == 404


def test_a_stored_secret_is_readable_by_its_owner_only(cloud: FakeCloud) -> None:
    good(cloud, "POST", f"{ROOT}/secrets?secretId=k", {"replication": {"automatic": {}}})
    good(cloud, "POST", f"{ROOT}/secrets/k:addVersion", {"payload": {"data": "aGk="}})
    files = list((cloud.state / "documents" / "secretVersions").iterdir())
    assert files and all(file.stat().st_mode & 0o077 == 0 for file in files)


def test_policies_have_etags_and_accounts_must_exist(cloud: FakeCloud) -> None:
    path = f"/v3/projects/{PROJECT}"
    before = good(cloud, "POST", f"{path}:getIamPolicy", {})
    binding = {"role": "roles/logging.logWriter", "members": [f"serviceAccount:{ACCOUNT}"]}
    policy = {"policy": {"bindings": [binding], "etag": before["etag"]}}
    status, answer = call(cloud, "POST", f"{path}:setIamPolicy", policy)
    assert status == 400 and "does not exist" in answer["error"]["message"]
    made = good(cloud, "POST", f"{ROOT}/serviceAccounts", {"accountId": "saccade-trainer"})
    assert made["email"] == ACCOUNT
    assert (
        call(cloud, "POST", f"{ROOT}/serviceAccounts", {"accountId": "saccade-trainer"})[0] == 409
    )
    after = good(cloud, "POST", f"{path}:setIamPolicy", policy)
    assert after["bindings"] == [binding] and after["etag"] != before["etag"]
    status, answer = call(cloud, "POST", f"{path}:setIamPolicy", policy)
    assert (status, answer["error"]["status"]) == (409, "ABORTED")
    good(cloud, "DELETE", f"{ROOT}/serviceAccounts/{ACCOUNT}")
    member = good(cloud, "POST", f"{path}:getIamPolicy", {})["bindings"][0]["members"][0]
    assert member == f"deleted:serviceAccount:{ACCOUNT}?uid={made['uniqueId']}"


def test_each_resource_has_its_own_policy_and_method(cloud: FakeCloud) -> None:
    repository(cloud)
    good(cloud, "POST", f"{ROOT}/secrets?secretId=k", {"replication": {"automatic": {}}})
    good(cloud, "POST", f"{ROOT}/serviceAccounts", {"accountId": "saccade-trainer"})
    policy = {"policy": {"bindings": [{"role": "roles/viewer", "members": ["user:a@b.c"]}]}}
    for path, method in (
        (f"{PLACE}/repositories/saccade", "GET"),
        (f"{ROOT}/secrets/k", "GET"),
        (f"{ROOT}/serviceAccounts/{ACCOUNT}", "POST"),
    ):
        assert "bindings" not in good(cloud, method, f"{path}:getIamPolicy")
        good(cloud, "POST", f"{path}:setIamPolicy", policy)
        assert good(cloud, method, f"{path}:getIamPolicy")["bindings"]
    assert "bindings" not in good(cloud, "POST", f"/v3/projects/{PROJECT}:getIamPolicy")


def test_a_new_account_is_unknown_to_policies_for_a_while(
    tmp_path: Path, later: Callable[[FakeCloud, float], None]
) -> None:
    with serve(tmp_path, scenario=Scenario(account_lag=1000)) as cloud:
        good(cloud, "POST", f"{ROOT}/serviceAccounts", {"accountId": "saccade-trainer"})
        binding = {"role": "roles/viewer", "members": [f"serviceAccount:{ACCOUNT}"]}
        body = {"policy": {"bindings": [binding]}}
        path = f"/v3/projects/{PROJECT}:setIamPolicy"
        assert call(cloud, "POST", path, body)[0] == 400
        later(cloud, 1000)
        good(cloud, "POST", path, body)


def test_a_fresh_project_has_its_apis_off_until_they_are_enabled(
    tmp_path: Path, later: Callable[[FakeCloud, float], None]
) -> None:
    with serve(tmp_path, scenario=Scenario(apis="fresh", enable_lag=1000)) as cloud:
        status, answer = call(cloud, "GET", f"{PLACE}/customJobs")
        info = next(d for d in answer["error"]["details"] if d["@type"].endswith("ErrorInfo"))
        assert (status, info["reason"]) == (403, "SERVICE_DISABLED")
        assert info["metadata"]["service"] == "aiplatform.googleapis.com"
        name = "aiplatform.googleapis.com"
        assert good(cloud, "GET", f"{ROOT}/services/{name}")["state"] == "DISABLED"
        made = good(cloud, "POST", f"{ROOT}/services/{name}:enable", {})
        assert made["done"] and made["name"].startswith("operations/")
        assert (
            good(cloud, "GET", f"/v1/{made['name']}")["response"]["service"]["state"] == "ENABLED"
        )
        assert call(cloud, "GET", f"{PLACE}/customJobs")[0] == 403, "not everywhere yet"
        later(cloud, 1000)
        good(cloud, "GET", f"{PLACE}/customJobs")
        on = good(cloud, "GET", f"{ROOT}/services?filter=state:ENABLED&pageSize=200")["services"]
        assert {item["config"]["name"] for item in on} >= {name, "storage.googleapis.com"}


def test_many_apis_are_enabled_at_once_and_unknown_ones_refused(cloud: FakeCloud) -> None:
    cloud.set_scenario(Scenario(apis="fresh"))
    ids = ["aiplatform.googleapis.com", "cloudbuild.googleapis.com"]
    made = good(cloud, "POST", f"{ROOT}/services:batchEnable", {"serviceIds": ids})
    assert [one["state"] for one in made["response"]["services"]] == ["ENABLED"] * 2
    assert call(cloud, "POST", f"{ROOT}/services/nonsense:enable", {})[0] == 403


def test_without_billing_nothing_that_costs_is_possible(tmp_path: Path) -> None:
    with serve(tmp_path, scenario=Scenario(billing=False)) as cloud:
        assert good(cloud, "GET", f"{ROOT}/billingInfo")["billingEnabled"] is False
        status, answer = call(cloud, "GET", f"{PLACE}/customJobs")
        assert (status, answer["error"]["details"][0]["reason"]) == (403, "BILLING_DISABLED")
        good(cloud, "GET", f"{ROOT}/serviceAccounts")


def test_a_missing_project_is_a_403_and_a_number_is_as_good_as_an_id(tmp_path: Path) -> None:
    with serve(tmp_path, scenario=Scenario(missing_projects=("gone",))) as cloud:
        assert call(cloud, "GET", "/v3/projects/gone")[0] == 403
        number = good(cloud, "GET", f"/v3/projects/{PROJECT}")["name"].rpartition("/")[2]
        assert good(cloud, "GET", f"/v3/projects/{number}")["projectId"] == PROJECT


def test_quota_is_shown_per_region_and_a_granted_request_raises_it(cloud: FakeCloud) -> None:
    metric = "custom_model_training_preemptible_nvidia_a100_gpus"
    scenario = Scenario(quotas={metric: {"us-central1": 0}}, quota_requests="grant")
    cloud.set_scenario(scenario)
    base = f"{ROOT}/locations/global"
    path = f"{base}/services/aiplatform.googleapis.com/quotaInfos?pageSize=100"
    info = next(
        one
        for one in good(cloud, "GET", path)["quotaInfos"]
        if one["metric"] == f"aiplatform.googleapis.com/{metric}"
    )
    assert info["dimensionsInfos"][0]["dimensions"] == {"region": "us-central1"}
    assert "value" in info["dimensionsInfos"][0]["details"]
    machine = {"machine": "a2-highgpu-1g", "gpu": ("NVIDIA_TESLA_A100", 1)}
    body = job_body("pass", scheduling={"strategy": "SPOT"}, **machine)
    assert call(cloud, "POST", f"{PLACE}/customJobs", body)[0] == 429
    asked = {
        "service": "aiplatform.googleapis.com",
        "quotaId": info["quotaId"],
        "dimensions": {"region": "us-central1"},
        "quotaConfig": {"preferredValue": "2"},
    }
    made = good(cloud, "POST", f"{base}/quotaPreferences?quotaPreferenceId=more", asked)
    assert made["quotaConfig"]["grantedValue"] == "2" and not made["reconciling"]
    assert call(cloud, "POST", f"{base}/quotaPreferences?quotaPreferenceId=more", asked)[0] == 409
    until(cloud, create(cloud, body), "SUCCEEDED")
    assert good(cloud, "GET", f"{base}/quotaPreferences")["quotaPreferences"]


def test_the_catalogue_has_pages_and_decoys(cloud: FakeCloud) -> None:
    path, token, found = "/v1/services/6F81-5844-456A/skus?pageSize=400", "", []
    while True:
        page = good(cloud, "GET", f"{path}&pageToken={token}")
        found += page["skus"]
        token = quote(page.get("nextPageToken", ""))
        if not token:
            break
    texts = [sku["description"] for sku in found]
    assert len(found) > 1000 and len({sku["skuId"] for sku in found}) == len(found)
    for words in ("Commitment v1", "Calendar Mode", "Defined Duration", "A100 80GB", "Spot"):
        assert any(words in text for text in texts), words
    spot = next(text for text in texts if text.startswith("Nvidia Tesla A100 GPU attached to Spot"))
    assert "Americas" in " ".join(texts) and spot


def test_machine_types_are_listed_where_they_exist(cloud: FakeCloud) -> None:
    path = f"/compute/v1/projects/{PROJECT}/zones"
    names = [
        item["name"] for item in good(cloud, "GET", f"{path}/us-central1-a/machineTypes")["items"]
    ]
    assert {"a2-highgpu-1g", "a2-ultragpu-1g", "n1-standard-4"} <= set(names)
    west = good(cloud, "GET", f"{path}/us-west4-a/machineTypes?filter=name=a2-ultragpu-1g")
    assert "items" not in west
    assert call(cloud, "GET", f"{path}/mars-1-a/machineTypes")[0] == 404


def test_log_entries_are_filtered_by_time_and_paged_in_order(cloud: FakeCloud) -> None:
    path = create(cloud, job_body("for n in range(30): print(n)"))
    until(cloud, path, "SUCCEEDED")
    job_id = path.rpartition("/")[2]
    base = {"resourceNames": [f"projects/{PROJECT}"], "pageSize": 10}
    wanted = f'resource.labels.job_id="{job_id}" logName:workerpool0-0'
    first = good(cloud, "POST", "/v2/entries:list", base | {"filter": wanted})
    more = base | {"filter": wanted, "pageToken": first["nextPageToken"]}
    second = good(cloud, "POST", "/v2/entries:list", more)
    texts = [entry["textPayload"] for entry in first["entries"] + second["entries"]]
    assert texts == [str(n) for n in range(20)]
    last = second["entries"][-1]["timestamp"]
    late = base | {"filter": f'{wanted} AND timestamp>"{last}" AND severity>=INFO'}
    rest = good(cloud, "POST", "/v2/entries:list", late)["entries"]
    assert [entry["textPayload"] for entry in rest] == [str(n) for n in range(20, 30)]
    ids = [entry["insertId"] for entry in first["entries"] + second["entries"] + rest]
    assert len(set(ids)) == 30
    down = good(cloud, "POST", "/v2/entries:list", late | {"orderBy": "timestamp desc"})
    assert down["entries"][0]["textPayload"] == "29"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ('labels.run="a"', True),
        ("labels.run=a AND state=X", True),
        ("labels.run=b OR state=X", True),
        ("labels.run=a state=Y", False),
        ("NOT state=X", False),
        ("-state=Y", True),
        ("(state=Y OR n>=3) AND labels.run:*", True),
        ("labels.other:*", False),
        ('state=("X" OR "Z")', True),
        ("tags=t1", True),
        ("display_name:JO", True),
        ('create_time>"2026-01-01T00:00:00Z"', True),
        ('create_time<="2026-01-01T00:00:00+00:00"', False),
        ('displayName=~"^j.b$"', True),
        ('labels."run"!="b"', True),
    ],
)
def test_filters_mean_what_they_say(text: str, holds: bool) -> None:
    document = {
        "labels": {"run": "a"},
        "state": "X",
        "n": 3,
        "tags": ["t1", "t2"],
        "displayName": "job",
        "createTime": "2026-01-01T00:00:00.5Z",
    }
    assert filters.parse(text)(document) is holds
