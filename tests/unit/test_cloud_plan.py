"""Desired state: what a plan says, that a dry run tells the truth, and what is never touched."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.plan import chosen
from saccade.cloud.rehearsal import rehearse
from saccade.cloud.resources import desired
from saccade.cloud.settings import QuotaNeed
from saccade.config.errors import InputError
from tests.cloud_project import CANARY, project

METRIC = "custom_model_training_preemptible_nvidia_l4_gpus"
NEED = QuotaNeed(METRIC, "us-central1", 4)


def labelled_bucket(place, name: str, **body: object) -> None:
    place.google.call(
        "POST", "storage", "/storage/v1/b", params={"project": body.pop("project", "my-project")},
        body={"name": name, "location": "US-CENTRAL1", **body},
    )  # fmt: skip


def test_a_fresh_project_gets_everything_in_an_order_that_works(tmp_path: Path) -> None:
    with project(tmp_path, scenario=Scenario(apis="fresh", default_quota=0), quotas=(NEED,)) as one:
        plan = one.plan()
        groups = list(dict.fromkeys(step.resource.group for step in plan.steps))
        assert groups == ["apis", "registry", "bucket", "account", "secrets", "roles", "quota"] or (
            groups == ["apis", "registry", "bucket", "account", "secrets", "roles"]
        )
        results = one.setup()
        assert {result.status for result in results} == {"done"}, results
        assert {entry.state for entry in one.manifest.entries().values()} == {"done"}


def test_planning_and_dry_runs_change_nothing(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        plan = one.plan()
        calls = [line for step in plan.steps for line in rehearse(one.google, step)]
        assert calls
        assert one.changes() == []
        assert one.manifest.entries() == {}


def test_the_calls_of_a_dry_run_are_those_that_apply_sends(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        plan = one.plan()
        shown = [line for step in plan.steps for line in rehearse(one.google, step)]
        before = one.calls()
        one.apply(plan)
        words = [line.split() for line in shown]
        expected = [f"{line[0]} {urlsplit(line[1]).path}" for line in words]
        assert one.changes(since=before) == expected


def test_the_bucket_is_regional_private_and_keeps_finals(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        found = one.google.call("GET", "storage", f"/storage/v1/b/{one.settings.bucket}")
        assert found["location"] == "US-CENTRAL1"
        assert found["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"] is True
        assert found["iamConfiguration"]["publicAccessPrevention"] == "enforced"
        assert str(found["softDeletePolicy"]["retentionDurationSeconds"]) == "0"
        deleting = [
            rule["condition"] for rule in found["lifecycle"]["rule"]
            if rule["action"]["type"] == "Delete"
        ]  # fmt: skip
        assert deleting == [{"age": 14, "matchesPrefix": ["attempts/"]}]


def test_a_drifted_bucket_is_brought_back_field_by_field(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        path = f"/storage/v1/b/{one.settings.bucket}"
        one.google.call("PATCH", "storage", path, body={"lifecycle": {"rule": []}})
        plan = one.plan()
        assert [(step.id, step.verb) for step in plan.steps] == [
            (f"bucket:{one.settings.bucket}", "update")
        ]
        assert "lifecycle" in plan.steps[0].what
        one.apply(plan)
        assert one.plan().steps == ()


def test_foreign_things_of_the_same_name_are_refused_and_what_needs_them_waits(
    tmp_path: Path,
) -> None:
    with project(tmp_path) as one:
        labelled_bucket(one, one.settings.bucket)
        plan = one.plan()
        refused = {finding.name: finding for finding in plan.refused}
        bucket = f"bucket:{one.settings.bucket}"
        assert "without the label" in refused[bucket].message
        assert "SACCADE_BUCKET" in refused[bucket].fix
        assert any("objectUser" in name for name in refused)
        one.apply(plan)
        found = one.google.call("GET", "storage", f"/storage/v1/b/{one.settings.bucket}")
        assert "labels" not in found


def test_a_labelled_bucket_of_another_project_is_foreign(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        labelled_bucket(one, "squatted", project="attacker", labels={"app": "saccade"})
    with project(tmp_path, SACCADE_BUCKET="squatted") as one:
        refused = {finding.name: finding.message for finding in one.plan().refused}
        assert "another project" in refused["bucket:squatted"]


def test_a_foreign_service_account_is_refused(tmp_path: Path) -> None:
    scenario = Scenario(service_accounts=("saccade-trainer",))
    with project(tmp_path, scenario=scenario) as one:
        refused = [finding.name for finding in one.plan().refused]
        assert f"account:{one.settings.account_email}" in refused


def test_a_secret_is_stored_once_and_a_new_value_replaces_the_old(tmp_path: Path) -> None:
    path = "/v1/projects/my-project/secrets/saccade-wandb-api-key"
    with project(tmp_path) as one:
        one.setup()
        assert one.plan().steps == ()
    with project(tmp_path, WANDB_API_KEY="another-key") as one:
        plan = one.plan()
        assert [step.id for step in plan.steps] == ["secret:saccade-wandb-api-key"]
        one.apply(plan)
        versions = one.google.call("GET", "secretmanager", f"{path}/versions")["versions"]
        enabled = [found["name"] for found in versions if found["state"] == "ENABLED"]
        assert [name.rpartition("/")[2] for name in enabled] == ["2"]
        assert one.plan().steps == ()


def test_no_secret_value_is_in_plans_records_or_annotations(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        plan = one.plan()
        text = json.dumps(plan.to_json()) + repr(plan)
        text += "".join(line for step in plan.steps for line in rehearse(one.google, step))
        one.apply(plan)
        text += one.settings.manifest_file.read_text()
        path = "/v1/projects/my-project/secrets/saccade-wandb-api-key"
        text += json.dumps(one.google.call("GET", "secretmanager", path))
        assert CANARY not in text


def test_have_need_and_unknown_quota_are_three_things(tmp_path: Path) -> None:
    unknown = QuotaNeed("custom_model_training_no_such_gpus", "us-central1", 1)
    scenario = Scenario(quotas={METRIC: {"us-central1": 1}}, quota_requests="pending")
    with project(tmp_path, scenario=scenario, quotas=(NEED, unknown)) as one:
        plan = one.plan()
        step = next(step for step in plan.steps if step.resource.group == "quota")
        assert "have 1, need 4" in step.what
        assert any("have unknown" in note for note in plan.notes)
        assert [result.status for result in one.apply(plan)].count("failed") == 0
        again = one.plan()
        assert again.steps == ()
        assert any("Google decides" in note for note in again.notes)


def test_granted_quota_ends_the_asking(tmp_path: Path) -> None:
    scenario = Scenario(quotas={METRIC: 0}, quota_requests="grant")
    with project(tmp_path, scenario=scenario, quotas=(NEED,)) as one:
        one.setup()
        plan = one.plan()
        assert plan.steps == ()
        assert plan.notes == ()


def test_only_names_groups_and_refuses_others(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        found = chosen(desired(one.settings), only=["apis", "bucket"])
        assert {resource.group for resource in found} == {"apis", "bucket"}
        with pytest.raises(InputError, match="expected some of apis"):
            chosen([], only=["buckets"])


def test_lagging_apis_accounts_and_lists_are_waited_for(tmp_path: Path) -> None:
    scenario = Scenario(
        apis="fresh", enable_lag=0.3, account_lag=0.3, list_lag=0.2, operation_seconds=0.1
    )
    with project(tmp_path, scenario=scenario) as one:
        results = one.setup()
        assert [(result.id, result.message) for result in results if result.status != "done"] == []
        assert one.plan().steps == ()


def test_a_teardown_removes_what_setup_made_and_nothing_else(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        labelled_bucket(one, "somebody-elses")
        one.setup()
        plan = one.plan_teardown()
        assert plan.refused == ()
        assert {result.status for result in one.apply(plan)} == {"done"}
        assert one.left() == []
        assert one.manifest.entries() == {}
        names = [
            found["name"]
            for found in one.google.call(
                "GET", "storage", "/storage/v1/b", params={"project": "my-project"}
            )["items"]
        ]
        assert names == ["somebody-elses"]


def test_a_role_you_had_before_is_not_taken_from_you(tmp_path: Path) -> None:
    from saccade.cloud.api import iam

    with project(tmp_path, scenario=Scenario()) as one:
        here = iam.project(one.google)
        iam.grant(one.google, here, role="roles/aiplatform.user", member="user:me@example.com")
        one.setup()
        one.teardown()
        policy = iam.get_policy(one.google, here)
        assert iam.has_binding(policy, role="roles/aiplatform.user", member="user:me@example.com")
        assert "saccade-trainer" not in json.dumps(policy)


def test_teardown_refuses_a_recorded_thing_whose_label_is_gone(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        path = f"/storage/v1/b/{one.settings.bucket}"
        one.google.call("PATCH", "storage", path, body={"labels": {"app": None}})
        plan = one.plan_teardown()
        assert [finding.name for finding in plan.refused] == [f"bucket:{one.settings.bucket}"]
        assert plan.refused[0].level == "block"
        one.apply(plan)
        assert one.google.call("GET", "storage", path)["name"] == one.settings.bucket


def test_a_lost_record_is_made_up_for_by_labels(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        one.settings.manifest_file.unlink()
        one.teardown()
        assert one.left() == []


def test_changed_settings_leave_nothing_behind(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
    with project(tmp_path, SACCADE_BUCKET="new-bucket", GOOGLE_CLOUD_REGION="us-east4") as one:
        one.setup()
        one.teardown()
        assert one.left() == []
        assert one.manifest.entries() == {}


def test_labelled_things_of_others_are_shown_and_removed_only_when_asked(tmp_path: Path) -> None:
    with project(tmp_path) as one:
        one.setup()
        labelled_bucket(one, "a-colleagues", labels={"app": "saccade"})
        one.teardown()
        assert [left.resource.id for left in one.left()] == ["bucket:a-colleagues"]
        assert any("--all" in note for note in one.plan_teardown().notes)
        one.teardown(all_labelled=True)
        assert one.left() == []


def test_finished_runs_are_found_before_a_bucket_goes(tmp_path: Path) -> None:
    from saccade.cloud.teardown import held_finals

    with project(tmp_path) as one:
        one.setup()
        for name in ("runs/relevance/DONE", "runs/started/config.yaml", "attempts/a/DONE"):
            one.google.call(
                "POST", "storage", f"/upload/storage/v1/b/{one.settings.bucket}/o",
                params={"uploadType": "media", "name": name}, body={"x": 1},
            )  # fmt: skip
        plan = one.plan_teardown()
        assert held_finals(one.google, plan) == {one.settings.bucket: ["relevance"]}
        one.apply(plan)
        assert one.left() == []


def test_running_jobs_are_stopped_first(tmp_path: Path) -> None:
    from saccade.cloud.api import custom_jobs

    container = {"imageUri": "any", "command": ["python", "-c", "import time; time.sleep(600)"]}
    pool = {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": "1"}
    body = {
        "displayName": "a run",
        "labels": {"app": "saccade"},
        "jobSpec": {"workerPoolSpecs": [pool | {"containerSpec": container}]},
    }
    scenario = Scenario(check_images=False, grace_seconds=0.2)
    with project(tmp_path, scenario=scenario) as one:
        job = custom_jobs.create(one.google, region="us-central1", job=body)
        plan = one.plan_teardown()
        assert [step.verb for step in plan.steps] == ["cancel"]
        assert plan.steps[0].what == "job a run in us-central1"
        assert [result.status for result in one.apply(plan)] == ["done"]
        assert one.left() == []
        state = custom_jobs.get(one.google, job["name"])["state"]
        assert state in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")


def test_billing_that_is_off_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with project(tmp_path, scenario=Scenario(billing=False)) as one:
        refused = [finding for finding in one.plan().refused if "billing is off" in finding.message]
        assert refused
        assert "gcloud billing projects link" in refused[0].fix


def test_the_roles_of_a_foreign_account_are_left_alone(tmp_path: Path) -> None:
    from saccade.cloud.api import iam

    with project(tmp_path, scenario=Scenario(service_accounts=("saccade-trainer",))) as one:
        member = f"serviceAccount:{one.settings.account_email}"
        iam.grant(
            one.google, iam.project(one.google), role="roles/logging.logWriter", member=member
        )
        assert one.plan_teardown().steps == ()
        assert one.left() == []
