"""What a run keeps in a store, so that it survives its machine.

A run directory flows up: configuration, provenance, the event log and each checkpoint while it
trains, everything at the end. It flows down again wherever the run is continued. A checkpoint's
`COMPLETE` and the run's `DONE` are written last, after everything they vouch for was read back, so
a kill at any moment leaves the one before. Layout, with `attempts/` free to expire and `runs/`
kept:

    attempts/NAME/checkpoints/step-N/...      runs/NAME/{config.yaml, events.jsonl, ..., DONE}
                                              runs/NAME/final/...  the finished run directory

When uploads happen is `uploads.py`'s; what a store is, `store.py`'s. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saccade.config.errors import InputError
from saccade.config.resolve import flatten
from saccade.config.schema import Config
from saccade.training.checkpoints import (
    CHECKSUMS,
    COMPLETE,
    STEP_NAME,
    newest_good,
    step_of,
    verify,
)
from saccade.training.finals import Brought, bring_finals
from saccade.training.inputs import placed
from saccade.training.rundir import RunDir, is_free, write_atomically
from saccade.training.store import Store, Stored, StoreError, file_sha256, open_store, safe_name

SMALL_FILES = ("config.yaml", "provenance.json", "wandb.json")
"""What a run on another machine needs beside a checkpoint and the event log."""
NOT_FINAL = ("heartbeat.json",)
SKIPPED_FOLDERS = ("wandb", "checkpoints")
DONE = "DONE"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Uploaded:
    """A checkpoint that the store holds whole."""

    step: int
    bytes: int
    sha256: str
    seconds: float
    at: float


class Mirror:
    """One run in one store."""

    def __init__(
        self, store: Store, *, run: RunDir, name: str, keep: int,
        homes: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.store = store
        self.run = run
        self.home = f"runs/{safe_name(name)}"
        self.checkpoints = f"attempts/{name}/checkpoints"
        self.keep = keep
        self.homes = homes or {}
        """Where on this machine the run's inputs are, by their place in the store."""

    def done(self) -> dict[str, Any] | None:
        """What DONE in the store says, or None."""
        content = self.store.read(f"{self.home}/{DONE}")
        return None if content is None else json.loads(content)

    # down

    def pull(self, *, say: Say, warn: Say) -> None:
        """Bring the run here as far as it got elsewhere, unless it got further here.

        Raises InputError when the store's run was started with other values than the one here.
        """
        if self.run.done() is not None:
            return
        self.refuse_another_run()
        if self.done() is not None:
            self.pull_finals(say=say)
            say(f"{self.run.path}: the finished run was fetched from {self.store.address}")
            return
        self.pull_origin()
        self._pull_newest(say, warn)

    def pull_origin(self) -> None:
        """Bring what identifies the run, where it is not here yet."""
        for name in SMALL_FILES:
            content = None if self._here(name).is_file() else self._read(name)
            if content is not None:
                write_atomically(self._here(name), content)

    def fetch_checkpoint(self, step: int) -> str | None:
        """Bring one checkpoint here; returns what is wrong with it, if anything."""
        folder = self.run.checkpoints / f"step-{step}"
        aside = self.run.checkpoints / f".tmp-pull-step-{step}-{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            for name in self.store.names(f"{self.checkpoints}/step-{step}/"):
                self.store.fetch(name, aside / name.rpartition("/")[2])
            damage = verify(aside)
            if damage is not None:
                return f"{self.checkpoints}/step-{step}/{damage.file}: {damage.problem}"
            if folder.exists():  # damaged, or another process of this machine was faster
                shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return None

    def _pull_newest(self, say: Say, warn: Say) -> None:
        local = newest_good(self.run.checkpoints).folder
        have = step_of(local) if local else 0
        for step in self.steps():
            if step <= have:
                break
            damage = self.fetch_checkpoint(step)
            if damage is None:
                self.pull_events()
                say(f"step {step} was fetched from {self.store.address}")
                return
            warn(f"damaged checkpoint in {self.store.address}: {damage}")
        if not self.run.events_file.is_file():
            self.pull_events()

    def pull_events(self) -> None:
        """Bring the event log as the store has it."""
        content = self._read("events.jsonl")
        if content is not None:
            write_atomically(self.run.events_file, content)

    def pull_finals(self, *, say: Say) -> Brought:
        """Bring the finished run here, every file checked; DONE last."""
        brought = bring_finals(
            self.store, final=f"{self.home}/final", folder=self.run.path, say=say
        )
        write_atomically(self.run.done_file, self._read(DONE) or "")
        return brought

    def refuse_another_run(self) -> None:
        """The store's run and the one here must be the same training."""
        stored = self._read("config.yaml")
        if stored is None or not self.run.config_file.is_file():
            return
        there, here = (
            placed(flatten(yaml.safe_load(text)), homes=self.homes)
            for text in (stored, self.run.config_file.read_text("utf-8"))
        )
        different = [
            f"\n  {key}: {there.get(key)!r} there, {here.get(key)!r} here"
            for key in sorted({*there, *here})
            if there.get(key) != here.get(key) and not is_free(key)
        ]
        if different:
            raise InputError(
                f"{self.store.address}/{self.home}: holds another training than"
                f" {self.run.path}:{''.join(different)}"
                "\n  fix: start another run with run.name=NAME, or delete one of the two"
            )

    def _read(self, name: str) -> str | None:
        content = self.store.read(f"{self.home}/{name}")
        return None if content is None else content.decode("utf-8", errors="replace")

    def _here(self, name: str) -> Path:
        return self.run.path / name

    # up

    def steps(self) -> list[int]:
        """The steps whose checkpoints are whole in the store, newest first."""
        names = self.store.names(f"{self.checkpoints}/")
        return sorted(
            {step for step, file in map(self._parse, names) if file == COMPLETE}, reverse=True
        )

    def push_origin(self) -> None:
        """Upload what identifies the run."""
        for name in SMALL_FILES:
            if self._here(name).is_file():
                self.put(f"{self.home}/{name}", self._here(name))

    def push_events(self) -> None:
        """Upload the event log as it is now."""
        if self.run.events_file.is_file():
            self.store.write(f"{self.home}/events.jsonl", self.run.events_file.read_bytes())

    def push_checkpoint(self, folder: Path, *, step: int) -> Uploaded:
        """Upload a checkpoint folder: files, log, COMPLETE; then drop what is too old."""
        started = time.perf_counter()
        marker = (folder / COMPLETE).read_bytes()
        there = f"{self.checkpoints}/step-{step}"
        files = sorted(path for path in folder.iterdir() if path.name != COMPLETE)
        missing = [path for path in files if not self._same(f"{there}/{path.name}", path)]
        before = self.store.read(f"{there}/{COMPLETE}")
        if before is not None and (missing or before != marker):
            # of an earlier try at this step, or damaged since: not whole until this upload ends
            self.store.delete(f"{there}/{COMPLETE}")
        for path in missing:
            self.put(f"{there}/{path.name}", path)
        self.push_origin()
        self.push_events()
        self.put(f"{there}/{COMPLETE}", folder / COMPLETE)
        self._prune(step)
        return Uploaded(
            step=step,
            bytes=sum(path.stat().st_size for path in files),
            sha256=marker.decode().strip(),
            seconds=round(time.perf_counter() - started, 3),
            at=round(time.time(), 3),
        )

    def push_finals(self, *, between: Callable[[], None] = lambda: None) -> None:
        """Upload the finished run directory, read every file back, then write DONE.

        `between` is called before each file and may raise to stop.
        """
        final = f"{self.home}/final"
        entries: dict[str, dict[str, Any]] = {}
        for name, path in self._finals():
            between()
            self.put(f"{final}/{name}", path)
            entries[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for name, entry in entries.items():
            between()
            if self.store.sha256(f"{final}/{name}") != entry["sha256"]:
                raise StoreError(
                    f"{self.store.address}/{final}/{name}: reads back differently"
                    "\n  fix: run the same command again"
                )
        listing = json.dumps({"files": entries}, indent=2, sort_keys=True).encode() + b"\n"
        self._write_checked(f"{final}/{CHECKSUMS}", listing)
        self.push_origin()
        self.push_events()
        self._write_checked(f"{self.home}/{DONE}", self.run.done_file.read_bytes())

    def put(self, name: str, path: Path) -> None:
        """Upload one file unless it is there already, and compare what the store then holds."""
        before = self.store.stat(name)
        if before is not None and self._equal(before, path):
            return
        self.store.send(name, path, replaces=before.generation if before else 0)
        if not self._same(name, path):
            raise StoreError(f"{self.store.address}/{name}: reads back differently")

    def _same(self, name: str, path: Path) -> bool:
        stored = self.store.stat(name)
        return stored is not None and self._equal(stored, path)

    def _equal(self, stored: Stored, path: Path) -> bool:
        size = path.stat().st_size
        return stored.size == size and stored.checksum == self.store.checksum(path)

    def _write_checked(self, name: str, data: bytes) -> None:
        self.store.write(name, data)
        back = self.store.read(name)
        if back is None or hashlib.sha256(back).digest() != hashlib.sha256(data).digest():
            raise StoreError(f"{self.store.address}/{name}: reads back differently")

    def _finals(self) -> Iterator[tuple[str, Path]]:
        """The files of a finished run: everything but old checkpoints, logs of others, scratch."""
        newest = newest_good(self.run.checkpoints).folder
        inside = [newest] if newest else []
        for path in sorted(self.run.path.iterdir()):
            hidden = path.name.startswith(".") or path.name in (*NOT_FINAL, DONE)
            if hidden or path.is_symlink() or path.name in SKIPPED_FOLDERS:
                continue
            inside.append(path)
        for top in inside:
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.is_file() and not path.is_symlink():
                    yield path.relative_to(self.run.path).as_posix(), path

    def _prune(self, newest: int) -> None:
        """Remove checkpoints older than the kept ones, and halves of old ones."""
        names = self.store.names(f"{self.checkpoints}/")
        parsed = [(name, *self._parse(name)) for name in names]
        whole = sorted({step for _, step, file in parsed if file == COMPLETE and step <= newest})
        kept = set(whole[-self.keep :])
        old = [(name, file) for name, step, file in parsed if step < newest and step not in kept]
        # COMPLETE first: a kill in the middle must not leave a whole-looking half
        for name, _ in sorted(old, key=lambda entry: entry[1] != COMPLETE):
            self.store.delete(name)

    def _parse(self, name: str) -> tuple[int, str]:
        folder, _, file = name.removeprefix(f"{self.checkpoints}/").partition("/")
        match = STEP_NAME.fullmatch(folder)
        return (int(match.group(1)), file) if match else (0, "")


def open_mirror(config: Config, run: RunDir) -> Mirror | None:
    """The run's place in the configured store, or None without one; contacts nobody yet."""
    if config.run.store is None:
        return None
    name = config.run.name or config.recipe
    store = open_store(config.run.store)
    return Mirror(store, run=run, name=name, keep=config.training.keep_checkpoints)
