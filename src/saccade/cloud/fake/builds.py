"""Cloud Build: create, get, list, cancel. A build runs no docker; it registers its images.

A build document flows in; steps appear as log lines, and at the end the images are in the fake
registry under digests that follow from the steps and the source. A missing source object, a missing
repository or the scenario makes it fail as a real one would.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import uuid
from typing import Any
from urllib.parse import quote

from saccade.cloud.fake import filters, registry, wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.wire import ANY, BOOL, DURATION, INT64, STRING, ListOf, MapOf, Message
from saccade.cloud.fake.world import CREATED, World, public

SERVICE = "cloudbuild.googleapis.com"
BUILDS = "builds"
STATUS = wire.enum(
    "google.devtools.cloudbuild.v1.Build.Status",
    STATUS_UNKNOWN=0,
    QUEUED=1,
    WORKING=2,
    SUCCESS=3,
    FAILURE=4,
    INTERNAL_ERROR=5,
    TIMEOUT=6,
    CANCELLED=7,
    EXPIRED=9,
    PENDING=10,
)
MACHINE = wire.enum(
    "google.devtools.cloudbuild.v1.BuildOptions.MachineType",
    UNSPECIFIED=0,
    N1_HIGHCPU_8=1,
    N1_HIGHCPU_32=2,
    E2_HIGHCPU_8=5,
    E2_HIGHCPU_32=6,
    E2_MEDIUM=7,
)
LOGGING = wire.enum(
    "google.devtools.cloudbuild.v1.BuildOptions.LoggingMode",
    "LOGGING_UNSPECIFIED",
    "LEGACY",
    "GCS_ONLY",
    "STACKDRIVER_ONLY",
    "NONE",
    "CLOUD_LOGGING_ONLY",
)
STEP = Message(
    {
        "name": STRING,
        "env": ListOf(STRING),
        "args": ListOf(STRING),
        "dir": STRING,
        "id": STRING,
        "waitFor": ListOf(STRING),
        "entrypoint": STRING,
        "secretEnv": ListOf(STRING),
        "volumes": ANY,
        "timing": ANY,
        "pullTiming": ANY,
        "timeout": DURATION,
        "status": STATUS,
        "allowFailure": BOOL,
        "exitCode": wire.INT32,
        "allowExitCodes": ListOf(wire.INT32),
        "script": STRING,
        "automapSubstitutions": BOOL,
    }
)
OPTIONS = Message(
    {
        "sourceProvenanceHash": ANY,
        "requestedVerifyOption": ANY,
        "machineType": MACHINE,
        "diskSizeGb": INT64,
        "substitutionOption": ANY,
        "dynamicSubstitutions": BOOL,
        "automapSubstitutions": BOOL,
        "logStreamingOption": ANY,
        "workerPool": STRING,
        "pool": ANY,
        "logging": LOGGING,
        "env": ListOf(STRING),
        "secretEnv": ListOf(STRING),
        "volumes": ANY,
        "defaultLogsBucketBehavior": ANY,
        "pubsubTopic": STRING,
    }
)
OBJECT = Message({"bucket": STRING, "object": STRING, "generation": INT64, "sourceFetcher": ANY})
BUILD = Message(
    {
        "name": STRING,
        "id": STRING,
        "projectId": STRING,
        "status": STATUS,
        "statusDetail": STRING,
        "source": Message({"storageSource": OBJECT, "repoSource": ANY, "gitSource": ANY}),
        "steps": ListOf(STEP),
        "results": ANY,
        "createTime": STRING,
        "startTime": STRING,
        "finishTime": STRING,
        "timeout": DURATION,
        "images": ListOf(STRING),
        "queueTtl": DURATION,
        "artifacts": ANY,
        "logsBucket": STRING,
        "sourceProvenance": ANY,
        "buildTriggerId": STRING,
        "options": OPTIONS,
        "logUrl": STRING,
        "substitutions": MapOf(STRING),
        "tags": ListOf(STRING),
        "secrets": ANY,
        "timing": ANY,
        "approval": ANY,
        "serviceAccount": STRING,
        "availableSecrets": ANY,
        "warnings": ANY,
        "failureInfo": ANY,
    }
)
TERMINAL = ("SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED")
METADATA = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata"


class _Failed(Exception):
    """The build ends with a status and a reason."""


def mount(router: Router, world: World) -> None:
    """Routes of Cloud Build; those without a region are of the region `global`."""

    def create(request: Request, project: str, region: str = "global") -> Response:
        build = _checked(wire.decode(request.json(), BUILD, at="build"))
        build_id, number = str(uuid.uuid4()), world.number(project)
        console = "https://console.cloud.google.com/cloud-build/builds"
        build |= {
            "name": f"projects/{number}/locations/{region}/builds/{build_id}",
            "id": build_id,
            "projectId": project,
            "status": "QUEUED",
            "createTime": world.stamp(),
            "logUrl": f"{console}/{build_id}?project={number}",
            "_project": project,
            "_region": region,
            CREATED: world.now(),
        }
        metadata = {"@type": METADATA, "build": public(build)}
        name = _operation_name(world, build)
        with world.store.together():
            world.store.put(BUILDS, build_id, build)
            answer = world.operation(name, metadata=metadata, wait=10**9)
        threading.Thread(
            target=_run, args=(world, build_id), name=f"build {build_id}", daemon=True
        ).start()
        shape = Message({"metadata": Message({"build": BUILD})})
        return wire.reply(request, answer, shape)

    def get(request: Request, project: str, id: str, region: str = "global") -> Response:
        return wire.reply(request, public(_find(world, project, id)), BUILD)

    def listing(request: Request, project: str, region: str = "global") -> Response:
        keep = filters.parse(request.first("filter"))
        found = [
            public(build)
            for build in reversed(world.visible(world.store.all(BUILDS)))
            if build["_project"] == project and build["_region"] == region and keep(build)
        ]
        return wire.page(request, found, field="builds", shape=BUILD)

    def cancel(request: Request, project: str, id: str, region: str = "global") -> Response:
        build = _find(world, project, id)
        if build["status"] in TERMINAL:
            raise GoogleError(
                400, "Cannot cancel a build that has finished.", code="FAILED_PRECONDITION"
            )
        _finish(world, id, status="CANCELLED", detail="")
        return wire.reply(request, public(_find(world, project, id)), BUILD)

    for base in ("/v1/projects/{project}", "/v1/projects/{project}/locations/{region}"):
        router.add("POST", f"{base}/builds", create, service=SERVICE)
        router.add("GET", f"{base}/builds", listing, service=SERVICE)
        router.add("GET", f"{base}/builds/{{id}}", get, service=SERVICE)
        router.add("POST", f"{base}/builds/{{id}}:cancel", cancel, service=SERVICE)


def _checked(build: dict[str, Any]) -> dict[str, Any]:
    for field in ("name", "id", "status", "results", "startTime", "finishTime", "failureInfo"):
        build.pop(field, None)
    if not build.get("steps"):
        raise GoogleError(400, "invalid build: must contain at least one step")
    logging = build.get("options", {}).get("logging", "")
    allowed = logging in ("CLOUD_LOGGING_ONLY", "NONE") or build.get("logsBucket")
    if build.get("serviceAccount") and not allowed:
        raise GoogleError(
            400,
            "invalid build: if 'build.service_account' is specified, the build must either (a) "
            "specify 'build.logs_bucket', (b) use the REGIONAL_USER_OWNED_BUCKET "
            "build.options.default_logs_bucket_behavior option, or (c) use either "
            "CLOUD_LOGGING_ONLY / NONE logging options",
        )
    build.setdefault("timeout", "600s")
    return build


def _run(world: World, build_id: str) -> None:
    """A build's life in a thread of its own."""
    build = world.store.get(BUILDS, build_id)
    if build is None:
        return
    steps = build["steps"]
    pause = world.scenario.build_seconds / (len(steps) + 1)
    try:
        _wait(world, build_id, pause)
        _change(world, build_id, {"status": "WORKING", "startTime": world.stamp()})
        _say(world, build, f'starting build "{build_id}"')
        _check_source(world, build)
        for place, step in enumerate(steps):
            _say(world, build, f"Step #{place}: Pulling image: {step['name']}")
            _say(world, build, f"Step #{place}: {' '.join(step.get('args', []))}")
            _wait(world, build_id, pause)
            for text in world.scenario.failing_builds:
                if re.search(text, json.dumps([build.get("images"), build.get("tags")])):
                    name = step["name"]
                    raise _Failed(f'build step {place} "{name}" failed: step exited with status 1')
        images = [_push(world, build, image) for image in build.get("images", [])]
        _say(world, build, "DONE")
        _finish(world, build_id, status="SUCCESS", detail="", results={"images": images})
    except _Failed as error:
        _say(world, build, f"ERROR: {error}")
        _finish(world, build_id, status="FAILURE", detail=str(error))
    except InterruptedError:
        return


