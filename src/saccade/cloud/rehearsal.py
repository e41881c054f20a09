"""A connection that reads for real and only writes down what would be changed.

A dry run gives a step this connection instead of the real one: the same code runs, so the calls
listed are those that would be sent. Values in bodies are left out, names of fields are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from saccade.cloud.api.transport import Google, NotFound, ServiceDisabled, Settle
from saccade.cloud.plan import Step

_READING_POSTS = (":getIamPolicy", "entries:list")


@dataclass(frozen=True)
class Rehearsal(Google):
    """Records every call that changes something, and answers as if it had been done."""

    calls: list[str] = field(default_factory=list)

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
        """Read, or record."""
        if method == "GET" or path.endswith(_READING_POSTS):
            return self._read(method, service, path, region=region, body=body, params=params)
        query = f"?{urlencode(params, safe='/,:', doseq=True)}" if params else ""
        fields = f"  {{{', '.join(body)}}}" if body else ""
        address = self.address(service, region=region)
        self.calls.append(f"{method} {address}{path}{query}{fields}")
        return {"done": True, "name": f"{path.removeprefix('/v1/').partition(':')[0]}/versions/1"}

    def _read(self, method: str, service: str, path: str, **rest: Any) -> dict[str, Any]:
        try:
            return super().call(method, service, path, retry=True, **rest)
        except (NotFound, ServiceDisabled) as error:
            if path.endswith((":getIamPolicy", "/iam")):
                return {}  # the policy of something that this plan makes first
            raise NotFound(str(error), service=service, status=404) from None


def rehearse(google: Google, step: Step) -> list[str]:
    """List the calls a step would send, in order."""
    stage = Rehearsal(google.project, google.base, google.credentials, google.patience)
    with suppress(NotFound):  # of what can only be read after the steps before
        step.take(stage, step.observed)
    return stage.calls
