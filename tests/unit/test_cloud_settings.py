"""Names of projects, regions and resources: derived once, checked, never a secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.cloud.roles import grants
from saccade.cloud.settings import read_settings, secret_id
from saccade.config.errors import InputError

CANARY = "canary-8d1f"


def test_every_name_follows_from_project_and_region() -> None:
    settings = read_settings(
        {"GOOGLE_CLOUD_PROJECT": "my-project", "GOOGLE_CLOUD_REGION": "europe-west4"}
    )
    assert settings.bucket == "my-project-saccade-europe-west4"
    assert settings.store == "gs://my-project-saccade-europe-west4"
    assert settings.account_email == "saccade-trainer@my-project.iam.gserviceaccount.com"
    assert settings.image_prefix == "europe-west4-docker.pkg.dev/my-project/saccade"
    assert settings.regions == ("europe-west4",)


def test_the_longest_names_make_a_legal_bucket() -> None:
    env = {"GOOGLE_CLOUD_PROJECT": "p" * 30, "GOOGLE_CLOUD_REGION": "northamerica-northeast1"}
    assert len(read_settings(env).bucket) <= 63


def test_a_project_of_a_domain_is_understood() -> None:
    settings = read_settings({"GOOGLE_CLOUD_PROJECT": "example.com:my-project"})
    assert settings.account_email == (
        "saccade-trainer@my-project.example.com.iam.gserviceaccount.com"
    )
    assert settings.bucket.startswith("example-com-my-project-")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("GOOGLE_CLOUD_PROJECT", "My Project", "a project id"),
        ("GOOGLE_CLOUD_REGION", "us-central1-a", "not a zone"),
        ("SACCADE_BUCKET", "gs://Up", "3 to 63"),
        ("GOOGLE_CLOUD_ACCOUNT", "me", "an e-mail address"),
    ],
)
def test_a_malformed_value_names_its_variable(name: str, value: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        read_settings({"GOOGLE_CLOUD_PROJECT": "my-project"} | {name: value})
    assert name in str(caught.value)
    assert "fix:" in str(caught.value)


def test_a_missing_project_says_what_to_do_but_the_stand_in_needs_none() -> None:
    with pytest.raises(InputError, match="GOOGLE_CLOUD_PROJECT is not set"):
        read_settings({})
    settings = read_settings({"SACCADE_FAKE_CLOUD": "http://127.0.0.1:1"})
    assert settings.fake


def test_the_stand_in_has_a_record_of_its_own(tmp_path: Path) -> None:
    env = {"GOOGLE_CLOUD_PROJECT": "my-project", "SACCADE_HOME": str(tmp_path)}
    real = read_settings(env).manifest_file
    fake = read_settings(env | {"SACCADE_FAKE_CLOUD": "http://127.0.0.1:1"}).manifest_file
    assert real == tmp_path / "cloud" / "my-project.json"
    assert fake != real


def test_secrets_are_masked_in_every_display() -> None:
    settings = read_settings({"GOOGLE_CLOUD_PROJECT": "my-project", "HF_TOKEN": CANARY})
    assert secret_id("HF_TOKEN") == "saccade-hf-token"
    assert CANARY not in repr(settings)
    assert CANARY not in str(vars(settings))


def test_every_role_has_a_reason_and_only_logging_is_on_the_project_for_jobs() -> None:
    env = {
        "GOOGLE_CLOUD_PROJECT": "my-project",
        "GOOGLE_CLOUD_ACCOUNT": "me@example.com",
        "WANDB_API_KEY": CANARY,
    }
    settings = read_settings(env)
    found = grants(settings)
    assert all(grant.why.endswith(".") for grant in found)
    assert {(grant.role, grant.on) for grant in found} == {
        ("roles/storage.objectUser", "bucket"),
        ("roles/artifactregistry.reader", "repository"),
        ("roles/logging.logWriter", "project"),
        ("roles/secretmanager.secretAccessor", "secret"),
        ("roles/aiplatform.user", "project"),
        ("roles/iam.serviceAccountUser", "account"),
    }
    on_project = [grant for grant in found if grant.on == "project"]
    jobs = [grant for grant in on_project if settings.account_email in grant.member]
    assert [grant.role for grant in jobs] == ["roles/logging.logWriter"]
    for grant in found:
        assert not grant.role.endswith(("admin", "owner", "editor"))
