"""The fake Cloud Storage's buckets: create, list, change, delete, IAM policy.

Requests about buckets flow in, bucket resources in Google's own form flow out; `storage.py` mounts
these calls and answers what concerns objects. Uniform access, soft delete, labels, location and
lifecycle rules are kept and checked; ACLs and noncurrent versions are left out.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake.http import Request, Response, Router, json_response
from saccade.cloud.fake.storage_rules import (
    StorageError,
    check_bucket,
    check_preconditions,
    merge,
    page_size,
)
from saccade.cloud.fake.storage_state import (
    SOFT_DELETE_SECONDS,
    Bucket,
    Resource,
    StorageState,
    stamp,
)
from saccade.cloud.fake.world import project_number

API = "/storage/v1"
MULTI_REGIONS = {"US", "EU", "ASIA"}
FIXED_BUCKET_FIELDS = ("id", "kind", "location", "locationType", "name", "timeCreated")


class BucketCalls:
    """The calls whose resource is a bucket."""

    def __init__(self, state: StorageState) -> None:
        self.state = state

    def add_to(self, router: Router) -> None:
        """Register every call."""
        add, one = router.add, f"{API}/b/{{bucket~}}"
        add("GET", f"{API}/b", self._list_buckets)
        add("POST", f"{API}/b", self._insert_bucket)
        add("GET", one, self._get_bucket)
        add("PATCH", one, self._patch_bucket)
        add("PUT", one, self._update_bucket)
        add("DELETE", one, self._delete_bucket)
        add("GET", f"{one}/iam", self._get_policy)
        add("PUT", f"{one}/iam", self._set_policy)
        add("GET", f"{one}/iam/testPermissions", self._test_permissions)
        add("GET", f"{API}/projects/{{project~}}/serviceAccount", self._service_account)

    def _bucket(self, name: str) -> Bucket:
        bucket = self.state.buckets.get(name)
        if bucket is None:
            raise StorageError(404, "The specified bucket does not exist.")
        return bucket

    def _list_buckets(self, request: Request) -> Response:
        wanted, prefix = request.first("project"), request.first("prefix")
        names = sorted(
            name
            for name, bucket in self.state.buckets.items()
            if bucket.project == wanted and name.startswith(prefix)
        )
        after, limit = request.first("pageToken"), page_size(request)
        names = [name for name in names if name > after]
        answer: Resource = {"kind": "storage#buckets"}
        answer["items"] = [self.state.buckets[name].resource for name in names[:limit]]
        if len(names) > limit:
            answer["nextPageToken"] = names[limit - 1]
        return json_response(answer)

    def _insert_bucket(self, request: Request) -> Response:
        project = request.first("project")
        if not project:
            raise StorageError(400, "Required parameter: project", reason="required")
        resource = _new_bucket(request.json(), now=self.state.clock(), request=request)
        check_bucket(resource)
        if resource["name"] in self.state.buckets:
            raise StorageError(
                409,
                "Your previous request to create the named bucket succeeded and you already own"
                " it.",
            )
        return json_response(self.state.add_bucket(project, resource).resource)

    def _get_bucket(self, request: Request, *, bucket: str) -> Response:
        found = self._bucket(bucket)
        check_preconditions(request, _as_generation(found.resource), reading=True)
        return json_response(found.resource)

    def _patch_bucket(self, request: Request, *, bucket: str) -> Response:
        return self._write_bucket(request, bucket, merge(self._bucket(bucket).resource, {}))

    def _update_bucket(self, request: Request, *, bucket: str) -> Response:
        now = self._bucket(bucket).resource
        kept = {name: now[name] for name in FIXED_BUCKET_FIELDS if name in now}
        return self._write_bucket(request, bucket, kept | {"metageneration": now["metageneration"]})

    def _write_bucket(self, request: Request, name: str, base: Resource) -> Response:
        found = self._bucket(name)
        check_preconditions(request, _as_generation(found.resource))
        patch = request.json()
        for fixed in FIXED_BUCKET_FIELDS:
            if fixed in patch and patch[fixed] != found.resource.get(fixed):
                raise StorageError(400, f"The bucket's {fixed} cannot be changed.")
        changed = merge(base, patch)
        check_bucket(changed)
        number = int(found.resource["metageneration"]) + 1
        now = stamp(self.state.clock())
        found.resource = changed | {
            "metageneration": str(number), "updated": now, "etag": f"B{number}=",
        }  # fmt: skip
        self.state.save_bucket(found)
        return json_response(found.resource)

    def _delete_bucket(self, request: Request, *, bucket: str) -> Response:
        found = self._bucket(bucket)
        check_preconditions(request, _as_generation(found.resource))
        if found.objects:
            raise StorageError(409, "The bucket you tried to delete is not empty.")
        self.state.drop_bucket(found)
        return Response(204)

    def _get_policy(self, request: Request, *, bucket: str) -> Response:
        policy = self._bucket(bucket).policy
        return json_response(_policy(bucket) | policy)

    def _set_policy(self, request: Request, *, bucket: str) -> Response:
        found, wanted = self._bucket(bucket), request.json()
        before = _policy(bucket) | found.policy
        if wanted.get("etag", before["etag"]) != before["etag"]:
            raise StorageError(412, "The policy was changed by someone else (etag).")
        number = int(before["etag"].removeprefix("P").removesuffix("=")) + 1
        found.policy = {
            "version": wanted.get("version", 1),
            "bindings": wanted.get("bindings", []),
            "etag": f"P{number}=",
        }
        self.state.save_bucket(found)
        return json_response(_policy(bucket) | found.policy)

    def _test_permissions(self, request: Request, *, bucket: str) -> Response:
        self._bucket(bucket)
        asked = request.query.get("permissions", [])
        return json_response({"kind": "storage#testIamPermissionsResponse", "permissions": asked})

    def _service_account(self, request: Request, *, project: str) -> Response:
        email = f"service-{project}@gs-project-accounts.iam.gserviceaccount.com"
        return json_response({"kind": "storage#serviceAccount", "email_address": email})


def _new_bucket(wanted: Resource, *, now: float, request: Request) -> Resource:
    name = str(wanted.get("name", ""))
    location = str(wanted.get("location") or "US").upper()
    access = (wanted.get("iamConfiguration") or {}).get("uniformBucketLevelAccess") or {}
    return {
        "storageClass": "STANDARD",
        "rpo": "DEFAULT",
        "softDeletePolicy": {
            "retentionDurationSeconds": str(SOFT_DELETE_SECONDS),
            "effectiveTime": stamp(now),
        },
        **wanted,
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "selfLink": f"http://{request.header('host', '127.0.0.1')}{API}/b/{name}",
        "projectNumber": project_number(request.first("project")),
        "location": location,
        "locationType": "multi-region" if location in MULTI_REGIONS else "region",
        "metageneration": "1",
        "etag": "B1=",
        "timeCreated": stamp(now),
        "updated": stamp(now),
        "iamConfiguration": {
            "publicAccessPrevention": "inherited",
            **(wanted.get("iamConfiguration") or {}),
            "uniformBucketLevelAccess": {"enabled": False, **access},
        },
    }


def _as_generation(resource: Resource) -> Resource:
    # buckets have metagenerations only
    return {"generation": "", **resource}


def _policy(bucket: str) -> dict[str, Any]:
    return {
        "kind": "storage#policy",
        "resourceId": f"projects/_/buckets/{bucket}",
        "version": 1,
        "etag": "P1=",
        "bindings": [],
    }
