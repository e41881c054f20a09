"""The service account that jobs run as: no key file, roles on single resources only.

Service accounts carry no labels, so the description says whose it is (`app=saccade`); one without
that is foreign. What it may do is listed in `roles.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade.cloud.api import iam
from saccade.cloud.api.transport import Google
from saccade.cloud.plan import Observed, State
from saccade.cloud.settings import MARKER

DESCRIPTION = f"Jobs started by saccade run as this account ({MARKER})"


@dataclass(frozen=True)
class Account:
    """One service account in its desired state."""

    name: str
    """Its e-mail address."""

    group = "account"
    kind = "account"
    region = ""
    needs = ("apis",)

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return f"account:{self.name}"

    def observe(self, google: Google) -> Observed:
        """Read it; the description decides whose it is."""
        found = iam.get_account(google, self.name)
        if found is None:
            return Observed(State.ABSENT, "does not exist")
        if MARKER not in str(found.get("description", "")):
            fix = (
                f"gcloud iam service-accounts update {self.name} "
                f"--description='{MARKER}'   if it is yours to give away"
            )
            return Observed(State.FOREIGN, f"{self.name} exists and is not saccade's", fix=fix)
        if found.get("disabled"):
            fix = f"gcloud iam service-accounts enable {self.name}"
            return Observed(State.DRIFTED, "is disabled", ("is disabled",), fix=fix)
        return Observed(State.CURRENT, "there")

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Say what is made."""
        verb = "enable" if observed.state is State.DRIFTED else "create"
        return verb, f"service account {self.name}, without a key"

    def make(self, google: Google, observed: Observed) -> None:
        """Create it, or switch it on again."""
        if observed.state is State.DRIFTED:
            path = f"/v1/projects/{google.project}/serviceAccounts/{self.name}:enable"
            google.call("POST", iam.SERVICE, path, body={}, retry=True)
            return
        short = self.name.partition("@")[0]
        iam.create_account(google, short, display_name="saccade trainer", description=DESCRIPTION)

    def farewell(self) -> str | None:
        """Say what goes."""
        return f"service account {self.name}"

    def remove(self, google: Google) -> None:
        """Delete it."""
        iam.delete_account(google, self.name)
