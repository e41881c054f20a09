"""Build encoded shards here, or in a process beside a training that follows them.

A resolved configuration flows in; shards, and with a recipe a trained run, flow out. The builder is
a process of its own: it draws and encodes while the training reads. No training starts before the
builder has said that what lies in the folder belongs to this build. When the training is stopped or
killed, the builder notices that its parent is gone and stops after the batch it is at, or in the
middle of a long one; the same command continues both. Left out: what is built (`data/shards`) and
what is trained.

    python -m saccade.pipeline.shards < job.json
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from saccade.config.errors import (
    InputError,
    OutsideError,
    Preempted,
    SaccadeError,
    of_exit_code,
    of_system,
)
from saccade.config.resolve import Resolved
from saccade.config.schema import Config
from saccade.config.shards import EncodedSource
from saccade.data.shards.builder import Builder, Progress, Summary
from saccade.data.shards.estimate import Estimate
from saccade.data.shards.manifest import (
    OUTPUT_LOG,
    builder_lock,
    read_manifest,
    refuse_other_folder,
)
from saccade.data.shards.sources import open_sources
from saccade.models.shard_encoder import TowerEncoder
from saccade.training.guards import StopRequest
from saccade.training.threads import choose_threads

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0
"""How long a builder whose parent is gone goes on with its batch; a restart waits longer."""


def open_builder(config: Config) -> Builder:
    """Open sources and load the encoder; refuses what cannot be built."""
    mixture = open_sources(config.shards)
    encoder = TowerEncoder(
        config.model, side=config.shards.side, allow_untrained=config.shards.untrained_encoder
    )
    return Builder(config.shards, mixture=mixture, encoder=encoder)


def build_shards(
    config: Config,
    *,
    rebuild: bool,
    repair: bool,
    progress: Progress,
    tell: Callable[[Estimate], object] = lambda estimate: None,
    ready: Callable[[], object] = lambda: None,
    stop: StopRequest | None = None,
) -> Summary:
    """Build or continue in this process; Ctrl+C stops after the batch (exit 143)."""
    # held while the encoder loads, too: a reader can tell that shards will come
    with builder_lock(config.shards.path):
        kept = _earlier_threads(config.shards.path, rebuild=rebuild)
        torch.set_num_threads(choose_threads(config.training.threads, earlier=kept))
        builder = open_builder(config)
        tell(builder.estimate())
        stop = StopRequest() if stop is None else stop  # false as long as nobody asks
        with stop.watching():
            return builder.proceed(
                rebuild=rebuild, repair=repair, ready=ready, progress=progress,
                stop=lambda: bool(stop),
            )  # fmt: skip


def _earlier_threads(folder: Path, *, rebuild: bool) -> int | None:
    """Threads of the build that is continued; None for a new one."""
    try:
        earlier = read_manifest(folder)
    except InputError:
        if not rebuild:
            raise
        return None
    if earlier is None or (rebuild and not earlier.rebuilding):
        return None
    return int(earlier.plan["threads"])


def refuse_other_data(config: Config) -> None:
    """Raise InputError where the recipe would train on something else than what is built."""
    built, data = config.shards.path, config.data
    if not isinstance(data.train, EncodedSource):
        raise InputError(
            f"data.train.type={data.train.type}: this recipe trains on no shards"
            "\n  fix: `recursion arch=multimodal`, or only build with --dataset-only"
        )
    for split, source in (("train", data.train), ("eval", data.eval)):
        if isinstance(source, EncodedSource) and source.path.resolve() != built.resolve():
            raise InputError(
                f"data.{split}.path={source.path}: the shards are built in {built}"
                f"\n  fix: data.{split}.path={built}, the same as shards.path"
            )


def build_beside(
    resolved: Resolved,
    *,
    train: Callable[[], dict[str, Any]],
    incremental: bool,
    rebuild: bool,
    repair: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Build in another process and train: from the first shard on, or after the last one."""
    folder = resolved.config.shards.path
    refuse_other_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OUTPUT_LOG).open("wb") as log:
        child = _Child(resolved, rebuild=rebuild, repair=repair, log=log)
        try:
            # takes seconds, in which the builder works on its first shard
            importlib.import_module("saccade.training.trainers")
            importlib.import_module("saccade.training.callbacks")
            child.follow(until_done=not incremental, progress=progress)
            metrics = _trained(train, child)
            child.follow(until_done=True, progress=progress)
        finally:
            child.let_go()
    return metrics


