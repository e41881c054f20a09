"""Access tokens from google-auth: found once, refreshed under a lock, never shown.

Environment variables flow in (`GOOGLE_APPLICATION_CREDENTIALS`, `SACCADE_IMPERSONATE`, else the
application-default login or the metadata server), request headers flow out. google-auth is
imported at the first request, so that commands which need no cloud do not pay for it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from saccade.cloud.api.errors import Unauthenticated, no_credentials, unreachable
from saccade.config.errors import OutsideError

SCOPE = "https://www.googleapis.com/auth/cloud-platform"


class Credentials(Protocol):
    """What a connection needs to know about its credentials."""

    def headers(self, service: str, *, project: str, refresh: bool = False) -> dict[str, str]:
        """Return the headers that authenticate one request."""
        ...

    def project(self) -> str | None:
        """Return the project that the credentials belong to, if they name one."""
        ...


class Anonymous:
    """No credentials at all: the local cloud asks for none."""

    def headers(self, service: str, *, project: str, refresh: bool = False) -> dict[str, str]:
        """Return nothing."""
        return {}

    def project(self) -> str | None:
        """Name no project."""
        return None


class GoogleCredentials:
    """Application-default credentials, loaded when first needed; safe for many threads."""

    def __init__(self, *, key_file: str | None = None, impersonate: str | None = None) -> None:
        """Remember where to look; nothing is read yet."""
        self._key_file = key_file
        self._impersonate = impersonate
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._project: str | None = None

    def headers(self, service: str, *, project: str, refresh: bool = False) -> dict[str, str]:
        """Return the bearer token, fetching or renewing it when it is (nearly) expired."""
        with self._lock:
            credentials = self._load(project)
            if refresh or not credentials.valid:
                self._renew(credentials, project=project)
            headers = {"Authorization": f"Bearer {credentials.token}"}
        if service != "storage" and self._is_user(credentials):
            # A person's login belongs to no project: name the one whose quota and APIs count.
            headers["x-goog-user-project"] = project
        return headers

    def project(self) -> str | None:
        """Return the project of the key file or of the machine this runs on."""
        with self._lock:
            self._load("")
        return self._project

    def google_auth(self, *, project: str) -> Any:
        """Return the google-auth object, for the official storage client."""
        with self._lock:
            return self._load(project)

    def _load(self, project: str) -> Any:
        if self._loaded is not None:
            return self._loaded
        google = _google_auth()
        try:
            with warnings.catch_warnings():
                # it warns of logins without a quota project, which `headers` names, and of key
                # files from strangers, which the user's own is not
                warnings.simplefilter("ignore")
                found, self._project = self._find(google)
        except (google.exceptions.GoogleAuthError, OSError, ValueError) as error:
            raise no_credentials(_where(error, self._key_file), project=project) from None
        if self._impersonate:
            from google.auth import impersonated_credentials

            found = impersonated_credentials.Credentials(
                source_credentials=found,
                target_principal=self._impersonate,
                target_scopes=[SCOPE],
            )
        self._loaded = found
        return found

    def _find(self, google: Any) -> Any:
        if self._key_file:
            return google.load_credentials_from_file(self._key_file, scopes=[SCOPE])
        return google.default(scopes=[SCOPE])

    def _renew(self, credentials: Any, *, project: str) -> None:
        google = _google_auth()
        from google.auth.transport.requests import Request

        try:
            credentials.refresh(Request())
        except google.exceptions.GoogleAuthError as error:
            lost = isinstance(error, google.exceptions.TransportError) or error.retryable
            if lost:  # no network: nothing is wrong with the login
                why = f"no token: {_said(error)[:200]}"
                raise unreachable(
                    service="Google's token server", url="", why=why, tries=1, seconds=0.0
                ) from None
            who = f" as {self._impersonate}" if self._impersonate else ""
            raise no_credentials(f"no token{who}: {_said(error)}", project=project) from None

    @staticmethod
    def _is_user(credentials: Any) -> bool:
        return type(credentials).__module__ == "google.oauth2.credentials"


def find_credentials(env: Mapping[str, str]) -> GoogleCredentials:
    """Choose credentials by the environment; reads no file and asks no server."""
    return GoogleCredentials(
        key_file=env.get("GOOGLE_APPLICATION_CREDENTIALS") or None,
        impersonate=env.get("SACCADE_IMPERSONATE") or None,
    )


def _google_auth() -> Any:
    try:
        import google.auth
        import google.auth.exceptions
    except ImportError:
        raise OutsideError(
            "the package google-auth is not installed\n  fix: pip install 'saccade[cloud]'"
        ) from None
    return google.auth


def _where(error: Exception, key_file: str | None) -> str:
    return f"{key_file}: {_said(error)}" if key_file else _said(error)


def _said(error: Exception) -> str:
    text = str(error.args[0]) if error.args else str(error)
    if "default credentials were not found" in text:
        return "nobody is logged in on this computer"
    return text


__all__ = ["Anonymous", "Credentials", "GoogleCredentials", "Unauthenticated", "find_credentials"]
