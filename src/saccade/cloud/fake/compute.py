"""Compute Engine: regions, zones, machine types and GPUs, with the regions that have them.

Only lists flow out; nothing is created here. `MACHINE_GPUS` is what Vertex AI accepts of machine
types and is shared with the checks of a job.
"""

from __future__ import annotations

from typing import Any

from saccade.cloud.fake import filters
from saccade.cloud.fake.http import GoogleError, Request, Response, Router, json_response, not_found
from saccade.cloud.fake.wire import page
from saccade.cloud.fake.world import World

SERVICE = "compute.googleapis.com"
A2_HIGH = (
    "asia-northeast1", "asia-northeast3", "asia-southeast1", "europe-west4", "me-west1",
    "us-central1", "us-east1", "us-west1", "us-west3", "us-west4",
)  # fmt: skip
A2_ULTRA = ("asia-southeast1", "europe-west4", "us-central1", "us-east4", "us-east5")
A3_HIGH = (
    "asia-northeast1", "asia-southeast1", "europe-north1", "europe-west1", "europe-west4",
    "us-central1", "us-east4", "us-east5", "us-west1", "us-west4",
)  # fmt: skip
G2 = (
    "asia-east1", "asia-northeast1", "asia-northeast3", "asia-south1", "asia-southeast1",
    "europe-west1", "europe-west2", "europe-west3", "europe-west4", "europe-west6",
    "me-central2", "northamerica-northeast2", "us-central1", "us-east1", "us-east4", "us-west1",
    "us-west4",
)  # fmt: skip
G4 = ("us-central1", "us-east1", "us-east4", "us-east5", "us-west1", "europe-west4")
FEW = ("us-central1", "us-east4", "us-east5", "europe-west1", "asia-southeast1")
EVERYWHERE = tuple(sorted({*A2_HIGH, *A2_ULTRA, *A3_HIGH, *G2}))
ZONES = ("a", "b", "c")

# machine type: (accelerator, GPUs, vCPUs, GiB, regions)
_Row = tuple[str | None, int, int, int, tuple[str, ...]]


