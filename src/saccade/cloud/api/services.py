"""Service Usage: which APIs are on in the project, and switching them on.

Host names such as `aiplatform.googleapis.com` flow in and out. Nothing here switches an API off:
other work in the project may depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from saccade.cloud.api.operations import finish
from saccade.cloud.api.transport import Google

SERVICE = "serviceusage"
_MOST_READ = 30
_MOST_ENABLED = 20


def enabled(google: Google, names: Iterable[str]) -> frozenset[str]:
    """Return those of the named APIs that are on."""
    wanted, found = sorted(set(names)), set()
    root = f"/v1/projects/{google.project}/services"
    for start in range(0, len(wanted), _MOST_READ):
        some = wanted[start : start + _MOST_READ]
        params = {"names": [f"projects/{google.project}/services/{name}" for name in some]}
        answer = google.call("GET", SERVICE, f"{root}:batchGet", params=params)
        for service in answer.get("services") or []:
            if service.get("state") in ("ENABLED", 2):
                found.add(str(service.get("name", "")).rsplit("/", 1)[-1])
    return frozenset(found)


def enable(google: Google, names: Iterable[str], *, timeout_s: float = 300.0) -> None:
    """Switch APIs on and wait until they are; those that are on stay on."""
    wanted = sorted(set(names))
    root = f"/v1/projects/{google.project}/services"
    for start in range(0, len(wanted), _MOST_ENABLED):
        body = {"serviceIds": wanted[start : start + _MOST_ENABLED]}
        # enabling what is enabled changes nothing, so repeating is harmless
        operation = google.call("POST", SERVICE, f"{root}:batchEnable", body=body, retry=True)
        finish(google, SERVICE, operation, timeout_s=timeout_s)
