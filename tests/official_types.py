"""Parses recorded calls as Google's own request types, refusing what those do not know.

A call (method, path, query, body) as the local cloud records it flows in; the official request
message flows out, or an error that names the unknown field. Needs the official clients (the extra
`oracle`), which nothing but tests uses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf import json_format


def official(name: str) -> Any:
    """Import a module of the official clients; without it the importing tests are skipped."""
    reason = "needs Google's official clients; pip install 'saccade[oracle]' in their own venv"
    return pytest.importorskip(name, reason=reason)


aiplatform_v1 = official("google.cloud.aiplatform_v1")
artifactregistry_v1 = official("google.cloud.artifactregistry_v1")
billing_v1 = official("google.cloud.billing_v1")
cloudbuild_v1 = official("google.cloud.devtools.cloudbuild_v1")
cloudquotas_v1 = official("google.cloud.cloudquotas_v1")
iam_admin_v1 = official("google.cloud.iam_admin_v1")
logging_v2 = official("google.cloud.logging_v2")
resourcemanager_v3 = official("google.cloud.resourcemanager_v3")
secretmanager_v1 = official("google.cloud.secretmanager_v1")
service_usage_v1 = official("google.cloud.service_usage_v1")
official_storage = official("google.cloud.storage")
iam_policy_pb2 = official("google.iam.v1.iam_policy_pb2")
operations_pb2 = official("google.longrunning.operations_pb2")

WHOLE = "*"
"""The body is the request message itself, not one field of it."""
_P = "/v1/projects/[^/]+"
_R = f"{_P}/locations/[^/]+"

# method and path -> the request's official type, and which of its fields the body is
TYPES: list[tuple[str, Any, str]] = [
    (f"POST {_R}/customJobs", aiplatform_v1.CreateCustomJobRequest, "customJob"),
    (f"GET {_R}/customJobs", aiplatform_v1.ListCustomJobsRequest, ""),
    (f"GET {_R}/customJobs/[^/:]+", aiplatform_v1.GetCustomJobRequest, ""),
    (f"POST {_R}/customJobs/[^/:]+:cancel", aiplatform_v1.CancelCustomJobRequest, WHOLE),
    (f"DELETE {_R}/customJobs/[^/:]+", aiplatform_v1.DeleteCustomJobRequest, ""),
    (f"(GET) ({_R}(/customJobs/[^/]+)?|/v1)/operations/.+", operations_pb2.GetOperationRequest, ""),
    (f"POST {_P}/builds", cloudbuild_v1.CreateBuildRequest, "build"),
    (f"GET {_P}/builds", cloudbuild_v1.ListBuildsRequest, ""),
    (f"GET {_P}/builds/[^/:]+", cloudbuild_v1.GetBuildRequest, ""),
    (f"POST {_P}/builds/[^/:]+:cancel", cloudbuild_v1.CancelBuildRequest, WHOLE),
    (f"POST {_R}/repositories", artifactregistry_v1.CreateRepositoryRequest, "repository"),
    (f"PATCH {_R}/repositories/[^/:]+", artifactregistry_v1.UpdateRepositoryRequest, "repository"),
    (f"GET {_R}/repositories", artifactregistry_v1.ListRepositoriesRequest, ""),
    (f"GET {_R}/repositories/[^/:]+", artifactregistry_v1.GetRepositoryRequest, ""),
    (f"DELETE {_R}/repositories/[^/:]+", artifactregistry_v1.DeleteRepositoryRequest, ""),
    (f"GET {_R}/repositories/[^/]+/dockerImages", artifactregistry_v1.ListDockerImagesRequest, ""),
    (f"POST {_P}/secrets", secretmanager_v1.CreateSecretRequest, "secret"),
    (f"PATCH {_P}/secrets/[^/:]+", secretmanager_v1.UpdateSecretRequest, "secret"),
    (f"GET {_P}/secrets", secretmanager_v1.ListSecretsRequest, ""),
    (f"GET {_P}/secrets/[^/:]+", secretmanager_v1.GetSecretRequest, ""),
    (f"DELETE {_P}/secrets/[^/:]+", secretmanager_v1.DeleteSecretRequest, ""),
    (f"POST {_P}/secrets/[^/:]+:addVersion", secretmanager_v1.AddSecretVersionRequest, WHOLE),
    (f"GET {_P}/secrets/[^/]+/versions", secretmanager_v1.ListSecretVersionsRequest, ""),
    (f"GET {_P}/secrets/[^/]+/versions/[^/:]+", secretmanager_v1.GetSecretVersionRequest, ""),
    (
        f"GET {_P}/secrets/[^/]+/versions/[^/:]+:access",
        secretmanager_v1.AccessSecretVersionRequest,
        "",
    ),
    (
        f"POST {_P}/secrets/[^/]+/versions/[^/:]+:destroy",
        secretmanager_v1.DestroySecretVersionRequest,
        WHOLE,
    ),
    (
        f"POST {_P}/secrets/[^/]+/versions/[^/:]+:disable",
        secretmanager_v1.DisableSecretVersionRequest,
        WHOLE,
    ),
    (f"POST {_P}/serviceAccounts", iam_admin_v1.CreateServiceAccountRequest, WHOLE),
    (f"PATCH {_P}/serviceAccounts/[^/:]+", iam_admin_v1.PatchServiceAccountRequest, WHOLE),
    (f"GET {_P}/serviceAccounts", iam_admin_v1.ListServiceAccountsRequest, ""),
    (f"GET {_P}/serviceAccounts/[^/:]+", iam_admin_v1.GetServiceAccountRequest, ""),
    (f"DELETE {_P}/serviceAccounts/[^/:]+", iam_admin_v1.DeleteServiceAccountRequest, ""),
    (f"POST {_P}/serviceAccounts/[^/:]+:enable", iam_admin_v1.EnableServiceAccountRequest, WHOLE),
    (r"(GET|POST) .*:getIamPolicy", iam_policy_pb2.GetIamPolicyRequest, WHOLE),
    (r"POST .*:setIamPolicy", iam_policy_pb2.SetIamPolicyRequest, WHOLE),
    (r"POST .*:testIamPermissions", iam_policy_pb2.TestIamPermissionsRequest, WHOLE),
    (f"GET {_P}/services:batchGet", service_usage_v1.BatchGetServicesRequest, ""),
    (f"GET {_P}/services", service_usage_v1.ListServicesRequest, ""),
    (f"GET {_P}/services/[^/:]+", service_usage_v1.GetServiceRequest, ""),
    (f"POST {_P}/services:batchEnable", service_usage_v1.BatchEnableServicesRequest, WHOLE),
    (f"GET {_R}/services/[^/]+/quotaInfos", cloudquotas_v1.ListQuotaInfosRequest, ""),
    (f"GET {_R}/services/[^/]+/quotaInfos/[^/]+", cloudquotas_v1.GetQuotaInfoRequest, ""),
    (f"GET {_R}/quotaPreferences", cloudquotas_v1.ListQuotaPreferencesRequest, ""),
    (
        f"PATCH {_R}/quotaPreferences/[^/]+",
        cloudquotas_v1.UpdateQuotaPreferenceRequest,
        "quotaPreference",
    ),
    (f"GET {_P}/billingInfo", billing_v1.GetProjectBillingInfoRequest, ""),
    ("GET /v1/services", billing_v1.ListServicesRequest, ""),
    ("GET /v1/services/[^/]+/skus", billing_v1.ListSkusRequest, ""),
    ("POST /v2/entries:list", logging_v2.types.ListLogEntriesRequest, WHOLE),
    ("POST /v2/entries:write", logging_v2.types.WriteLogEntriesRequest, WHOLE),
]
# Google publishes no message types for these; the official clients read their answers instead
UNTYPED = re.compile(
    r"[A-Z]+ ((/upload|/download)?/storage/v1/|/compute/v1/|/v3/projects/[^/:]+$|/fake/)"
)


def parse(call: Mapping[str, Any]) -> Any:
    """Return the call as an official request; None if Google has no type for it."""
    line = f"{call['method']} {call['path']}"
    if UNTYPED.match(line):
        return None
    for pattern, kind, body_field in TYPES:
        if re.fullmatch(pattern, line):
            return _strict(kind, _request(call, body_field))
    raise AssertionError(f"no official request is known for {line}")


def _request(call: Mapping[str, Any], body_field: str) -> dict[str, Any]:
    request: dict[str, Any] = {}
    for name, values in (call.get("query") or {}).items():
        if name.startswith("$") or name in ("alt", "prettyPrint"):
            continue  # about the answer's form, for every service
        head, _, tail = name.partition(".")
        value = values if name == "names" else values[0]
        if tail:
            request.setdefault(head, {})[tail] = value
        else:
            request[name] = value
    body = call.get("body")
    if body_field == WHOLE:
        request.update(body or {})
    elif body_field:
        assert isinstance(body, dict), f"{call['path']} was sent without a body"
        request[body_field] = body
    else:
        assert not body, f"{call['path']} was sent with a body"
    return request


def _strict(kind: Any, request: dict[str, Any]) -> Any:
    request = {
        name: value == "true" if value in ("true", "false") else value
        for name, value in request.items()
    }
    text = json.dumps(request)
    if hasattr(kind, "from_json"):
        return kind.from_json(text, ignore_unknown_fields=False)
    return json_format.Parse(text, kind(), ignore_unknown_fields=False)
