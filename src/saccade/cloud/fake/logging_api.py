"""Cloud Logging: `entries:list` with filters, order and pages, and `entries:write`.

The entries themselves are in `logbook.py`.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake import filters
from saccade.cloud.fake.http import GoogleError, Request, Response, Router, json_response
from saccade.cloud.fake.wire import page, unknown_field
from saccade.cloud.fake.world import World

SERVICE = "logging.googleapis.com"
LIST_FIELDS = {
    "projectIds", "resourceNames", "filter", "orderBy", "pageSize", "pageToken",
    "project_ids", "resource_names", "order_by", "page_size", "page_token",
}  # fmt: skip


def mount(router: Router, world: World) -> None:
    """Routes of Cloud Logging."""
    router.add("POST", "/v2/entries:list", lambda r: _list(world, r), service=SERVICE)
    router.add("POST", "/v2/entries:write", lambda r: _write(world, r), service=SERVICE)


def _list(world: World, request: Request) -> Response:
    body = request.json()
    for name in body:
        if name not in LIST_FIELDS:
            raise unknown_field(name, "")
    names = body.get("resourceNames") or body.get("resource_names") or []
    names = names + [f"projects/{project}" for project in body.get("projectIds", [])]
    if not names:
        raise GoogleError(400, "At least one resource name is required.")
    projects = tuple(f"projects/{world.project(name.split('/')[1])}/" for name in names)
    keep = filters.parse(body.get("filter", ""))
    order = body.get("orderBy") or body.get("order_by") or "timestamp asc"
    if order not in ("timestamp", "timestamp asc", "timestamp desc"):
        raise GoogleError(400, f"Invalid order_by: {order}")
    found = [
        entry
        for entry in world.logs.entries()
        if entry["logName"].startswith(projects) and keep(entry)
    ]
    if order.endswith("desc"):
        found.reverse()
    return page(request, found, field="entries", default=50)


def _write(world: World, request: Request) -> Response:
    body = request.json()
    shared: dict[str, Any] = {
        name: body[name] for name in ("logName", "resource", "labels") if name in body
    }
    by_project: dict[str, list[dict[str, Any]]] = {}
    for entry in body.get("entries", []):
        whole = shared | entry
        if "logName" not in whole:
            raise GoogleError(400, "A log name is required.")
        project = world.project(whole["logName"].split("/")[1])
        by_project.setdefault(project, []).append(whole)
    for project, entries in by_project.items():
        world.logs.add(entries, project=project)
    return json_response({})
