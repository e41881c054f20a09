"""Calls that go wrong on purpose, and the record of all calls.

A request flows in before and after its handler; a fault that matches answers in its place, delays
it or breaks the connection. Every call is recorded with a number, so that a test can fail each
position of a command in turn. Secrets are never recorded.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from saccade.cloud.fake.http import GoogleError, Request, Response
from saccade.cloud.fake.scenario import Fault

KEPT_CALLS = 20_000
MAX_BODY = 65_536
SECRET_PATHS = re.compile(r":addVersion$|:access$")
REASONS = {429: "RATE_LIMIT_EXCEEDED", 403: "IAM_PERMISSION_DENIED"}
MESSAGES = {
    403: "The caller does not have permission",
    429: "Quota exceeded for quota metric 'Requests' and limit 'Requests per minute'",
    500: "Internal error encountered.",
    503: "The service is currently unavailable.",
    504: "Deadline exceeded",
}


class Dropped(Exception):
    """The connection breaks without an answer."""


@dataclass
class _Armed:
    """A fault with how often it matched and struck."""

    fault: Fault
    expression: re.Pattern[str]
    seen: int = 0
    struck: int = 0


@dataclass
class _Call:
    """One recorded call."""

    n: int
    time: float
    method: str
    path: str
    query: dict[str, list[str]]
    status: int | str
    body: Any = None
    faults: list[str] = field(default_factory=list)
    about: str = ""


class Faults:
    """The faults that are set and the calls that came in."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []
        self._calls: deque[_Call] = deque(maxlen=KEPT_CALLS)
        self._count = 0
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        """Set a fault."""
        try:
            expression = re.compile(fault.match)
        except re.error as error:
            raise GoogleError(400, f"match: {error}") from error
        with self._lock:
            self._armed.append(_Armed(fault, expression))

    def clear(self) -> None:
        """Take all faults back."""
        with self._lock:
            self._armed.clear()

    def clear_calls(self) -> None:
        """Forget the recorded calls and count from 1 again."""
        with self._lock:
            self._calls.clear()
            self._count = 0

    def strike(self, request: Request) -> list[Fault]:
        """The faults that hit this call; their counters move."""
        line = call_line(request)
        hit: list[Fault] = []
        with self._lock:
            for armed in self._armed:
                if armed.expression.search(line) is None:
                    continue
                armed.seen += 1
                limit = armed.fault.times
                if armed.seen > armed.fault.after and (limit == "always" or armed.struck < limit):
                    armed.struck += 1
                    hit.append(armed.fault)
        return hit

    def record(self, request: Request, status: int | str, hit: list[Fault]) -> int:
        """Remember a call; returns its number."""
        with self._lock:
            self._count += 1
            call = _Call(
                n=self._count,
                time=time.time(),
                method=request.method,
                path=request.path,
                query=request.query,
                status=status,
                body=_recorded_body(request),
                faults=[str(fault.status) for fault in hit],
                about=request.about,
            )
            self._calls.append(call)
            return call.n

    def calls(self, *, match: str = "", since: int = 0) -> list[dict[str, Any]]:
        """The recorded calls after number `since` whose line matches."""
        expression = re.compile(match)
        with self._lock:
            return [
                dict(call.__dict__)
                for call in self._calls
                if call.n > since and expression.search(f"{call.method} {_full(call)}")
            ]

    def listing(self) -> list[dict[str, Any]]:
        """The faults that are set, with their counters."""
        with self._lock:
            return [
                {**armed.fault.model_dump(), "seen": armed.seen, "struck": armed.struck}
                for armed in self._armed
            ]


def delay_or_refuse(faults: list[Fault], *, when: str) -> Response | None:
    """Carry out faults at one of the two moments: sleep, break the connection, or answer."""
    for fault in faults:
        if fault.seconds and when == "before":
            time.sleep(fault.seconds)
        if fault.when != when or fault.status == "slow":
            continue
        if fault.status == "drop":
            raise Dropped
        status = int(fault.status)
        message = fault.message or MESSAGES.get(status, "A fault that was asked for.")
        return GoogleError(status, message, reason=fault.reason or REASONS.get(status)).response()
    return None


def call_line(request: Request) -> str:
    """`METHOD /path?query`, what faults and `until_call` match against.

    An upload whose address does not name its object gets `&object=NAME`, so that one expression
    matches all three kinds of upload.
    """
    return f"{request.method} {_full(request)}"


def _full(call: Request | _Call) -> str:
    pairs = [f"{name}={value}" for name, values in call.query.items() for value in values]
    pairs += [f"object={call.about}"] if call.about else []
    return call.path + ("?" + "&".join(pairs) if pairs else "")


def _recorded_body(request: Request) -> Any:
    """A JSON body as it came, without what must stay secret."""
    if SECRET_PATHS.search(request.path) or "json" not in request.header("content-type"):
        return None
    if not request.body or len(request.body) > MAX_BODY:
        return None
    try:
        return json.loads(request.body)
    except ValueError:
        return None
