"""A job's inputs: folders and files of this machine, put into the store once, by content.

Paths flow in; hashes, findings, uploads and settings that point at the job's own copies flow out.
An input that the store has whole is not sent again, one that is half there is completed, and
`COMPLETE` is written after every file was compared with what the store holds. Files that may hold
secrets are refused. When the run is back, its settings point at this machine's files again. How
the job brings its inputs down is `training/inputs.py`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr, TypeAdapter

from saccade.cloud.findings import Finding, Level
from saccade.config.errors import InputError
from saccade.config.resolve import flatten, to_yaml
from saccade.config.schema import Config, Source
from saccade.launch.package import EXAMPLES, SECRET_NAMES, SHORTEST_SECRET, matches
from saccade.training.checkpoints import COMPLETE
from saccade.training.inputs import FILES, MANIFEST, Manifest, at_home, home_of, pointed
from saccade.training.rundir import write_atomically
from saccade.training.store import Store, StoreConflict, StoreError, file_sha256

IGNORED = (".lock", ".tmp-")
"""Beginnings of names of files that come and go, as in the store of artifacts."""
SEARCHED_BYTES = 1_000_000
"""Larger files are weights and data; the values of secrets are looked for in smaller ones."""
KEPT_FREE_GB = 20
"""Of a job's disk: for the image, the code and checkpoints."""
LOCAL_KEYS = (
    "model.name", "pretrain.vision", "pretrain.language", "sft.selector", "dpo.selector",
    "data.train.path", "data.train.image_root", "data.train.name", "data.eval.path",
    "data.eval.image_root", "data.eval.name",
)  # fmt: skip
"""Settings that may name files of this machine."""
CARDS = ("model", "adapter")
"""Folders of a run whose small JSON files may name what the run was made from."""
CARD, BASE, BASE_INSIDE = "relevance.json", "base", "base_included"
"""A saved selector's card, as `models/relevance/storage.py` (which loads torch) writes it."""
EVERYWHERE = ("tiny", ".")
"""Bases that are wherever the card is."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Input:
    """A file or folder of this machine, as its path was typed, and its content."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Name of the content."""
        return self.manifest.digest

    @property
    def place(self) -> str:
        """What settings call it in the job."""
        home = home_of(self.digest)
        return f"{home}/{self.path.name}" if self.manifest.single else home

    def file(self, name: str) -> Path:
        """One of its files on this machine."""
        return self.path if self.manifest.single else self.path / name

    def moved(self, text: str) -> str | None:
        """The place of a path that lies in this input; None for any other text."""
        path, root = _whole(Path(text)), _whole(self.path)
        if path == root:
            return self.place
        inside = not self.manifest.single and path.is_relative_to(root)
        return f"{self.place}/{path.relative_to(root).as_posix()}" if inside else None


def read_inputs(paths: Sequence[Path], *, secrets: Mapping[str, SecretStr]) -> tuple[Input, ...]:
    """Read and hash what a job gets; raises InputError for what may not leave this machine."""
    found: dict[Path, Input] = {}
    for path in paths:
        if _whole(path) not in found:
            found[_whole(path)] = _read(path.expanduser(), secrets=secrets)
    return tuple(found.values())


