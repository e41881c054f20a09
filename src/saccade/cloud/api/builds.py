"""Cloud Build: start an image build, follow it, find it again by its tag, cancel it.

Build objects in Google's REST form flow in and out. What is built and when belongs to `launch`.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.api.transport import ApiError, Google, Settle

SERVICE = "cloudbuild"
TERMINAL = frozenset({"SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED"})


def create(
    google: Google, *, build: dict[str, Any], region: str | None = None,
    settle: Settle | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Start a build and return it with its id; its tags make a lost answer findable again."""
    tags = build.get("tags") or []
    look = settle
    if look is None and tags:
        look = lambda: _newest(google, tag=tags[0], region=region)  # noqa: E731
    answer = google.call("POST", SERVICE, _root(google, region), body=build, settle=look)
    # an operation whose metadata holds the build, unless `settle` found the build itself
    return dict((answer.get("metadata") or {}).get("build") or answer)


def get(google: Google, build_id: str, *, region: str | None = None) -> dict[str, Any]:
    """Read one build."""
    return google.call("GET", SERVICE, f"{_root(google, region)}/{build_id}")


def list_by_tag(google: Google, tag: str, *, region: str | None = None) -> list[dict[str, Any]]:
    """List the builds that carry a tag, newest first."""
    params = {"filter": f'tags="{tag}"', "pageSize": 100}
    found = list(google.pages(SERVICE, _root(google, region), items="builds", params=params))
    return sorted(found, key=lambda build: str(build.get("createTime", "")), reverse=True)


def cancel(google: Google, build_id: str, *, region: str | None = None) -> dict[str, Any]:
    """Stop a build; one that has already ended is left as it is."""
    path = f"{_root(google, region)}/{build_id}"
    try:
        return google.call("POST", SERVICE, f"{path}:cancel", body={}, retry=True)
    except ApiError as error:
        build = get(google, build_id, region=region) if error.status in (400, 409) else {}
        if build.get("status") not in TERMINAL:
            raise
        return build


def _root(google: Google, region: str | None) -> str:
    if region is None:
        return f"/v1/projects/{google.project}/builds"
    return f"/v1/projects/{google.project}/locations/{region}/builds"


def _newest(google: Google, *, tag: str, region: str | None) -> dict[str, Any] | None:
    found = list_by_tag(google, tag, region=region)
    return found[0] if found else None
