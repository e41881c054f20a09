"""The bucket of code, configurations, checkpoints and results.

Regional, uniform access, public access prevented, soft delete chosen and not defaulted, labelled.
A lifecycle rule deletes checkpoints under `attempts/` by age and nothing else. A bucket of that
name in another project, or without our label, is foreign: names of buckets are global, and whoever
guesses one first could read what is written there. Left out: objects (`saccade.cloud.api`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from saccade.cloud.api import storage
from saccade.cloud.api.transport import Google, NotFound, PermissionDenied, ServiceDisabled
from saccade.cloud.plan import Observed, State
from saccade.cloud.settings import EXPIRING_PREFIX, FINALS_PREFIX, LABELS

DAY_S = 86_400
ABORT_UPLOADS_DAYS = 7


@dataclass(frozen=True)
class Bucket:
    """One bucket in its desired state."""

    name: str
    region: str
    expire_days: int
    soft_delete_days: int

    group = "bucket"
    kind = "bucket"
    needs = ("apis",)

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return f"bucket:{self.name}"

    def desired(self) -> dict[str, Any]:
        """Return the fields saccade decides, as the API writes them."""
        expire = {"age": self.expire_days, "matchesPrefix": [EXPIRING_PREFIX]}
        abort = {"age": ABORT_UPLOADS_DAYS}
        return {
            "labels": dict(LABELS),
            "iamConfiguration": {
                "uniformBucketLevelAccess": {"enabled": True},
                "publicAccessPrevention": "enforced",
            },
            "softDeletePolicy": {"retentionDurationSeconds": str(self.soft_delete_days * DAY_S)},
            "lifecycle": {
                "rule": [
                    {"action": {"type": "Delete"}, "condition": expire},
                    {"action": {"type": "AbortIncompleteMultipartUpload"}, "condition": abort},
                ]
            },
        }

    def observe(self, google: Google) -> Observed:
        """Read the bucket and compare field by field."""
        try:
            found = storage.get_bucket(google, self.name)
        except ServiceDisabled:
            raise
        except PermissionDenied as error:
            return self._foreign(f"is not readable: {str(error).splitlines()[0]}")
        if found is None:
            return Observed(State.ABSENT, "does not exist")
        labels = found.get("labels") or {}
        if any(labels.get(key) != value for key, value in LABELS.items()):
            return self._foreign("exists without the label app=saccade")
        if not _same_project(google, found):
            return self._foreign("belongs to another project")
        data = {"have": found.get("location", "").lower(), "need": self.region, "found": found}
        if found.get("location", "").lower() != self.region:
            fix = f"set GOOGLE_CLOUD_REGION={found.get('location', '').lower()} or another bucket"
            message = f"lies in {found.get('location')}, a bucket cannot move"
            return Observed(State.FOREIGN, message, data=data, fix=fix)
        drift = tuple(_differences(found, self.desired()))
        if drift:
            return Observed(State.DRIFTED, differences=drift, data=data)
        return Observed(State.CURRENT, f"there, in {self.region}", data=data)

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Say where it is made, or what is changed."""
        if observed.state is not State.ABSENT:
            return "update", f"gs://{self.name}: {'; '.join(observed.differences)}"
        return "create", (
            f"gs://{self.name} in {self.region}: {EXPIRING_PREFIX} expires after "
            f"{self.expire_days} days, {FINALS_PREFIX} never"
        )

    def make(self, google: Google, observed: Observed) -> None:
        """Create the bucket, or patch the fields that differ."""
        if observed.state is State.ABSENT:
            body = {"name": self.name, "location": self.region.upper(), "storageClass": "STANDARD"}
            storage.create_bucket(google, body=body | self.desired())
            return
        fields = {text.partition(".")[0] for text in observed.differences}
        desired = {name: value for name, value in self.desired().items() if name in fields}
        storage.patch_bucket(google, self.name, changes=desired)

    def farewell(self) -> str | None:
        """Say what goes."""
        return f"gs://{self.name} with everything in it"

    def remove(self, google: Google) -> None:
        """Delete every object, then the bucket."""
        delete_objects(google, self.name)
        storage.delete_bucket(google, self.name)

    def _foreign(self, why: str) -> Observed:
        fix = (
            f"gcloud storage buckets update gs://{self.name} --update-labels=app=saccade"
            "   if it is yours to give away, else set SACCADE_BUCKET to a free name in .env"
        )
        return Observed(State.FOREIGN, f"gs://{self.name} {why}", fix=fix)


def delete_objects(google: Google, bucket: str) -> None:
    """Delete every object of a bucket; a bucket or object that is gone is no error."""
    try:
        found = list(storage.list_objects(google, bucket, versions=True))
    except NotFound:
        return
    for item in found:
        storage.delete_object(google, bucket, item["name"], generation=int(item["generation"]))


def finals(google: Google, bucket: str) -> list[str]:
    """Name the finished runs in a bucket: those with `runs/NAME/DONE`; none in an absent bucket."""
    try:
        found = storage.list_objects(google, bucket, prefix=FINALS_PREFIX)
        names = [str(item["name"]) for item in found]
    except NotFound:
        return []
    return sorted(
        {name.removeprefix(FINALS_PREFIX).removesuffix("/DONE") for name in names
         if name.endswith("/DONE")}
    )  # fmt: skip


def _same_project(google: Google, found: dict[str, Any]) -> bool:
    number = str(found.get("projectNumber") or "")
    if not number:
        return True
    project = google.call("GET", "cloudresourcemanager", f"/v3/projects/{google.project}")
    return str(project.get("name", "")).removeprefix("projects/") in (number, "")


def _differences(found: Any, desired: Any, *, path: str = "") -> Iterator[str]:
    """Name each desired value that is not there; what saccade does not decide is not looked at."""
    if isinstance(desired, dict):
        for key, value in desired.items():
            inner = (found or {}).get(key) if isinstance(found, dict) or found is None else None
            yield from _differences(inner, value, path=f"{path}.{key}" if path else key)
    elif isinstance(desired, list):
        if not _same_rules(found, desired):
            yield f"{path} differs"
    elif str(found).lower() != str(desired).lower():
        yield f"{path} is {found if found is not None else 'unset'}, not {desired}"


def _same_rules(found: Any, desired: list[Any]) -> bool:
    """Compare lists without regard to order and to numbers written as text."""

    def plain(rules: Any) -> list[str]:
        return sorted(_canonical(rule) for rule in rules or [])

    return plain(found) == plain(desired)


def _canonical(value: Any) -> str:
    if isinstance(value, dict):
        inner = ",".join(f"{key}:{_canonical(value[key])}" for key in sorted(value))
        return "{" + inner + "}"
    if isinstance(value, list):
        return "[" + ",".join(sorted(_canonical(item) for item in value)) + "]"
    return str(value)
