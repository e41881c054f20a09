"""One job from QUEUED to its end: the scenario's timeline, real containers, preemption, cancel.

A job's id flows in, states are written into its document and lines into the log as they happen.
Each job has a thread; requests reach it through flags and a condition. The assumptions about the
real platform are here and only here: a chief that exits 0 within the grace time of a preemption
succeeds, a preempted job without a platform retry fails with a STOCKOUT text.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from typing import Any

from saccade.cloud.fake import quota_rules, registry, runner, wire
from saccade.cloud.fake.faults import call_line
from saccade.cloud.fake.http import Request
from saccade.cloud.fake.scenario import Fail, Phase, Preempt, Until
from saccade.cloud.fake.store import Document
from saccade.cloud.fake.world import World

JOBS = "customJobs"
TERMINAL = frozenset(
    {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED"}
)
TICK = 0.02
RETRY = (Phase(pending=0.2), Phase(running=Until()))
STOCKOUT = (
    "Resources are insufficient in region: {region}. "
    "Try a different region or use a different accelerator."
)
PREEMPTED = (
    "The replica workerpool0-0 was preempted and no replacement was found (STOCKOUT). " + STOCKOUT
)
EXITED = (
    "The replica {name} exited with a non-zero status of {code}. Termination reason: Error. "
    "To find out more about why your job exited please check the logs: "
    "https://console.cloud.google.com/logs/viewer?project={number}&resource=ml_job%2Fjob_id%2F{id}"
)
SYSTEM_LOG = "aiplatform.googleapis.com%2Fplatform"


class Ended(Exception):
    """The job reached a terminal state."""


class JobRun(threading.Thread):
    """The thread of one job."""

    def __init__(
        self, world: World, job_id: str, *, place: int, slots: threading.BoundedSemaphore
    ) -> None:
        super().__init__(name=f"job {job_id}", daemon=True)
        self.world = world
        self.id = job_id
        self.phases = list(_timeline(world, place))
        self.slots = slots
        self.has_slot = False
        self.attempt = 0
        self.step = -1
        self.containers: runner.Containers | None = None
        self.started = 0.0
        self._cancelled = threading.Event()
        self._abandoned = threading.Event()
        self._stirred = threading.Event()  # cancelled or abandoned: stop waiting
        self._preempt: tuple[bool, float] | None = None
        self._signals: set[str] = set()
        self._running = False
        self._wanted = Until()

    # --- what other threads ask for ---

    def cancel(self) -> None:
        """End the job; it becomes CANCELLING at once when its containers run."""
        with contextlib.suppress(Ended):  # deleted meanwhile
            if self._running:
                self._set("JOB_STATE_CANCELLING")
            else:
                # like the platform, a job without machines is over when the call returns
                self._set("JOB_STATE_CANCELLED", over=True)
        self._cancelled.set()
        self._stirred.set()

    def preempt(self, *, retry: bool, grace: float | None) -> bool:
        """Take the machines away; says whether there were any."""
        if not self._running:
            return False
        seconds = self.world.scenario.grace_seconds if grace is None else grace
        self._preempt = (retry, seconds)
        return True

    def abandon(self) -> None:
        """End the containers without touching the document; the server goes."""
        self._abandoned.set()
        self._stirred.set()

    def lost(self) -> None:
        """Write down that a server's end took the machines away."""
        job = self._job()
        if job["state"] == "JOB_STATE_CANCELLING":
            self._set("JOB_STATE_CANCELLED", over=True)
        else:
            self._fail(8, PREEMPTED.format(region=job["_region"]))

    # --- the thread ---

    def run(self) -> None:
        """Go through the phases, then to the end of the containers."""
        self.world.watchers.append(self._watch)
        try:
            self._wait_for_quota()
            while self.phases:
                self._phase(self.phases.pop(0))
            if self.containers is None:
                self._enter_running(Until())
            else:
                self._until(Until())
        except Ended:
            pass
        finally:
            self.world.watchers.remove(self._watch)
            self._running = False
            if self.containers is not None:
                self.containers.kill()
            self._release()

    def _phase(self, phase: Phase) -> None:
        if phase.queued is not None:
            self._set("JOB_STATE_QUEUED")
            self._sleep(phase.queued)
        elif phase.pending is not None:
            self._pending(phase.pending)
        elif phase.running is not None:
            self._enter_running(phase.running)
        elif phase.preempt is not None:
            self._preempted(phase.preempt, retry=bool(self.phases))
        elif phase.stockout:
            self._fail(8, STOCKOUT.format(region=self._job()["_region"]))
        elif phase.fail is not None:
            self._failed(phase.fail)

    def _failed(self, fail: Fail) -> None:
        if self.containers is not None:
            self.containers.kill()
        self._fail(fail.code, fail.message)

    def _wait_for_quota(self) -> None:
        """QUEUED while others use the quota this job needs."""
        job = self._job()
        while not quota_rules.take(self.world, job):
            self._set("JOB_STATE_QUEUED")
            self._sleep(0.2)

    def _pending(self, seconds: float) -> None:
        self._set("JOB_STATE_PENDING")
        job = self._job()
        scheduling = job["jobSpec"]["scheduling"]
        machine = job["jobSpec"]["workerPoolSpecs"][0]["machineSpec"]["machineType"]
        limit = wire.seconds(scheduling.get("maxWaitDuration")) or None  # 0 is for ever
        for stockout in self.world.scenario.stockouts:
            hit = (
                re.fullmatch(stockout.region, job["_region"])
                and re.fullmatch(stockout.machine, machine)
                and re.fullmatch(stockout.strategy, scheduling.get("strategy", "STANDARD"))
            )
            if not hit:
                continue
            waits = [seconds for seconds in (stockout.pending, limit) if seconds is not None]
            self._sleep(min(waits, default=threading.TIMEOUT_MAX))
            self._fail(8, STOCKOUT.format(region=job["_region"]))
        self._sleep(seconds)

    def _enter_running(self, until: Until) -> None:
        """Start the containers unless they run, then wait for what ends the phase."""
        # Before anyone can see that the job runs: what is done upon that must not be missed.
        self._wanted = until
        self._signals.clear()
        if self.containers is None:
            while not self.has_slot:
                self._check()
                self.has_slot = self.slots.acquire(timeout=0.5)
            job = self._job()
            self._check_image(job)
            self._check()
            self.attempt += 1
            self.step = -1  # what an attempt has reported is not what the next one has
            self._log(f"attempt {self.attempt} starts")
            self.containers = runner.start(
                self.world, job, attempt=self.attempt, on_lines=self._lines
            )
            self.started = time.monotonic()
            self._running = True
            self._set("JOB_STATE_RUNNING")
        self._until(until)

    def _until(self, until: Until) -> None:
        """Wait until the phase, the containers or the patience of the job ends."""
        begin = time.monotonic()
        forever = not until.model_fields_set
        timeout = wire.seconds(self._job()["jobSpec"]["scheduling"]["timeout"]) or 0.0
        while True:
            self._check()
            self._check_containers()
            if self._preempt is not None:
                retry, grace = self._preempt
                self._preempt = None
                if retry:
                    self.phases[:0] = RETRY
                self._preempted(Preempt(grace=grace), retry=retry)
                return
            if time.monotonic() - self.started > timeout:
                assert self.containers is not None
                self._stop_containers(self.world.scenario.grace_seconds)
                self._fail(4, "The job exceeded its timeout and was stopped.")
            if not forever and self._reached(until, begin):
                return
            time.sleep(TICK)

    def _reached(self, until: Until, begin: float) -> bool:
        return (
            (until.until_step is not None and self.step >= until.until_step)
            or (until.seconds is not None and time.monotonic() - begin >= until.seconds)
            or bool(self._signals)
        )

    def _preempted(self, preempt: Preempt, *, retry: bool) -> None:
        """SIGTERM, grace, SIGKILL; then PENDING again or FAILED."""
        self._log("the machine is being preempted", severity="WARNING")
        outcome = self._stop_containers(preempt.grace)
        if outcome is not None and outcome[1] == 0:
            self._succeed()
        self.containers = None
        self._running = False
        self._release()
        if not retry:
            self._fail(8, PREEMPTED.format(region=self._job()["_region"]))
        self._set("JOB_STATE_PENDING")

    def _stop_containers(self, grace: float) -> tuple[str, int] | None:
        """End the containers; the outcome they came to within the grace time, if any."""
        if self.containers is None:
            return None
        self.containers.terminate()
        end = time.monotonic() + grace
        while time.monotonic() < end and self.containers.outcome() is None:
            if self._abandoned.is_set():
                break
            time.sleep(TICK)
        outcome = self.containers.outcome()
        self.containers.kill()
        return outcome

    def _check_containers(self) -> None:
        """End the job with its containers."""
        assert self.containers is not None
        outcome = self.containers.outcome()
        if outcome is None:
            return
        self.containers.kill()
        name, code = outcome
        if code == 0:
            self._succeed()
        number = self.world.number(self._job()["_project"])
        # 137 is what a container that outgrew its memory ends with, and SIGKILL too
        self._fail(3, EXITED.format(name=name, code=code, number=number, id=self.id))

    def _check_image(self, job: Document) -> None:
        """The machine is there, the image may not be."""
        for pool in job["jobSpec"]["workerPoolSpecs"]:
            image = pool.get("containerSpec", {}).get("imageUri", "")
            missing = any(re.search(text, image) for text in self.world.scenario.missing_images)
            if missing or not registry.pullable(self.world, image):
                text = f'Failed to pull image "{image}": ErrImagePull: not found or no permission.'
                self._log(text, severity="ERROR")
                self._fail(5, text)

    def _check(self) -> None:
        """Carry out a cancellation or the server's end."""
        if self._abandoned.is_set() or self.world.closing.is_set():
            if self.containers is not None:
                self.containers.kill()
            raise Ended
        if self._cancelled.is_set():
            self._stop_containers(self.world.scenario.grace_seconds)
            self._running = False
            self._end("JOB_STATE_CANCELLED")

    def _sleep(self, seconds: float) -> None:
        """Wait, unless the job is cancelled or the server ends."""
        self._check()
        if self._stirred.wait(seconds):
            self._check()

    # --- what the containers say ---

    def _lines(self, replica: str, severity: str, lines: list[str]) -> None:
        job = self.world.store.get(JOBS, self.id)
        if job is None:
            return
        self.world.logs.write(
            lines,
            project=job["_project"],
            log=replica,
            resource=_resource(job, replica),
            severity=severity,
            labels={"ml.googleapis.com/trial_type": "", "ml.googleapis.com/tpu_worker_id": ""},
        )
        wanted = self._wanted
        for line in lines:
            for found in re.findall(self.world.scenario.step_pattern, line):
                self.step = max(self.step, int(found))
            if wanted.until_log and re.search(wanted.until_log, line):
                self._signals.add("log")

    def _watch(self, request: Request) -> None:
        """See checkpoints, heartbeats and awaited calls among the requests."""
        wanted = self._wanted
        line = call_line(request)
        if wanted.until_call and re.search(wanted.until_call, line):
            self._signals.add("call")
        if not self._running or "/storage/" not in line or request.method not in ("POST", "PUT"):
            return
        run = self._run_name()
        body = request.body[:4096].decode("utf-8", "replace")
        if run and run not in line and run not in body:
            return
        if "heartbeat.json" in line or "heartbeat.json" in body:
            for found in re.findall(r'"step": ?(\d+)', body):
                self.step = max(self.step, int(found))

    def _run_name(self) -> str:
        job = self.world.store.get(JOBS, self.id) or {}
        for pool in job.get("jobSpec", {}).get("workerPoolSpecs", []):
            for entry in pool.get("containerSpec", {}).get("env", []):
                if entry["name"] == "SACCADE_RUN":
                    return entry.get("value", "")
        return ""

    # --- the document ---

    def _job(self) -> Document:
        job = self.world.store.get(JOBS, self.id)
        if job is None:
            raise Ended  # deleted or forgotten meanwhile
        return job

    def _set(self, state: str, *, over: bool = False, error: Document | None = None) -> None:
        """Write a state, unless the job is over already."""
        now = self.world.stamp()

        def change(job: Document) -> Document | None:
            before = job["state"]
            if before in TERMINAL or (before == "JOB_STATE_CANCELLING" and not over):
                return None
            job |= {"state": state, "updateTime": now}
            if state == "JOB_STATE_RUNNING":
                job.setdefault("startTime", now)
            if over:
                job["endTime"] = now
            if error is not None:
                job["error"] = error
            return job

        if self.world.store.update(JOBS, self.id, change) is None:
            raise Ended
        if over:
            quota_rules.give_back(self.world, self.id)

    def _end(self, state: str, *, error: Document | None = None) -> None:
        self._set(state, over=True, error=error)
        raise Ended

    def _succeed(self) -> None:
        self._log("Job completed successfully.")
        self._end("JOB_STATE_SUCCEEDED")

    def _fail(self, code: int, message: str) -> None:
        self._log(message, severity="ERROR")
        try:
            self._end("JOB_STATE_FAILED", error={"code": code, "message": message})
        except Ended:
            if self.ident == threading.get_ident():
                raise

    def _log(self, text: str, *, severity: str = "INFO") -> None:
        job = self._job()
        self.world.logs.write(
            [text],
            project=job["_project"],
            log=SYSTEM_LOG,
            resource=_resource(job, "service"),
            severity=severity,
        )

    def _release(self) -> None:
        if self.has_slot:
            self.has_slot = False
            self.slots.release()


def _timeline(world: World, place: int) -> tuple[Phase, ...]:
    """The phases of the n-th job."""
    scenario = world.scenario
    if scenario.jobs:
        return scenario.jobs[min(place, len(scenario.jobs) - 1)]
    return (
        Phase(queued=scenario.queued_seconds),
        Phase(pending=scenario.pending_seconds),
        Phase(running=Until()),
    )


def _resource(job: dict[str, Any], replica: str) -> dict[str, Any]:
    """The monitored resource of a job's log entries."""
    labels = {"job_id": job["_id"], "project_id": job["_project"], "task_name": replica}
    return {"type": "ml_job", "labels": labels}
