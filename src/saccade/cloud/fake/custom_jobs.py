"""Vertex AI CustomJobs: create, get, list, cancel, delete.

Requests flow in, job documents flow out. How a job goes from QUEUED to its end is `job_runs.py`,
what a job looks like is `job_schema.py`. Names carry the project's number, as Google's do.
"""

from __future__ import annotations

import re
import threading
from typing import Any

from saccade.cloud.fake import filters, quota_rules, runner, wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.iam import account_exists
from saccade.cloud.fake.job_runs import TERMINAL, JobRun
from saccade.cloud.fake.job_schema import JOB, checked
from saccade.cloud.fake.store import Document
from saccade.cloud.fake.world import CREATED, World, new_id, public

SERVICE = "aiplatform.googleapis.com"
JOBS = "customJobs"
META = "type.googleapis.com/google.cloud.aiplatform.v1.DeleteOperationMetadata"


class JobTable:
    """The jobs of a server that are under way, each in a thread of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.slots = threading.BoundedSemaphore(world.scenario.max_containers)
        self._runs: dict[str, JobRun] = {}
        self._lock = threading.Lock()
        self._created = 0

    def begin(self, job: Document) -> None:
        """Let a job run."""
        with self._lock:
            if self.world.closing.is_set():
                return
            run = JobRun(self.world, job["_id"], place=job["_place"], slots=self.slots)
            self._runs[job["_id"]] = run
            run.start()

    def next_place(self) -> int:
        """Which timeline the next job takes."""
        with self._lock:
            self._created += 1
            return self._created - 1

    def resume(self) -> None:
        """After a restart: waiting jobs go on, running ones lost their machines."""
        for job in self.world.store.all(JOBS):
            self._created = max(self._created, job["_place"] + 1)
            state = job["state"]
            if state in TERMINAL:
                continue
            if state in ("JOB_STATE_QUEUED", "JOB_STATE_PENDING"):
                self.begin(job)
                continue
            run = JobRun(self.world, job["_id"], place=job["_place"], slots=self.slots)
            run.lost()

    def cancel(self, job_id: str) -> None:
        """Ask a job to end."""
        run = self._runs.get(job_id)
        if run is not None:
            run.cancel()

    def preempt(self, job_id: str, *, retry: bool, grace: float | None) -> None:
        """Take a job's machines away; raises unless it is running."""
        run = self._runs.get(job_id)
        if run is None or not run.preempt(retry=retry, grace=grace):
            raise GoogleError(400, f"job {job_id} is not running", code="FAILED_PRECONDITION")

    def busy(self) -> bool:
        """Whether any job is under way."""
        return any(run.is_alive() for run in list(self._runs.values()))

    def stop_all(self) -> None:
        """End every job's thread and containers, leaving the documents as they are."""
        runs = list(self._runs.values())
        for run in runs:
            run.abandon()
        for run in runs:
            run.join(15)

    def close(self) -> None:
        """The server ends: so do all containers."""
        self.stop_all()

    def forget(self) -> None:
        """After a reset the first timeline comes first again."""
        with self._lock:
            self._runs.clear()
            self._created = 0


def mount(router: Router, world: World) -> None:
    """Routes that need no running jobs; the rest is in `mount_jobs`."""
    base = "/v1/projects/{project}/locations/{region}/customJobs"

    def get(request: Request, project: str, region: str, id: str) -> Response:
        return wire.reply(request, public(_find(world, project, region, id)), JOB)

    def listing(request: Request, project: str, region: str) -> Response:
        _check_region(region)
        keep = filters.parse(request.first("filter"))
        jobs = world.visible(world.store.all(JOBS))
        found = [
            public(job)
            for job in reversed(jobs)  # newest first, as the console shows them
            if job["_project"] == project and job["_region"] == region and keep(job)
        ]
        return wire.page(request, found, field="customJobs", shape=JOB, default=100)

    router.add("GET", base, listing, service=SERVICE)
    router.add("GET", f"{base}/{{id}}", get, service=SERVICE)


def mount_jobs(router: Router, world: World, jobs: JobTable) -> None:
    """Routes that begin and end jobs."""
    base = "/v1/projects/{project}/locations/{region}/customJobs"

    def create(request: Request, project: str, region: str) -> Response:
        _check_region(region)
        job = checked(request.json())
        _check_account(world, project, job)
        quota_rules.refuse_if_short(world, job, project=project, region=region)
        number, job_id, now = world.number(project), new_id(), world.stamp()
        job = {
            "name": f"projects/{number}/locations/{region}/customJobs/{job_id}",
            **job,
            "state": "JOB_STATE_PENDING",
            "createTime": now,
            "updateTime": now,
            "_id": job_id,
            "_project": project,
            "_region": region,
            "_place": jobs.next_place(),
            CREATED: world.now(),
        }
        answer = wire.reply(request, public(job), JOB)
        with world.store.together():  # whoever finds the job can cancel it
            world.store.put(JOBS, job_id, job)
            jobs.begin(job)
        return answer

    def cancel(request: Request, project: str, region: str, id: str) -> Response:
        job = _find(world, project, region, id)
        if job["state"] in TERMINAL:
            raise GoogleError(
                400,
                f"The CustomJob {job['name']} is in state {job['state']} and cannot be canceled.",
                code="FAILED_PRECONDITION",
            )
        jobs.cancel(id)
        return wire.reply(request, {})

    def delete(request: Request, project: str, region: str, id: str) -> Response:
        job = _find(world, project, region, id)
        if job["state"] not in TERMINAL:
            raise GoogleError(
                400,
                f"The CustomJob {job['name']} is in state {job['state']} and cannot be deleted.",
                code="FAILED_PRECONDITION",
            )
        world.store.delete(JOBS, id)
        runner.remove_folder(world, id)
        name = f"projects/{world.number(project)}/locations/{region}/operations/{new_id()}"
        return wire.reply(request, world.operation(name, metadata={"@type": META}))

    router.add("POST", base, create, service=SERVICE)
    router.add("POST", f"{base}/{{id}}:cancel", cancel, service=SERVICE)
    router.add("DELETE", f"{base}/{{id}}", delete, service=SERVICE)


def _find(world: World, project: str, region: str, job_id: str) -> dict[str, Any]:
    job = world.store.get(JOBS, job_id)
    if job is None or job["_project"] != project or job["_region"] != region:
        name = f"projects/{world.number(project)}/locations/{region}/customJobs/{job_id}"
        raise GoogleError(404, f"The CustomJob {name} does not exist.")
    return job


def _check_region(region: str) -> None:
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+", region):
        raise GoogleError(400, f"Location {region} is not found or access is unauthorized.")


def _check_account(world: World, project: str, job: dict[str, Any]) -> None:
    """A job may only run as an account that exists."""
    email = job["jobSpec"].get("serviceAccount", "")
    own = email.endswith(f"@{project}.iam.gserviceaccount.com")
    if own and not account_exists(world, project, email):
        raise GoogleError(400, f"Service account {email} does not exist.")
