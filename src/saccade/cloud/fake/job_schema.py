"""The shape of a Vertex AI CustomJob, its enums, and what the platform refuses at creation.

A request body flows in, a checked canonical job flows out. Field names and enum numbers are those
of the API's version v1; the checks are the ones whose violation a user meets as HTTP 400.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake import wire
from saccade.cloud.fake.compute import MACHINE_GPUS
from saccade.cloud.fake.http import GoogleError
from saccade.cloud.fake.wire import (
    ANY,
    BOOL,
    DURATION,
    INT32,
    INT64,
    STRING,
    TIMESTAMP,
    ListOf,
    MapOf,
    Message,
)
from saccade.cloud.fake.world import check_labels

STATE = wire.enum(
    "google.cloud.aiplatform.v1.JobState",
    "JOB_STATE_UNSPECIFIED",
    "JOB_STATE_QUEUED",
    "JOB_STATE_PENDING",
    "JOB_STATE_RUNNING",
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLING",
    "JOB_STATE_CANCELLED",
    "JOB_STATE_PAUSED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_UPDATING",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)
STRATEGY = wire.enum(
    "google.cloud.aiplatform.v1.Scheduling.Strategy",
    STRATEGY_UNSPECIFIED=0,
    ON_DEMAND=1,
    LOW_COST=2,
    STANDARD=3,
    SPOT=4,
    FLEX_START=6,
)
ACCELERATOR = wire.enum(
    "google.cloud.aiplatform.v1.AcceleratorType",
    ACCELERATOR_TYPE_UNSPECIFIED=0,
    NVIDIA_TESLA_K80=1,
    NVIDIA_TESLA_P100=2,
    NVIDIA_TESLA_V100=3,
    NVIDIA_TESLA_P4=4,
    NVIDIA_TESLA_T4=5,
    TPU_V2=6,
    TPU_V3=7,
    NVIDIA_TESLA_A100=8,
    NVIDIA_A100_80GB=9,
    TPU_V4_POD=10,
    NVIDIA_L4=11,
    TPU_V5_LITEPOD=12,
    NVIDIA_H100_80GB=13,
    NVIDIA_H100_MEGA_80GB=14,
    NVIDIA_H200_141GB=15,
    NVIDIA_B200=16,
    NVIDIA_GB200=17,
    NVIDIA_RTX_PRO_6000=18,
)
RESERVATION = wire.enum(
    "google.cloud.aiplatform.v1.ReservationAffinity.Type",
    "TYPE_UNSPECIFIED",
    "NO_RESERVATION",
    "ANY_RESERVATION",
    "SPECIFIC_RESERVATION",
)
ENV = Message({"name": STRING, "value": STRING})
MACHINE = Message(
    {
        "machineType": STRING,
        "acceleratorType": ACCELERATOR,
        "acceleratorCount": INT32,
        "gpuPartitionSize": STRING,
        "tpuTopology": STRING,
        "reservationAffinity": Message(
            {"reservationAffinityType": RESERVATION, "key": STRING, "values": ListOf(STRING)}
        ),
    }
)
POOL = Message(
    {
        "machineSpec": MACHINE,
        "replicaCount": INT64,
        "nfsMounts": ListOf(Message({"server": STRING, "path": STRING, "mountPoint": STRING})),
        "diskSpec": Message({"bootDiskType": STRING, "bootDiskSizeGb": INT32}),
        "containerSpec": Message(
            {
                "imageUri": STRING,
                "command": ListOf(STRING),
                "args": ListOf(STRING),
                "env": ListOf(ENV),
            }
        ),
        "pythonPackageSpec": Message(
            {
                "executorImageUri": STRING,
                "packageUris": ListOf(STRING),
                "pythonModule": STRING,
                "args": ListOf(STRING),
                "env": ListOf(ENV),
            }
        ),
    }
)
SPEC = Message(
    {
        "persistentResourceId": STRING,
        "workerPoolSpecs": ListOf(POOL),
        "scheduling": Message(
            {
                "timeout": DURATION,
                "restartJobOnWorkerRestart": BOOL,
                "strategy": STRATEGY,
                "disableRetries": BOOL,
                "maxWaitDuration": DURATION,
            }
        ),
        "serviceAccount": STRING,
        "network": STRING,
        "reservedIpRanges": ListOf(STRING),
        "pscInterfaceConfig": ANY,
        "baseOutputDirectory": Message({"outputUriPrefix": STRING}),
        "protectedArtifactLocationId": STRING,
        "tensorboard": STRING,
        "enableWebAccess": BOOL,
        "enableDashboardAccess": BOOL,
        "experiment": STRING,
        "experimentRun": STRING,
        "models": ListOf(STRING),
    }
)
JOB = Message(
    {
        "name": STRING,
        "displayName": STRING,
        "jobSpec": SPEC,
        "state": STATE,
        "createTime": TIMESTAMP,
        "startTime": TIMESTAMP,
        "endTime": TIMESTAMP,
        "updateTime": TIMESTAMP,
        "error": ANY,
        "labels": MapOf(STRING),
        "encryptionSpec": Message({"kmsKeyName": STRING}),
        "webAccessUris": MapOf(STRING),
        "satisfiesPzs": BOOL,
        "satisfiesPzi": BOOL,
    }
)
OUTPUT_ONLY = ("name", "state", "createTime", "startTime", "endTime", "updateTime", "error")
MAX_TIMEOUT = 7 * 24 * 3600.0


def checked(body: dict[str, Any]) -> dict[str, Any]:
    """A canonical job of a create call; raises the 400 a real project would see."""
    job = wire.decode(body, JOB, at="custom_job")
    for field in OUTPUT_ONLY:
        job.pop(field, None)
    if not job.get("displayName"):
        raise _required("custom_job.display_name")
    if len(job["displayName"]) > 128:
        raise GoogleError(400, "custom_job.display_name must be at most 128 characters.")
    check_labels(job.get("labels", {}))
    pools = job.get("jobSpec", {}).get("workerPoolSpecs", [])
    if not pools:
        raise _required("custom_job.job_spec.worker_pool_specs")
    for place, pool in enumerate(pools):
        _check_pool(pool, at=f"custom_job.job_spec.worker_pool_specs[{place}]", first=place == 0)
    _check_scheduling(job["jobSpec"], pools)
    return job


def container_of(pool: dict[str, Any]) -> dict[str, Any]:
    """The container part of a pool."""
    return pool.get("containerSpec") or {}


def _check_pool(pool: dict[str, Any], *, at: str, first: bool) -> None:
    replicas = int(pool.setdefault("replicaCount", "1"))
    if replicas < 1:
        raise GoogleError(400, f"{at}.replica_count must be positive.")
    if first and replicas != 1:
        raise GoogleError(400, "The replica count of worker pool 0 (the chief) must be 1.")
    if "pythonPackageSpec" not in pool and not container_of(pool).get("imageUri"):
        raise _required(f"{at}.container_spec.image_uri")
    names = [entry.get("name", "") for entry in container_of(pool).get("env", [])]
    if len(names) != len(set(names)) or "" in names:
        raise GoogleError(400, f"{at}.container_spec.env: names must be given and unique.")
    machine = pool.get("machineSpec", {})
    kind = machine.get("machineType")
    if not kind:
        raise _required(f"{at}.machine_spec.machine_type")
    if kind not in MACHINE_GPUS:
        raise GoogleError(400, f'Machine type "{kind}" is not supported.')
    _check_accelerator(machine, *MACHINE_GPUS[kind])
    disk = pool.setdefault("diskSpec", {})
    disk.setdefault("bootDiskType", "pd-ssd")
    disk.setdefault("bootDiskSizeGb", 100)
    if not 100 <= disk["bootDiskSizeGb"] <= 64_000:
        raise GoogleError(400, f"{at}.disk_spec.boot_disk_size_gb must be in [100, 64000].")


def _check_accelerator(machine: dict[str, Any], wanted: str | None, count: int) -> None:
    """Machines with built-in GPUs take exactly their own accelerator and count."""
    kind, given = machine["machineType"], machine.get("acceleratorType")
    number = machine.get("acceleratorCount", 0)
    if wanted is None:
        attachable = kind.startswith("n1-") and given == "NVIDIA_TESLA_T4"
        if given and not attachable:
            raise GoogleError(
                400, f'Accelerator type "{given}" is not supported for machine type "{kind}".'
            )
        if bool(given) != bool(number):
            raise GoogleError(400, "accelerator_type and accelerator_count go together.")
        return
    if given != wanted or number != count:
        raise GoogleError(
            400,
            f'Machine type "{kind}" requires accelerator type "{wanted}" with count {count}, '
            f'got "{given}" with count {number}.',
        )


def _check_scheduling(spec: dict[str, Any], pools: list[dict[str, Any]]) -> None:
    scheduling = spec.setdefault("scheduling", {})
    scheduling.setdefault("timeout", "604800s")
    timeout = wire.seconds(scheduling["timeout"]) or 0.0
    if timeout <= 0 or timeout > 30 * 24 * 3600:
        raise GoogleError(400, "custom_job.job_spec.scheduling.timeout is out of range.")
    if scheduling.get("strategy") == "FLEX_START":
        if timeout > MAX_TIMEOUT:
            raise GoogleError(400, "FLEX_START jobs run for at most 7 days.")
        if len({str(pool["machineSpec"]) for pool in pools}) > 1:
            raise GoogleError(400, "FLEX_START requires identical worker pools.")
        scheduling.setdefault("maxWaitDuration", "86400s")
    elif "maxWaitDuration" in scheduling:
        raise GoogleError(400, "max_wait_duration is only supported for the FLEX_START strategy.")


def _required(field: str) -> GoogleError:
    text = f"Required field is not set: {field}"
    bad = {
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{"field": field, "description": text}],
    }
    return GoogleError(400, text, details=[bad])
