"""Vertex AI CustomJobs: create, read, list by label, cancel, delete.

Job objects in Google's REST form flow in and out. What a job runs, and what its states mean for a
run, belongs to the launch targets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from saccade.cloud.api.operations import finish
from saccade.cloud.api.transport import ApiError, Google, NotFound, Settle
from saccade.config.errors import InputError

SERVICE = "aiplatform"
TERMINAL = frozenset(
    {
        "JOB_STATE_SUCCEEDED",
        "JOB_STATE_FAILED",
        "JOB_STATE_CANCELLED",
        "JOB_STATE_EXPIRED",
        "JOB_STATE_PARTIALLY_SUCCEEDED",
    }
)


def create(
    google: Google, *, region: str, job: dict[str, Any], settle: Settle | None = None
) -> dict[str, Any]:
    """Submit a job; pass `settle` (find it by label) to survive a lost answer."""
    path = f"/v1/projects/{google.project}/locations/{region}/customJobs"
    return google.call("POST", SERVICE, path, region=region, body=job, settle=settle)


def get(google: Google, name: str) -> dict[str, Any]:
    """Read one job by its full name."""
    return google.call("GET", SERVICE, f"/v1/{name}", region=region_of(name))


def list_by_label(
    google: Google, *, region: str, labels: Mapping[str, str], page_size: int = 100
) -> list[dict[str, Any]]:
    """List the jobs of a region that carry all these labels, newest first."""
    wanted = " AND ".join(f'labels.{key}="{value}"' for key, value in labels.items())
    params = {"filter": wanted, "pageSize": page_size} if wanted else {"pageSize": page_size}
    path = f"/v1/projects/{google.project}/locations/{region}/customJobs"
    found = list(google.pages(SERVICE, path, items="customJobs", region=region, params=params))
    return sorted(found, key=lambda job: str(job.get("createTime", "")), reverse=True)


def cancel(google: Google, name: str) -> None:
    """Ask Vertex to stop a job; a job that has already ended is left as it is."""
    try:
        google.call(
            "POST", SERVICE, f"/v1/{name}:cancel", region=region_of(name), body={}, retry=True
        )
    except ApiError as error:
        if error.status != 400 or get(google, name).get("state") not in TERMINAL:
            raise


def delete(google: Google, name: str) -> bool:
    """Delete an ended job; returns False if there is none."""
    region = region_of(name)
    try:
        operation = google.call("DELETE", SERVICE, f"/v1/{name}", region=region)
    except NotFound:
        return False
    finish(google, SERVICE, operation, region=region)
    return True


def region_of(name: str) -> str:
    """Return the region within a full resource name."""
    match = re.fullmatch(r"projects/[^/]+/locations/([a-z0-9-]+)/customJobs/[0-9A-Za-z_-]+", name)
    if match is None:
        raise InputError(
            f"not the name of a Vertex job: {name!r} "
            "(projects/PROJECT/locations/REGION/customJobs/ID)\n  fix: saccade jobs"
        )
    return match.group(1)


def job_id(name: str) -> str:
    """Return the last part of a job's name, as Cloud Logging labels it."""
    return name.rsplit("/", 1)[-1]
