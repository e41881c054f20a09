"""A job as Vertex AI wants it written, and what Vertex's states and errors mean for us.

A `JobSpec` flows in and the body of a CustomJob flows out; a CustomJob flows in and a `Status`
flows out. Pure functions: nothing here talks to Google. Users never write any of it: accelerator
and count follow from the machine, and secrets go as names in Secret Manager.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from saccade.cloud.api import console
from saccade.config.errors import InputError
from saccade.launch.machines import VERTEX_STRATEGIES, Strategy, machine
from saccade.launch.spec import JobSpec, Status, label_text, labels
from saccade.launch.states import State

COMMAND = ["python", "-m", "saccade.launch.entry"]
LONGEST_TIMEOUT_S = 7 * 24 * 3600
DISPLAY_NAME = 128
"""Longest display name."""
MAX_LABELS = 64

_HYPERDISK_ONLY = ("a3-ultragpu", "a4-", "a4x-", "g4-")
_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_PASSWORD|_SECRET|_CREDENTIALS)$")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")

STOCKOUT = re.compile(
    r"stock.?out|resources are insufficient|insufficient (resources|capacity)|"
    r"resource_pool_exhausted|does not have enough resources|out of capacity",
    re.IGNORECASE,
)
PREEMPTED = re.compile(r"preempt|reclaimed", re.IGNORECASE)
IMAGE = re.compile(
    r"errimagepull|imagepullbackoff|invalidimagename|manifest unknown|"
    r"(image|repository)\b.{0,200}\b(not found|does not exist|cannot be (pulled|found)|denied|"
    r"unauthori[sz]ed|not have permission)|(failed|unable) to pull",
    re.IGNORECASE | re.DOTALL,
)
QUOTA = re.compile(r"quota|RESOURCE_EXHAUSTED", re.IGNORECASE)
EXIT_STATUS = re.compile(r"non-zero status of (\d+)")
METRIC = re.compile(r"custom_model_training_[a-z0-9_]+")

_STATES = {
    "JOB_STATE_UNSPECIFIED": State.SUBMITTED,
    "JOB_STATE_QUEUED": State.QUEUED_QUOTA,
    "JOB_STATE_PENDING": State.WAITING_CAPACITY,
    "JOB_STATE_RUNNING": State.RUNNING,
    "JOB_STATE_UPDATING": State.RUNNING,
    # the machine is held, and paid for, until the job is over
    "JOB_STATE_CANCELLING": State.RUNNING,
    "JOB_STATE_PAUSED": State.WAITING_CAPACITY,
    "JOB_STATE_SUCCEEDED": State.SUCCEEDED,
    # replicas beside the chief failed: whether the run is complete, its DONE file says
    "JOB_STATE_PARTIALLY_SUCCEEDED": State.SUCCEEDED,
    "JOB_STATE_CANCELLED": State.CANCELLED,
    "JOB_STATE_EXPIRED": State.FAILED,
    "JOB_STATE_FAILED": State.FAILED,
}


def custom_job_body(spec: JobSpec) -> dict[str, Any]:
    """Write the CustomJob of a spec; raises InputError for what Vertex would refuse later."""
    _refuse(spec)
    pools = [_pool(spec, replicas=1)]
    if spec.replicas > 1:  # pool 0 is the chief; its helpers are pool 1
        pools.append(_pool(spec, replicas=spec.replicas - 1))
    job: dict[str, Any] = {"workerPoolSpecs": pools, "scheduling": _scheduling(spec)}
    if spec.service_account:
        job["serviceAccount"] = spec.service_account
    if spec.store.startswith("gs://"):
        prefix = f"{spec.store.rstrip('/')}/runs/{spec.run}"
        job["baseOutputDirectory"] = {"outputUriPrefix": prefix}
    return {
        "displayName": f"saccade-{spec.run}-{spec.attempt}"[:DISPLAY_NAME],
        "labels": job_labels(spec),
        "jobSpec": job,
    }


def job_labels(spec: JobSpec) -> dict[str, str]:
    """Return the labels a job carries: ours, which find it again, over the user's."""
    given = {key: label_text(value) for key, value in spec.labels.items()}
    for key in given:
        if not _LABEL_KEY.fullmatch(key):
            raise InputError(
                f"label {key!r}: keys start with a small letter and hold only small letters, "
                "digits, _ and - (63 at most)"
            )
    made = given | labels(spec)
    if len(made) > MAX_LABELS:
        raise InputError(f"{len(made)} labels; Google Cloud allows {MAX_LABELS}")
    return made