def _trained(train: Callable[[], dict[str, Any]], child: _Child) -> dict[str, Any]:
    """Train; when it waited in vain for a builder that failed, tell why that one failed."""
    try:
        return train()
    except OutsideError as error:
        if child.process.poll() in (None, 0):
            raise
        raise child.failure() from error


class _Child:
    """The builder's process: its output goes to the log, what it has to say comes as lines."""

    def __init__(self, resolved: Resolved, *, rebuild: bool, repair: bool, log: IO[bytes]) -> None:
        self.folder = resolved.config.shards.path
        self.ready = False
        self.error: str | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "saccade.pipeline.shards"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # Ctrl+C goes to the training alone, which tells the builder when it is saved
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        config = resolved.config.model_dump(mode="json")
        job = {"config": config, "rebuild": rebuild, "repair": repair}
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it failed at once, and says why
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            self.ready = self.ready or bool(said.get("ready"))
            self.error = said.get("error", self.error)

    def follow(self, *, until_done: bool, progress: Progress) -> None:
        """Wait for the first shard, or for the builder's end; raises when it failed."""
        while True:
            code = self.process.poll()
            if code not in (None, 0):
                raise self.failure()
            # what lies in the folder before the builder is ready may be of another build
            found = read_manifest(self.folder) if self.ready else None
            if code == 0 or (not until_done and found is not None and found.shards):
                return
            if found is None:
                progress("waiting for the builder", 0, 1)
            else:
                progress("waiting for shards", found.built, found.samples)
            time.sleep(POLL_SECONDS)

    def failure(self) -> SaccadeError:
        """What the builder failed with, as its own error and exit code."""
        code = self.process.wait()
        self._listener.join()
        log = self.folder / OUTPUT_LOG
        if self.error is not None:
            return (of_exit_code(code) or SaccadeError)(self.error)
        if code < 0:
            return OutsideError(
                f"{self.folder}: the builder was killed ({signal.Signals(-code).name})"
                "\n  fix: run the same command, which continues; less memory is taken by smaller"
                " shards.batch_size and shards.queue_batches"
            )
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = lines[-1] if lines else "it said nothing"
        return SaccadeError(
            f"{self.folder}: the builder failed with exit code {code}: {said}\n  fix: see {log}"
        )

    def let_go(self) -> None:
        """Closing its input asks the builder to stop after its batch."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self._listener.join()


def main() -> int:
    """Do the job on stdin, until it is done or stdin is closed."""
    parent = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints, prints into the log

    def say(**what: Any) -> None:
        with suppress(OSError):  # a parent that is gone hears nothing
            parent.write(json.dumps(what) + "\n")
            parent.flush()

    job = json.loads(sys.stdin.readline())
    stop = StopRequest()

    def stop_with_the_parent() -> None:
        sys.stdin.read()
        stop.reason = "the end of the process that started it"
        time.sleep(GRACE_SECONDS)
        os._exit(Preempted.exit_code)  # whatever it is at; files are whole at any moment

    threading.Thread(target=stop_with_the_parent, daemon=True).start()
    config = Config.model_validate(job["config"])
    try:
        build_shards(
            config, rebuild=job["rebuild"], repair=job["repair"], stop=stop,
            ready=lambda: say(ready=True), progress=lambda what, done, total: None,
        )  # fmt: skip
    except (SaccadeError, OSError) as error:
        known = of_system(error) if isinstance(error, OSError) else error
        if known is None:
            raise
        say(error=str(known))
        return known.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