def _whole(path: Path) -> Path:
    """The path from the root, without following links."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  resolve() follows them


def point_at(config: Config, inputs: Sequence[Input]) -> Config:
    """The configuration with every path into an input replaced by its place in the job.

    Raises InputError for an input that no setting names.
    """
    if not inputs:
        return config
    used: set[Path] = set()

    def there(text: str) -> str | None:
        for one in inputs:
            moved = one.moved(text) if text else None
            if moved is not None:
                used.add(one.path)
                return moved
        return None

    plain = config.model_dump(mode="json")
    kept = {name: plain.pop(name) for name in ("run", "launch", "recipe") if name in plain}
    made = Config.model_validate(pointed(plain, there) | kept)
    unused = [str(one.path) for one in inputs if one.path not in used]
    if unused:
        raise InputError(
            f"--input {unused[0]}: no setting names it, so the job would not read it"
            f"\n  fix: name it, e.g. model.name={unused[0]}, or leave the input out"
        )
    return made


def findings(config: Config, inputs: Sequence[Input], *, disk_gb: int | None) -> list[Finding]:
    """What is to be said of the files of a job's configuration: too large, or left behind here."""
    found = []
    if inputs and disk_gb is not None:
        found.append(_room(inputs, disk_gb=disk_gb))
    flat = flatten(config.model_dump(mode="json"))
    for key in LOCAL_KEYS:
        text = flat.get(key)
        if isinstance(text, str) and text != "tiny" and Path(text).expanduser().exists():
            said = f"{key} = {text} is on this machine; the job finds it only in its image"
            found.append(Finding("files", Level.WARN, said, fix=f"--input {text}"))
    if inputs:
        found += _images_left(config, inputs)
    return found


def ship(inputs: Iterable[Input], store: Store, *, say: Say) -> None:
    """Put inputs into the store: files, list, COMPLETE; what is there already is not sent."""
    for one in inputs:
        home = home_of(one.digest)
        there = set(store.names(f"{home}/"))
        wanted = {f"{home}/{FILES}/{name}": name for name in one.manifest.files}
        if f"{home}/{COMPLETE}" in there and there >= {*wanted, f"{home}/{MANIFEST}"}:
            say(f"{one.path} is in {store.address}/{home}")
            continue
        if f"{home}/{COMPLETE}" in there:  # something of it was deleted since
            store.delete(f"{home}/{COMPLETE}")
        size = one.manifest.bytes / 1e6
        say(f"uploading {one.path} ({len(wanted)} file(s), {size:.1f} MB) to {home[:19]}...")
        for name, inside in wanted.items():
            _send(store, name, one.file(inside), sha256=one.manifest.files[inside]["sha256"])
        store.write(f"{home}/{MANIFEST}", one.manifest.as_json())
        store.write(f"{home}/{COMPLETE}", f"{one.digest}\n".encode())


def bring_back(folder: Path, *, homes: Mapping[str, str]) -> None:
    """Let a run that came home name this machine's files again: its settings and model cards."""
    if not homes:
        return
    file = folder / "config.yaml"
    if file.is_file():
        config = yaml.safe_load(file.read_text("utf-8"))
        moved = at_home(config, homes=homes)
        if moved != config:
            write_atomically(file, to_yaml(Config.model_validate(moved)))
    for card in _cards(folder):
        with suppress(ValueError):
            content = json.loads(card.read_text("utf-8"))
            moved = at_home(content, homes=homes)
            if moved != content:
                write_atomically(card, json.dumps(moved, indent=2) + "\n")


def _cards(folder: Path) -> Iterator[Path]:
    for name in CARDS:
        for path in sorted((folder / name).rglob("*.json")):
            if path.is_file() and path.stat().st_size <= SEARCHED_BYTES:
                yield path


