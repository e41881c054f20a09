"""The target `hf-jobs`: every attempt is one Hugging Face Job, billed by the minute.

A `JobSpec` flows in and becomes one call of the official client; labels find the job again. The
store is a Hugging Face bucket, mounted as a folder, so the job needs no other account. Secrets go
into the service's own encrypted secrets, which cannot be read back. There is no spot market and no
quota to ask for. Left out: Google's buckets, which a job there could only reach with a key.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.cloud.api.errors import Unreachable
from saccade.cloud.findings import Finding, Level
from saccade.config.errors import InputError, OutsideError, SaccadeError
from saccade.launch.machines import MACHINES, Strategy, machine
from saccade.launch.spec import APP, Handle, JobSpec, LogLine, Status, labels
from saccade.launch.states import State
from saccade.launch.targets.base import Settings
from saccade.launch.targets.vertex_body import COMMAND, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

STORE = "/store"
"""Where the bucket is mounted."""
BUCKET = re.compile(r"hf://buckets/(?P<id>[^/]+/[^/]+)(?:/(?P<path>.+))?")
LOOKS = 3
FLAVORS: Mapping[tuple[str | None, int], str] = {
    (None, 0): "cpu-upgrade",
    ("NVIDIA_TESLA_T4", 1): "t4-medium",
    ("NVIDIA_L4", 1): "l4x1",
    ("NVIDIA_L4", 4): "l4x4",
    ("NVIDIA_RTX_PRO_6000", 1): "rtx-pro-6000",
    # its A100 have 80 GB; who asks for 40 gets more
    ("NVIDIA_TESLA_A100", 1): "a100-large",
    ("NVIDIA_TESLA_A100", 4): "a100x4",
    ("NVIDIA_TESLA_A100", 8): "a100x8",
    ("NVIDIA_A100_80GB", 1): "a100-large",
    ("NVIDIA_A100_80GB", 4): "a100x4",
    ("NVIDIA_A100_80GB", 8): "a100x8",
    ("NVIDIA_H200_141GB", 8): "h200x8",
}
"""(accelerator, count) -> hardware flavor; what is not here, Hugging Face does not rent."""
BOOTSTRAP = (
    "set -e; mkdir -p /tmp/saccade; "
    'tar -xzf "$SACCADE_CODE" -C /tmp/saccade; cd /tmp/saccade; '
    "pip install --quiet -c constraints.txt \"$(grep '^torch==' constraints.txt)\"; "
    "pip install --quiet -c constraints.txt '.[train,cloud]'; "
    "cd /tmp; exec " + " ".join(COMMAND)
)
"""Without an image of ours: install the pinned dependencies, then start."""

_STAGES = {
    "SCHEDULING": State.WAITING_CAPACITY,
    "RUNNING": State.RUNNING,
    "COMPLETED": State.SUCCEEDED,
    "CANCELED": State.CANCELLED,
    "DELETED": State.CANCELLED,
    "ERROR": State.FAILED,
}
_EXIT = re.compile(r"exit(?:ed)?(?: with)?(?: status| code):? *(\d+)", re.IGNORECASE)


@dataclass
class HfJobsTarget:
    """Jobs on Hugging Face, in the namespace of the token."""

    env: Mapping[str, str]
    namespace: str | None = None
    look_pause_s: float = 1.0
    name: str = "hf-jobs"
    capabilities: frozenset[str] = frozenset({"multi_gpu", "logs", "remote"})

    @classmethod
    def open(cls, settings: Settings) -> HfJobsTarget:
        """Take endpoint and token from the environment; sends nothing."""
        return cls(env=settings.env, namespace=settings.env.get("HF_NAMESPACE") or None)

    def check(self, spec: JobSpec) -> list[Finding]:
        """Look for the token, the hardware, the store and what this service cannot do."""
        found = []
        try:
            flavor = flavor_of(spec.machine)
            found.append(Finding("hardware", Level.OK, flavor, have=flavor))
            _volume(spec)
        except SaccadeError as error:
            text, _, fix = str(error).partition("\n  fix: ")
            found.append(Finding("job", Level.BLOCK, text, fix=fix))
        if spec.strategy is not Strategy.ON_DEMAND:
            found.append(
                Finding("strategy", Level.WARN, f"{spec.strategy}: rented on demand here",
                        fix="launch.strategy=on-demand")
            )  # fmt: skip
        if spec.replicas > 1:
            found.append(Finding("replicas", Level.BLOCK, "one machine per job here",
                                 have=1, need=spec.replicas, fix="launch.replicas=1"))  # fmt: skip
        try:
            who = self._namespace()
        except OutsideError as error:
            text, _, fix = str(error).partition("\n  fix: ")
            return [*found, Finding("credentials", Level.BLOCK, text, fix=fix)]
        return [*found, Finding("credentials", Level.OK, f"jobs of {who}", have=who)]

    def plan(self, spec: JobSpec) -> dict[str, Any]:
        """Return the arguments of `run_job`; secret values are masked."""
        made = self._arguments(spec)
        made["secrets"] = dict.fromkeys(made["secrets"], "**********")
        made["volumes"] = [one.to_dict() for one in made["volumes"]]
        return {"call": "HfApi.run_job", "arguments": made}

    def submit(self, spec: JobSpec) -> Handle:
        """Start the job, or return the one that has this token and attempt already."""
        found = self._find(spec)
        if found is not None:
            return found
        spec = self._upload(spec)
        arguments = self._arguments(spec)
        try:
            with _translated("starting a job"):
                made = self._api().run_job(**arguments, namespace=self._namespace())
        except Unreachable:
            # the answer is lost, not necessarily the job
            for _ in range(LOOKS):
                time.sleep(self.look_pause_s)
                found = self._find(spec)
                if found is not None:
                    return found
            raise
        return self._handle(made)

    def poll(self, handle: Handle) -> Status:
        """Read the job once."""
        try:
            with _translated("reading a job"):
                job = self._api().inspect_job(job_id=handle.id, namespace=handle.region)
        except _Gone:
            return Status(State.FAILED, detail="no such job any more", raw={"cause": "gone"})
        return status_of(job)

    def logs(self, handle: Handle, *, cursor: str | None) -> tuple[list[LogLine], str | None]:
        """Return the lines after the first `cursor` lines."""
        shown = int(cursor or 0)
        with _translated("reading a log"):
            lines = list(
                self._api().fetch_job_logs(job_id=handle.id, namespace=handle.region, follow=False)
            )
        now = time.time()
        fresh = [LogLine(time=now, text=text.rstrip("\n")) for text in lines[shown:]]
        return fresh, str(max(shown, len(lines)))

    def cancel(self, handle: Handle) -> None:
        """Ask the service to stop the job; one that is over or gone is no error."""
        try:
            with _translated("cancelling a job"):
                self._api().cancel_job(job_id=handle.id, namespace=handle.region)
        except _Gone:
            return
        except Unreachable:
            raise
        except OutsideError:
            if self.poll(handle).state in (State.RUNNING, State.WAITING_CAPACITY):
                raise

    def list(self) -> list[Handle]:
        """Return all jobs of ours in the namespace."""
        with _translated("listing jobs"):
            jobs = self._api().list_jobs(labels={"app": APP}, namespace=self._namespace())
            return [self._handle(job) for job in jobs]

    def _api(self) -> HfApi:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise OutsideError(
                "the package huggingface_hub is not installed\n  fix: pip install huggingface_hub"
            ) from None
        return HfApi(endpoint=self.env.get("HF_ENDPOINT"), token=self.env.get("HF_TOKEN") or None)

    def _namespace(self) -> str:
        if self.namespace is None:
            with _translated("asking who you are"):
                self.namespace = str(self._api().whoami()["name"])
        return self.namespace

    def _find(self, spec: JobSpec) -> Handle | None:
        mine = labels(spec)
        wanted = {key: mine[key] for key in ("app", "token", "attempt")}
        with _translated("listing jobs"):
            found = list(self._api().list_jobs(labels=wanted, namespace=self._namespace()))
        oldest = sorted(found, key=lambda job: str(job.created_at))
        return self._handle(oldest[0]) if oldest else None

    def _handle(self, job: Any) -> Handle:
        return Handle(target=self.name, id=job.id, region=job.owner.name, url=job.url)

    def _upload(self, spec: JobSpec) -> JobSpec:
        """Put local files where the job sees them; what is in the bucket already stays."""
        bucket, prefix = _bucket(spec)
        adds: list[tuple[str | Path | bytes, str]] = []
        moved: dict[str, str] = {}
        places = {"code": "code", "config": f"launches/{spec.token}"}
        for attribute, folder in places.items():
            text = getattr(spec, attribute)
            if text and "://" not in text:
                inside = f"{folder}/{Path(text).name}"
                adds.append((Path(text), f"{prefix}{inside}"))
                moved[attribute] = f"{spec.store.rstrip('/')}/{inside}"
        if not adds:
            return spec
        with _translated(f"uploading to the bucket {bucket}"):
            self._api().batch_bucket_files(bucket, add=adds)
        return spec.at(attempt=spec.attempt, **moved)

    def _arguments(self, spec: JobSpec) -> dict[str, Any]:
        kind = MACHINES.get(spec.machine)
        pairs = environment(spec, gpus=kind.gpus if kind else 0)
        pairs["SACCADE_STORE"] = STORE
        for name in ("SACCADE_CODE", "SACCADE_CONFIG"):
            pairs[name] = _inside(pairs[name], store=spec.store)
        # the service puts its secrets into the environment itself
        pairs["SACCADE_SECRETS"] = ""
        from saccade.launch.images import BASE

        return {
            "image": spec.image or BASE.name,
            "command": list(COMMAND) if spec.image else ["bash", "-c", BOOTSTRAP],
            "env": dict(sorted(pairs.items())),
            "secrets": {name: self.env[name] for name in spec.secrets if self.env.get(name)},
            "flavor": flavor_of(spec.machine),
            # its own default ends jobs after 30 minutes
            "timeout": spec.timeout_s,
            "name": re.sub(r"[^a-zA-Z0-9_-]", "-", f"saccade-{spec.run}-{spec.attempt}"),
            "labels": dict(spec.labels) | labels(spec),
            "volumes": [_volume(spec)],
        }


class _Gone(OutsideError):
    """404: the job is not there (any more)."""


def flavor_of(name: str) -> str:
    """Return the hardware that stands for a machine; raises InputError where there is none."""
    if name in FLAVORS.values():
        return name
    kind = machine(name)
    flavor = FLAVORS.get((kind.accelerator_type, kind.gpus))
    if flavor is None:
        able = [one.name for one in MACHINES.values()
                if (one.accelerator_type, one.gpus) in FLAVORS and one.gpus]  # fmt: skip
        raise InputError(
            f"launch.machine = {name}: Hugging Face rents no {kind.gpus} x {kind.gpu}"
            f"\n  fix: one of {', '.join(able)}"
        )
    return flavor


def status_of(job: Any) -> Status:
    """Read a `JobInfo`."""
    stage = str(getattr(job.status.stage, "value", job.status.stage))
    message = str(job.status.message or "")
    state = _STAGES.get(stage, State.SUBMITTED)
    code, cause = None, ""
    if stage == "ERROR":
        found = _EXIT.search(message)
        code = int(found.group(1)) if found else None
        cause = "timeout" if "timeout" in message.lower() else "container"
        if code == 143:
            state, cause = State.PREEMPTED, "preempted"
    return Status(
        state=state,
        detail=": ".join(part for part in (stage, message) if part),
        error_code=code,
        raw={"state": stage, "cause": cause},
        started_at=job.started_at.timestamp() if job.started_at else None,
        ended_at=job.finished_at.timestamp() if job.finished_at else None,
    )


def _bucket(spec: JobSpec) -> tuple[str, str]:
    found = BUCKET.fullmatch(spec.store.rstrip("/"))
    if found is None:
        raise InputError(
            f"run.store = {spec.store}: a job at Hugging Face reaches its own buckets only"
            "\n  fix: hf buckets create NAME, then run.store=hf://buckets/YOU/NAME"
        )
    return found["id"], f"{found['path']}/" if found["path"] else ""


def _volume(spec: JobSpec) -> Any:
    from huggingface_hub import Volume

    bucket, prefix = _bucket(spec)
    path = {"path": prefix.rstrip("/")} if prefix else {}
    return Volume(type="bucket", source=bucket, mount_path=STORE, **path)


def _inside(place: str, *, store: str) -> str:
    """Say where a file of the store, or one that will be uploaded to it, is in the job."""
    root = store.rstrip("/") + "/"
    return f"{STORE}/{place.removeprefix(root)}" if place.startswith(root) else place


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn the client's exceptions into ours; a lost connection says nothing about a job."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise _no_token("there is no token") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        said = str(error.server_message or error).strip().splitlines()[0]
        if status == 401:
            raise _no_token(f"the token is refused: {said}") from error
        if status == 404:
            raise _Gone(f"Hugging Face, {doing}: {said}") from error
        if status == 429 or status >= 500 or status == 0:
            raise _no_answer(doing, f"HTTP {status}") from error
        fix = "add a payment method or credits: https://huggingface.co/settings/billing"
        hint = f"\n  fix: {fix}" if status in (402, 403) else ""
        raise OutsideError(f"Hugging Face refuses {doing} ({status}): {said}{hint}") from error
    except Exception as error:
        if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(
            error, ConnectionError
        ):
            raise _no_answer(doing, type(error).__name__) from error
        raise


def _no_token(why: str) -> OutsideError:
    return OutsideError(f"Hugging Face: {why}\n  fix: put HF_TOKEN=hf_... into .env")


def _no_answer(doing: str, why: str) -> Unreachable:
    return Unreachable(
        f"Hugging Face did not answer while {doing} ({why}); what runs there is not affected"
        "\n  fix: repeat the command",
        service="huggingface", reason="UNREACHABLE", detail={"message": why},
    )  # fmt: skip
