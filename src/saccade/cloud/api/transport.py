"""One connection to Google's REST services: addresses, credentials, retries, errors.

A method, a service, a path and a JSON body flow in; the parsed JSON answer flows out, or an
`ApiError` with one clear sentence. With `SACCADE_FAKE_CLOUD` set, every service lives at that
loopback address and no credentials are used. What the services' resources look like is left to
the modules beside this one.

A request is repeated after network failures, 429 and 5xx, with jittered back-off until a
deadline, if repeating it is harmless: reads, PUT, PATCH and DELETE. A POST that creates something
is repeated only when the caller passes `settle`, which looks whether the lost attempt took effect.
"""

from __future__ import annotations

import json
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from saccade.cloud.api.credentials import Anonymous, Credentials, find_credentials
from saccade.cloud.api.errors import (
    AlreadyExists,
    ApiError,
    BillingDisabled,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    ResourceExhausted,
    ServiceDisabled,
    Unauthenticated,
    Unreachable,
    from_body,
    from_operation,
    retry_delay,
    slow_down,
    unreachable,
)
from saccade.config.errors import InputError, OutsideError

__all__ = [
    "AlreadyExists",
    "ApiError",
    "BillingDisabled",
    "Google",
    "NotFound",
    "Patience",
    "PermissionDenied",
    "PreconditionFailed",
    "ResourceExhausted",
    "ServiceDisabled",
    "Unauthenticated",
    "Unreachable",
    "connect",
    "from_body",
    "from_operation",
]

FAKE_PROJECT = "fake-project"
_log = logging.getLogger(__name__)
_HOSTS = {
    "aiplatform": "https://{region}-aiplatform.googleapis.com",
    "cloudbuild": "https://cloudbuild.googleapis.com",
    "artifactregistry": "https://artifactregistry.googleapis.com",
    "secretmanager": "https://secretmanager.googleapis.com",
    "iam": "https://iam.googleapis.com",
    "cloudresourcemanager": "https://cloudresourcemanager.googleapis.com",
    "serviceusage": "https://serviceusage.googleapis.com",
    "cloudquotas": "https://cloudquotas.googleapis.com",
    "cloudbilling": "https://cloudbilling.googleapis.com",
    "logging": "https://logging.googleapis.com",
    "storage": "https://storage.googleapis.com",
    "compute": "https://compute.googleapis.com",
}
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "host.docker.internal")
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "PATCH", "DELETE"})

Settle = Callable[[], dict[str, Any] | None]
"""Looks whether a create whose answer was lost took effect; returns the resource or None."""


