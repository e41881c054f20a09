"""The Google APIs a project needs switched on.

One resource for all of them, seen through Service Usage, which is always on. Teardown leaves them
on: an API that is on costs nothing, and something else in the project may use it by now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saccade.cloud.api import services
from saccade.cloud.api.transport import Google
from saccade.cloud.plan import Observed, State

APIS: Mapping[str, str] = {
    "aiplatform": "runs the jobs (Vertex AI)",
    "artifactregistry": "holds the image",
    "cloudbuild": "builds the image",
    "storage": "holds checkpoints and results",
    "secretmanager": "hands keys to jobs",
    "iam": "makes the service account",
    "cloudresourcemanager": "reads and sets who may do what",
    "logging": "holds the jobs' log lines",
    "cloudquotas": "reads and requests quota",
    "cloudbilling": "says whether billing is on, and what things cost",
    "compute": "says which machines a region has",
}
"""API -> what saccade uses it for."""


@dataclass(frozen=True)
class Apis:
    """Every API that saccade calls, on."""

    names: tuple[str, ...] = tuple(f"{api}.googleapis.com" for api in APIS)

    id = "apis"
    group = "apis"
    kind = "apis"
    name = "apis"
    region = ""
    needs: tuple[str, ...] = ()

    def observe(self, google: Google) -> Observed:
        """Ask which are on."""
        on = services.enabled(google, self.names)
        off = [name for name in self.names if name not in on]
        data = {"have": len(on), "need": len(self.names), "off": off}
        if not off:
            return Observed(State.CURRENT, f"{len(on)} of {len(self.names)} on", data=data)
        return Observed(State.ABSENT, f"off: {', '.join(off)}", data=data)

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Name those that are off, and what each is for."""
        off = observed.data["off"]
        return "enable", "; ".join(f"{name} ({APIS[name.partition('.')[0]]})" for name in off)

    def make(self, google: Google, observed: Observed) -> None:
        """Switch on those that are off."""
        services.enable(google, observed.data["off"])

    def farewell(self) -> str | None:
        """Leave them on."""
        return None

    def remove(self, google: Google) -> None:
        """Leave them on."""
