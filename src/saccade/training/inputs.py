"""What a job reads beside code and configuration: inputs, named by their content.

A list of hashes and a store flow in; checked copies in a working folder flow out, and settings that
point at them. In the store an input is `inputs/HASH/` with `files/...`, `manifest.json` (whose
SHA-256 is HASH) and `COMPLETE`, which comes last. In settings it is the place `inputs/HASH/...`,
below whatever folder: two settings are the same when their places are, on whichever machine. Left
out: putting inputs into the store (`launch/inputs.py`). No torch here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.config.errors import InputError
from saccade.training.checkpoints import COMPLETE
from saccade.training.finals import bring_file, is_whole
from saccade.training.store import Store, StoreError, safe_name

FOLDER = "inputs"
"""Folder of a store, and of a job's working folder, that holds inputs."""
FILES = "files"
MANIFEST = "manifest.json"
ASIDE = ".tmp-input-"
"""Beginning of the folder in which an input waits until all of its files are whole."""
HASH = re.compile(r"[0-9a-f]{64}")
_PLACE = re.compile(rf"(?:.*/)?({FOLDER}/[0-9a-f]{{64}})(/.*)?", re.DOTALL)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Manifest:
    """The files of an input by relative path; `single` when it is one file and no folder."""

    files: Mapping[str, Mapping[str, Any]]
    single: bool

    def as_json(self) -> bytes:
        """The bytes whose hash is the input's name: equal files give equal bytes."""
        files = {name: dict(entry) for name, entry in sorted(self.files.items())}
        return json.dumps({"files": files, "single": self.single}, sort_keys=True).encode()

    @property
    def digest(self) -> str:
        """Name of the content."""
        return hashlib.sha256(self.as_json()).hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def home_of(digest: str) -> str:
    """The folder of an input in a store."""
    if not HASH.fullmatch(digest):
        raise InputError(f"{digest!r}: not the hash of an input\n  fix: launch again")
    return f"{FOLDER}/{digest}"


def place_in(value: Any) -> str | None:
    """The place `inputs/HASH/...` that a setting names; None when it names no input."""
    found = _PLACE.fullmatch(value) if isinstance(value, str) else None
    return None if found is None else found[1] + (found[2] or "")


def pointed(value: Any, there: Callable[[str], str | None]) -> Any:
    """A setting (or a tree of them) with every text replaced for which `there` has another."""
    if isinstance(value, Mapping):
        return {name: pointed(one, there) for name, one in value.items()}
    if isinstance(value, list):
        return [pointed(one, there) for one in value]
    if not isinstance(value, str):
        return value
    moved = there(value)
    return value if moved is None else moved


def placed(value: Any, *, homes: Mapping[str, str] | None = None) -> Any:
    """A setting with every input by its place, so that settings of two machines can be compared.

    `homes` says where on this machine places are: {place: path}.
    """

    def to_place(text: str) -> str | None:
        for place, path in (homes or {}).items():
            if text == path or text.startswith(f"{path}/"):
                return place + text[len(path) :]
        return place_in(text)

    return pointed(value, to_place)


def at_home(value: Any, *, homes: Mapping[str, str]) -> Any:
    """A setting with every place replaced by where it is on this machine."""

    def to_path(text: str) -> str | None:
        found = place_in(text)
        for place, path in homes.items():
            if found is not None and (found == place or found.startswith(f"{place}/")):
                return path + found[len(place) :]
        return None

    return pointed(value, to_path)


def at_work(value: Any, *, work: Path) -> Any:
    """A setting with every place below a job's working folder."""

    def to_copy(text: str) -> str | None:
        found = place_in(text)
        return None if found is None else str(work / found)

    return pointed(value, to_copy)


def bring_inputs(store: Store, digests: Iterable[str], *, work: Path, say: Say) -> None:
    """Bring inputs into `work`/inputs/HASH, every file checked; one that is there stays.

    Raises StoreError for an input that is not whole in the store, OutsideError for a full disk. A
    kill costs nothing: what is whole already is not brought again.
    """
    for digest in digests:
        target = work / home_of(digest)
        if target.is_dir():  # renamed when it was whole
            say(f"input {digest[:12]} is here")
            continue
        manifest = read_manifest(store, digest)
        say(f"input {digest[:12]}: {len(manifest.files)} file(s), {manifest.bytes / 1e6:.1f} MB")
        aside = target.with_name(f"{ASIDE}{digest}")
        aside.mkdir(parents=True, exist_ok=True)
        for name, entry in manifest.files.items():
            if not is_whole(aside / name, entry):
                bring_file(store, f"{home_of(digest)}/{FILES}/{name}", aside / name, entry,
                           fix=_again(store, digest))  # fmt: skip
        _drop_strangers(aside, known=manifest.files)
        aside.replace(target)


def read_manifest(store: Store, digest: str) -> Manifest:
    """The list of files of an input that is whole in the store; raises StoreError otherwise."""
    home = home_of(digest)
    content = store.read(f"{home}/{MANIFEST}")
    if content is None or store.read(f"{home}/{COMPLETE}") is None:
        raise StoreError(
            f"{store.address}/{home}: the input is not complete\n  fix: {_again(store, digest)}"
        )
    if hashlib.sha256(content).hexdigest() != digest:
        raise StoreError(
            f"{store.address}/{home}/{MANIFEST}: differs from its name"
            f"\n  fix: {_again(store, digest)}"
        )
    listed = json.loads(content)
    files = {safe_name(name): entry for name, entry in listed["files"].items()}
    return Manifest(files, single=bool(listed["single"]))


def _again(store: Store, digest: str) -> str:
    return f"delete {store.address}/{home_of(digest)}/{COMPLETE}, then launch again"


def _drop_strangers(folder: Path, *, known: Iterable[str]) -> None:
    """Remove halves of files that a killed attempt left."""
    kept = {folder / name for name in known}
    for path in folder.rglob("*"):
        if path.is_file() and path not in kept:
            with suppress(OSError):
                path.unlink()
