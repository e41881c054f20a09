"""Secret Manager: secrets, their versions, and reading one inside a job.

Secret values flow in and out only as `SecretStr`, so that no log or traceback shows them. Names of
secrets are what jobs get; values never leave this service and the process that asked.
"""

from __future__ import annotations

import base64
from typing import Any

from pydantic import SecretStr

from saccade.cloud.api.transport import ApiError, Google, NotFound

SERVICE = "secretmanager"


def get(google: Google, name: str) -> dict[str, Any] | None:
    """Read a secret's description (never its value); None if there is none."""
    try:
        return google.call("GET", SERVICE, _path(google, name))
    except NotFound:
        return None


def list_by_label(google: Google, *, labels: dict[str, str]) -> list[dict[str, Any]]:
    """List the secrets that carry all these labels."""
    wanted = " AND ".join(f"labels.{key}={value}" for key, value in labels.items())
    params = {"filter": wanted} if wanted else {}
    path = f"/v1/projects/{google.project}/secrets"
    return list(google.pages(SERVICE, path, items="secrets", params=params))


def create(google: Google, name: str, *, labels: dict[str, str]) -> dict[str, Any]:
    """Make an empty secret, replicated as Google sees fit."""
    return google.call(
        "POST", SERVICE, f"/v1/projects/{google.project}/secrets",
        body={"replication": {"automatic": {}}, "labels": labels},
        params={"secretId": name}, settle=lambda: get(google, name),
    )  # fmt: skip


def delete(google: Google, name: str) -> bool:
    """Delete a secret with all its versions; returns False if there is none."""
    try:
        google.call("DELETE", SERVICE, _path(google, name))
    except NotFound:
        return False
    return True


def add_version(google: Google, name: str, value: SecretStr) -> str:
    """Store a new value and return the version's name; the same value twice adds nothing."""
    before = _latest(google, name)
    if before is not None and before[1].get_secret_value() == value.get_secret_value():
        return before[0]

    def settle() -> dict[str, Any] | None:
        now = _latest(google, name)
        stored = now is not None and now[1].get_secret_value() == value.get_secret_value()
        return {"name": now[0]} if now is not None and stored else None

    payload = {"data": base64.b64encode(value.get_secret_value().encode()).decode()}
    path = f"{_path(google, name)}:addVersion"
    answer = google.call("POST", SERVICE, path, body={"payload": payload}, settle=settle)
    return str(answer["name"])


def access(google: Google, version: str) -> SecretStr:
    """Read a value; `version` is `projects/P/secrets/NAME/versions/latest` or a secret's name."""
    name = version if "/" in version else f"projects/{google.project}/secrets/{version}"
    if "/versions/" not in name:
        name += "/versions/latest"
    answer = google.call("GET", SERVICE, f"/v1/{name}:access")
    return SecretStr(base64.b64decode(answer["payload"]["data"]).decode())


def versions(google: Google, name: str) -> list[dict[str, Any]]:
    """List the versions of a secret, newest first, without their values."""
    return list(google.pages(SERVICE, f"{_path(google, name)}/versions", items="versions"))


def _latest(google: Google, name: str) -> tuple[str, SecretStr] | None:
    path = f"{_path(google, name)}/versions/latest:access"
    try:
        answer = google.call("GET", SERVICE, path)
    except ApiError as error:
        # no version yet, one that is disabled or destroyed, or no right to read: just add
        if error.status in (400, 403, 404):
            return None
        raise
    return str(answer["name"]), SecretStr(base64.b64decode(answer["payload"]["data"]).decode())


def _path(google: Google, name: str) -> str:
    return f"/v1/projects/{google.project}/secrets/{name}"
