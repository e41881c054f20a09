"""The errors of Google's services: one class per kind, one sentence per error.

An HTTP status with Google's error body flows in, an `ApiError` flows out whose text names the
service, the project and the command that repairs it. Network failures become `Unreachable`, which
never says anything about the state of a job. Nothing here sends a request.
"""

from __future__ import annotations

import re
from typing import Any

from saccade.config.errors import OutsideError

TITLES = {
    "aiplatform": "Vertex AI",
    "cloudbuild": "Cloud Build",
    "artifactregistry": "Artifact Registry",
    "secretmanager": "Secret Manager",
    "iam": "IAM",
    "cloudresourcemanager": "Resource Manager",
    "serviceusage": "Service Usage",
    "cloudquotas": "Cloud Quotas",
    "cloudbilling": "Cloud Billing",
    "logging": "Cloud Logging",
    "storage": "Cloud Storage",
    "compute": "Compute Engine",
}
_ROLES = {  # the role that usually lacks, for the caller
    "aiplatform": "roles/aiplatform.user",
    "cloudbuild": "roles/cloudbuild.builds.editor",
    "artifactregistry": "roles/artifactregistry.admin",
    "secretmanager": "roles/secretmanager.admin",
    "iam": "roles/iam.serviceAccountAdmin",
    "cloudresourcemanager": "roles/resourcemanager.projectIamAdmin",
    "serviceusage": "roles/serviceusage.serviceUsageAdmin",
    "cloudquotas": "roles/cloudquotas.admin",
    "cloudbilling": "roles/billing.projectManager",
    "logging": "roles/logging.viewer",
    "storage": "roles/storage.admin",
    "compute": "roles/compute.viewer",
}
_RATES = ("RATE_LIMIT_EXCEEDED", "rateLimitExceeded", "userRateLimitExceeded")
LOGIN = "gcloud auth application-default login"
# google.rpc.Code, as found in finished operations and in jobs
RPC_STATUS = {
    1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400,
    12: 501, 13: 500, 14: 503, 15: 500, 16: 401,
}  # fmt: skip