def _check_source(world: World, build: dict[str, Any]) -> None:
    source = build.get("source", {}).get("storageSource")
    if source is None:
        return
    path = f"/storage/v1/b/{quote(source['bucket'], safe='')}/o/{quote(source['object'], safe='')}"
    _say(world, build, f"Fetching storage object: gs://{source['bucket']}/{source['object']}")
    answer = world.handle(Request("GET", path))
    if answer is None or answer.status != 200:
        raise _Failed(
            f"failed to fetch source gs://{source['bucket']}/{source['object']}: not found"
        )


def _push(world: World, build: dict[str, Any], image: str) -> dict[str, Any]:
    _say(world, build, f"Pushing {image}")
    content = json.dumps([image, build["steps"], build.get("source")], sort_keys=True)
    try:
        digest = registry.register(world, image, content=content)
    except GoogleError as error:
        raise _Failed(f"failed to push {image}: {error.message}") from error
    _say(world, build, f"digest: {digest}")
    return {"name": image, "digest": digest}


def _finish(world: World, build_id: str, *, status: str, detail: str, **more: Any) -> None:
    values = {"status": status, "finishTime": world.stamp(), **more}
    if detail:
        values |= {"statusDetail": detail, "failureInfo": {"type": "USER_BUILD_STEP"}}
        values["failureInfo"]["detail"] = detail
    with world.store.together():
        build = world.store.get(BUILDS, build_id)
        if build is None or build["status"] in TERMINAL:
            return
        build |= values
        name = _operation_name(world, build)
        world.store.update("operations", name, lambda operation: _done(operation, build))
        # Last, because a restart finishes what is not over: both are then told anew.
        world.store.put(BUILDS, build_id, build)