def _read(path: Path, *, secrets: Mapping[str, SecretStr]) -> Input:
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder")
    files = {}
    for file in _files(path):
        name = file.name if file == path else file.relative_to(path).as_posix()
        _refuse_secret(file, name=name, root=path, secrets=secrets)
        files[name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        if file.name == CARD:
            _refuse_far_base(file)
    if not files:
        raise InputError(f"--input {path}: an empty folder")
    return Input(path, Manifest(files, single=path.is_file()))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        links = [one for one in folders if (here / one).is_symlink()]
        if links:
            raise InputError(
                f"{here / links[0]}: a link to a folder, which a job would not see"
                "\n  fix: put the folder itself there, or give it as an --input of its own"
            )
        folders[:] = sorted(one for one in folders if not one.startswith(IGNORED))
        yield from (here / one for one in sorted(names)
                    if not one.startswith(IGNORED) and (here / one).is_file())  # fmt: skip


def _refuse_secret(
    file: Path, *, name: str, root: Path, secrets: Mapping[str, SecretStr]
) -> None:  # fmt: skip
    fix = f"take it out of {root}, or give the job a folder without it"
    if file.name not in EXAMPLES and matches(file.name, SECRET_NAMES):
        raise InputError(f"{root}: {name} may hold secrets, and would leave this machine"
                         f"\n  fix: {fix}")  # fmt: skip
    if file.stat().st_size > SEARCHED_BYTES:
        return
    content = file.read_bytes()
    for variable, value in secrets.items():
        text = value.get_secret_value()
        if len(text) >= SHORTEST_SECRET and text.encode() in content:
            raise InputError(f"{root}: {name} holds the value of {variable}\n  fix: {fix}")


def _refuse_far_base(card: Path) -> None:
    """A selector that names its base by a path of this machine cannot be loaded elsewhere."""
    try:
        said = json.loads(card.read_text("utf-8"))
        base, inside = str(said[BASE]), bool(said[BASE_INSIDE]) or said[BASE] in EVERYWHERE
    except (ValueError, KeyError, TypeError):  # another file of this name, or one to be refused
        return  # by whoever loads it
    path = Path(base).expanduser()
    if not inside and (path.is_absolute() or path.is_dir() or base.count("/") > 1):
        raise InputError(
            f"{card}: its selector was trained on {base}, a folder that only this machine has"
            "\n  fix: train the selector on a base by its hub name, or run this stage here"
        )


def _room(inputs: Sequence[Input], *, disk_gb: int) -> Finding:
    size = sum(one.manifest.bytes for one in inputs) / 1e9
    named = ", ".join(f"{one.path.name} {_size(one.manifest.bytes)}" for one in inputs)
    if size + KEPT_FREE_GB <= disk_gb:
        return Finding("inputs", Level.OK, named, have=round(size, 3), need=disk_gb)
    said = (
        f"{size:.1f} GB ({named}) do not fit on the job's disk of {disk_gb} GB, of which"
        f" {KEPT_FREE_GB} GB are for the image and checkpoints"
    )
    need = int(size) + 1 + KEPT_FREE_GB
    return Finding("inputs", Level.BLOCK, said, have=disk_gb, need=need,
                   fix=f"launch.disk_gb={need}")  # fmt: skip


def _images_left(config: Config, inputs: Sequence[Input]) -> Iterator[Finding]:
    """Data whose first row shows an image that stays here: a table without its pictures."""
    from saccade.data.samples import DataError
    from saccade.data.sources import TableSource, open_source

    homes = {one.place: str(one.path) for one in inputs}
    for split in ("train", "eval"):
        plain = getattr(config.data, split).model_dump(mode="json")
        here = at_home(plain, homes=homes)
        if here == plain:
            continue
        source = open_source(TypeAdapter(Source).validate_python(here))
        if not isinstance(source, TableSource):
            continue
        with suppress(DataError):
            images = source.reader.images(source.table.row(0), where="")
            paths = [one.resolve() for one in images if isinstance(one, Path)]
            roots = [one.path.resolve() for one in inputs]
            left = [one for one in paths if not any(one.is_relative_to(root) for root in roots)]
            if left:
                said = f"data.{split}: the image {left[0]} is in none of the inputs"
                fix = "give the folder that holds the table and its images as the input"
                yield Finding("files", Level.BLOCK, said, fix=fix)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _send(store: Store, name: str, file: Path, *, sha256: Any) -> None:
    """Upload a file unless it is there, and compare what the store then holds."""
    size, mine = file.stat().st_size, store.checksum(file)
    before = store.stat(name)
    if before is not None and (before.size, before.checksum) == (size, mine):
        return
    # another upload of the same content may be faster: what counts is what is there then
    with suppress(StoreConflict):
        store.send(name, file, replaces=before.generation if before else 0)
    after = store.stat(name)
    if after is None or (after.size, after.checksum) != (size, mine):
        raise StoreError(
            f"{store.address}/{name}: reads back differently\n  fix: run the same command again"
        )
    if file_sha256(file) != sha256:
        raise InputError(f"{file}: was changed while it was uploaded\n  fix: launch again")
