"""The container image of launched jobs: which one, whether it is there, building it when not.

What an image is made of (pinned constraints, declared dependencies, Dockerfile, the entry point)
flows in as text and its tag flows out: a content hash, so a change of code builds nothing and a
change of dependencies builds once. Images are named by digest from then on. Cloud Build builds
from the code archive in the bucket; its log is passed on line by line. Left out: the archive
(`package.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saccade.cloud.api import builds, logs, registry
from saccade.cloud.api.transport import ApiError, Google, NotFound, PermissionDenied
from saccade.cloud.findings import Finding, Level
from saccade.config.errors import OutsideError
from saccade.launch.package import code_root, project_file

IMAGE = "train"
"""Name of the image in the repository."""
DOCKERFILE = "docker/Dockerfile"
EXTRAS = ("train", "cloud")
"""Optional dependencies that the Dockerfile installs."""
STARTERS = (
    "src/saccade/launch/entry.py",
    "src/saccade/training/finals.py",
    "src/saccade/training/inputs.py",
    "src/saccade/training/store.py",
    "src/saccade/training/store_bucket.py",
)
"""The part of the code that runs from the image, before the code archive is unpacked."""
BUILD_TIMEOUT_S = 7200
LAST_LINES = 12

Say = Callable[[str], None]


@dataclass(frozen=True)
class BaseImage:
    """What an image starts from. Without a digest here, the registry is asked for it once."""

    registry: str
    repository: str
    tag: str
    digest: str | None = None

    @property
    def name(self) -> str:
        """Return the name that people use, which may point somewhere else tomorrow."""
        return f"{self.repository.removeprefix('library/')}:{self.tag}"

    def by_digest(self, digest: str) -> str:
        """Return the address that always means the same bytes."""
        return f"{self.repository.removeprefix('library/')}@{digest}"


BASES: Mapping[str, BaseImage] = {
    # Python 3.11 is what constraints.txt was tested with. CUDA comes with torch's own wheels.
    "python": BaseImage(
        registry="https://registry-1.docker.io",
        repository="library/python",
        tag="3.11-slim-bookworm",
    ),
}
"""Every base image. A digest is written here only after a registry has confirmed it."""
BASE = BASES["python"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ADDRESS = re.compile(
    r"(?P<region>[a-z0-9-]+)-docker\.pkg\.dev/(?P<project>[^/]+(?:/[^/]+)?)/"
    r"(?P<repository>[^/]+)/(?P<image>[^/]+)"
)
_INDEX = (
    "application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)


def image_tag(*, root: Path | None = None) -> str:
    """Return the tag of the image this checkout needs: a hash of everything it is made of."""
    project = tomllib.loads(project_file("pyproject.toml", root=root))["project"]
    extras = project.get("optional-dependencies", {})
    parts = {
        "base": BASE.digest or BASE.name,
        "constraints": _without_comments(project_file("constraints.txt", root=root)),
        "dockerfile": _without_comments(project_file(DOCKERFILE, root=root)),
        "python": project.get("requires-python", ""),
        "dependencies": sorted(project.get("dependencies", [])),
        "extras": {name: sorted(extras.get(name, [])) for name in EXTRAS},
        "starters": _starters(root),
    }
    text = json.dumps(parts, sort_keys=True)
    return "deps-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def ensure_image(
    google: Google,
    *,
    region: str,
    repository: str,
    source: tuple[str, str],
    home: Path,
    say: Say,
    root: Path | None = None,
    poll_s: float = 5.0,
) -> str:
    """Return the image's address by digest, building it first when the registry lacks it.

    `source` is (bucket, object) of the code archive. A build of the same tag that is already
    running is followed, not repeated. Raises OutsideError with the end of the log if it fails.
    """
    tag = image_tag(root=root)
    image = f"{IMAGE}:{tag}"
    address = registry.image_uri(google, region=region, repository=repository, image=IMAGE)
    digest = registry.image_digest(google, region=region, repository=repository, image=image)
    if digest is None:
        running = [
            one for one in builds.list_by_tag(google, tag)
            if one.get("status") not in builds.TERMINAL
        ]  # fmt: skip
        if running:
            build = running[0]
            say(f"following the build that is running already: {build['id']}")
        else:
            base = base_reference(home=home, fake=google.fake)
            say(f"no image for these dependencies yet: building {image} from {base}")
            body = build_body(
                image=f"{address}:{tag}", tag=tag, source=source, base=base
            )  # fmt: skip
            build = builds.create(google, build=body)
        digest = _follow(google, build_id=str(build["id"]), say=say, poll_s=poll_s)
        digest = digest or registry.image_digest(
            google, region=region, repository=repository, image=image
        )
    if digest is None:
        raise OutsideError(
            f"the build succeeded, but {address}:{tag} is not in the registry"
            "\n  fix: saccade cloud status"
        )
    return f"{address}@{digest}"


def build_body(*, image: str, tag: str, source: tuple[str, str], base: str) -> dict[str, Any]:
    """Write the Cloud Build of an image; its first tag finds it again."""
    bucket, name = source
    return {
        "source": {"storageSource": {"bucket": bucket, "object": name}},
        "steps": [
            {
                "name": "gcr.io/cloud-builders/docker",
                "env": ["DOCKER_BUILDKIT=1"],
                "args": [
                    "build", "--file", DOCKERFILE, "--build-arg", f"BASE_IMAGE={base}",
                    "--label", "app=saccade", "--label", f"saccade.base={base}",
                    "--tag", image, ".",
                ],
            }
        ],
        "images": [image],
        "tags": [tag, "saccade"],
        "timeout": f"{BUILD_TIMEOUT_S}s",
        # torch with its CUDA libraries does not fit the default disk twice
        "options": {
            "machineType": "E2_HIGHCPU_8", "diskSizeGb": "200", "logging": "CLOUD_LOGGING_ONLY",
        },
    }  # fmt: skip


def docker_build_command(*, image: str, home: Path, root: Path) -> list[str]:
    """Return the command that builds the same image with a local docker daemon."""
    base = base_reference(home=home, fake=False)
    return [
        "docker", "build", "--file", str(root / DOCKERFILE), "--build-arg", f"BASE_IMAGE={base}",
        "--label", "app=saccade", "--label", f"saccade.base={base}", "--tag", image, str(root),
    ]  # fmt: skip


def look_up(google: Google, image: str) -> Finding:
    """Look for an image before a job asks for it: nothing is spent on one that is not there."""
    found = _ADDRESS.fullmatch(image)
    if found is None:
        return Finding(
            name="image", level=Level.UNKNOWN, have=image,
            message="not in Artifact Registry, so whether it can be pulled shows when it is pulled",
        )  # fmt: skip
    where = replace(google, project=found["project"].replace("/", ":"))
    fix = "saccade launch without launch.image builds one"
    try:
        digest = registry.image_digest(
            where, region=found["region"], repository=found["repository"], image=found["image"]
        )
    except (NotFound, PermissionDenied) as error:
        text, _, its_fix = str(error).partition("\n  fix: ")
        return Finding(
            name="image", level=Level.BLOCK, message=f"{image}: {text}", have="unreadable",
            need="readable", fix=its_fix or "saccade cloud setup --only registry",
        )  # fmt: skip
    except ApiError as error:
        return Finding(name="image", level=Level.UNKNOWN, message=str(error).split("\n")[0])
    if digest is None:
        place = f"{found['region']}, repository {found['repository']}"
        return Finding(
            name="image", level=Level.BLOCK, message=f"{image} is not in the registry ({place})",
            have="absent", need="present", fix=fix,
        )  # fmt: skip
    return Finding(name="image", level=Level.OK, message="in the registry", have=digest)


def base_reference(*, home: Path, fake: bool) -> str:
    """Return the base image by digest: pinned in `BASES`, recorded here, or asked for now.

    The fake cloud builds nothing, so there the name is enough and no registry is asked. Raises
    OutsideError, with what to do by hand, if no registry answers: an image is never built from a
    name that may mean other bytes tomorrow.
    """
    if fake:
        return BASE.name
    if BASE.digest:
        return BASE.by_digest(BASE.digest)
    file = home / "images.json"
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    digest = str(known.get(BASE.name, {}).get("digest", ""))
    if not _DIGEST.fullmatch(digest):
        digest = ask_registry(BASE)
        known[BASE.name] = {"digest": digest, "resolved_at": int(time.time())}
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".tmp")
        aside.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        aside.replace(file)
    return BASE.by_digest(digest)


def ask_registry(base: BaseImage, *, timeout_s: float = 20.0) -> str:
    """Ask an OCI registry which digest a tag means, and check the answer against its bytes."""
    import requests

    url = f"{base.registry}/v2/{base.repository}/manifests/{base.tag}"
    headers = {"Accept": _INDEX}
    try:
        answer = requests.get(url, headers=headers, timeout=timeout_s)
        if answer.status_code == 401:
            token = _anonymous_token(
                answer.headers.get("WWW-Authenticate", ""), timeout_s=timeout_s
            )
            headers["Authorization"] = f"Bearer {token}"
            answer = requests.get(url, headers=headers, timeout=timeout_s)
        answer.raise_for_status()
    except (requests.RequestException, KeyError, ValueError) as error:
        raise OutsideError(
            f"no digest for the base image {base.name}: {base.registry} did not answer "
            f"({type(error).__name__})\n  fix: connect to it once, or name a finished image: "
            "launch.image=REPOSITORY@sha256:..."
        ) from error
    digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
    said = answer.headers.get("Docker-Content-Digest", digest)
    if said != digest:
        raise OutsideError(f"{url}: the registry says {said}, but its bytes are {digest}")
    return digest


def _anonymous_token(challenge: str, *, timeout_s: float) -> str:
    import requests

    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = {name: fields[name] for name in ("service", "scope") if name in fields}
    answer = requests.get(fields["realm"], params=query, timeout=timeout_s)
    answer.raise_for_status()
    return str(answer.json()["token"])


def _follow(google: Google, *, build_id: str, say: Say, poll_s: float) -> str | None:
    """Pass a build's log on until it ends; returns the digest it names, if it names one."""
    cursor: str | None = None
    lines: list[str] = []
    pause = 0.1 if google.fake else poll_s
    while True:
        build = builds.get(google, build_id)
        cursor = _pass_on(google, build_id, cursor=cursor, say=say, lines=lines)
        status = str(build.get("status", ""))
        if status in builds.TERMINAL:
            break
        time.sleep(pause)
    _pass_on(google, build_id, cursor=cursor, say=say, lines=lines)
    if status != "SUCCESS":
        raise OutsideError(_failed(build, status=status, lines=lines))
    images = (build.get("results") or {}).get("images") or []
    return str(images[0]["digest"]) if images and images[0].get("digest") else None


def _pass_on(
    google: Google, build_id: str, *, cursor: str | None, say: Say, lines: list[str]
) -> str | None:
    try:
        fresh, cursor = logs.entries(google, chosen=logs.build_filter(build_id), cursor=cursor)
    except ApiError:  # a log that cannot be read stops no build
        return cursor
    for entry in fresh:
        say(entry.text)
        lines.append(entry.text)
    return cursor


def _failed(build: Mapping[str, Any], *, status: str, lines: list[str]) -> str:
    why = (build.get("failureInfo") or {}).get("detail") or build.get("statusDetail") or status
    end = "\n".join(f"  | {line}" for line in lines[-LAST_LINES:])
    link = build.get("logUrl") or "https://console.cloud.google.com/cloud-build/builds"
    return f"the image build {build.get('id')} failed: {why}\n{end}\n  fix: read the log, {link}"


def _starters(root: Path | None) -> list[str]:
    source = root or code_root()
    found = []
    for name in STARTERS:
        for place in (source / name, source / name.removeprefix("src/saccade/")):
            if place.is_file():
                found.append(hashlib.sha256(place.read_bytes()).hexdigest())
                break
    return found


def _without_comments(text: str) -> str:
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.lstrip().startswith("#"))