def environment(spec: JobSpec, *, gpus: int) -> dict[str, str]:
    """Return what the entry point reads; secrets are names, a value is refused."""
    made = {
        "SACCADE_RUN": spec.run,
        "SACCADE_STORE": spec.store,
        "SACCADE_CODE": spec.code,
        "SACCADE_CONFIG": spec.config,
        "SACCADE_ATTEMPT": str(spec.attempt),
        "SACCADE_SECRETS": ",".join(f"{name}={at}" for name, at in sorted(spec.secrets.items())),
        "SACCADE_GPUS": str(gpus),
    }
    if spec.inputs:
        made["SACCADE_INPUTS"] = ",".join(sorted({place.split("/")[1] for place in spec.inputs}))
    for name in spec.env:
        if _SECRET_NAME.search(name) and name not in made:
            raise InputError(
                f"environment of the job: {name} would be readable by everybody who can see the "
                "job\n  fix: keep it in .env and run `saccade cloud setup --only secrets`"
            )
    return made | spec.env


def status_of(job: Mapping[str, Any]) -> Status:
    """Read a CustomJob: its state in our words, why, and since when a machine was held."""
    name = str(job.get("state", "JOB_STATE_UNSPECIFIED"))
    error = job.get("error") or {}
    message = str(error.get("message", ""))
    state = _STATES.get(name, State.SUBMITTED)
    started = seconds(job.get("startTime"))
    cause, code = "", error.get("code")
    if name == "JOB_STATE_FAILED":
        state, cause = _failure(message, started=started is not None)
        exit_status = EXIT_STATUS.search(message)
        code = int(exit_status.group(1)) if exit_status else code
        if code == 143 and cause == "container":  # saved itself, and says that it can go on
            state, cause = State.PREEMPTED, "preempted"
    elif name == "JOB_STATE_EXPIRED":
        cause = "timeout" if started is not None else "stockout"
    elif message and name in ("JOB_STATE_PENDING", "JOB_STATE_QUEUED"):
        # Vertex tries again by itself, in the same job: the launch waits with it
        cause = _failure(message, started=started is not None)[1]
    return Status(
        state=state,
        detail=_detail(name, message, cause=cause),
        error_code=int(code) if code is not None else None,
        raw={"state": name, "cause": cause, "error": dict(error), "labels": job.get("labels", {})},
        started_at=started,
        ended_at=seconds(job.get("endTime")),
    )


def quota_metric(message: str) -> str | None:
    """Find the quota metric that an error names."""
    found = METRIC.search(message)
    return found.group(0) if found else None


def metric_of(job: Mapping[str, Any]) -> str:
    """Name the quota a job draws on, by its machine and strategy; empty for unknown machines."""
    spec = job.get("jobSpec") or {}
    pools = spec.get("workerPoolSpecs") or [{}]
    given = (spec.get("scheduling") or {}).get("strategy")
    ways = [one for one, name in VERTEX_STRATEGIES.items() if name == given]
    try:
        kind = machine(str((pools[0].get("machineSpec") or {}).get("machineType")))
    except InputError:  # somebody else's job on a machine that no table here has
        return ""
    return kind.quota_name(ways[0] if ways else Strategy.ON_DEMAND)


def console_url(name: str, *, project: str) -> str:
    """Return the page of a job in Google's console."""
    return console.job(name, project=project)


