"""The run directory: the only truth about a run, on disk.

A resolved configuration flows in and becomes `runs/NAME/`; evaluation, reports and the terminal
UI read it back through `RunDir`. Every file is written aside and renamed, so a reader never sees
half of one; `DONE` is written last. The lock keeps two processes from training into one
directory. No torch here, and no knowledge of what a checkpoint contains.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import Resolved, flatten, to_yaml
from saccade.config.schema import Config
from saccade.training.checkpoints import newest_good
from saccade.training.inputs import placed

FREE_KEYS = (
    "run.name", "run.root", "run.store", "run.heartbeat_seconds", "model.device", "data.eval",
    "data.on_error", "eval", "tracking", "tiny_base.export",
    "training.save_every", "training.keep_checkpoints", "training.eval_every",
    "training.eval_samples", "training.log_every", "training.workers", "training.threads",
    "training.batch_size", "training.accumulation", "training.parallel",
    "training.gradient_checkpointing", "selector.feature_cache", "selector.feature_cache_gb",
    "launch", "shards.cache_gb", "shards.queue_batches", "shards.drawers", "recursion.eval_steps",
    "recursion.halt_confidence", "recursion.noise", "grounding.tau_prices",
)  # fmt: skip
"""Keys (and sections) that may change when a run continues: they do not move the weights.

Batch size and accumulation are free as long as their product with the number of processes stays;
the checkpoint checks that. `training.steps` is not free: the learning-rate schedule hangs on it.
"""

MEASURING_KEYS = (
    "eval", "data.eval", "data.on_error", "selector.keep", "selector.min_tokens",
    "selector.max_tokens", "grounding.selector", "grounding.tau_prices", "model.device",
    "model.dtype", "model.attention", "model.min_pixels", "model.max_pixels",
    "recursion.eval_steps", "recursion.halt_confidence", "recursion.noise",
)  # fmt: skip
"""Keys (and sections) that may differ from the trained run when it is measured."""

LOCK_PATIENCE_SECONDS = 20.0
"""How long to wait for data-loading processes that outlive a killed owner of the lock."""
TRAINING = "training into"
"""What the owner of a run's lock does with the run directory, unless it says otherwise."""
GRACE_SECONDS = 1.0
"""How long an owner that was just killed may take to be gone."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file aside, flush it to disk and rename it into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file, or None when it is missing or not whole."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class RunDir:
    """Paths and small files of one run; create with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.provenance_file = self.path / "provenance.json"
        self.events_file = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.predictions_file = self.path / "predictions.jsonl"
        self.figures = self.path / "figures"
        self.report_file = self.path / "report.html"
        self.done_file = self.path / "DONE"
        self.lock_file = self.path / ".lock"

    @classmethod
    def of(cls, config: Config) -> RunDir:
        """Where a configuration's run lives; touches nothing."""
        return cls(config.run.root / (config.run.name or config.recipe))

    @classmethod
    def create(cls, resolved: Resolved) -> RunDir:
        """Make the run directory, or reopen one made from the same configuration."""
        run = cls.of(resolved.config)
        run.prepare()
        run.adopt(resolved)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run; raises InputError when the folder is not a run directory."""
        run = cls(path)
        if not run.config_file.is_file():
            what = "has no config.yaml" if run.path.is_dir() else "does not exist"
            raise InputError(
                f"{path}: not a run directory (it {what})"
                "\n  fix: give the folder that `saccade train` wrote, e.g. runs/relevance"
            )
        return run

    def prepare(self) -> None:
        """Make the folder and prove that it can be written, before any heavy work."""
        probe = self.path / f".probe.{os.getpid()}"
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"saccade")
            probe.unlink()
        except OSError as error:
            raise OutsideError(
                f"{self.path}: the run directory cannot be written ({error.strerror or error})"
                "\n  fix: free or unlock the folder, or choose another with run.root=FOLDER"
            ) from error

    def adopt(self, resolved: Resolved) -> dict[str, tuple[Any, Any]]:
        """Write the configuration, or check it against the one that is there.

        Returns the free keys that changed as {key: (before, now)}; raises InputError naming every
        key whose change would alter the training.
        """
        if not self.config_file.is_file():
            write_atomically(self.config_file, to_yaml(resolved.config))
            return {}
        before = flatten(self.config().model_dump(mode="json"))
        now = flatten(resolved.config.model_dump(mode="json"))
        changed = {
            key: (before.get(key), now.get(key))
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        }
        # an input lies in another folder on each machine; what it holds is in its name
        locked = {
            key: pair
            for key, pair in changed.items()
            if not is_free(key) and placed(pair[0]) != placed(pair[1])
        }
        if locked:
            lines = "".join(f"\n  {key}: {was!r} -> {now!r}" for key, (was, now) in locked.items())
            raise InputError(
                f"{self.path}: this run was started with other values:{lines}"
                "\n  fix: use the values it was started with, start another run with"
                " run.name=NAME, or delete the folder"
            )
        if changed:
            write_atomically(self.config_file, to_yaml(resolved.config))
        return changed

    def config(self) -> Config:
        """The configuration this run was started with."""
        try:
            return Config.model_validate(yaml.safe_load(self.config_file.read_text("utf-8")))
        except (ValidationError, yaml.YAMLError) as error:
            raise InputError(
                f"{self.config_file}: cannot be read: {error}"
                "\n  fix: restore the file, or start another run with run.name=NAME"
            ) from error

    def done(self) -> dict[str, Any] | None:
        """The content of DONE (target step, final metrics), or None for an unfinished run."""
        return _read_json(self.done_file)

    def finish(self, *, step: int, metrics: dict[str, float]) -> None:
        """Write DONE; call it last."""
        content = {"target_step": step, "metrics": metrics, "time": round(time.time(), 3)}
        write_atomically(self.done_file, json.dumps(content, indent=2) + "\n")

    def provenance(self) -> dict[str, Any] | None:
        """What `provenance.json` says, or None before it is written."""
        return _read_json(self.provenance_file)

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that passes verification; changes nothing on disk."""
        return newest_good(self.checkpoints).folder

    @contextmanager
    def lock(self, *, doing: str = TRAINING) -> Iterator[None]:
        """Hold this run for one process; raises InputError when another has it, saying what for."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._acquire(descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {doing}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int) -> None:
        started = time.monotonic()
        while True:
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                said = os.pread(descriptor, 80, 0).decode(errors="replace").strip()
                owner, _, doing = said.partition(" ")
                # workers forked by a killed owner hold its lock until they notice, seconds later
                patience = LOCK_PATIENCE_SECONDS if _is_gone(owner) else GRACE_SECONDS
                if time.monotonic() - started > patience:
                    raise InputError(
                        f"{self.path}: another process (pid {owner or 'unknown'}) is"
                        f" {doing or TRAINING} this run directory"
                        "\n  fix: wait for it or stop it, or start another run with run.name=NAME"
                    ) from error
            time.sleep(0.1)


def is_free(key: str) -> bool:
    """Whether a key may change when a run continues."""
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def _is_gone(owner: str) -> bool:
    if not owner.isdigit():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # a killed but not yet reaped process still answers signals
    try:
        return Path(f"/proc/{owner}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
