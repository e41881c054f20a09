"""The target `local`: a training process of this machine that outlives the terminal.

Each attempt is a folder (`.launches/RUN-TOKEN/jobs/N/`) with a keeper process in a session of its
own (`local_runner.py`) that runs `saccade train` (under torchrun with several GPUs), writes its
output to `log` and its exit code to `exit.json`. The keeper is known by process id and start time,
so a reused id is never taken for it. Left out: containers (`docker.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saccade.cloud.findings import Finding, Level
from saccade.config.errors import OutsideError
from saccade.launch.spec import Handle, JobSpec, LogLine, Status
from saccade.launch.states import State
from saccade.launch.targets.base import Settings
from saccade.training.rundir import read_json

START_PATIENCE_S = 60.0
"""How long a keeper may take to say that it runs."""
LEAST_DISK_GB = 2
JOB_VARIABLES = ("SACCADE_LOG_LEVEL", "SACCADE_FAKE_CLOUD", "SACCADE_HOME", "SACCADE_BUCKET")
"""Variables with the prefix that a job keeps; the others are values of a run."""


@dataclass(frozen=True)
class LocalTarget:
    """Jobs on this machine, one folder each."""

    home: Path
    name: str = "local"
    capabilities: frozenset[str] = frozenset({"multi_gpu", "logs"})

    @classmethod
    def open(cls, settings: Settings) -> LocalTarget:
        """Use the folder of launches; touches nothing."""
        return cls(home=Path(settings.home))

    def check(self, spec: JobSpec) -> list[Finding]:
        """Look at the disk, and at GPUs that were asked for."""
        folder = self.home
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        free_gb = shutil.disk_usage(folder).free / 1e9
        level = Level.OK if free_gb >= LEAST_DISK_GB else Level.BLOCK
        disk = Finding(
            name="disk", level=level, message=f"{free_gb:.0f} GB free at {folder}",
            have=round(free_gb, 1), need=LEAST_DISK_GB,
            fix="" if level is Level.OK else "free space, or choose another folder by run.root",
        )  # fmt: skip
        if spec.replicas == 1:
            return [disk]
        several = Finding(
            name="replicas", level=Level.BLOCK, have=1, need=spec.replicas,
            message="this machine is one machine", fix="saccade launch launch.replicas=1",
        )  # fmt: skip
        return [disk, several]

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """Return the command and its folder."""
        return {"command": command(spec), "folder": str(self._folder(spec)), "env": job_env(spec)}

    def submit(self, spec: JobSpec) -> Handle:
        """Start the keeper, or find the one this attempt has."""
        folder = self._folder(spec)
        handle = Handle(target=self.name, id=str(folder.resolve()), region="local")
        if (folder / "keeper.json").is_file():
            return handle
        folder.mkdir(parents=True, exist_ok=True)
        job = {"spec": spec.to_json(), **self.plan(spec), "cwd": str(Path.cwd())}
        _write(folder / "job.json", job)
        runner = [sys.executable, "-m", "saccade.launch.targets.local_runner", handle.id]
        with (folder / "keeper.log").open("ab") as noise:
            keeper = subprocess.Popen(
                runner,
                stdin=subprocess.DEVNULL, stdout=noise, stderr=noise,
                start_new_session=True, close_fds=True, env=_keeper_env(),
            )  # fmt: skip
        started = time.monotonic()
        while not (folder / "keeper.json").is_file():
            if keeper.poll() not in (None, 0) or time.monotonic() - started > START_PATIENCE_S:
                said = (folder / "keeper.log").read_text("utf-8", "replace").strip()[-500:]
                raise OutsideError(f"{folder}: the job could not be started\n  {said}")
            time.sleep(0.02)
        return handle

    def poll(self, handle: Handle) -> Status:
        """Read the keeper's files, and whether it is alive."""
        folder = Path(handle.id)
        keeper = read_json(folder / "keeper.json")
        if keeper is None:
            return Status(State.FAILED, detail=f"{folder} has no job any more")
        began = float(keeper["time"])
        left = read_json(folder / "exit.json")
        if left is None and is_alive(keeper):
            return Status(State.RUNNING, started_at=began, raw={"pid": keeper["pid"]})
        left = left or read_json(folder / "exit.json")  # it may have ended between the two looks
        if left is None:
            return Status(
                State.PREEMPTED, detail="its process is gone without an exit code",
                started_at=began, ended_at=_last_change(folder / "log"),
            )  # fmt: skip
        code = int(left["code"])
        state = State.SUCCEEDED if code == 0 else State.FAILED
        if left["asked"] and code != 0 and (folder / "cancel").exists():
            state = State.CANCELLED
        detail = "" if code == 0 else f"exit code {code}"
        return Status(
            state, detail=detail, error_code=code, started_at=began, ended_at=float(left["time"])
        )

    def logs(self, handle: Handle, *, cursor: str | None) -> tuple[list[LogLine], str | None]:
        """Return whole lines after the cursor, which is a position in the log file."""
        path = Path(handle.id) / "log"
        position = int(cursor or 0)
        over = not self._runs(handle)  # asked first: what is read after its end is all there is
        try:
            with path.open("rb") as file:
                file.seek(position)
                content = file.read()
            moment = path.stat().st_mtime
        except FileNotFoundError:
            return [], cursor
        whole = content.rfind(b"\n") + 1
        if over:
            whole = len(content)
        text = content[:whole].decode("utf-8", "replace")
        lines = [LogLine(time=moment, text=line) for line in text.splitlines()]
        return lines, str(position + whole)

    def cancel(self, handle: Handle) -> None:
        """Ask the training to save and stop."""
        folder = Path(handle.id)
        keeper = read_json(folder / "keeper.json")
        if keeper is None or not is_alive(keeper) or (folder / "exit.json").exists():
            return
        (folder / "cancel").touch()
        with suppress(ProcessLookupError):
            os.kill(int(keeper["pid"]), signal.SIGTERM)

    def list(self) -> list[Handle]:
        """Return every job folder."""
        found = sorted(self.home.glob("*/jobs/*/keeper.json"))
        return [
            Handle(target=self.name, id=str(one.parent.resolve()), region="local") for one in found
        ]

    def _folder(self, spec: JobSpec) -> Path:
        return self.home / f"{spec.run}-{spec.token}" / "jobs" / str(spec.attempt)

    def _runs(self, handle: Handle) -> bool:
        keeper = read_json(Path(handle.id) / "keeper.json")
        return keeper is not None and is_alive(keeper)


