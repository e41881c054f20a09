"""Cloud Logging: the lines of a job, from where the reader stopped.

A filter and a cursor flow in, new entries and the next cursor flow out. Entries may arrive late
and out of order, so each read looks a little back and leaves out what it has shown (by insertId).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from saccade.cloud.api.transport import Google
from saccade.config.errors import InputError

SERVICE = "logging"
LOOK_BACK_S = 20.0
_MOST_PAGES = 20


@dataclass(frozen=True)
class Entry:
    """One line of a log."""

    time: str
    insert_id: str
    severity: str
    text: str
    labels: dict[str, str] = field(default_factory=dict)


def job_filter(job_id: str) -> str:
    """Choose the lines that the containers of a Vertex job wrote."""
    return f'resource.type="ml_job" AND resource.labels.job_id="{job_id}"'


def build_filter(build_id: str) -> str:
    """Choose the lines of an image build."""
    return f'resource.type="build" AND resource.labels.build_id="{build_id}"'


def entries(
    google: Google, *, chosen: str, cursor: str | None = None, page_size: int = 1000
) -> tuple[list[Entry], str | None]:
    """Read the entries after the cursor, oldest first, and the cursor for the next read."""
    since, known = _read_cursor(cursor)
    condition = chosen
    if since is not None:
        start = since - timedelta(seconds=LOOK_BACK_S)
        condition += f' AND timestamp>="{start.isoformat().replace("+00:00", "Z")}"'
    else:
        # without a bound Google looks back one day only; jobs may wait for longer
        start = datetime.now(UTC) - timedelta(days=30)
        condition += f' AND timestamp>="{start.strftime("%Y-%m-%dT%H:%M:%SZ")}"'
    body: dict[str, Any] = {
        "resourceNames": [f"projects/{google.project}"],
        "filter": condition,
        "orderBy": "timestamp asc",
        "pageSize": page_size,
    }
    fresh: list[Entry] = []
    seen = set(known)
    for _ in range(_MOST_PAGES):
        answer = google.call("POST", SERVICE, "/v2/entries:list", body=body, retry=True)
        for raw in answer.get("entries") or []:
            entry = read_entry(raw)
            if entry.insert_id not in seen:
                seen.add(entry.insert_id)
                fresh.append(entry)
        if not answer.get("nextPageToken"):
            break
        body["pageToken"] = answer["nextPageToken"]
    return fresh, _next_cursor(fresh, since=since, known=known) or cursor


def read_entry(raw: dict[str, Any]) -> Entry:
    """Reduce Google's entry to its line; structured payloads give their message."""
    payload = raw.get("jsonPayload") or raw.get("protoPayload") or {}
    text = raw.get("textPayload")
    if text is None:
        text = payload.get("message") if isinstance(payload, dict) else None
    if text is None:
        text = json.dumps(payload, sort_keys=True) if payload else ""
    return Entry(
        time=str(raw.get("timestamp") or raw.get("receiveTimestamp") or ""),
        insert_id=str(raw.get("insertId", "")),
        severity=str(raw.get("severity") or "DEFAULT"),
        text=str(text).rstrip("\n"),
        labels={
            **((raw.get("resource") or {}).get("labels") or {}),
            **(raw.get("labels") or {}),
        },
    )


def _next_cursor(
    fresh: list[Entry], *, since: datetime | None, known: dict[str, datetime]
) -> str | None:
    if not fresh:
        return None
    times = dict(known)
    times.update({entry.insert_id: _moment(entry.time) for entry in fresh})
    newest = max(times.values())
    if since is not None:
        newest = max(newest, since)
    # what the next read may meet again
    recent = {
        name: when
        for name, when in times.items()
        if when >= newest - timedelta(seconds=LOOK_BACK_S)
    }
    value = {
        "t": newest.isoformat(),
        "ids": {name: round((newest - when).total_seconds(), 3) for name, when in recent.items()},
    }
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def _read_cursor(cursor: str | None) -> tuple[datetime | None, dict[str, datetime]]:
    if not cursor:
        return None, {}
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        since = datetime.fromisoformat(value["t"])
        ids = {name: since - timedelta(seconds=age) for name, age in value["ids"].items()}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"not a log cursor: {cursor[:40]!r}") from None
    return since, ids


def _moment(text: str) -> datetime:
    """Read a timestamp with up to nine decimals; one that cannot be read counts as old."""
    head, dot, tail = text.rstrip("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{head}{dot}{tail[:6]}").replace(tzinfo=UTC)
    except ValueError:
        return datetime(1970, 1, 1, tzinfo=UTC)
