"""Vertex AI quota: what a job needs, what the project has, and the request for the rest.

Have, need and unknown are three things: a metric that cannot be read or is not listed is unknown,
never zero. An increase is asked for once as a quota preference; until Google answers it is pending
and a second setup asks for nothing. Preferences cannot be deleted and cost nothing, so teardown
leaves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from saccade.cloud.api import quotas
from saccade.cloud.api.transport import Google
from saccade.cloud.findings import Level
from saccade.cloud.plan import Observed, State
from saccade.cloud.settings import QuotaNeed

CONSOLE = "https://console.cloud.google.com/iam-admin/quotas"
REASON = "Training runs started by saccade on Vertex AI."


@dataclass(frozen=True)
class QuotaRequest:
    """One metric in one region, at least as large as needed."""

    quota: QuotaNeed
    contact: str | None
    """Where Google answers; without it nothing can be asked."""

    group = "quota"
    kind = "quota"
    needs = ("apis",)

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return f"quota:{self.quota.metric}@{self.quota.region}"

    @property
    def name(self) -> str:
        """Return the metric."""
        return self.quota.metric

    @property
    def region(self) -> str:
        """Return the region."""
        return self.quota.region

    def observe(self, google: Google) -> Observed:
        """Read the granted value, and the request for more if it is too small."""
        need = self.quota.need
        limit = quotas.quotas(google).get(self.quota.metric)
        have = limit.limit(self.quota.region) if limit else None
        data: dict[str, Any] = {"have": have, "need": need, "limit": limit}
        if limit is None or have is None:
            message = f"have unknown (not listed for {self.quota.region}), need {need}"
            return Observed(State.UNKNOWN, message, data=data, fix=f"look at {CONSOLE}")
        if have == quotas.UNLIMITED or have >= need:
            word = "unlimited" if have == quotas.UNLIMITED else have
            return Observed(State.CURRENT, f"have {word}, need {need}", data=data)
        short = f"have {have}, need {need}"
        asked = self._asked(google, limit)
        config = (asked or {}).get("quotaConfig") or {}
        if asked and int(config.get("preferredValue") or 0) >= need:
            if asked.get("reconciling"):
                message = f"{short}; asked, Google decides"
                return Observed(State.PENDING, message, data=data, level=Level.BLOCK)
            said = str(config.get("stateDetail") or "no reason given")
            message = f"{short}; asked, granted {config.get('grantedValue', have)}: {said}"
            fix = f"ask again at {CONSOLE}"
            return Observed(State.PENDING, message, data=data, fix=fix, level=Level.BLOCK)
        if self.contact is None:
            fix = "echo GOOGLE_CLOUD_ACCOUNT=you@example.com >> .env   (Google answers there)"
            message = f"{short}; not asked: no address to answer to"
            return Observed(State.PENDING, message, data=data, fix=fix, level=Level.BLOCK)
        return Observed(State.ABSENT, short, data=data)

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Say what is there and what is asked for."""
        if "limit" not in observed.data:  # the API is off: nothing could be read yet
            return "request", f"{self.quota.metric} in {self.quota.region}, if it is too small"
        need, where = self.quota.need, self.quota.region
        return "request", f"{self.quota.metric} in {where}: {observed.message}; ask for {need}"

    def make(self, google: Google, observed: Observed) -> None:
        """Ask for the needed value, or raise an earlier request."""
        seen = observed if "limit" in observed.data else self.observe(google)
        if seen.state is not State.ABSENT:
            return
        quotas.request_quota(
            google, quota=seen.data["limit"], region=self.quota.region, value=self.quota.need,
            reason=REASON, email=self.contact,
        )  # fmt: skip

    def farewell(self) -> str | None:
        """Leave the request; Google deletes none."""
        return None

    def remove(self, google: Google) -> None:
        """Leave the request."""

    def _asked(self, google: Google, limit: quotas.Quota) -> dict[str, Any] | None:
        for found in quotas.requests_made(google):
            place = (found.get("dimensions") or {}).get("region", self.quota.region)
            if found.get("quotaId") == limit.quota_id and place == self.quota.region:
                return found
        return None
