"""Requests, responses, routes and Google's way of saying no; shared by every fake service.

A raw request flows in as a `Request`, a `Router` finds the handler by method and path pattern, and
a `Response` flows out. Sockets and threads are in `server.py`, what services answer in the modules
named after them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

JSON_TYPE = "application/json; charset=UTF-8"

# what Google calls each status in the body of an error
STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

# {name} one path part without its :verb, {name~} one whole part, {name*} the rest with slashes
_HOLES = {"": "[^/:]+", "~": "[^/]+", "*": ".+"}
_HOLE = re.compile(r"\{(\w+)([~*]?)\}")


@dataclass(frozen=True)
class Request:
    """One HTTP request; `path` is still percent-encoded and has no query."""

    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    # names in lower case
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    # the object an upload is for, when its address does not say so
    about: str = ""

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object."""
        if not self.body.strip():
            return {}
        try:
            value = json.loads(self.body)
        except ValueError as error:
            raise GoogleError(400, f"Invalid JSON payload received. {error}") from error
        if not isinstance(value, dict):
            raise GoogleError(400, "Invalid JSON payload received. Root element must be a message.")
        return value

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else default

    def header(self, name: str, default: str = "") -> str:
        """A header by name in any case."""
        return self.headers.get(name.lower(), default)


@dataclass(frozen=True)
class Response:
    """One HTTP response; `Content-Length` is added by the server."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class GoogleError(Exception):
    """An error answer; raise it from a handler and the router writes the body Google would."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        reason: str | None = None,
        domain: str = "googleapis.com",
        metadata: Mapping[str, str] | None = None,
        details: list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or STATUS_NAMES.get(status, "UNKNOWN")
        self.details = list(details or [])
        if reason is not None:
            info: dict[str, Any] = {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason,
                "domain": domain,
            }
            if metadata:
                info["metadata"] = dict(metadata)
            self.details.insert(0, info)

    def body(self) -> dict[str, Any]:
        """The JSON body: `{"error": {"code", "message", "status", "details"}}`."""
        error: dict[str, Any] = {
            "code": self.status,
            "message": self.message,
            "status": self.code,
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}

    def response(self) -> Response:
        """This error as a response."""
        return json_response(self.body(), status=self.status)


Handler = Callable[..., Response]


@dataclass(frozen=True)
class Route:
    """A method and a path pattern bound to a handler, and the API that must be enabled."""

    method: str
    pattern: str
    matcher: re.Pattern[str]
    handler: Handler
    service: str | None = None


class Router:
    """Finds the handler of a request; the first added route that matches wins.

    A handler is called with the request and the percent-decoded holes of its pattern as keyword
    arguments: `{name}` is one path part without a `:verb`, `{name~}` a whole part that may contain
    colons, `{name*}` everything that is left, slashes included.
    """

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def add(
        self, method: str, pattern: str, handler: Handler, *, service: str | None = None
    ) -> None:
        """Bind `method pattern` to `handler`; `service` is the API this call belongs to."""
        self._routes.append(Route(method, pattern, _compile(pattern), handler, service))

    def find(self, request: Request) -> tuple[Route, dict[str, str]] | None:
        """The route of a request and what its holes matched."""
        for route in self._routes:
            if route.method != request.method:
                continue
            found = route.matcher.fullmatch(request.path)
            if found is not None:
                return route, {name: unquote(text) for name, text in found.groupdict().items()}
        return None

    def handle(self, request: Request) -> Response | None:
        """Answer a request, or None when no route knows it."""
        found = self.find(request)
        if found is None:
            return None
        route, holes = found
        try:
            return route.handler(request, **holes)
        except GoogleError as error:
            return error.response()


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with a JSON body."""
    body = json.dumps(value, ensure_ascii=False).encode()
    return Response(status, {"Content-Type": JSON_TYPE, **(headers or {})}, body)


def error_response(status: int, message: str, *, reason: str | None = None) -> Response:
    """A Google-style error as a response, for handlers that do not raise."""
    return GoogleError(status, message, reason=reason).response()


def html_error(status: int) -> Response:
    """The page Google's front end answers where no API knows the path."""
    phrase = HTTPStatus(status).phrase
    body = f"<!DOCTYPE html>\n<title>Error {status} ({phrase})!!1</title>\n".encode()
    return Response(status, {"Content-Type": "text/html; charset=UTF-8"}, body)


def not_found(kind: str, name: str) -> GoogleError:
    """The 404 of a resource."""
    return GoogleError(404, f"{kind} not found: {name}")


def _compile(pattern: str) -> re.Pattern[str]:
    """A path pattern with holes as a regular expression."""
    parts: list[str] = []
    end = 0
    for hole in _HOLE.finditer(pattern):
        parts.append(re.escape(pattern[end : hole.start()]))
        parts.append(f"(?P<{hole.group(1)}>{_HOLES[hole.group(2)]})")
        end = hole.end()
    parts.append(re.escape(pattern[end:]))
    return re.compile("".join(parts))
