"""Content-addressed artifacts: files by their hash, named versions on top, nothing half-written.

A file or folder flows in under a name; a `Version` flows out, and the same files come back to any
folder, each checked against its hash on the way. `blobs/` holds every file once (by SHA-256),
`manifests/` the list of files of one artifact (its digest is the hash of that list), `names/NAME/`
one small file per version with where it came from. `latest` and `best` are read off the versions,
so an alias is never stale. The store is a folder or any fsspec address (`gs://bucket/path`).
Left out: deciding what to run again when something is missing (`execute.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from saccade.config.errors import FULL, InputError, OutsideError, SaccadeError
from saccade.config.keys import nearest
from saccade.pipeline.folders import Backend, LocalFolder, open_backend

CHUNK_BYTES = 1 << 20
IGNORED = (".lock", ".tmp-")
"""Beginnings of file names that are never part of an artifact."""


class DamagedArtifact(SaccadeError):
    """Something of an artifact is gone or differs from its checksum."""

    exit_code = OutsideError.exit_code


class NoSuchArtifact(InputError):
    """No artifact has this name, version or alias."""


@dataclass(frozen=True)
class Best:
    """Which version of a name `best` means: the one with the highest or lowest metric."""

    mode: Literal["max", "min"]
    metric: str


@dataclass(frozen=True)
class Version:
    """One stored artifact: `digest` names its content, `lineage` what made it from what."""

    name: str
    version: int
    digest: str
    bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}:v{self.version}"


@dataclass(frozen=True)
class Entry:
    """One file of an artifact."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The files of one artifact by relative path; `single` when a file was stored, no folder."""

    files: Mapping[str, Entry]
    single: bool

    def as_json(self) -> bytes:
        files = {path: vars(entry) for path, entry in sorted(self.files.items())}
        return json.dumps({"files": files, "single": self.single}, sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """Name of the content: equal files give an equal digest."""
        return hashlib.sha256(self.as_json()).hexdigest()


class Store:
    """A place for artifacts; `address` is a folder or an fsspec address."""

    def __init__(self, address: str | Path) -> None:
        self.address = str(address)
        self.backend: Backend = open_backend(self.address)

    def put(
        self,
        name: str,
        path: Path,
        *,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        best: Best | None = None,
        leave_out: tuple[str, ...] = (),
    ) -> Version:
        """Store a file or folder as the next version of a name, or find that it is there already.

        Raises OutsideError when the disk is full; what was stored before is untouched then.
        """
        try:
            manifest = self._put_files(path, leave_out=leave_out)
            self.backend.write(_manifest_path(manifest.digest), manifest.as_json())
            return self._put_version(
                name, manifest, lineage=lineage, metrics=metrics or {}, best=best
            )
        except OSError as error:
            if error.errno in FULL:
                raise OutsideError(
                    f"{self.address}: no space left for the artifact {name} ({error.strerror});"
                    " nothing was half-written"
                    "\n  fix: free some disk space, then run the same command to continue"
                ) from error
            raise

    def versions(self, name: str) -> list[Version]:
        """All versions of a name, oldest first."""
        found = []
        for file in self.backend.names(f"names/{name}"):
            if file.startswith("v") and file.endswith(".json"):
                found.append(self._version(f"names/{name}/{file}"))
        return sorted(found, key=lambda one: one.version)

    def _version(self, path: str) -> Version:
        try:
            return Version(**json.loads(self.backend.read(path)))
        except (ValueError, TypeError) as error:
            raise DamagedArtifact(
                f"{self.address}/{path} cannot be read"
                "\n  fix: delete that file, then run the same command to continue"
            ) from error

    def names(self) -> list[str]:
        """All names that have a version."""
        return sorted(self.backend.names("names"))

    def find(self, name: str, alias: str = "latest") -> Version:
        """Look a version up by `latest`, `best` or `v3`; raises NoSuchArtifact."""
        versions = self.versions(name)
        if not versions:
            near = nearest(name, self.names())
            hint = f"did you mean {near}?" if near else f"there is {_listed(self.names())}"
            raise NoSuchArtifact(f"no artifact {name} in {self.address}; {hint}")
        if alias == "latest":
            return versions[-1]
        if alias == "best":
            return _best(name, versions)
        for one in versions:
            if alias == f"v{one.version}":
                return one
        known = ["latest", "best", *(f"v{one.version}" for one in versions)]
        raise NoSuchArtifact(f"artifact {name} has no {alias}; there is {_listed(known)}")

    def fault(self, digest: str) -> str | None:
        """Read every file and check it; returns the first fault, None when all is whole."""
        try:
            manifest = self._manifest(digest)
            for path, entry in manifest.files.items():
                problem = self._blob_fault(entry)
                if problem:
                    return f"{path}: {problem}"
        except DamagedArtifact as error:
            return str(error)
        return None

    def fetch(self, digest: str, *, to: Path) -> Path:
        """Copy an artifact into a folder, checking every file; returns the file or folder.

        Files that are there and whole stay. Raises DamagedArtifact for a missing or changed one.
        """
        manifest = self._manifest(digest)
        to.mkdir(parents=True, exist_ok=True)  # an empty folder is an artifact, too
        target = LocalFolder(to)
        for path, entry in manifest.files.items():
            if not _is_whole(target, path, entry):
                self._fetch_file(path, entry, target=target)
        return to / next(iter(manifest.files)) if manifest.single else to

    def _put_files(self, path: Path, *, leave_out: tuple[str, ...]) -> Manifest:
        if path.is_file():
            return Manifest({path.name: self._put_file(path)}, single=True)
        files = {}
        for file in sorted(one for one in path.rglob("*") if one.is_file()):
            parts = file.relative_to(path).parts
            if parts[0] in leave_out or any(part.startswith(IGNORED) for part in parts):
                continue
            files["/".join(parts)] = self._put_file(file)
        return Manifest(files, single=False)

    def _put_file(self, path: Path) -> Entry:
        with path.open("rb") as file:
            entry = hashed(file)
        # a damaged blob under the right name would make this artifact damaged for ever
        if self._blob_fault(entry) is not None:
            with path.open("rb") as file:
                self.backend.write(_blob_path(entry), file)
        return entry

    def _put_version(
        self,
        name: str,
        manifest: Manifest,
        *,
        lineage: Mapping[str, Any],
        metrics: Mapping[str, float],
        best: Best | None,
    ) -> Version:
        versions = self.versions(name)
        same = [
            one
            for one in versions
            if one.digest == manifest.digest and one.lineage.get("key") == lineage.get("key")
        ]
        if same:
            return same[-1]
        number = versions[-1].version + 1 if versions else 1
        while True:
            made = Version(
                name=name,
                version=number,
                digest=manifest.digest,
                bytes=sum(entry.bytes for entry in manifest.files.values()),
                metrics=dict(metrics),
                best=f"{best.mode} {best.metric}" if best else "",
                lineage=dict(lineage),
                time=round(time.time(), 3),
            )
            text = json.dumps(vars(made), indent=2).encode() + b"\n"
            if self.backend.create(f"names/{name}/v{number}.json", text):
                return made
            number += 1  # somebody else was faster

    def _manifest(self, digest: str) -> Manifest:
        path = _manifest_path(digest)
        try:
            content = self.backend.read(path)
        except FileNotFoundError as error:
            raise DamagedArtifact(f"{self.address}/{path} is missing") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedArtifact(f"{self.address}/{path} differs from its checksum")
        stored = json.loads(content)
        files = {path: Entry(**entry) for path, entry in stored["files"].items()}
        return Manifest(files, single=stored["single"])

    def _blob_fault(self, entry: Entry) -> str | None:
        path = _blob_path(entry)
        try:
            with self.backend.open(path) as file:
                found = hashed(file)
        except FileNotFoundError:
            return f"{self.address}/{path} is missing"
        if found.bytes != entry.bytes:
            return f"{self.address}/{path} has {found.bytes} bytes instead of {entry.bytes}"
        return None if found == entry else f"{self.address}/{path} differs from its checksum"

    def _fetch_file(self, path: str, entry: Entry, *, target: LocalFolder) -> None:
        try:
            with self.backend.open(_blob_path(entry)) as file:
                target.write(path, file)
        except FileNotFoundError as error:
            raise DamagedArtifact(f"{self.address}/{_blob_path(entry)} is missing") from error
        if not _is_whole(target, path, entry):
            target.remove(path)
            problem = self._blob_fault(entry) or f"{path} reads back differently"
            raise DamagedArtifact(problem)


def digest_of(path: Path) -> str:
    """Digest of a file or folder as the store would give it; stores nothing."""
    if path.is_file():
        with path.open("rb") as file:
            return Manifest({path.name: hashed(file)}, single=True).digest
    files = {}
    for one in sorted(path.rglob("*")):
        if one.is_file():
            with one.open("rb") as file:
                files[one.relative_to(path).as_posix()] = hashed(file)
    return Manifest(files, single=False).digest


def hashed(file: BinaryIO) -> Entry:
    """Read a file to its end; its hash and size."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return Entry(sha256=digest.hexdigest(), bytes=size)


def _is_whole(folder: LocalFolder, path: str, entry: Entry) -> bool:
    try:
        with folder.open(path) as file:
            return hashed(file) == entry
    except FileNotFoundError:
        return False


def _best(name: str, versions: list[Version]) -> Version:
    mode, _, metric = next((one.best for one in reversed(versions) if one.best), "").partition(" ")
    scored = [one for one in versions if not math.isnan(one.metrics.get(metric, math.nan))]
    if not scored:
        raise NoSuchArtifact(
            f"artifact {name} has no best version: no stage says what best means"
            f"\n  fix: under `outputs:` of its stage, write KEY: {{name: {name}, best: max METRIC}}"
        )
    choose = max if mode == "max" else min
    return choose(scored, key=lambda one: one.metrics[metric])


def _blob_path(entry: Entry) -> str:
    return f"blobs/{entry.sha256[:2]}/{entry.sha256}"


def _manifest_path(digest: str) -> str:
    return f"manifests/{digest}.json"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return f"{shown} ..." if len(names) > 8 else shown
