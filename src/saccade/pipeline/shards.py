"""Build encoded shards here, or in a process beside a training that follows them.

A resolved configuration flows in; shards, and with a recipe a trained run, flow out. The builder is
a process of its own: it draws and encodes while the training reads. When the training is stopped
or killed, the builder notices that its parent is gone and stops after the batch it is at; the same
command continues both. Left out: what is built (`data/shards`) and what is trained.

    python -m saccade.pipeline.shards < job.json
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

import torch

from saccade.config.errors import InputError, OutsideError, SaccadeError
from saccade.config.resolve import Resolved
from saccade.config.schema import Config
from saccade.config.shards import EncodedSource
from saccade.data.shards.builder import Builder, Progress, Summary
from saccade.data.shards.estimate import Estimate
from saccade.data.shards.manifest import Manifest, read_manifest
from saccade.data.shards.sources import open_sources
from saccade.models.shard_encoder import TowerEncoder
from saccade.training.guards import StopRequest
from saccade.training.threads import choose_threads

LOG = "builder.log"
POLL_SECONDS = 0.5


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
    stop: StopRequest | None = None,
) -> Summary:
    """Build or continue in this process; Ctrl+C stops after the batch (exit 143)."""
    earlier = None if rebuild else read_manifest(config.shards.path)
    kept = None if earlier is None else int(earlier.plan["threads"])
    torch.set_num_threads(choose_threads(config.training.threads, earlier=kept))
    builder = open_builder(config)
    tell(builder.estimate())
    stop = stop or StopRequest()
    with stop.watching():
        return builder.build(
            rebuild=rebuild, repair=repair, progress=progress, stop=lambda: bool(stop)
        )


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
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("wb") as log:
        child = _start(resolved, rebuild=rebuild, repair=repair, log=log)
        try:
            # takes seconds, in which the builder works on its first shard
            importlib.import_module("saccade.training.trainers")
            importlib.import_module("saccade.training.callbacks")
            _follow(child, resolved.config, until_done=not incremental, progress=progress)
            metrics = _trained(train, child, resolved.config)
            _follow(child, resolved.config, until_done=True, progress=progress)
        finally:
            _let_go(child)
    return metrics


def _trained(
    train: Callable[[], dict[str, Any]], child: subprocess.Popen[str], config: Config
) -> dict[str, Any]:
    """Train; when it waited in vain for a builder that failed, tell why that one failed."""
    try:
        return train()
    except OutsideError as error:
        code = child.poll()
        if code in (None, 0):
            raise
        raise _failed(config, code) from error


def _failed(config: Config, code: int | None) -> OutsideError:
    folder = config.shards.path
    return OutsideError(
        f"{folder}: the builder stopped with exit code {code}: {_last_line(config)}"
        f"\n  fix: see {folder / LOG}, then run the same command"
    )


def _start(
    resolved: Resolved, *, rebuild: bool, repair: bool, log: IO[bytes]
) -> subprocess.Popen[str]:
    job = {"config": resolved.config.model_dump(mode="json"), "rebuild": rebuild, "repair": repair}
    child = subprocess.Popen(
        [sys.executable, "-m", "saccade.pipeline.shards"],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        text=True,
        # Ctrl+C goes to the training alone, which tells the builder when it is saved
        start_new_session=True,
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    return child


def _follow(
    child: subprocess.Popen[str], config: Config, *, until_done: bool, progress: Progress
) -> None:
    """Wait for the first shard, or for the builder's end; raises when it failed."""
    folder = config.shards.path
    while True:
        code = child.poll()
        if code not in (None, 0):
            raise _failed(config, code)
        found = read_manifest(folder)
        if code == 0 or (not until_done and _has_a_shard(found)):
            return
        if found is not None:
            progress("waiting for shards", found.built, found.samples)
        time.sleep(POLL_SECONDS)


def _has_a_shard(found: Manifest | None) -> bool:
    return found is not None and bool(found.shards)


def _last_line(config: Config) -> str:
    lines = (config.shards.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no message"


def _let_go(child: subprocess.Popen[str]) -> None:
    """Closing its input asks the builder to stop after its batch."""
    assert child.stdin is not None
    child.stdin.close()
    child.wait()


def main() -> int:
    """Do the job on stdin, until it is done or stdin is closed."""
    job = json.loads(sys.stdin.readline())
    stop = StopRequest()

    def stop_with_the_parent() -> None:
        sys.stdin.read()
        stop.reason = "the end of the process that started it"

    threading.Thread(target=stop_with_the_parent, daemon=True).start()
    config = Config.model_validate(job["config"])
    try:
        summary = build_shards(
            config, rebuild=job["rebuild"], repair=job["repair"], stop=stop,
            progress=lambda what, done, total: None,
        )  # fmt: skip
    except SaccadeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(json.dumps(summary.to_json()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
