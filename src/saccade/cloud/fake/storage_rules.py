"""Google's rules about buckets and objects: names, preconditions, lifecycle, pages, ranges.

Resources and request parameters flow in; verdicts (or the `StorageError` that Google would answer)
flow out. Pure functions: nothing here touches disk or sockets.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saccade.cloud.fake.http import GoogleError, Request, Response
from saccade.cloud.fake.storage_state import Bucket, Resource, seconds_of

BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
LABEL = re.compile(r"[a-z0-9_-]{0,63}")
ACTIONS = ("Delete", "SetStorageClass", "AbortIncompleteMultipartUpload")
CONDITIONS = (
    "age", "createdBefore", "matchesPrefix", "matchesSuffix", "matchesStorageClass", "isLive",
)  # fmt: skip
DAY = 24 * 3600.0

REASONS = {
    304: "notModified", 400: "invalid", 404: "notFound", 409: "conflict",
    412: "conditionNotMet", 416: "requestedRangeNotSatisfiable",
}  # fmt: skip


class StorageError(GoogleError):
    """An error in the older form that storage answers with: a list of `errors` with reasons."""

    def __init__(self, status: int, message: str, *, reason: str | None = None) -> None:
        super().__init__(status, message)
        self.word = reason or REASONS.get(status, "invalid")

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        one = {"message": self.message, "domain": "global", "reason": self.word}
        return {"error": {"code": self.status, "message": self.message, "errors": [one]}}

    def response(self) -> Response:
        """This error as a response; a 304 has no body."""
        return Response(304) if self.status == 304 else super().response()


@dataclass(frozen=True)
class Page:
    """One page of a listing."""

    items: list[Resource]
    prefixes: list[str]
    next_token: str | None


def check_bucket(resource: Resource) -> None:
    """Refuse names, labels, lifecycle rules and policies that Google refuses."""
    name = resource.get("name", "")
    if not BUCKET_NAME.fullmatch(name) or name.startswith("goog") or ".." in name:
        raise StorageError(400, f"Invalid bucket name: '{name}'")
    for key, value in (resource.get("labels") or {}).items():
        if not (key and LABEL.fullmatch(key) and LABEL.fullmatch(str(value))):
            raise StorageError(400, f"Invalid label: '{key}': '{value}'")
    policy = resource.get("softDeletePolicy") or {}
    kept = int(policy.get("retentionDurationSeconds", 0))
    if kept != 0 and not 7 * DAY <= kept <= 90 * DAY:
        raise StorageError(400, "softDeletePolicy: the duration must be 0 or 7 to 90 days.")
    if (resource.get("versioning") or {}).get("enabled"):
        raise StorageError(400, "The fake cloud keeps no noncurrent object versions.")
    for rule in (resource.get("lifecycle") or {}).get("rule", []):
        _check_rule(rule)


def _check_rule(rule: Resource) -> None:
    action, condition = rule.get("action", {}), rule.get("condition", {})
    if action.get("type") not in ACTIONS:
        raise StorageError(400, f"Invalid lifecycle action: {action.get('type')!r}")
    if not condition:
        raise StorageError(400, "A lifecycle management rule must have a condition.")
    strange = sorted(set(condition) - set(CONDITIONS))
    if strange:
        raise StorageError(400, f"Unsupported lifecycle condition: {', '.join(strange)}")


def check_object_name(name: str) -> None:
    """Refuse object names that Google refuses."""
    size = len(name.encode())
    if not 1 <= size <= 1024 or "\r" in name or "\n" in name or name in (".", ".."):
        raise StorageError(400, f"Invalid object name: {name!r}")


def check_preconditions(
    request: Request, resource: Resource | None, *, prefix: str = "if", reading: bool = False
) -> None:
    """Raise 412 (304 for reads) unless every condition of the request holds."""
    for field, word in (("generation", "Generation"), ("metageneration", "Metageneration")):
        now = str(resource[field]) if resource is not None else "0"
        wanted = request.first(f"{prefix}{word}Match")
        if wanted and wanted != now:
            raise _unmet(f"{prefix}{word}Match", wanted, now)
        unwanted = request.first(f"{prefix}{word}NotMatch")
        if unwanted and unwanted == now:
            if reading:
                raise StorageError(304, "Not Modified")
            raise _unmet(f"{prefix}{word}NotMatch", unwanted, now)


def _unmet(name: str, wanted: str, now: str) -> StorageError:
    return StorageError(
        412,
        "At least one of the pre-conditions you specified did not hold."
        f" ({name}={wanted}, is {now})",
    )


def page_of(bucket: Bucket, request: Request) -> Page:
    """The objects (and prefixes) of one listing request."""
    prefix, delimiter = request.first("prefix"), request.first("delimiter")
    start, end = request.first("startOffset"), request.first("endOffset")
    after = _decode_token(request.first("pageToken"))
    limit = page_size(request)
    if request.first("softDeleted").lower() == "true":
        source = {f"{one['name']}\0{one['generation']}": one for one in bucket.deleted}
    else:
        source = bucket.objects
    items: list[Resource] = []
    prefixes: list[str] = []
    last = ""
    for name in sorted(source, key=str.encode):
        if not name.startswith(prefix) or name < start or (end and name >= end):
            continue
        cut = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = name if cut < 0 else name[: cut + len(delimiter)]
        if after and entry.encode() <= after.encode():
            continue
        if prefixes and entry == prefixes[-1]:
            continue
        if len(items) + len(prefixes) == limit:
            return Page(items, prefixes, _encode_token(last))
        last = entry
        if cut < 0:
            items.append(source[name])
        else:
            prefixes.append(entry)
    return Page(items, prefixes, None)


def page_size(request: Request) -> int:
    """How many entries a page may hold."""
    try:
        return max(1, min(1000, int(request.first("maxResults") or 1000)))
    except ValueError as error:
        raise StorageError(400, "Invalid maxResults") from error


def _encode_token(last: str) -> str:
    return base64.urlsafe_b64encode(last.encode()).decode()


def _decode_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except ValueError as error:
        raise StorageError(400, "Invalid pageToken") from error


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """The half-open range that a `Range` header asks for; None means everything."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size or start >= stop:
        raise StorageError(416, "Requested range not satisfiable")
    return start, stop


