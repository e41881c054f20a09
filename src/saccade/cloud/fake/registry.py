"""Artifact Registry: Docker repositories and the images in them.

Repositories are created and deleted by long-running operations; images appear when a build pushes
them (`builds.py`) or a test registers them. Jobs ask `pullable` before their containers start.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from saccade.cloud.fake import policies, wire
from saccade.cloud.fake.http import GoogleError, Request, Response, Router
from saccade.cloud.fake.wire import ANY, BOOL, STRING, MapOf, Message
from saccade.cloud.fake.world import CREATED, World, check_labels, new_id, public

SERVICE = "artifactregistry.googleapis.com"
REPOSITORIES, IMAGES = "repositories", "images"
FORMAT = wire.enum(
    "google.devtools.artifactregistry.v1.Repository.Format",
    FORMAT_UNSPECIFIED=0,
    DOCKER=1,
    MAVEN=2,
    NPM=3,
    APT=5,
    YUM=6,
    PYTHON=8,
    KFP=9,
    GO=10,
    GENERIC=11,
)
MODE = wire.enum(
    "google.devtools.artifactregistry.v1.Repository.Mode",
    "MODE_UNSPECIFIED",
    "STANDARD_REPOSITORY",
    "VIRTUAL_REPOSITORY",
    "REMOTE_REPOSITORY",
)
REPOSITORY = Message(
    {
        "name": STRING,
        "format": FORMAT,
        "description": STRING,
        "labels": MapOf(STRING),
        "createTime": STRING,
        "updateTime": STRING,
        "kmsKeyName": STRING,
        "mode": MODE,
        "cleanupPolicies": ANY,
        "cleanupPolicyDryRun": BOOL,
        "sizeBytes": wire.INT64,
        "dockerConfig": Message({"immutableTags": BOOL}),
        "mavenConfig": ANY,
        "vulnerabilityScanningConfig": ANY,
        "satisfiesPzs": BOOL,
        "satisfiesPzi": BOOL,
        "disallowUnspecifiedMode": BOOL,
        "registryUri": STRING,
        "remoteRepositoryConfig": ANY,
        "virtualRepositoryConfig": ANY,
    }
)
KIND = "type.googleapis.com/google.devtools.artifactregistry.v1."
# REGION-docker.pkg.dev/PROJECT/REPOSITORY/NAME[:TAG][@DIGEST]
URI = re.compile(
    r"(?P<region>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[^/]+)/(?P<repository>[^/]+)/"
    r"(?P<image>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def register(world: World, uri: str, *, content: str = "", built: str | None = None) -> str:
    """Push an image; returns its digest. Raises like the registry without a repository."""
    found = URI.fullmatch(uri)
    if found is None:
        raise GoogleError(400, f"not an Artifact Registry image: {uri}")
    part = found.groupdict()
    key = f"{world.project(part['project'])}/{part['region']}/{part['repository']}"
    if world.store.get(REPOSITORIES, key) is None:
        raise GoogleError(404, f'name unknown: Repository "{part["repository"]}" not found')
    digest = part["digest"] or "sha256:" + hashlib.sha256((content or uri).encode()).hexdigest()
    tag = part["tag"] or ("latest" if not part["digest"] else None)
    now = world.stamp()
    for other in world.store.all(IMAGES, prefix=f"{key}/"):  # a tag points at one image only
        if tag in other["tags"] and other["_image"] == part["image"]:
            other["tags"].remove(tag)
            world.store.put(IMAGES, f"{key}/{other['_image']}@{other['_digest']}", other)
    name = f"{part['image']}@{digest}"
    old = world.store.get(IMAGES, f"{key}/{name}") or {}
    where = f"projects/{part['project']}/locations/{part['region']}"
    document = {
        "name": f"{where}/repositories/{part['repository']}/dockerImages/{name}",
        "uri": f"{part['region']}-docker.pkg.dev/{part['project']}/{part['repository']}/{name}",
        "tags": sorted({*old.get("tags", []), *([tag] if tag else [])}),
        "imageSizeBytes": "4200000000",
        "uploadTime": now,
        "updateTime": now,
        "buildTime": built or now,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "_image": part["image"],
        "_digest": digest,
        CREATED: world.now(),
    }
    world.store.put(IMAGES, f"{key}/{name}", document)
    return digest


def pullable(world: World, uri: str) -> bool:
    """Whether a job could pull an image; other registries are believed."""
    found = URI.fullmatch(uri)
    if found is None or not world.scenario.check_images:
        return True
    part = found.groupdict()
    if part["project"] in ("vertex-ai", "deeplearning-platform-release"):  # Google's own
        return True
    prefix = f"{part['project']}/{part['region']}/{part['repository']}/{part['image']}@"
    images = world.store.all(IMAGES, prefix=prefix)
    if part["digest"]:
        return any(image["_digest"] == part["digest"] for image in images)
    return any((part["tag"] or "latest") in image["tags"] for image in images)


def mount(router: Router, world: World) -> None:
    """Routes of Artifact Registry."""
    base = "/v1/projects/{project}/locations/{region}/repositories"
    _mount_repositories(router, world, base)
    _mount_images(router, world, base)
    policies.mount(
        router,
        world,
        f"{base}/{{name}}",
        service=SERVICE,
        key=lambda project, region, name: f"repository/{project}/{region}/{name}",
        get_method="GET",
        check=lambda project, region, name: _find(world, project, region, name),
    )


def _mount_repositories(router: Router, world: World, base: str) -> None:
    def create(request: Request, project: str, region: str) -> Response:
        name = request.first("repositoryId") or request.first("repository_id")
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
            raise GoogleError(400, f"invalid repository id {name!r}")
        body = wire.decode(request.json(), REPOSITORY, at="repository")
        if body.get("format", "FORMAT_UNSPECIFIED") == "FORMAT_UNSPECIFIED":
            raise GoogleError(400, "repository format must be specified")
        check_labels(body.get("labels", {}))
        now = world.stamp()
        document = body | {
            "name": f"projects/{project}/locations/{region}/repositories/{name}",
            "mode": body.get("mode", "STANDARD_REPOSITORY"),
            "createTime": now,
            "updateTime": now,
            "registryUri": f"{region}-docker.pkg.dev/{project}/{name}",
            CREATED: world.now(),
        }
        if not world.store.add(REPOSITORIES, f"{project}/{region}/{name}", document):
            raise GoogleError(409, "the repository already exists")
        answer = {"@type": f"{KIND}Repository", **public(document)}
        return _operation(world, request, project, region, answer)

    def get(request: Request, project: str, region: str, name: str) -> Response:
        return wire.reply(request, public(_find(world, project, region, name)), REPOSITORY)

    def listing(request: Request, project: str, region: str) -> Response:
        found = world.visible(world.store.all(REPOSITORIES, prefix=f"{project}/{region}/"))
        shown = [public(item) for item in found]
        return wire.page(request, shown, field="repositories", shape=REPOSITORY)

    def patch(request: Request, project: str, region: str, name: str) -> Response:
        document = _find(world, project, region, name)
        body = wire.decode(request.json(), REPOSITORY, at="repository")
        mask = request.first("updateMask") or request.first("update_mask")
        names = {wire.camel(part) for part in mask.split(",") if part} or set(body)
        check_labels(body.get("labels", {}))
        document |= {key: body[key] for key in names if key in body}
        document["updateTime"] = world.stamp()
        world.store.put(REPOSITORIES, f"{project}/{region}/{name}", document)
        return wire.reply(request, public(document), REPOSITORY)

    def delete(request: Request, project: str, region: str, name: str) -> Response:
        _find(world, project, region, name)
        key = f"{project}/{region}/{name}"
        world.store.delete(REPOSITORIES, key)
        for image in world.store.all(IMAGES, prefix=f"{key}/"):
            world.store.delete(IMAGES, f"{key}/{image['_image']}@{image['_digest']}")
        policies.forget(world, f"repository/{key}")
        return _operation(world, request, project, region, None)

    router.add("POST", base, create, service=SERVICE)
    router.add("GET", base, listing, service=SERVICE)
    router.add("GET", f"{base}/{{name}}", get, service=SERVICE)
    router.add("PATCH", f"{base}/{{name}}", patch, service=SERVICE)
    router.add("DELETE", f"{base}/{{name}}", delete, service=SERVICE)


def _mount_images(router: Router, world: World, base: str) -> None:
    def images(request: Request, project: str, region: str, name: str) -> Response:
        _find(world, project, region, name)
        found = world.visible(world.store.all(IMAGES, prefix=f"{project}/{region}/{name}/"))
        shown = [public(item) for item in found]
        return wire.page(request, shown, field="dockerImages", default=100)

    def image(request: Request, project: str, region: str, name: str, image: str) -> Response:
        found = world.store.get(IMAGES, f"{project}/{region}/{name}/{image}")
        if found is None:
            raise GoogleError(404, "Requested entity was not found.")
        return wire.reply(request, public(found))

    def tag(request: Request, project: str, region: str, name: str, **parts: str) -> Response:
        prefix = f"{project}/{region}/{name}/{parts['package']}@"
        for found in world.store.all(IMAGES, prefix=prefix):
            if parts["tag"] in found["tags"]:
                root = f"projects/{project}/locations/{region}/repositories/{name}/packages"
                root = f"{root}/{parts['package']}"
                value = {
                    "name": f"{root}/tags/{parts['tag']}",
                    "version": f"{root}/versions/{found['_digest']}",
                }
                return wire.reply(request, value)
        raise GoogleError(404, "Requested entity was not found.")

    router.add("GET", f"{base}/{{name}}/dockerImages", images, service=SERVICE)
    router.add("GET", f"{base}/{{name}}/dockerImages/{{image~}}", image, service=SERVICE)
    router.add("GET", f"{base}/{{name}}/packages/{{package~}}/tags/{{tag}}", tag, service=SERVICE)


def _find(world: World, project: str, region: str, name: str) -> dict[str, Any]:
    found = world.store.get(REPOSITORIES, f"{project}/{region}/{name}")
    if found is None:
        raise GoogleError(
            404, f'Repository "projects/{project}/locations/{region}/repositories/{name}" not found'
        )
    return found


def _operation(
    world: World, request: Request, project: str, region: str, response: dict[str, Any] | None
) -> Response:
    name = f"projects/{project}/locations/{region}/operations/{new_id()}"
    metadata = {"@type": f"{KIND}OperationMetadata"}
    answer = world.operation(name, response=response, metadata=metadata)
    return wire.reply(request, answer, Message({"response": REPOSITORY}))