def command(spec: JobSpec) -> list[str]:
    """The training command: plain with one process, under torchrun with several GPUs."""
    gpus = int(spec.env.get("SACCADE_GPUS") or 0)
    words = ["-m", "saccade.cli", "train", spec.config]
    if gpus > 1:
        run = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
        words = [*run, *words]
    return [sys.executable, *words]


def job_env(spec: JobSpec) -> dict[str, str]:
    """What the job finds in its environment beside what this machine has; holds no secret."""
    return spec.env | {
        "SACCADE_RUN": spec.run, "SACCADE_STORE": spec.store, "SACCADE_CONFIG": spec.config,
        "SACCADE_ATTEMPT": str(spec.attempt), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip


def is_alive(keeper: dict[str, Any]) -> bool:
    """Tell whether the process that wrote this still runs: same id and same start time."""
    return start_time(int(keeper["pid"])) == keeper["start"]


def start_time(pid: int) -> str | None:
    """When a process started, as the system counts; None when it is gone or a zombie."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return _start_time_without_proc(pid)
    return None if parts[0] in ("Z", "X") else parts[19]


def _start_time_without_proc(pid: int) -> str | None:
    if Path("/proc/self/stat").exists():
        return None
    done = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = done.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def _keeper_env() -> dict[str, str]:
    """This process's environment without values of a run: the job's file has them."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SACCADE_") or name in JOB_VARIABLES
    }


def _last_change(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(content, indent=2), encoding="utf-8")
    aside.replace(path)