def _operation_name(world: World, build: dict[str, Any]) -> str:
    """The operation that a build is; those without a region are named in their own way."""
    code = base64.b64encode(build["id"].encode()).decode()
    if build["_region"] == "global":
        return f"operations/build/{build['_project']}/{code}"
    number = world.number(build["_project"])
    return f"projects/{number}/locations/{build['_region']}/operations/{code}"


def _done(operation: dict[str, Any], build: dict[str, Any]) -> dict[str, Any]:
    """A build's operation at its end."""
    operation["_done_at"] = 0
    operation["metadata"]["build"] = public(build)
    operation["response"] = {
        "@type": "type.googleapis.com/google.devtools.cloudbuild.v1.Build",
        **public(build),
    }
    return operation


def _change(world: World, build_id: str, values: dict[str, Any]) -> None:
    def change(build: dict[str, Any]) -> dict[str, Any] | None:
        return None if build["status"] in TERMINAL else build | values

    world.store.update(BUILDS, build_id, change)


def _wait(world: World, build_id: str, seconds: float) -> None:
    """Sleep, unless the server ends or the build is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        build = world.store.get(BUILDS, build_id)
        if world.closing.is_set() or build is None or build["status"] in TERMINAL:
            raise InterruptedError
        time.sleep(0.02)


def _say(world: World, build: dict[str, Any], text: str) -> None:
    labels = {"build_id": build["id"], "project_id": build["_project"], "build_trigger_id": ""}
    world.logs.write(
        [text],
        project=build["_project"],
        log="cloudbuild",
        resource={"type": "build", "labels": labels},
        severity="INFO",
    )


def resume(world: World) -> None:
    """After a restart: builds that were under way ended with their machines."""
    for build in world.store.all(BUILDS):
        if build["status"] not in TERMINAL:
            text = "the machine of this build was lost"
            _finish(world, build["id"], status="INTERNAL_ERROR", detail=text)


def _find(world: World, project: str, build_id: str) -> dict[str, Any]:
    build = world.store.get(BUILDS, build_id)
    if build is None or build["_project"] != project:
        raise GoogleError(404, f"Requested entity was not found: build {build_id}")
    return build