def merge(target: Resource, patch: Mapping[str, Any]) -> Resource:
    """Apply a JSON merge patch: null removes, objects merge, everything else replaces."""
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            before = result.get(name)
            result[name] = merge(before if isinstance(before, dict) else {}, value)
        else:
            result[name] = value
    return result


def due_actions(bucket: Bucket, *, now: float) -> list[tuple[str, Resource]]:
    """What the lifecycle rules would do now: (object name, action), deletion winning."""
    rules = (bucket.resource.get("lifecycle") or {}).get("rule", [])
    due = []
    for name, resource in bucket.objects.items():
        actions = [one["action"] for one in rules if _applies(one["condition"], resource, now)]
        actions.sort(key=lambda action: action["type"] != "Delete")
        if actions and actions[0]["type"] != "AbortIncompleteMultipartUpload":
            due.append((name, actions[0]))
    return due


def _applies(condition: Resource, resource: Resource, now: float) -> bool:
    name, created = resource["name"], seconds_of(resource["timeCreated"])
    held = {
        "age": lambda days: now - created >= int(days) * DAY,
        "createdBefore": lambda day: created < seconds_of(f"{day}T00:00:00Z"),
        "matchesPrefix": lambda prefixes: any(map(name.startswith, prefixes)),
        "matchesSuffix": lambda suffixes: any(map(name.endswith, suffixes)),
        "matchesStorageClass": lambda classes: resource["storageClass"] in classes,
        "isLive": lambda live: bool(live),
    }
    return all(held[key](value) for key, value in condition.items())