class ApiError(OutsideError):
    """A Google service refused a request; the text is ready to be shown to the user."""

    def __init__(
        self,
        message: str,
        *,
        service: str = "",
        status: int = 0,
        reason: str = "",
        detail: dict[str, Any] | None = None,
        url: str = "",
    ) -> None:
        """Keep what callers decide by: HTTP status, Google's reason, the parsed error object."""
        super().__init__(message)
        self.service = service
        self.status = status
        self.reason = reason
        self.detail = detail or {}
        self.url = url

    @property
    def quota_metric(self) -> str | None:
        """Name of the exhausted quota metric, when Google named one."""
        return _quota_metric(self.detail)

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that Google asked to wait, when it did."""
        return retry_delay(self.detail)


class NotFound(ApiError):
    """404: no such resource."""


class AlreadyExists(ApiError):
    """409: the resource is there, or somebody changed it at the same time."""


class PreconditionFailed(ApiError):
    """412: the object is not the generation that the caller meant."""


class PermissionDenied(ApiError):
    """403: the caller may not do this."""


class ServiceDisabled(PermissionDenied):
    """403: the API is switched off in the project."""


class BillingDisabled(PermissionDenied):
    """403: the project has no active billing account."""


class Unauthenticated(ApiError):
    """401, or credentials that are missing, expired or revoked."""


class ResourceExhausted(ApiError):
    """429: a quota is used up."""


class Unreachable(ApiError):
    """Network failure or 5xx after all retries; says nothing about what runs in the cloud."""


def from_body(
    *, service: str, project: str, method: str, url: str, status: int, body: Any
) -> ApiError:
    """Build the error of an HTTP answer; `body` is the parsed JSON or its text."""
    error = body.get("error", body) if isinstance(body, dict) else {"message": str(body or "")}
    if isinstance(error, list):  # some front ends wrap the object in a list
        error = error[0] if error else {}
    if not isinstance(error, dict):
        error = {"message": str(error)}
    reason = _reason(error)
    kind = _kind(status, reason, str(error.get("message", "")))
    message = _sentence(kind, service=service, project=project, method=method, url=url, error=error)
    return kind(message, service=service, status=status, reason=reason, detail=error, url=url)


def from_operation(error: dict[str, Any], *, service: str, project: str, name: str) -> ApiError:
    """Build the error of a finished long-running operation (a google.rpc.Status)."""
    status = RPC_STATUS.get(int(error.get("code", 2)), 500)
    return from_body(
        service=service, project=project, method="WAIT", url=name, status=status, body=error
    )


def unreachable(*, service: str, url: str, why: str, tries: int, seconds: float) -> Unreachable:
    """Build the error of a service that gave no usable answer."""
    waited = f"{tries} tries in {seconds:.0f} s" if tries > 1 else "1 try"
    return Unreachable(
        f"{title(service)} did not answer ({waited}: {why}); "
        "what runs there is not affected\n  fix: check the network, then repeat the command",
        service=service, reason="UNREACHABLE", detail={"message": why}, url=url,
    )  # fmt: skip


def no_credentials(why: str, *, project: str = "") -> Unauthenticated:
    """Build the error of missing or expired application-default credentials."""
    where = f" for project {project}" if project else ""
    return Unauthenticated(
        f"no usable Google credentials{where}: {_one_line(why)}\n  fix: {LOGIN}",
        status=401, reason="NO_CREDENTIALS", detail={"message": why},
    )  # fmt: skip


def title(service: str) -> str:
    """Name a service as its documentation does."""
    return TITLES.get(service, service)


def retry_delay(error: dict[str, Any]) -> float | None:
    """Read RetryInfo from an error object, in seconds."""
    text = _details(error, "RetryInfo").get("retryDelay", "")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(text))
    return float(match.group(1)) if match else None


def slow_down(failure: ApiError) -> bool:
    """Whether the server surely did nothing and only asks for fewer requests per minute."""
    if not isinstance(failure, ResourceExhausted):
        return False
    return failure.retry_after_s is not None or _is_rate(failure.detail)


def _is_rate(error: dict[str, Any]) -> bool:
    """Tell a limit of requests per minute from a limit of machines, which waiting does not cure."""
    meta = _metadata(error)
    per_minute = "min" in f"{meta.get('quota_unit', '')} {meta.get('quota_limit', '')}".lower()
    return _reason(error) in _RATES and (per_minute or _quota_metric(error) is None)


def _details(error: dict[str, Any], kind: str) -> dict[str, Any]:
    for item in error.get("details") or []:
        if isinstance(item, dict) and str(item.get("@type", "")).endswith(f".{kind}"):
            return item
    return {}


def _reason(error: dict[str, Any]) -> str:
    info = _details(error, "ErrorInfo")
    if info.get("reason"):
        return str(info["reason"])
    for item in error.get("errors") or []:  # storage and compute use the older form
        if isinstance(item, dict) and item.get("reason"):
            return str(item["reason"])
    return str(error.get("status", ""))


def _kind(status: int, reason: str, message: str) -> type[ApiError]:
    if status == 403:
        if (
            reason in ("SERVICE_DISABLED", "accessNotConfigured")
            or "has not been used in" in message
        ):
            return ServiceDisabled
        billing = reason in (
            "BILLING_DISABLED",
            "UREQ_PROJECT_BILLING_NOT_FOUND",
            "accountDisabled",
        )
        if billing or re.search(
            r"billing.*(disabled|must be enabled|to be enabled)", message, re.I
        ):
            return BillingDisabled
        if reason in _RATES:
            return ResourceExhausted
        return PermissionDenied
    kinds: dict[int, type[ApiError]] = {
        401: Unauthenticated, 404: NotFound, 409: AlreadyExists, 412: PreconditionFailed,
        429: ResourceExhausted,
    }  # fmt: skip
    return kinds.get(status, Unreachable if status >= 500 else ApiError)


def _sentence(
    kind: type[ApiError], *, service: str, project: str, method: str, url: str,
    error: dict[str, Any],
) -> str:  # fmt: skip
    said = _one_line(str(error.get("message", "")) or "no explanation given")
    name, thing = title(service), _thing(url)
    if kind is ServiceDisabled:
        off = _metadata(error).get("service") or f"{service}.googleapis.com"
        return f"API {off} is off in project {project}\n  fix: saccade cloud setup --only apis"
    if kind is BillingDisabled:
        link = f"gcloud billing projects link {project} --billing-account=ACCOUNT_ID"
        return f"{name}: billing is off for project {project}\n  fix: {link}"
    if kind is Unauthenticated:
        return f"{name} rejects the credentials (project {project}): {said}\n  fix: {LOGIN}"
    if kind is PermissionDenied:
        missing = _metadata(error).get("permission")
        what = f"permission {missing} is missing" if missing else said
        role = _ROLES.get(service, "roles/editor")
        bind = f"gcloud projects add-iam-policy-binding {project} --member=user:YOU --role={role}"
        return f"{name} refuses {method} {thing} in project {project}: {what}\n  fix: {bind}"
    if kind is ResourceExhausted:
        metric = _quota_metric(error)
        if _is_rate(error):
            return f"{name}, project {project}: too many requests: {said}\n  fix: wait a minute"
        what = f"quota {metric} is used up" if metric else said
        return f"{name}, project {project}: {what}\n  fix: saccade cloud setup --only quota"
    if kind is NotFound:
        return f"{name} knows no {thing} in project {project}: {said}"
    return f"{name} answers {method} {thing} (project {project}): {said}"


def _metadata(error: dict[str, Any]) -> dict[str, Any]:
    return _details(error, "ErrorInfo").get("metadata") or {}


def _quota_metric(error: dict[str, Any]) -> str | None:
    meta = _metadata(error)
    if meta.get("quota_metric") or meta.get("quotaMetric"):
        return str(meta.get("quota_metric") or meta["quotaMetric"])
    for violation in _details(error, "QuotaFailure").get("violations") or []:
        for key in ("quotaMetric", "subject"):
            if violation.get(key):
                return str(violation[key])
    # Vertex names the metric in its text only
    match = re.search(r"[a-z]+\.googleapis\.com/[a-z0-9_/]+", str(error.get("message", "")))
    return match.group(0) if match else None


def _thing(url: str) -> str:
    path = url.split("?", 1)[0]
    path = re.sub(r"^https?://[^/]+", "", path)
    return re.sub(r"^/(?:upload/)?(?:storage/|compute/)?v\d\w*/", "", path) or "/"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "..."
