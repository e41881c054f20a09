"""Which quota a job draws on, how much there is, and who holds it.

A job flows in; a 429, a place in the queue or a grant flows out. The limits come from the scenario
and from granted requests; the API that shows them is `quotas.py`.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake.http import GoogleError
from saccade.cloud.fake.world import World

SERVICE = "aiplatform.googleapis.com"
GPU_NAMES = {
    "NVIDIA_TESLA_T4": "t4",
    "NVIDIA_L4": "l4",
    "NVIDIA_TESLA_A100": "a100",
    "NVIDIA_A100_80GB": "a100_80gb",
    "NVIDIA_H100_80GB": "h100",
    "NVIDIA_H100_MEGA_80GB": "h100_mega",
    "NVIDIA_H200_141GB": "h200",
    "NVIDIA_B200": "b200",
    "NVIDIA_RTX_PRO_6000": "rtx_pro_6000",
}
CPU_QUOTA = 450


def needs(job: dict[str, Any]) -> dict[str, int]:
    """Quota metric -> units of a job."""
    spec = job["jobSpec"]
    strategy = spec.get("scheduling", {}).get("strategy", "STANDARD")
    # queued (flex-start) jobs draw on the preemptible quota as spot jobs do
    middle = "preemptible_" if strategy in ("SPOT", "FLEX_START") else ""
    found: dict[str, int] = {}
    for pool in spec["workerPoolSpecs"]:
        machine = pool["machineSpec"]
        gpu = GPU_NAMES.get(machine.get("acceleratorType", ""))
        if gpu is not None:
            metric = f"custom_model_training_{middle}nvidia_{gpu}_gpus"
            units = machine["acceleratorCount"]
        else:
            metric = f"custom_model_training_{machine['machineType'].split('-')[0]}_cpus"
            units = int(machine["machineType"].rpartition("-")[2])
        found[metric] = found.get(metric, 0) + units * int(pool["replicaCount"])
    return found


def limit(world: World, metric: str, *, project: str, region: str) -> int:
    """What a project may use of a metric in a region."""
    granted = world.store.get("grants", f"{project}/{metric}/{region}")
    if granted is not None:
        return int(granted["value"])
    named = world.scenario.quotas.get(metric)
    if isinstance(named, dict):
        named = named.get(region, named.get("default"))
    if named is not None:
        return named
    return CPU_QUOTA if metric.endswith("_cpus") else world.scenario.default_quota


def refuse_if_short(world: World, job: dict[str, Any], *, project: str, region: str) -> None:
    """The 429 of a create call whose quota can never suffice."""
    mode = world.scenario.quota_mode
    if mode == "hold":
        return
    for metric, units in needs(job).items():
        have = limit(world, metric, project=project, region=region)
        free = have - used(world, metric, project=project, region=region)
        if units > (free if mode == "refuse" else have):
            name = f"{SERVICE}/{metric}"
            raise GoogleError(
                429,
                f"The following quota metrics exceed quota limits: {name}",
                reason="RATE_LIMIT_EXCEEDED",
                metadata={
                    "quota_metric": name,
                    "quota_location": region,
                    "quota_limit_value": str(have),
                    "service": SERVICE,
                    "consumer": f"projects/{world.number(project)}",
                },
            )


def take(world: World, job: dict[str, Any]) -> bool:
    """Reserve a job's quota; False while others hold it."""
    project, region = job["_project"], job["_region"]
    with world.quota_lock:
        if job["_id"] in world.held_quota:
            return True
        wanted = needs(job)
        for metric, units in wanted.items():
            have = limit(world, metric, project=project, region=region)
            if units > have - used(world, metric, project=project, region=region):
                return False
        world.held_quota[job["_id"]] = {"project": project, "region": region, "units": wanted}
        return True


def give_back(world: World, job_id: str) -> None:
    """A job is over: others may use its quota."""
    with world.quota_lock:
        world.held_quota.pop(job_id, None)


def used(world: World, metric: str, *, project: str, region: str) -> int:
    """What running jobs hold of a metric."""
    return sum(
        held["units"].get(metric, 0)
        for held in list(world.held_quota.values())
        if held["project"] == project and held["region"] == region
    )