def _rows() -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for count in (1, 2, 4, 8, 16, 32, 64, 96):
        rows[f"n1-standard-{count}"] = (None, 0, count, count * 15 // 4, EVERYWHERE)
        rows[f"n1-highmem-{count}"] = (None, 0, count, count * 13 // 2, EVERYWHERE)
    for count in (2, 4, 8, 16, 32):
        rows[f"e2-standard-{count}"] = (None, 0, count, count * 4, EVERYWHERE)
        rows[f"n2-standard-{count}"] = (None, 0, count, count * 4, EVERYWHERE)
    for size, gpus in ((4, 1), (8, 1), (12, 1), (16, 1), (24, 2), (32, 1), (48, 4), (96, 8)):
        rows[f"g2-standard-{size}"] = ("NVIDIA_L4", gpus, size, size * 4, G2)
    for size, gpus in ((48, 1), (96, 2), (192, 4), (384, 8)):
        rows[f"g4-standard-{size}"] = ("NVIDIA_RTX_PRO_6000", gpus, size, size * 15 // 4, G4)
    for gpus in (1, 2, 4, 8):
        rows[f"a2-highgpu-{gpus}g"] = ("NVIDIA_TESLA_A100", gpus, 12 * gpus, 85 * gpus, A2_HIGH)
        rows[f"a2-ultragpu-{gpus}g"] = ("NVIDIA_A100_80GB", gpus, 12 * gpus, 170 * gpus, A2_ULTRA)
        rows[f"a3-highgpu-{gpus}g"] = ("NVIDIA_H100_80GB", gpus, 26 * gpus, 234 * gpus, A3_HIGH)
    rows["a2-megagpu-16g"] = ("NVIDIA_TESLA_A100", 16, 96, 1360, A2_HIGH)
    rows["a3-megagpu-8g"] = ("NVIDIA_H100_MEGA_80GB", 8, 208, 1872, FEW)
    rows["a3-ultragpu-8g"] = ("NVIDIA_H200_141GB", 8, 224, 2952, FEW)
    rows["a4-highgpu-8g"] = ("NVIDIA_B200", 8, 224, 3968, FEW)
    return rows


MACHINES = _rows()
MACHINE_GPUS: dict[str, tuple[str | None, int]] = {
    name: (row[0], row[1]) for name, row in MACHINES.items()
}


def mount(router: Router, world: World) -> None:
    """Routes of Compute Engine."""
    base = "/compute/v1/projects/{project}"

    def machine_types(request: Request, project: str, zone: str) -> Response:
        return _list(request, _machines_in(zone, project, world.url), kind="machineTypeList")

    def machine_type(request: Request, project: str, zone: str, name: str) -> Response:
        for found in _machines_in(zone, project, world.url):
            if found["name"] == name:
                return json_response(found)
        raise not_found("machineTypes", name)

    def aggregated(request: Request, project: str) -> Response:
        items = {
            f"zones/{zone}": {"machineTypes": _machines_in(zone, project, world.url)}
            for zone in _zones()
        }
        return json_response({"kind": "compute#machineTypeAggregatedList", "items": items})

    def zones(request: Request, project: str) -> Response:
        found = [{"name": zone, "status": "UP", "region": _region(zone)} for zone in _zones()]
        return _list(request, found, kind="zoneList")

    def regions(request: Request, project: str) -> Response:
        found = [{"name": region, "status": "UP"} for region in EVERYWHERE]
        return _list(request, found, kind="regionList")

    def region(request: Request, project: str, region: str) -> Response:
        if region not in EVERYWHERE:
            raise not_found("regions", region)
        return json_response({"kind": "compute#region", "name": region, "status": "UP"})

    router.add("GET", f"{base}/zones/{{zone}}/machineTypes", machine_types, service=SERVICE)
    router.add("GET", f"{base}/zones/{{zone}}/machineTypes/{{name}}", machine_type, service=SERVICE)
    router.add("GET", f"{base}/aggregated/machineTypes", aggregated, service=SERVICE)
    router.add("GET", f"{base}/zones", zones, service=SERVICE)
    router.add("GET", f"{base}/regions", regions, service=SERVICE)
    router.add("GET", f"{base}/regions/{{region}}", region, service=SERVICE)


def _zones() -> list[str]:
    return [f"{region}-{letter}" for region in EVERYWHERE for letter in ZONES]


def _region(zone: str) -> str:
    return zone.rpartition("-")[0]


def _machines_in(zone: str, project: str, url: str) -> list[dict[str, Any]]:
    """Machine types of a zone; GPUs are in the first two zones of their regions only."""
    if zone not in _zones():
        raise GoogleError(404, f"The resource 'projects/{project}/zones/{zone}' was not found")
    found: list[dict[str, Any]] = []
    for name, (accelerator, gpus, cpus, gib, where) in MACHINES.items():
        if _region(zone) not in where or (gpus and zone.endswith("-c")):
            continue
        item: dict[str, Any] = {
            "kind": "compute#machineType",
            "name": name,
            "guestCpus": cpus,
            "memoryMb": gib * 1024,
            "zone": zone,
            "selfLink": f"{url}/compute/v1/projects/{project}/zones/{zone}/machineTypes/{name}",
        }
        if accelerator is not None:
            kind = accelerator.lower().replace("_", "-")
            item["accelerators"] = [{"guestAcceleratorType": kind, "guestAcceleratorCount": gpus}]
        found.append(item)
    return found


def _list(request: Request, items: list[dict[str, Any]], *, kind: str) -> Response:
    keep = filters.parse(request.first("filter"))
    response = page(request, [item for item in items if keep(item)], field="items", default=500)
    import json

    return json_response({"kind": f"compute#{kind}"} | json.loads(response.body))
