"""The Artifact Registry repository of the job's image: Docker format, in the jobs' region.

Owned when labelled `app=saccade`; a repository of that name without the label is foreign. Images in
it are built and found by `saccade.launch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade.cloud.api import registry
from saccade.cloud.api.transport import Google
from saccade.cloud.plan import Observed, State
from saccade.cloud.settings import LABELS

DESCRIPTION = "Images of saccade jobs"


@dataclass(frozen=True)
class Repository:
    """One repository in its desired state."""

    name: str
    region: str

    group = "registry"
    kind = "repository"
    needs = ("apis",)

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return f"repository:{self.region}/{self.name}"

    def observe(self, google: Google) -> Observed:
        """Read it; format and label decide whose it is."""
        found = registry.get_repository(google, region=self.region, repository=self.name)
        if found is None:
            return Observed(State.ABSENT, "does not exist")
        labels = found.get("labels") or {}
        where = f"--location={self.region} --update-labels=app=saccade"
        if any(labels.get(key) != value for key, value in LABELS.items()):
            fix = f"gcloud artifacts repositories update {self.name} {where}   if it is yours"
            message = f"{self.name} in {self.region} exists without the label app=saccade"
            return Observed(State.FOREIGN, message, fix=fix)
        if str(found.get("format", "DOCKER")) not in ("DOCKER", "1"):
            message = f"{self.name} has the format {found.get('format')}, not DOCKER"
            fix = f"gcloud artifacts repositories delete {self.name} --location={self.region}"
            return Observed(State.FOREIGN, message, fix=fix)
        return Observed(State.CURRENT, "there", data={"bytes": int(found.get("sizeBytes") or 0)})

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Say where it is made."""
        return "create", f"image repository {self.name} in {self.region}"

    def make(self, google: Google, observed: Observed) -> None:
        """Create it."""
        registry.create_repository(
            google, region=self.region, repository=self.name, labels=dict(LABELS),
            description=DESCRIPTION,
        )  # fmt: skip

    def farewell(self) -> str | None:
        """Say what goes."""
        return f"repository {self.name} in {self.region} with its images"

    def remove(self, google: Google) -> None:
        """Delete it."""
        registry.delete_repository(google, region=self.region, repository=self.name)
