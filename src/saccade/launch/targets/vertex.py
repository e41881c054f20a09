"""The target `vertex`: every attempt is one Vertex AI CustomJob, sent to Google directly.

A `JobSpec` flows in, a `Handle` with the job's full name flows out; polling turns Vertex's states
into ours (`vertex_body.py`). Submitting twice makes one job: it is looked up by its labels first,
and again after an answer was lost. Left out: deciding what to do about a status.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from saccade.cloud.api import custom_jobs, logs
from saccade.cloud.api.transport import ApiError, Google, connect
from saccade.cloud.findings import Finding, Level
from saccade.config.errors import SaccadeError
from saccade.launch.machines import machine
from saccade.launch.spec import APP, Handle, JobSpec, LogLine, Status
from saccade.launch.states import State
from saccade.launch.targets.base import Settings
from saccade.launch.targets.vertex_body import (
    console_url,
    custom_job_body,
    job_labels,
    metric_of,
    seconds,
    status_of,
)

LOOKS = 3
"""How often a job is looked for after a lost answer: a new one may take a moment to be listed."""
HOLDING = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_CANCELLING")
"""States of jobs that have their quota."""
_log = logging.getLogger(__name__)


@dataclass
class VertexTarget:
    """Jobs on Vertex AI, in any region of one project."""

    google: Google
    regions: tuple[str, ...] = ()
    """Regions that `list` looks in."""
    look_pause_s: float = 2.0
    name: str = "vertex"
    capabilities: frozenset[str] = frozenset(
        {"spot", "flex", "multi_gpu", "multi_node", "logs", "remote"}
    )

    @classmethod
    def open(cls, settings: Settings) -> VertexTarget:
        """Connect by the environment; sends nothing."""
        google = connect(settings.project, env=settings.env)
        region = settings.region or settings.env.get("GOOGLE_CLOUD_REGION") or "us-central1"
        return cls(google=google, regions=(region,), look_pause_s=0.2 if google.fake else 2.0)

    def check(self, spec: JobSpec) -> list[Finding]:
        """Look for what would stop the job: the request itself, and its image."""
        try:
            custom_job_body(spec)
        except SaccadeError as error:
            text, _, fix = str(error).partition("\n  fix: ")
            return [Finding(name="job", level=Level.BLOCK, message=text, fix=fix)]
        kind = machine(spec.machine)
        size = f"{spec.replicas} x {kind.name} ({kind.gpus} {kind.gpu or 'GPU'})"
        found = [Finding(name="job", level=Level.OK, message=f"{size}, {spec.strategy}")]
        found.append(self._check_image(str(spec.image)))
        return found

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """Return the request that `submit` would send."""
        return {"method": "POST", "url": self._url(spec.region), "body": custom_job_body(spec)}

    def submit(self, spec: JobSpec) -> Handle:
        """Create the job, or return the one that has this token and attempt already."""
        body = custom_job_body(spec)
        existing = self._find(spec)
        if existing is not None:
            return self._handle(existing)
        lost = False

        def look_again() -> dict[str, Any] | None:
            nonlocal lost
            lost = True
            return self._find_late(spec)

        made = custom_jobs.create(self.google, region=spec.region, job=body, settle=look_again)
        if lost:
            made = self._keep_one(spec, made)
        return self._handle(made)

    def poll(self, handle: Handle) -> Status:
        """Read the job once; one that is held for its quota says who uses that."""
        job = custom_jobs.get(self.google, handle.id)
        status = status_of(job)
        if status.state is State.QUEUED_QUOTA:
            return replace(status, detail=self._held_by(job, region=handle.region))
        return status

    def logs(self, handle: Handle, *, cursor: str | None) -> tuple[list[LogLine], str | None]:
        """Return what the job's replicas wrote after the cursor."""
        chosen = logs.job_filter(custom_jobs.job_id(handle.id))
        found, after = logs.entries(self.google, chosen=chosen, cursor=cursor)
        return [
            LogLine(
                time=seconds(entry.time) or 0.0,
                text=entry.text,
                severity=entry.severity,
                replica=entry.labels.get("task_name", ""),
            )
            for entry in found
        ], after

    def cancel(self, handle: Handle) -> None:
        """Ask Vertex to stop the job; one that is over or gone is no error."""
        try:
            custom_jobs.cancel(self.google, handle.id)
        except ApiError as error:
            if error.status != 404:
                raise

    def list(self) -> list[Handle]:
        """Return our jobs in the known regions, newest first."""
        found = [
            self._handle(job)
            for region in self.regions
            for job in custom_jobs.list_by_label(self.google, region=region, labels={"app": APP})
        ]
        return found

    def _held_by(self, job: dict[str, Any], *, region: str) -> str:
        """Say which quota a queued job waits for, and which jobs there have what it wants."""
        metric = metric_of(job)
        try:
            every = custom_jobs.list_by_label(self.google, region=region, labels={})
        except ApiError as error:  # who it is comes second to that it waits
            _log.debug("could not look who uses %s: %s", metric, error)
            return f"{metric} in {region}"
        users = sorted(
            str(one.get("displayName") or one["name"])
            for one in every
            if one.get("state") in HOLDING and metric_of(one) == metric
        )
        shown = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
        return f"{metric} in {region}, used by {shown or 'no job in sight'}"

    def _url(self, region: str) -> str:
        address = self.google.address("aiplatform", region=region)
        return f"{address}/v1/projects/{self.google.project}/locations/{region}/customJobs"

    def _handle(self, job: dict[str, Any]) -> Handle:
        name = str(job["name"])
        url = None if self.google.fake else console_url(name, project=self.google.project)
        return Handle(target=self.name, id=name, region=custom_jobs.region_of(name), url=url)

    def _same(self, spec: JobSpec) -> list[dict[str, Any]]:
        mine = job_labels(spec)
        wanted = {key: mine[key] for key in ("app", "token", "attempt")}
        return custom_jobs.list_by_label(self.google, region=spec.region, labels=wanted)

    def _find(self, spec: JobSpec) -> dict[str, Any] | None:
        found = self._same(spec)
        return found[-1] if found else None  # the oldest: every caller picks the same one

    def _find_late(self, spec: JobSpec) -> dict[str, Any] | None:
        for look in range(LOOKS):
            if look:
                time.sleep(self.look_pause_s)
            try:
                found = self._find(spec)
            except ApiError as error:
                _log.debug("looking for the job failed: %s", error)
                continue
            if found is not None:
                return found
        return None

    def _keep_one(self, spec: JobSpec, made: dict[str, Any]) -> dict[str, Any]:
        """Stop all but the oldest, if a lost answer hid a job that was made after all."""
        try:
            found = self._same(spec)
        except ApiError as error:
            _log.warning("could not look for a second job of %s: %s", spec.token, error)
            return made
        by_name = {str(job["name"]): job for job in [*found, made]}
        oldest = min(by_name.values(), key=lambda job: str(job.get("createTime", "")))
        for name, _ in by_name.items():
            if name != oldest["name"]:
                _log.warning("cancelled %s: a second job of the same attempt", name)
                self.cancel(Handle(target=self.name, id=name, region=spec.region))
        return oldest

    def _check_image(self, image: str) -> Finding:
        from saccade.launch.images import look_up

        return look_up(self.google, image)
