"""What a job's container runs: fetch code, configuration, inputs, secrets; train; tell the truth.

The environment flows in (SACCADE_RUN, _STORE, _CODE, _CONFIG, _INPUTS, _ATTEMPT, _SECRETS, _GPUS;
nothing secret among it); the training's exit code flows out, 143 for a run that saved itself and
wants to go on. 0 is only said when DONE is in the store. GPUs that were asked for and are not there
end the job before it costs anything. Secret values are fetched here, go into the environment of the
training process and nowhere else. torch is only touched by processes that this one starts.

    python -m saccade.launch.entry
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from saccade.config.errors import InputError, OutsideError, Preempted, SaccadeError
from saccade.training.inputs import at_work, bring_inputs
from saccade.training.store import file_sha256, open_store, safe_name

DONE_PATIENCE_SECONDS = 600.0
"""How long the other machines of a job wait for the first one to deliver the run."""
PROBE_SECONDS = 120.0
MASTER_PORT = "29500"
_SHA = re.compile(r"[0-9a-f]{64}")
_COUNT_GPUS = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


@dataclass(frozen=True)
class Job:
    """What the environment says about this job."""

    run: str
    store: str
    code: str
    config: str
    attempt: int
    secrets: Mapping[str, str]
    gpus: int
    inputs: tuple[str, ...] = ()

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Job:
        """Read the environment; raises InputError naming everything that is missing."""
        needed = ("SACCADE_RUN", "SACCADE_STORE", "SACCADE_CONFIG")
        missing = [name for name in needed if not env.get(name)]
        if missing:
            raise InputError(
                f"environment: {', '.join(missing)} not set"
                "\n  fix: start jobs with `saccade launch`, which sets them"
            )
        return cls(
            run=safe_name(env["SACCADE_RUN"]),
            store=env["SACCADE_STORE"],
            code=env.get("SACCADE_CODE", ""),
            config=env["SACCADE_CONFIG"],
            attempt=_number(env, "SACCADE_ATTEMPT", default=1),
            secrets=_pairs(env.get("SACCADE_SECRETS", "")),
            gpus=_number(env, "SACCADE_GPUS", default=0),
            inputs=tuple(filter(None, env.get("SACCADE_INPUTS", "").split(","))),
        )


@dataclass(frozen=True)
class Place:
    """This machine among those of the job."""

    nodes: int
    node: int
    master: str
    port: str

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Place:
        """Read CLUSTER_SPEC as Vertex AI sets it; without it this machine is alone."""
        text = env.get("CLUSTER_SPEC")
        if not text:
            return cls(1, 0, "127.0.0.1", MASTER_PORT)
        spec = json.loads(text)
        pools = sorted(spec["cluster"].items(), key=lambda pool: _pool_number(pool[0]))
        machines = [(name, place) for name, hosts in pools for place in range(len(hosts))]
        mine = (spec["task"]["type"], int(spec["task"].get("index") or 0))
        host, _, port = pools[0][1][0].partition(":")
        return cls(len(machines), machines.index(mine), host, port or MASTER_PORT)


class Child:
    """The training process; signals to this one are passed on to it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def watch(self) -> None:
        """Take over SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def run(self, command: list[str], *, env: Mapping[str, str], folder: Path) -> int:
        """Run to the end; a death by signal N is 128 + N."""
        self.process = subprocess.Popen(command, env=dict(env), cwd=folder)
        if self.stopped:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait()
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self.process is None:
            raise Preempted("stopped before training began\n  to continue: start the job again")
        if self.process.poll() is None:
            self.process.send_signal(number)


def main() -> int:
    """Run the job of this environment; returns the exit code."""
    child = Child()
    child.watch()
    try:
        return run_job(os.environ, child=child, work=Path.cwd())
    except SaccadeError as error:
        _say(f"error: {error}", to_error=True)
        return error.exit_code


def run_job(env: Mapping[str, str], *, child: Child, work: Path) -> int:
    """Prepare, train and judge; raises SaccadeError for what the user can mend."""
    job, place = Job.read(env), Place.read(env)
    _say(f"job {job.run}, attempt {job.attempt}, machine {place.node + 1} of {place.nodes}")
    check_gpus(job.gpus, env=env)
    code = bring_code(job.code, work=work)
    config = bring_settings(job, work=work)
    secrets = fetch_secrets(job.secrets, env=env)
    _say(_masked(f"--- {job.config}\n{config.read_text('utf-8').rstrip()}\n---", secrets))
    command = training_command(job, place, config=config, root=work / "runs")
    _say(f"$ {' '.join(command)}")
    inner = training_env(job, env=env, code=code, secrets=secrets)
    exit_code = child.run(command, env=inner, folder=code or work)
    return judge(exit_code, job, place, stopped=child.stopped, root=work / "runs")


def check_gpus(wanted: int, *, env: Mapping[str, str]) -> None:
    """Raise OutsideError unless torch sees as many GPUs as were asked for."""
    if wanted == 0:
        return
    if shutil.which("nvidia-smi", path=env.get("PATH")) is None:
        raise _no_gpus(wanted, "there is no nvidia-smi: no GPU, or no driver")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_GPUS],
            env=dict(env), capture_output=True, text=True, timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise _no_gpus(wanted, f"torch did not answer within {PROBE_SECONDS:.0f} s") from error
    last = done.stdout.strip().rpartition("\n")[2]
    if not last.isdigit():
        raise _no_gpus(wanted, (done.stderr.strip().splitlines() or ["torch failed"])[-1])
    if int(last) < wanted:
        raise _no_gpus(wanted, f"torch sees {last}")


def _no_gpus(wanted: int, found: str) -> OutsideError:
    return OutsideError(
        f"{wanted} GPU(s) were asked for, but {found}"
        "\n  fix: launch again (the machine may be broken), or choose another launch.machine;"
        " `saccade doctor` in the image shows what torch sees"
    )


def fetch(source: str, target: Path) -> Path:
    """A file from a bucket or a mounted folder; a local one is used where it lies."""
    if not source.startswith("gs://"):
        path = Path(source)
        if not path.is_file():
            raise OutsideError(f"{source}: no such file in the container\n  fix: launch again")
        return path
    folder, _, name = source.rpartition("/")
    open_store(folder).fetch(name, target)
    return target


def bring_settings(job: Job, *, work: Path) -> Path:
    """The configuration, its inputs brought from the store and named by where they are here."""
    config = fetch(job.config, work / "launched-config.yaml")
    if not job.inputs:
        return config
    bring_inputs(open_store(job.store), job.inputs, work=work, say=_say)
    values = at_work(yaml.safe_load(config.read_text("utf-8")), work=work)
    here = work / "config-with-inputs.yaml"
    here.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")
    return here


def bring_code(source: str, *, work: Path) -> Path | None:
    """Fetch and unpack the code archive; None when the image brings the code."""
    if not source:
        return None
    archive = fetch(source, work / "code.tar.gz")
    wanted = Path(source).name.removesuffix(".tar.gz")
    found = file_sha256(archive)
    if _SHA.fullmatch(wanted) and found != wanted:
        raise OutsideError(
            f"{source}: the content does not match its name (sha256 {found[:12]}...)"
            "\n  fix: delete the object and launch again"
        )
    folder = work / f"code-{found[:12]}"
    if not folder.is_dir():
        aside = work / f".code-{os.getpid()}"
        unpack(archive, aside)
        aside.rename(folder)
    _say(f"code {found[:12]} in {folder}")
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack files and folders only; anything that would land elsewhere is refused."""
    folder.mkdir(parents=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            for member in members:
                safe_name(member.name.rstrip("/").removeprefix("./") or "root")
                if not (member.isfile() or member.isdir()):
                    raise InputError(f"{member.name}: neither a file nor a folder")
            for member in members:
                _write_member(tar, member, folder / member.name)
    except (tarfile.TarError, InputError, OSError, EOFError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutsideError(
            f"{archive}: not a safe code archive ({error})\n  fix: launch again"
        ) from error


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write one member; owner, time and special bits of the archive are left out."""
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise InputError(f"{member.name}: no content")
    with target.open("xb") as file:
        shutil.copyfileobj(source, file)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def fetch_secrets(names: Mapping[str, str], *, env: Mapping[str, str]) -> dict[str, str]:
    """The values of {variable: Secret Manager version, or file:PATH}; never shown."""
    values: dict[str, str] = {}
    google: Any = None
    for variable, where in names.items():
        if where.startswith("file:"):
            values[variable] = _read_secret(Path(where.removeprefix("file:")))
            continue
        from saccade.cloud.api import secrets
        from saccade.cloud.api.transport import connect

        google = google or connect(where.split("/")[1], env=env)
        values[variable] = secrets.access(google, where).get_secret_value()
    if values:
        _say(f"secrets fetched: {', '.join(sorted(values))}")
    return values


def _read_secret(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OutsideError(f"{path}: the secret cannot be read\n  fix: launch again") from error


def training_command(job: Job, place: Place, *, config: Path, root: Path) -> list[str]:
    """The train verb, under torchrun when several processes train together."""
    verb = [
        "-m", "saccade.cli", "train", "--config", str(config),
        f"run.name={job.run}", f"run.store={job.store}", f"run.root={root}",
    ]  # fmt: skip
    if place.nodes * max(1, job.gpus) == 1:
        return [sys.executable, *verb]
    return [
        sys.executable, "-m", "torch.distributed.run",
        f"--nnodes={place.nodes}", f"--node-rank={place.node}",
        f"--nproc-per-node={max(1, job.gpus)}",
        f"--master-addr={place.master}", f"--master-port={place.port}",
        *verb,
    ]  # fmt: skip


def training_env(
    job: Job, *, env: Mapping[str, str], code: Path | None, secrets: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the training process: this one's, the code's path, the secrets."""
    paths = [env.get("PYTHONPATH", "")]
    if code is not None:
        paths = [str(code / "src") if (code / "src").is_dir() else str(code), *paths]
    # every attempt of one launch has the same configuration address
    identity = hashlib.sha256(f"{job.run} {job.config}".encode()).hexdigest()[:12]
    inner = {"WANDB_RUN_ID": identity, "WANDB_RESUME": "allow", **env, **secrets}
    inner["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return inner


def judge(exit_code: int, job: Job, place: Place, *, stopped: bool, root: Path) -> int:
    """The job's exit code: 0 only with DONE in the store, 143 for whatever can go on."""
    if exit_code == 0:
        if _delivered(job, patience=DONE_PATIENCE_SECONDS if place.node else 0.0):
            return 0
        _say(
            f"error: the training ended with 0, but {job.store}/runs/{job.run}/DONE is missing:"
            " the run is not finished",
            to_error=True,
        )
        return 1
    # torchrun says 1 whatever its workers said
    saved = _last_phase(root / job.run) == "preempted"
    if stopped or saved or exit_code == 128 + signal.SIGTERM:
        return Preempted.exit_code
    return exit_code


def _delivered(job: Job, *, patience: float) -> bool:
    store, until = open_store(job.store), time.monotonic() + patience
    while True:
        if store.read(f"runs/{job.run}/DONE") is not None:
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(2.0)


def _last_phase(run: Path) -> str | None:
    try:
        return json.loads((run / "heartbeat.json").read_text("utf-8")).get("phase")
    except (OSError, ValueError):
        return None


def _number(env: Mapping[str, str], name: str, *, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdigit():
        raise InputError(f"environment {name} = {text}: expected a number")
    return int(text)


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in filter(None, text.split(",")):
        variable, _, where = entry.partition("=")
        pairs[variable] = where
    for variable, where in pairs.items():
        if not re.fullmatch(r"projects/[^/]+/secrets/[^/]+(/versions/[^/]+)?|file:/.+", where):
            # not shown: somebody may have put a value where a name belongs
            raise InputError(
                f"environment SACCADE_SECRETS: {variable} is not a Secret Manager name"
                "\n  fix: launch again; values never belong here"
            )
    return pairs


def _pool_number(name: str) -> int:
    return int(re.sub(r"\D", "", name) or 0)


def _masked(text: str, secrets: Mapping[str, str]) -> str:
    for value in secrets.values():
        if len(value) >= 8:
            text = text.replace(value, "**********")
    return text


def _say(text: str, *, to_error: bool = False) -> None:
    stream = sys.stderr if to_error else sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