@dataclass(frozen=True)
class Patience:
    """How long a call waits and how it backs off, in seconds."""

    deadline_s: float = 60.0
    base_s: float = 0.5
    longest_s: float = 16.0
    timeout_s: float = 30.0

    def pause(self, tries: int) -> float:
        """Return the jittered wait after so many tries: between half and all of the back-off."""
        full = min(self.longest_s, self.base_s * 2 ** (tries - 1))
        return full * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class Google:
    """A connection to one project; cheap to pass around and safe to share between threads."""

    project: str
    base: str | None = None
    credentials: Credentials = field(default_factory=Anonymous, repr=False, compare=False)
    patience: Patience = field(default_factory=Patience, compare=False)
    _local: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @property
    def fake(self) -> bool:
        """Whether this is the local cloud."""
        return self.base is not None

    def patient(self, patience: Patience) -> Google:
        """Return the same connection with other waiting times."""
        return replace(self, patience=patience)

    def address(self, service: str, *, region: str | None = None) -> str:
        """Return the root address of a service."""
        if self.base is not None:
            return self.base
        host = _HOSTS[service]
        if "{region}" not in host:
            return host
        # The token goes to this host, so nothing but a region name may shape it.
        if not re.fullmatch(r"[a-z]+-[a-z]+\d{1,2}", region or ""):
            raise InputError(f"not a Google Cloud region: {region!r}; for example us-central1")
        return host.format(region=region)

    def call(
        self,
        method: str,
        service: str,
        path: str,
        *,
        region: str | None = None,
        body: dict[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        retry: bool | None = None,
        settle: Settle | None = None,
    ) -> dict[str, Any]:
        """Send one request and return the JSON answer.

        `retry` says that repeating is harmless (default: every method but POST); `settle` makes
        a create repeatable by looking first whether the earlier attempt took effect.
        """
        harmless = method in _REPEATABLE if retry is None else retry
        data = None if body is None else json.dumps(body).encode()
        headers = {} if data is None else {"Content-Type": "application/json"}
        url = self.address(service, region=region) + path
        request = _Request(method, service, url, dict(params or {}), data, headers)
        return _as_object(_persist(self, request, harmless=harmless, settle=settle))

    def send(
        self,
        method: str,
        service: str,
        path: str,
        *,
        data: bytes,
        content_type: str,
        params: Mapping[str, Any] | None = None,
        settle: Settle | None = None,
    ) -> dict[str, Any]:
        """Send bytes that may be sent twice without harm, and return the JSON answer."""
        headers = {"Content-Type": content_type}
        url = self.address(service) + path
        request = _Request(method, service, url, dict(params or {}), data, headers)
        return _as_object(_persist(self, request, harmless=True, settle=settle))

    def fetch(
        self, service: str, path: str, *, params: Mapping[str, Any] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Read bytes; returns them with the answer's headers."""
        url = self.address(service) + path
        request = _Request("GET", service, url, dict(params or {}), None, {})
        answer = _persist(self, request, harmless=True, settle=None)
        return answer.content, answer.headers

    def pages(
        self,
        service: str,
        path: str,
        *,
        items: str,
        region: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the objects of a paged list under the key `items`."""
        query = dict(params or {})
        while True:
            answer = self.call("GET", service, path, region=region, params=query)
            yield from answer.get(items) or []
            token = answer.get("nextPageToken")
            if not token:
                return
            query["pageToken"] = token


def connect(project: str | None, *, env: Mapping[str, str]) -> Google:
    """Open a connection by the environment; reads no file and sends nothing if a project is given.

    The project is the argument, else GOOGLE_CLOUD_PROJECT, else that of the credentials.
    """
    named = project or env.get("GOOGLE_CLOUD_PROJECT") or None
    base = env.get("SACCADE_FAKE_CLOUD")
    if base:
        quick = Patience(deadline_s=20.0, base_s=0.05, longest_s=1.0)
        return Google(project=named or FAKE_PROJECT, base=_loopback(base), patience=quick)
    credentials = find_credentials(env)
    found = named or credentials.project()
    if not found:
        raise InputError(
            "no Google Cloud project is named\n  fix: put GOOGLE_CLOUD_PROJECT=YOUR-PROJECT in .env"
        )
    if not re.fullmatch(r"[a-z][a-z0-9:.-]{1,80}", found):
        raise InputError(
            f"not a Google Cloud project id: {found!r} (small letters, digits, hyphens)"
            "\n  fix: gcloud projects list"
        )
    return Google(project=found, credentials=credentials)


@dataclass(frozen=True)
class _Request:
    method: str
    service: str
    url: str
    params: dict[str, Any]
    data: bytes | None
    headers: dict[str, str]


def _loopback(base: str) -> str:
    parts = urlsplit(base)
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
        raise InputError(
            f"SACCADE_FAKE_CLOUD must be a loopback address such as http://127.0.0.1:8123, "
            f"not {base!r}\n  fix: saccade cloud fake"
        )
    return base.rstrip("/")


def _persist(
    google: Google, request: _Request, *, harmless: bool, settle: Settle | None
) -> Any:  # a requests.Response
    """Send until an answer is final; raises the ApiError of the last attempt."""
    start, tries, patience = time.monotonic(), 0, google.patience
    renewed = google.fake  # there is no token to renew
    while True:
        tries += 1
        answer, failure = _attempt(google, request)
        if isinstance(failure, Unauthenticated) and not renewed:
            renewed = True  # the token may have been revoked, or the clock may be off
            answer, failure = _attempt(google, request, renew=True)
        if failure is None:
            return answer
        spent = time.monotonic() - start
        lost = isinstance(failure, Unreachable)
        if lost and settle is not None and (done := settle()) is not None:
            return done
        if isinstance(failure, AlreadyExists) and tries > 1 and settle is not None:
            if (done := settle()) is not None:
                return done
            raise failure
        pause = _pause(failure, method=request.method, tries=tries, patience=patience)
        again = harmless or settle is not None or slow_down(failure)
        if pause is None or not again or spent + pause > patience.deadline_s:
            raise _final(failure, request, tries=tries, seconds=spent)
        _log.debug("%s %s: %s; again in %.1f s", request.method, request.url, failure, pause)
        time.sleep(pause)


def _attempt(
    google: Google, request: _Request, *, renew: bool = False
) -> tuple[Any, ApiError | None]:
    import requests

    credentials = google.credentials
    try:
        token = credentials.headers(request.service, project=google.project, refresh=renew)
    except Unreachable as failure:
        return None, failure
    try:
        answer = _session(google).request(
            request.method, request.url, params=request.params, data=request.data,
            headers={**request.headers, **token}, timeout=google.patience.timeout_s,
            allow_redirects=False, auth=_keep,
        )  # fmt: skip
    except requests.RequestException as error:
        why = _network(error)
        return None, unreachable(
            service=request.service, url=request.url, why=why, tries=1, seconds=0.0
        )
    _log.debug("%s %s -> %d", request.method, request.url, answer.status_code)
    if answer.status_code < 300 or answer.status_code == 308:
        return answer, None
    return answer, _refused(google, request, answer)


def _refused(google: Google, request: _Request, answer: Any) -> ApiError:
    try:
        body = answer.json()
    except ValueError:
        body = answer.text[:2000]
    failure = from_body(
        service=request.service, project=google.project, method=request.method,
        url=request.url, status=answer.status_code, body=body,
    )  # fmt: skip
    seconds = _retry_after(answer.headers.get("Retry-After"))
    if seconds is not None and retry_delay(failure.detail) is None:
        info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}
        failure.detail.setdefault("details", []).append(info)
    return failure


def _pause(failure: ApiError, *, method: str, tries: int, patience: Patience) -> float | None:
    """Return how long to wait before the next try; None = trying again cannot help."""
    if not isinstance(failure, Unreachable | ResourceExhausted) or failure.status == 501:
        return None
    if method == "POST" and failure.status == 429 and not slow_down(failure):
        return None  # a quota of machines, not of requests: it will not free itself in seconds
    asked = failure.retry_after_s
    own = patience.pause(tries)
    return own if asked is None else max(own, asked + random.uniform(0, 0.1 * asked))


def _final(failure: ApiError, request: _Request, *, tries: int, seconds: float) -> ApiError:
    if not isinstance(failure, Unreachable):
        return failure
    why = str(failure.detail.get("message") or "") or "no explanation given"
    if failure.status:
        why = f"HTTP {failure.status}, {' '.join(why.split())[:200]}"
    final = unreachable(
        service=request.service, url=request.url, why=why, tries=tries, seconds=seconds
    )
    final.status, final.detail = failure.status, failure.detail
    final.reason = failure.reason or final.reason
    return final


def _session(google: Google) -> Any:
    """Return this thread's session: connections are reused, never shared between threads."""
    session = getattr(google._local, "session", None)
    if session is None:
        try:
            import requests
        except ImportError:
            raise OutsideError(
                "the package requests is not installed\n  fix: pip install 'saccade[cloud]'"
            ) from None
        session = requests.Session()
        session.headers["User-Agent"] = "saccade"
        if google.fake:
            session.trust_env = False  # a proxy must not see, or break, loopback requests
        google._local.session = session
    return session


def _keep(prepared: Any) -> Any:
    """Keep our own Authorization header: requests would prefer one from ~/.netrc."""
    return prepared


def _network(error: Exception) -> str:
    text = str(error)
    for sign, words in (
        ("Connection refused", "connection refused"),
        ("Name or service not known", "name not resolved"),
        ("Temporary failure in name resolution", "name not resolved"),
        ("timed out", "timed out"),
        ("Connection aborted", "connection dropped"),
        ("Connection broken", "connection dropped"),
        ("reset by peer", "connection dropped"),
        ("CERTIFICATE_VERIFY_FAILED", "certificate not trusted"),
    ):
        if sign in text:
            return words
    return type(error).__name__


def _retry_after(value: str | None) -> float | None:
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _as_object(answer: Any) -> dict[str, Any]:
    if isinstance(answer, dict):
        return answer
    if not answer.content:
        return {}
    try:
        parsed = answer.json()
    except ValueError:
        return {"text": answer.text}
    return parsed if isinstance(parsed, dict) else {"items": parsed}
