"""Keys of other services, kept in Secret Manager for the jobs.

A secret's value flows from `.env` to Secret Manager and nowhere else: plans and errors show its
name only. Whether the stored value is still the current one is decided by a slow salted hash in the
secret's annotations, so planning never reads the value back. One version is kept; older ones are
destroyed. Left out: handing the value to a process (`saccade.launch.entry`).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

from pydantic import SecretStr

from saccade.cloud.api import secrets
from saccade.cloud.api.transport import Google
from saccade.cloud.plan import Observed, State
from saccade.cloud.settings import LABELS

FINGERPRINT = "saccade-fingerprint"
"""Annotation: version number, salt and hash of the value, joined by dots."""

ROUNDS = 20_000


@dataclass(frozen=True)
class Secret:
    """One secret in its desired state; without a value it is only looked at and removed."""

    name: str
    variable: str = ""
    value: SecretStr | None = None

    group = "secrets"
    kind = "secret"
    region = ""
    needs = ("apis",)

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return f"secret:{self.name}"

    def observe(self, google: Google) -> Observed:
        """Read labels, annotations and the list of versions; never the value."""
        found = secrets.get(google, self.name)
        if found is None:
            return Observed(State.ABSENT, "does not exist")
        labels = found.get("labels") or {}
        if any(labels.get(key) != value for key, value in LABELS.items()):
            fix = f"gcloud secrets update {self.name} --update-labels=app=saccade   if it is yours"
            return Observed(State.FOREIGN, f"{self.name} exists without the label", fix=fix)
        enabled = [
            str(one["name"]).rpartition("/")[2]
            for one in secrets.versions(google, self.name)
            if one.get("state", "ENABLED") in ("ENABLED", 1)
        ]
        data = {"enabled": enabled}
        if self.value is None:
            return Observed(State.CURRENT, "there", data=data)
        print_ = str((found.get("annotations") or {}).get(FINGERPRINT, ""))
        if enabled == [print_.partition(".")[0]] and _matches(print_, self.value):
            return Observed(State.CURRENT, f"version {enabled[0]} is current", data=data)
        return Observed(State.DRIFTED, differences=("the stored value is not current",), data=data)

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Name the variable; never the value."""
        verb = "create" if observed.state is State.ABSENT else "update"
        return verb, f"{self.name} from {self.variable} (value not shown)"

    def make(self, google: Google, observed: Observed) -> None:
        """Create the secret, store the value as its newest version, destroy the versions before."""
        assert self.value is not None, f"{self.name}: nothing to store"
        if observed.state is State.ABSENT:
            secrets.create(google, self.name, labels=dict(LABELS))
        version = secrets.add_version(google, self.name, self.value).rpartition("/")[2]
        print_ = f"{version}.{_hash(self.value, os.urandom(8).hex())}"
        path = f"/v1/projects/{google.project}/secrets/{self.name}"
        google.call(
            "PATCH", secrets.SERVICE, path, params={"updateMask": "annotations"},
            body={"annotations": {FINGERPRINT: print_}},
        )  # fmt: skip
        for old in observed.data.get("enabled", ()):
            if old != version:
                destroy = f"{path}/versions/{old}:destroy"
                google.call("POST", secrets.SERVICE, destroy, body={}, retry=True)

    def farewell(self) -> str | None:
        """Say what goes."""
        return f"secret {self.name} with all versions"

    def remove(self, google: Google) -> None:
        """Delete it."""
        secrets.delete(google, self.name)


def _hash(value: SecretStr, salt: str) -> str:
    text = value.get_secret_value().encode()
    return f"{salt}.{hashlib.pbkdf2_hmac('sha256', text, salt.encode(), ROUNDS).hex()}"


def _matches(fingerprint: str, value: SecretStr) -> bool:
    known = fingerprint.partition(".")[2]
    return hmac.compare_digest(known, _hash(value, known.partition(".")[0]))
