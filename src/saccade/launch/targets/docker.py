"""The target `docker`: the image of the cloud, run by the docker daemon of this machine.

A `JobSpec` flows in and becomes one detached container; its labels find it again, its exit status
is read from `docker inspect`. Stores, archives and configurations on this machine are mounted;
secrets come as files that only the caller may read, never in the container's environment or on a
command line. The `docker` command is all that is needed, no client library.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.cloud.api.errors import Unreachable
from saccade.cloud.findings import Finding, Level
from saccade.config.errors import OutsideError
from saccade.launch.spec import APP, Handle, JobSpec, LogLine, Status, labels
from saccade.launch.states import State
from saccade.launch.targets.base import Settings
from saccade.launch.targets.vertex_body import COMMAND, environment, seconds

STORE, JOB, SECRETS = "/store", "/job", "/run/secrets"
"""Where things of this machine are seen inside the container."""
GRACE_S = 60
CANCELLED = "-cancelled"
"""End of a cancelled container's name: its exit status alone looks like a preemption."""
TIMED_OUT = 124
_DEAD = re.compile(r"cannot connect to the docker daemon|is the docker daemon running", re.I)
_GONE = re.compile(r"no such (object|container)", re.I)


@dataclass
class DockerTarget:
    """Containers on this machine."""

    env: Mapping[str, str]
    home: Path
    docker: str = "docker"
    name: str = "docker"
    capabilities: frozenset[str] = frozenset({"multi_gpu", "logs"})
    user: str = field(default_factory=lambda: f"{os.getuid()}:{os.getgid()}")
    """Files in mounted folders belong to the caller, not to root."""

    @classmethod
    def open(cls, settings: Settings) -> DockerTarget:
        """Use the `docker` on the PATH; asks it nothing yet."""
        return cls(env=settings.env, home=settings.home)

    def check(self, spec: JobSpec) -> list[Finding]:
        """Look for the command, the daemon, GPUs inside containers, and the image."""
        if shutil.which(self.docker, path=self.env.get("PATH")) is None:
            return [_blocked("docker", "there is no `docker` command", "install docker engine")]
        try:
            info = json.loads(self._run("info", "--format", "{{json .}}"))
        except (OutsideError, ValueError) as error:
            text = str(error).partition("\n  fix: ")[0]
            return [_blocked("docker", text, "sudo systemctl start docker")]
        if not info.get("ServerVersion"):
            return [_blocked("docker", "the daemon does not answer", "sudo systemctl start docker")]
        found = [Finding("docker", Level.OK, f"daemon {info['ServerVersion']}")]
        gpus = self._gpus(spec)
        if gpus and "nvidia" not in (info.get("Runtimes") or {}):
            found.append(
                _blocked("gpus", f"{gpus} GPUs, but containers cannot use them",
                         "install nvidia-container-toolkit, restart docker")
            )  # fmt: skip
        elif gpus:
            found.append(Finding("gpus", Level.OK, f"{gpus} for the container", have=gpus))
        if spec.replicas > 1:
            found.append(_blocked("replicas", "docker runs one machine", "launch.replicas=1"))
        found += self._check_files(spec)
        image = self._image(spec)
        there = self._there("image", image)
        text = "present" if there else "absent: built (or pulled) at the first launch"
        found.append(Finding("image", Level.OK if there else Level.WARN, f"{image}: {text}"))
        return found

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """Return the command that `submit` would run."""
        command = self._command(spec)
        return {"command": command, "shell": shlex.join(command)}

    def submit(self, spec: JobSpec) -> Handle:
        """Start the container, or return the one that has this token and attempt already."""
        found = self._find(spec)
        if found is not None:
            return self._handle(found)
        self._ensure_image(spec)
        self._write_secrets(spec)
        if "://" not in spec.store:
            Path(spec.store).mkdir(parents=True, exist_ok=True)
        try:
            container = self._run(*self._command(spec)[1:]).strip().splitlines()[-1]
        except Unreachable:
            raise
        except OutsideError:
            again = self._find(spec)
            if again is not None:  # somebody else submitted it at the same time, or it cannot start
                if self._inspect(again)["State"].get("Status") != "created":
                    return self._handle(again)
                self._run("rm", "--force", again)
            raise
        return self._handle(container)

    def poll(self, handle: Handle) -> Status:
        """Read the container's state."""
        try:
            found = self._inspect(handle.id)
        except OutsideError as error:
            if isinstance(error, Unreachable) or not _GONE.search(str(error)):
                raise
            return Status(State.FAILED, detail="the container was removed", raw={"cause": "gone"})
        status = status_of(found)
        if status.ended_at is not None:
            self._drop_secrets(str((found.get("Config") or {}).get("Labels", {}).get("token", "")))
        return status

    def logs(self, handle: Handle, *, cursor: str | None) -> tuple[list[LogLine], str | None]:
        """Return the lines after the cursor, which is a timestamp and how many lines it had."""
        since, _, shown = (cursor or "").rpartition("|")
        extra = ["--since", since] if since else []
        lines = self._run("logs", "--timestamps", *extra, handle.id, merged=True).splitlines()
        found = [_log_line(line) for line in lines]
        skip, fresh = int(shown or 0), []
        for stamp, line in found:
            if since and stamp == since and skip > 0:
                skip -= 1
                continue
            fresh.append((stamp, line))
        if not fresh:
            return [], cursor
        last = fresh[-1][0]
        count = sum(stamp == last for stamp, _ in found)
        return [line for _, line in fresh], f"{last}|{count}"

    def cancel(self, handle: Handle) -> None:
        """Send SIGTERM, so that the run saves itself; the second time, end it."""
        try:
            found = self._inspect(handle.id)
            name = str(found["Name"]).lstrip("/")
            if not (found.get("State") or {}).get("Running"):
                return
            if name.endswith(CANCELLED):
                self._run("stop", "-t", "10", handle.id)
                return
            self._run("rename", handle.id, name + CANCELLED)
            self._run("kill", "--signal", "TERM", handle.id)
        except Unreachable:
            raise
        except OutsideError as error:
            if not re.search(r"no such|is not running", str(error), re.I):
                raise

    def list(self) -> list[Handle]:
        """Return all containers of ours, running or not."""
        rows = self._run(
            "ps", "--all", "--no-trunc", "--filter", f"label=app={APP}", "--format", "{{.ID}}"
        )
        return [self._handle(row) for row in rows.split()]

    # what is sent to docker

    def _command(self, spec: JobSpec) -> list[str]:
        pairs = environment(spec, gpus=self._gpus(spec)) | {"HOME": "/tmp"}
        mounts: list[str] = []
        if "://" not in spec.store:
            pairs["SACCADE_STORE"] = STORE
            mounts += _mount(Path(spec.store), STORE, readonly=False)
        for variable, text in (("SACCADE_CODE", spec.code), ("SACCADE_CONFIG", spec.config)):
            if text and "://" not in text:
                inside = f"{JOB}/{Path(text).name}"
                pairs[variable] = inside
                mounts += _mount(Path(text), inside)
        known = [name for name in sorted(spec.secrets) if self.env.get(name)]
        pairs["SACCADE_SECRETS"] = ",".join(f"{name}=file:{SECRETS}/{name}" for name in known)
        if known:
            mounts += _mount(self._secrets_folder(spec.token), SECRETS)
        mounts += self._google(pairs)
        command = [self.docker, "run", "--detach", "--name", _container_name(spec)]
        for key, value in sorted((dict(spec.labels) | labels(spec)).items()):
            command += ["--label", f"{key}={value}"]
        for key, value in sorted(pairs.items()):
            command += ["--env", f"{key}={value}"]
        gpus = int(pairs["SACCADE_GPUS"])
        if gpus:
            command += ["--gpus", str(gpus)]
        command += ["--user", self.user, "--shm-size", "8g", "--stop-timeout", str(GRACE_S)]
        # --foreground: without it `timeout` signals the run twice, which means "leave at once"
        limit = ["timeout", "--foreground", f"--kill-after={GRACE_S}", str(spec.timeout_s)]
        return [*command, *mounts, self._image(spec), *limit, *COMMAND]

    def _google(self, pairs: dict[str, str]) -> list[str]:
        """Let the container reach the bucket: the fake cloud's address, or the caller's login."""
        fake = self.env.get("SACCADE_FAKE_CLOUD")
        if fake:
            pairs |= {"SACCADE_FAKE_CLOUD": fake, "STORAGE_EMULATOR_HOST": fake}
            return ["--network", "host"]
        if not pairs["SACCADE_STORE"].startswith("gs://"):
            return []
        default = Path.home() / ".config/gcloud/application_default_credentials.json"
        file = Path(self.env.get("GOOGLE_APPLICATION_CREDENTIALS") or default)
        if not file.is_file():
            return []
        pairs["GOOGLE_APPLICATION_CREDENTIALS"] = f"{JOB}/google.json"
        return _mount(file, f"{JOB}/google.json")

    def _gpus(self, spec: JobSpec) -> int:
        """How many GPUs the container gets: what the spec says, else all there are."""
        if "SACCADE_GPUS" in spec.env:
            return int(spec.env["SACCADE_GPUS"])
        tool = shutil.which("nvidia-smi", path=self.env.get("PATH"))
        if tool is None:
            return 0
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
        return sum(line.startswith("GPU ") for line in done.stdout.splitlines())

    def _image(self, spec: JobSpec) -> str:
        if spec.image:
            return spec.image
        from saccade.launch.images import image_tag

        return f"saccade-train:{image_tag()}"

    def _ensure_image(self, spec: JobSpec) -> None:
        """Build the image where it is missing; one that is named is pulled by `docker run`."""
        image = self._image(spec)
        if spec.image or self._there("image", image):
            return
        from saccade.launch.images import docker_build_command
        from saccade.launch.package import code_root

        command = docker_build_command(image=image, home=self.home, root=code_root())
        self._run(*command[1:], timeout_s=7200, merged=True)

    def _check_files(self, spec: JobSpec) -> list[Finding]:
        """Docker makes an empty folder of a mount that is missing, which fails much later."""
        missing = [
            text for text in (spec.code, spec.config)
            if text and "://" not in text and not Path(text).is_file()
        ]  # fmt: skip
        return [_blocked("files", f"{text} is missing", "saccade launch") for text in missing]

    # secrets

    def _secrets_folder(self, token: str) -> Path:
        return (self.home / "secrets" / token).absolute()

    def _write_secrets(self, spec: JobSpec) -> None:
        values = {name: self.env[name] for name in spec.secrets if self.env.get(name)}
        if not values:
            return
        folder = self._secrets_folder(spec.token)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        for name, value in values.items():
            file = folder / name
            file.touch(mode=0o600)
            file.chmod(0o600)
            file.write_text(value, encoding="utf-8")

    def _drop_secrets(self, token: str) -> None:
        folder = self._secrets_folder(token)
        if token and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)

    # what docker says

    def _find(self, spec: JobSpec) -> str | None:
        wanted = [f"{key}={labels(spec)[key]}" for key in ("app", "token", "attempt")]
        filters = [word for one in wanted for word in ("--filter", f"label={one}")]
        found = self._run("ps", "--all", "--no-trunc", *filters, "--format", "{{.ID}}").split()
        return found[-1] if found else None

    def _inspect(self, container: str) -> dict[str, Any]:
        return json.loads(self._run("inspect", "--type", "container", container))[0]

    def _there(self, kind: str, name: str) -> bool:
        try:
            self._run(kind, "inspect", name)
        except Unreachable:
            raise
        except OutsideError:
            return False
        return True

    def _handle(self, container: str) -> Handle:
        return Handle(target=self.name, id=container, region="local")

    def _run(self, *words: str, merged: bool = False, timeout_s: float = 120.0) -> str:
        try:
            done = subprocess.run(
                [self.docker, *words], text=True, timeout=timeout_s, check=False,
                stdout=subprocess.PIPE, env=dict(self.env) or None,
                stderr=subprocess.STDOUT if merged else subprocess.PIPE,
            )  # fmt: skip
        except FileNotFoundError:
            raise OutsideError(
                "there is no `docker` command here"
                "\n  fix: install docker engine, or launch.target=local"
            ) from None
        except subprocess.TimeoutExpired as error:
            raise _no_daemon(f"no answer to `docker {words[0]}` in {timeout_s:g} s") from error
        if done.returncode == 0:
            return done.stdout
        said = ((done.stdout if merged else done.stderr) or "").strip()
        if _DEAD.search(said):
            raise _no_daemon(said)
        last = "\n  ".join(said.splitlines()[-6:])
        raise OutsideError(f"docker {words[0]} failed ({done.returncode}): {last}")


