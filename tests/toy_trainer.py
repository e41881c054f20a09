"""A launched job that trains nothing, yet leaves a whole run in its store; and a cloud of such.

The container's environment, configuration and inputs flow in; checkpoints, an event log, a model
of random bytes and DONE flow out through saccade's own `Mirror`, in about a second and without
torch. What it learns is a formula of the learning rate, so that a sweep has something to find; a
model made from another one is drawn from its bytes. Python's `sitecustomize` runs it in place of
the job's entry point.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.resolve import resolve
from saccade.launch.entry import Job, bring_settings
from saccade.training.checkpoints import write_checkpoint
from saccade.training.events import EventLog
from saccade.training.mirror import Mirror
from saccade.training.rundir import RunDir
from saccade.training.store import open_store
from tests.toy_jobs import IMAGE, cloud_with_bucket

ROOT = Path(__file__).parents[1]
SITE = """
import os
if os.environ.get("SACCADE_RUN"):
    from tests.toy_trainer import main
    main()
    os._exit(0)
"""
STEPS, EVERY = 30, 10
LAUNCH = f"launch.image={IMAGE}", "launch.backoff_seconds=0", "launch.machine=a2-highgpu-1g"
FILES = 8


def main() -> None:
    """Be the job of this environment."""
    store, name = open_store(os.environ["SACCADE_STORE"]), os.environ["SACCADE_RUN"]
    config = bring_settings(Job.read(os.environ), work=Path.cwd())
    overrides = ["run.root=runs", f"run.name={name}"]
    resolved = resolve(file=config, overrides=overrides)
    run = RunDir.create(resolved)
    run.provenance_file.write_text(json.dumps({"time": time.time(), "data": {}}))
    rate = resolved.config.training.learning_rate
    base = Path(resolved.config.model.name)
    content = b"".join(digest_files(base).values()) if base.name != "tiny" else b""
    train(run, Mirror(store, run=run, name=name, keep=2), rate=rate, base=content)


def train(run: RunDir, mirror: Mirror, *, rate: float, base: bytes = b"") -> None:
    """Make a run: an evaluation and an upload every few steps, then a model, then DONE."""
    log = EventLog(run.events_file)
    about = {"recipe": "relevance", "threads": 1, "world_size": 1, "device": "cpu"}
    log.append("run_start", steps=STEPS, **about)
    metrics = {"loss": 1.0, "accuracy": 0.0}
    for step in range(EVERY, STEPS + 1, EVERY):
        metrics = {"loss": 1 / step, "accuracy": step / STEPS / (1 + abs(rate - 0.01))}
        log.append("eval", step=step, metrics=metrics)
        state = json.dumps({"step": step}).encode()
        files = {"state.json": lambda file, state=state: file.write(state)}
        folder = write_checkpoint(run.checkpoints, step=step, files=files, keep=2).folder
        mirror.push_checkpoint(folder, step=step)
        beat = {"v": 1, "time": time.time(), "attempt": int(os.environ.get("SACCADE_ATTEMPT", 1)),
                "step": step, "steps": STEPS, "phase": "training", "loss": metrics["loss"],
                "last_checkpoint": {"step": step, "uploaded_at": time.time()}}  # fmt: skip
        mirror.store.write(f"{mirror.home}/heartbeat.json", json.dumps(beat).encode())
        time.sleep(float(os.environ.get("TOY_STEP_SECONDS", "0.3")))
    chance = random.Random(base or rate)
    (run.path / "model").mkdir(exist_ok=True)
    for number in range(FILES):
        (run.path / "model" / f"part-{number}.bin").write_bytes(chance.randbytes(50_000))
    log.append("done", step=STEPS, metrics=metrics)
    run.finish(step=STEPS, metrics=metrics)
    mirror.push_finals()


@contextmanager
def toy_cloud(folder: Path, *, step_seconds: float = 0.3) -> Iterator[tuple[FakeCloud, dict]]:
    """A fake cloud whose containers are toys, set up for launching; and the environment to use."""
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(SITE)
    paths = os.pathsep.join([str(site), str(ROOT), str(ROOT / "src")])
    env = {"PYTHONPATH": paths, "TOY_STEP_SECONDS": str(step_seconds)}
    scenario = Scenario(
        container_env=env, grace_seconds=0.1, queued_seconds=0.0, pending_seconds=0.0
    )
    with serve(folder / "cloud", scenario=scenario) as cloud:
        known = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(folder / "home")}
        cloud_with_bucket(known)
        yield cloud, known


def digest_files(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of everything below a folder that is not hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }
