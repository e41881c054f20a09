"""Who may do what, and why: the whole list of roles that saccade grants.

Settings flow in, `Grant`s flow out; the guide and `saccade cloud setup --dry-run` print the same
sentences. Each grant is on the narrowest resource that works: only writing logs has to be on the
project. Left out: how a policy is changed (`resource_roles.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade.cloud.settings import CloudSettings, secret_id


@dataclass(frozen=True)
class Grant:
    """One role for one member on one resource."""

    role: str
    on: str
    """Kind of resource: project, bucket, repository, account or secret."""
    resource: str
    """Its name."""
    member: str
    """IAM member, for example serviceAccount:a@b."""
    why: str

    @property
    def id(self) -> str:
        """Return the name of this grant in plans and in the manifest."""
        who = self.member.partition(":")[2]
        if self.member.startswith("serviceAccount:"):
            who = who.partition("@")[0]
        return f"role:{self.role.removeprefix('roles/')}@{self.resource}:{who}"


def grants(settings: CloudSettings) -> list[Grant]:
    """List every role saccade needs."""
    trainer = f"serviceAccount:{settings.account_email}"
    rows = [
        Grant("roles/storage.objectUser", "bucket", settings.bucket, trainer,
              "A job reads its code and configuration and writes checkpoints, in this one."),
        Grant("roles/artifactregistry.reader", "repository", settings.repository, trainer,
              "A job pulls its image, from this repository only."),
        Grant("roles/logging.logWriter", "project", settings.project, trainer,
              "A job writes its log lines; this role exists on projects only and reads nothing."),
    ]  # fmt: skip
    rows += [
        Grant("roles/secretmanager.secretAccessor", "secret", secret_id(variable), trainer,
              f"A job reads {variable} when it starts; no other secret is readable to it.")
        for variable in settings.secrets
    ]  # fmt: skip
    return rows + caller_grants(settings)


def caller_grants(settings: CloudSettings) -> list[Grant]:
    """List the roles of the person who launches; empty when GOOGLE_CLOUD_ACCOUNT is not set."""
    if settings.caller is None:
        return []
    kind = "serviceAccount" if settings.caller.endswith(".gserviceaccount.com") else "user"
    caller = f"{kind}:{settings.caller}"
    return [
        Grant("roles/aiplatform.user", "project", settings.project, caller,
              "You create, list and cancel jobs."),
        Grant("roles/iam.serviceAccountUser", "account", settings.account_email, caller,
              "You start jobs that run as this one service account."),
    ]  # fmt: skip