def seconds(time: Any) -> float | None:
    """Read one of Google's timestamps, which may have nine decimals; None for none."""
    if not time:
        return None
    text = re.sub(r"(\.\d{6})\d+", r"\1", str(time)).replace("Z", "+00:00")
    return datetime.fromisoformat(text).timestamp()


def _pool(spec: JobSpec, *, replicas: int) -> dict[str, Any]:
    kind = machine(spec.machine)
    hyperdisk = kind.machine_type.startswith(_HYPERDISK_ONLY)
    pairs = environment(spec, gpus=kind.gpus)
    return {
        "machineSpec": kind.machine_spec(),
        "replicaCount": replicas,
        "diskSpec": {
            "bootDiskType": "hyperdisk-balanced" if hyperdisk else "pd-ssd",
            "bootDiskSizeGb": spec.disk_gb,
        },
        "containerSpec": {
            "imageUri": spec.image,
            "command": list(COMMAND),
            "env": [{"name": name, "value": value} for name, value in sorted(pairs.items())],
        },
    }


def _scheduling(spec: JobSpec) -> dict[str, Any]:
    several = spec.replicas > 1
    # A preempted machine should come back even when nobody watches; on machines that are not
    # taken back, a second try only repeats a crash at the user's expense.
    retry = spec.strategy is Strategy.SPOT or several
    made: dict[str, Any] = {
        "timeout": f"{spec.timeout_s}s",
        "strategy": VERTEX_STRATEGIES[spec.strategy],
        # the others wait for a lost replica in a collective, so all start again together
        "restartJobOnWorkerRestart": several,
        "disableRetries": not retry,
    }
    if spec.strategy is Strategy.FLEX_START:
        made["maxWaitDuration"] = f"{spec.max_wait_s}s"
    return made


def _refuse(spec: JobSpec) -> None:
    kind = machine(spec.machine)
    if not spec.image:
        raise InputError("Vertex AI runs containers, and the job names no image")
    if spec.strategy not in kind.strategies:
        able = ", ".join(kind.strategies)
        raise InputError(
            f"launch.strategy = {spec.strategy}: {kind.name} is rented as {able} only"
            f"\n  fix: launch.strategy={kind.strategies[0]}"
        )
    if not 0 < spec.timeout_s <= LONGEST_TIMEOUT_S:
        raise InputError(
            f"launch.timeout_hours = {spec.timeout_s / 3600:g}: Vertex AI ends jobs after 168 h"
            "\n  fix: launch.timeout_hours=168 (the next attempt continues)"
        )
    if spec.replicas < 1:
        raise InputError(f"launch.replicas = {spec.replicas}: at least 1")


def _failure(message: str, *, started: bool) -> tuple[State, str]:
    """Sort a job's error: what happened, and what state that is for the launch."""
    # the exit status first: a program may well print the words that are looked for below
    if EXIT_STATUS.search(message) and not PREEMPTED.search(message):
        return State.FAILED, "container"
    if STOCKOUT.search(message) or PREEMPTED.search(message):
        # With a start it had a machine and lost it. Without, no machine was to be had here: the
        # job is over, and only another region, machine or strategy helps.
        return State.PREEMPTED, "preempted" if started else "stockout"
    if IMAGE.search(message):
        return State.FAILED, "image"
    if QUOTA.search(message):
        return State.FAILED, "quota"
    return State.FAILED, "platform"


_ADVICE = {
    "image": "the image cannot be pulled",
    "stockout": "no capacity; another region, machine or flex-start may have some",
    "timeout": "launch.timeout_hours is reached; the next attempt goes on from the checkpoint",
    "quota": "a quota refuses it",
}


def _detail(name: str, message: str, *, cause: str) -> str:
    text = " ".join(message.split())
    advice = _ADVICE.get(cause, "")
    metric = quota_metric(text)
    if cause == "quota" and metric:
        advice = f"quota {metric} refuses it"
    return ": ".join(part for part in (name, advice, text) if part)
