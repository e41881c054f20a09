"""Jobs that still run: what a teardown has to stop first, because they cost money by the minute.

Found by label in every region that may hold some; ended jobs are records that cost nothing and
stay. Starting and following jobs is `saccade.launch`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saccade.cloud.api import custom_jobs
from saccade.cloud.api.transport import Google, NotFound
from saccade.cloud.plan import Observed, State
from saccade.cloud.settings import LABELS

STOPPED = custom_jobs.TERMINAL | {"JOB_STATE_CANCELLING"}


@dataclass(frozen=True)
class Job:
    """One job that has not ended."""

    name: str
    """Google's full name."""
    region: str
    title: str = ""

    group = "jobs"
    kind = "job"
    needs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Return its id in plans."""
        return f"job:{self.region}/{self.name.rpartition('/')[2]}"

    def observe(self, google: Google) -> Observed:
        """Ask for its state; an ended job counts as gone."""
        try:
            state = str(custom_jobs.get(google, self.name).get("state", ""))
        except NotFound:
            return Observed(State.ABSENT, "gone")
        word = state.removeprefix("JOB_STATE_").lower()
        return Observed(State.ABSENT if state in STOPPED else State.CURRENT, word)

    def intent(self, observed: Observed) -> tuple[str, str]:
        """Jobs are never made here."""
        raise NotImplementedError

    def make(self, google: Google, observed: Observed) -> None:
        """Jobs are never made here."""
        raise NotImplementedError

    def farewell(self) -> str | None:
        """Say what is stopped."""
        return f"job {self.title or self.name} in {self.region}"

    def remove(self, google: Google) -> None:
        """Cancel it."""
        custom_jobs.cancel(google, self.name)


def running_jobs(google: Google, *, regions: Sequence[str]) -> list[Job]:
    """List the labelled jobs that have not ended."""
    return [
        Job(str(found["name"]), region, str(found.get("displayName", "")))
        for region in regions
        for found in custom_jobs.list_by_label(google, region=region, labels=LABELS)
        if found.get("state") not in STOPPED
    ]
