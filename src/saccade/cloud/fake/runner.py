"""Containers as local processes: one per replica of a job's worker pools.

A job document flows in; log lines and exit codes flow out. Each replica gets its own folder and
process group, an environment without anything of the user's, and the variables Vertex AI sets.
GPUs do not exist here: SACCADE_GPUS becomes 0 unless the scenario says otherwise. The process that
stands between the server and the command is `container.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from saccade.cloud.fake.job_schema import container_of
from saccade.cloud.fake.world import World

# what a container may see of the server's environment: how to run, never who runs it
PASSED_ON = (
    "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS",
    "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "WANDB_MODE", "TZ",
)  # fmt: skip
ENTRY = [sys.executable, "-m", "saccade.launch.entry"]
"""The entry point of images that name no command."""
OnLines = Callable[[str, str, list[str]], None]
"""Called with replica, severity and lines."""


class Replica:
    """One running container."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], readers: list[threading.Thread]
    ):
        self.name = name
        self._process = process
        self._readers = readers
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Process id of the container's first process."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def order(self, letter: bytes) -> None:
        """`T` terminates the command, `K` kills all of it."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            stdin = self._process.stdin
            if stdin is not None:
                stdin.write(letter)
                stdin.flush()

    def finish(self, *, within: float = 30.0) -> int:
        """Kill what still runs and wait until all output is read."""
        if self.poll() is None:
            self.order(b"K")
            try:
                self._process.wait(within)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        for reader in self._readers:
            reader.join(within)
        with self._lock, contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        return self._process.returncode


class Containers:
    """All replicas of one attempt of one job."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas

    def outcome(self) -> tuple[str, int] | None:
        """The replica that decided the job with its exit code; the chief's 0, or any other."""
        for replica in self.replicas:
            code = replica.poll()
            if code is not None and (code != 0 or replica is self.replicas[0]):
                return replica.name, code
        return None

    def terminate(self) -> None:
        """SIGTERM for every command."""
        for replica in self.replicas:
            replica.order(b"T")

    def kill(self) -> None:
        """End everything and wait for it."""
        for replica in self.replicas:
            if replica.poll() is None:
                replica.order(b"K")
        for replica in self.replicas:
            replica.finish()


def start(world: World, job: dict[str, Any], *, attempt: int, on_lines: OnLines) -> Containers:
    """Start every replica of a job."""
    pools = job["jobSpec"]["workerPoolSpecs"]
    names = [
        (f"workerpool{place}", replica)
        for place, pool in enumerate(pools)
        for replica in range(int(pool["replicaCount"]))
    ]
    ports = _free_ports(len(names))
    cluster: dict[str, list[str]] = {}
    for (pool_name, _), port in zip(names, ports, strict=True):
        cluster.setdefault(pool_name, []).append(f"127.0.0.1:{port}")
    replicas: list[Replica] = []
    for pool_name, index in names:
        pool = pools[int(pool_name.removeprefix("workerpool"))]
        folder = world.state / "jobs" / job["_id"] / f"attempt-{attempt}" / f"{pool_name}-{index}"
        folder.mkdir(parents=True, exist_ok=True)
        env = _environment(world, job, pool, folder=folder)
        task = {"type": pool_name, "index": index, "trial": ""}
        env["CLUSTER_SPEC"] = json.dumps(
            {
                "cluster": cluster,
                "environment": "cloud",
                "task": task,
                "job": json.dumps({"worker_pool_specs": len(pools)}),
            }
        )
        container = container_of(pool)
        command = [*container.get("command", []), *container.get("args", [])]
        if not container.get("command"):
            command = [*ENTRY, *container.get("args", [])]
        replicas.append(
            _start_one(
                f"{pool_name}-{index}", command=command, env=env, folder=folder, on_lines=on_lines
            )
        )
    return Containers(replicas)


def folder_of(world: World, job_id: str) -> Path:
    """Where the containers of a job work."""
    return world.state / "jobs" / job_id


def remove_folder(world: World, job_id: str) -> None:
    """Forget what the containers of a job left on disk, as a machine that is gone."""
    shutil.rmtree(folder_of(world, job_id), ignore_errors=True)


def _environment(
    world: World, job: dict[str, Any], pool: dict[str, Any], *, folder: Path
) -> dict[str, str]:
    """What the container sees: its own variables and Vertex AI's, nothing of the user's."""
    env = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    env["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    env |= {
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "SACCADE_FAKE_CLOUD": world.url,
        "STORAGE_EMULATOR_HOST": world.url,
        "GOOGLE_CLOUD_PROJECT": job["_project"],
        "CLOUD_ML_PROJECT_ID": world.number(job["_project"]),
        "CLOUD_ML_JOB_ID": job["_id"],
        "CLOUD_ML_REGION": job["_region"],
    }
    prefix = job["jobSpec"].get("baseOutputDirectory", {}).get("outputUriPrefix")
    if prefix:
        base = prefix.rstrip("/")
        env |= {
            "AIP_MODEL_DIR": f"{base}/model/",
            "AIP_CHECKPOINT_DIR": f"{base}/checkpoints/",
            "AIP_TENSORBOARD_LOG_DIR": f"{base}/logs/",
        }
    for entry in container_of(pool).get("env", []):
        env[entry["name"]] = entry.get("value", "")
    if not world.scenario.keep_gpus and env.get("SACCADE_GPUS"):
        env["SACCADE_GPUS"] = "0"
    return env | world.scenario.container_env


def _start_one(
    name: str, *, command: list[str], env: dict[str, str], folder: Path, on_lines: OnLines
) -> Replica:
    init = Path(__file__).with_name("container.py")
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(init), *command],
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    readers = [
        threading.Thread(
            target=_read, args=(stream, name, severity, on_lines), name=f"log {name}", daemon=True
        )
        # Vertex AI records standard error with severity ERROR, whatever it says
        for stream, severity in ((process.stdout, "INFO"), (process.stderr, "ERROR"))
    ]
    for reader in readers:
        reader.start()
    return Replica(name, process, readers)


def _read(stream: IO[bytes], name: str, severity: str, on_lines: OnLines) -> None:
    """Pass lines on in small batches until the stream ends."""
    rest = b""
    while chunk := os.read(stream.fileno(), 65_536):
        *whole, rest = (rest + chunk).split(b"\n")
        lines = [line.decode("utf-8", "replace").rstrip("\r") for line in whole]
        if lines:
            on_lines(name, severity, lines)
        time.sleep(0.005)  # lets a burst of lines become one batch
    if rest:
        on_lines(name, severity, [rest.decode("utf-8", "replace")])
    stream.close()


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
