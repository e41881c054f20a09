"""Artifact Registry: the repository of images, and what an image's tag points at.

Names flow in, repository objects and digests flow out. Images are pushed by Cloud Build or docker.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.api.operations import finish
from saccade.cloud.api.transport import Google, NotFound

SERVICE = "artifactregistry"


def get_repository(google: Google, *, region: str, repository: str) -> dict[str, Any] | None:
    """Read a repository; None if there is none."""
    try:
        return google.call("GET", SERVICE, _path(google, region, repository))
    except NotFound:
        return None


def list_repositories(google: Google, *, region: str) -> list[dict[str, Any]]:
    """List the repositories of a region."""
    root = _path(google, region, "").rstrip("/")
    return list(google.pages(SERVICE, root, items="repositories"))


def create_repository(
    google: Google, *, region: str, repository: str, labels: dict[str, str], description: str = ""
) -> dict[str, Any]:
    """Make a Docker repository and wait until it exists."""
    body = {"format": "DOCKER", "labels": labels, "description": description}
    operation = google.call(
        "POST", SERVICE, _path(google, region, "").rstrip("/"), body=body,
        params={"repositoryId": repository},
        settle=lambda: get_repository(google, region=region, repository=repository),
    )  # fmt: skip
    if "format" in operation:  # found after a lost answer: the repository, not an operation
        return operation
    return finish(google, SERVICE, operation)


def patch_repository(
    google: Google, *, region: str, repository: str, changes: dict[str, Any]
) -> dict[str, Any]:
    """Change the named fields of a repository."""
    return google.call(
        "PATCH", SERVICE, _path(google, region, repository), body=changes,
        params={"updateMask": ",".join(changes)},
    )  # fmt: skip


def delete_repository(google: Google, *, region: str, repository: str) -> bool:
    """Delete a repository with all its images; returns False if there is none."""
    try:
        operation = google.call("DELETE", SERVICE, _path(google, region, repository))
    except NotFound:
        return False
    finish(google, SERVICE, operation)
    return True


def images(google: Google, *, region: str, repository: str) -> list[dict[str, Any]]:
    """List the images of a repository with their tags and upload times."""
    path = f"{_path(google, region, repository)}/dockerImages"
    return list(google.pages(SERVICE, path, items="dockerImages", params={"pageSize": 1000}))


def image_digest(google: Google, *, region: str, repository: str, image: str) -> str | None:
    """Return the digest (`sha256:...`) of `NAME:TAG` or `NAME@sha256:...`; None if absent."""
    name, _, digest = image.partition("@")
    name, _, tag = name.partition(":")
    for found in images(google, region=region, repository=repository):
        path, _, its_digest = str(found.get("uri", "")).partition("@")
        if path.rsplit("/", 1)[-1] != name:
            continue
        if its_digest == digest if digest else (tag or "latest") in (found.get("tags") or []):
            return its_digest
    return None


def image_uri(google: Google, *, region: str, repository: str, image: str) -> str:
    """Return the address under which docker and Vertex pull an image."""
    return f"{region}-docker.pkg.dev/{google.project}/{repository}/{image}"


def _path(google: Google, region: str, repository: str) -> str:
    return f"/v1/projects/{google.project}/locations/{region}/repositories/{repository}"
