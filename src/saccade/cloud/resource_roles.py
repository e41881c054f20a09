"""One role for one member on one resource, as desired state.

A grant flows in; its binding is added to or taken from the resource's policy. Grants on saccade's
own resources vanish with them; only those on the project are taken back one by one. Which grants
there are, and why, is in `roles.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade.cloud.api import iam
from saccade.cloud.api.transport import Google, NotFound
from saccade.cloud.plan import Observed, State
from saccade.cloud.roles import Grant


@dataclass(frozen=True)
class Binding:
    """One grant in its desired state: present."""

    grant: Grant
    where: str = ""
    """Region of the resource, where it has one."""

    group = "roles"
    kind = "role"

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return self.grant.id

    @property
    def name(self) -> str:
        """Return the grant as text, which `from_name` reads back."""
        grant = self.grant
        return f"{grant.role}|{grant.on}|{grant.resource}|{grant.member}"

    @property
    def region(self) -> str:
        """Return the region of the resource."""
        return self.where

    @property
    def needs(self) -> tuple[str, ...]:
        """Wait for the resource, and for the account that gets the role."""
        on, resource = self.grant.on, self.grant.resource
        place = f"{self.where}/{resource}" if on == "repository" else resource
        needs = ["apis" if on == "project" else f"{on}:{place}"]
        kind, _, email = self.grant.member.partition(":")
        if kind == "serviceAccount" and email.startswith("saccade-"):
            needs.append(f"account:{email}")
        return tuple(needs)

    def observe(self, google: Google) -> Observed:
        """Read the policy; a resource that does not exist has none."""
        try:
            policy = iam.get_policy(google, self._place(google))
        except NotFound:
            return Observed(State.ABSENT, f"{self.grant.resource} does not exist")
        if iam.has_binding(policy, role=self.grant.role, member=self.grant.member):
            return Observed(State.CURRENT, "granted")
        return Observed(State.ABSENT, "not granted")

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Say who gets what, and why."""
        grant = self.grant
        where = f"{grant.on} {grant.resource}"
        return "grant", f"{grant.role} on {where} to {grant.member}: {grant.why}"

    def make(self, google: Google, observed: Observed) -> None:
        """Add the member to the role."""
        iam.grant(google, self._place(google), role=self.grant.role, member=self.grant.member)

    def farewell(self) -> str | None:
        """Say what is taken back; a grant on something of ours goes with it."""
        grant = self.grant
        if grant.on != "project":
            return None
        return f"{grant.role} on {grant.on} {grant.resource} from {grant.member}"

    def remove(self, google: Google) -> None:
        """Take the member out of the role."""
        iam.revoke(google, self._place(google), role=self.grant.role, member=self.grant.member)

    def _place(self, google: Google) -> iam.Guarded:
        on, resource = self.grant.on, self.grant.resource
        if on == "project":
            return iam.project(google)
        if on == "bucket":
            return iam.bucket(resource)
        if on == "account":
            return iam.service_account(google, resource)
        if on == "secret":
            return iam.secret(google, resource)
        return iam.repository(google, region=self.where, name=resource)


def from_name(name: str, *, region: str) -> Binding:
    """Make a binding from the name the manifest recorded."""
    role, on, resource, member = name.split("|")
    return Binding(Grant(role, on, resource, member, why=""), where=region)


def members_on_project(google: Google) -> list[tuple[str, str]]:
    """List (role, member) of the project's unconditional bindings."""
    policy = iam.get_policy(google, iam.project(google))
    return [
        (str(binding["role"]), str(member))
        for binding in policy.get("bindings") or [] if not binding.get("condition")
        for member in binding.get("members") or []
    ]  # fmt: skip