def status_of(container: Mapping[str, Any]) -> Status:
    """Read what `docker inspect` says of a container."""
    state = container.get("State") or {}
    phase, code = str(state.get("Status", "")), state.get("ExitCode")
    error = str(state.get("Error", ""))
    started, ended = _time(state.get("StartedAt")), _time(state.get("FinishedAt"))
    if phase in ("running", "paused", "removing"):
        return Status(State.RUNNING, detail=phase, raw={"state": phase}, started_at=started)
    if phase in ("created", "restarting") and not error:
        return Status(State.STARTING, detail=phase, raw={"state": phase}, started_at=started)
    cancelled = str(container.get("Name", "")).endswith(CANCELLED)
    ours, detail = _ended(int(code or 0), oom=bool(state.get("OOMKilled")), cancelled=cancelled)
    detail = f"{detail}: {error}" if error else detail
    if error and phase == "created":
        ours = State.FAILED
    return Status(
        ours, detail=detail, error_code=int(code or 0), raw={"state": phase, "error": error},
        started_at=started, ended_at=ended or started,
    )  # fmt: skip


def _ended(code: int, *, oom: bool, cancelled: bool) -> tuple[State, str]:
    if code == 0:
        return State.SUCCEEDED, "exited (0)"
    if cancelled:
        return State.CANCELLED, f"cancelled, exited ({code})"
    if code == 143:
        return State.PREEMPTED, "stopped and saved itself (143)"
    if code == TIMED_OUT:
        return State.FAILED, "ended by launch.timeout_hours (124)"
    if oom:
        return State.FAILED, f"killed: out of memory ({code})"
    return State.FAILED, f"exited ({code})"


