"""Long-running operations: poll until Google says done, then return the result or its error.

The operation object that a create, delete or enable call answered with flows in; its response
flows out. An unreachable service during the wait is not an error of the operation: polling goes
on until the caller's time limit.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from saccade.cloud.api.transport import Google, Unreachable, from_operation


@dataclass(frozen=True)
class LongOperation:
    """An operation under way; `name` is Google's full name of it."""

    google: Google
    service: str
    name: str
    region: str | None = None
    version: str = "v1"

    def poll(self) -> dict[str, Any]:
        """Read the operation once."""
        path = f"/{self.version}/{self.name}"
        return self.google.call("GET", self.service, path, region=self.region)

    def wait(self, *, timeout_s: float = 300.0, poll_s: float | None = None) -> dict[str, Any]:
        """Poll until done and return its response; raises its ApiError, or Unreachable if late."""
        pause = poll_s if poll_s is not None else (0.05 if self.google.fake else 1.0)
        end = time.monotonic() + timeout_s
        while True:
            late = time.monotonic() > end
            try:
                seen = self.poll()
            except Unreachable:
                if late:
                    raise
                seen = {}
            if seen.get("done"):
                return self.result(seen)
            if late:
                raise Unreachable(
                    f"operation {self.name} is not done after {timeout_s:.0f} s; "
                    "it goes on\n  fix: repeat the command",
                    service=self.service, reason="OPERATION_TIMEOUT", detail=seen, url=self.name,
                )  # fmt: skip
            time.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 1.5, 10.0)

    def result(self, seen: dict[str, Any]) -> dict[str, Any]:
        """Return the response of a finished operation; raises its error."""
        if error := seen.get("error"):
            raise from_operation(
                error, service=self.service, project=self.google.project, name=self.name
            )
        response = dict(seen.get("response") or {})
        response.pop("@type", None)  # names the message's type; not a field of it
        return response


def finish(
    google: Google,
    service: str,
    operation: dict[str, Any],
    *,
    region: str | None = None,
    version: str = "v1",
    timeout_s: float = 300.0,
) -> dict[str, Any]:
    """Wait for the operation that a call answered with; done ones cost no further request."""
    name = str(operation.get("name", ""))
    running = LongOperation(google, service, name, region=region, version=version)
    if operation.get("done") or not name:
        return running.result(operation)
    return running.wait(timeout_s=timeout_s)