def _log_line(line: str) -> tuple[str, LogLine]:
    stamp, _, text = line.partition(" ")
    try:
        when = seconds(stamp) or 0.0
    except ValueError:  # the daemon's own words have no timestamp
        return "", LogLine(time=0.0, text=line)
    return stamp, LogLine(time=when, text=text)


def _time(text: Any) -> float | None:
    return None if not text or str(text).startswith("0001-") else seconds(text)


def _mount(source: Path, inside: str, *, readonly: bool = True) -> list[str]:
    where = f"type=bind,source={source.absolute()},target={inside}"
    return ["--mount", where + (",readonly" if readonly else "")]


def _container_name(spec: JobSpec) -> str:
    text = re.sub(r"[^a-zA-Z0-9_.-]", "-", f"{spec.run}-{spec.token}-{spec.attempt}")
    return f"{APP}-{text}"


def _blocked(name: str, message: str, fix: str) -> Finding:
    return Finding(name=name, level=Level.BLOCK, message=message, fix=fix)


def _no_daemon(said: str) -> Unreachable:
    line = said.strip().splitlines()[0] if said.strip() else "no answer"
    return Unreachable(
        f"docker: {line}\n  fix: sudo systemctl start docker (or launch.target=local)",
        service="docker", reason="UNREACHABLE",
    )  # fmt: skip
