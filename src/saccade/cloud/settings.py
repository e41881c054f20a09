"""Which project, regions and names saccade uses in Google Cloud.

The environment (with `.env` already in it) flows in; a frozen, checked `CloudSettings` flows out.
Every resource name is derived here and nowhere else. Left out: whether the things exist
(`plan.py`), and which machine a job takes (`saccade.launch`), which only adds quota needs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from saccade.cloud.api.transport import FAKE_PROJECT
from saccade.config.errors import InputError

APP = "saccade"
LABELS: Mapping[str, str] = {"app": APP}
"""Every resource that can carry labels carries these; teardown touches nothing without them."""

MARKER = f"app={APP}"
"""Stands in the description of resources that cannot carry labels (service accounts)."""

DEFAULT_REGION = "us-central1"
SECRET_VARIABLES = ("WANDB_API_KEY", "HF_TOKEN")
"""Variables whose values jobs fetch from Secret Manager."""

EXPIRING_PREFIX = "attempts/"
"""Checkpoints of attempts: the only prefix whose objects a lifecycle rule deletes."""

FINALS_PREFIX = "runs/"
"""Finished runs, each with a DONE object: kept until a person deletes them."""

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_REGION = re.compile(r"[a-z]+-[a-z]+[0-9]{1,2}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]")
_EMAIL = re.compile(r"[^@\s:]+@[^@\s:]+\.[^@\s:]+")


@dataclass(frozen=True)
class QuotaNeed:
    """How much of one Vertex AI quota a job takes in one region."""

    metric: str
    """Name without the service, for example `custom_model_training_preemptible_nvidia_l4_gpus`."""
    region: str
    need: int


@dataclass(frozen=True)
class CloudSettings:
    """Everything that names a resource; secret values are masked in every display."""

    project: str
    region: str
    """Where bucket and repository live; the first region a job tries."""
    bucket: str
    home: Path
    """Folder of saccade's own files on this machine."""
    regions: tuple[str, ...] = ()
    """Regions jobs may run in."""
    repository: str = APP
    account: str = "saccade-trainer"
    caller: str | None = None
    """E-mail address of the person who launches; gets the two launching roles."""
    fake: bool = False
    expire_days: int = 14
    """Age at which checkpoints of attempts are deleted."""
    soft_delete_days: int = 0
    """How long deleted objects are kept (and billed); Google's own default would be 7."""
    secrets: Mapping[str, SecretStr] = field(default_factory=dict)
    """Variable -> value to publish."""
    quotas: tuple[QuotaNeed, ...] = ()

    @property
    def account_email(self) -> str:
        """Return the service account that jobs run as."""
        domain, _, name = self.project.rpartition(":")
        tail = f"{name}.{domain}" if domain else name
        return f"{self.account}@{tail}.iam.gserviceaccount.com"

    @property
    def store(self) -> str:
        """Return the address of the checkpoint store."""
        return f"gs://{self.bucket}"

    @property
    def manifest_file(self) -> Path:
        """Return the file that records what was created; the stand-in has its own."""
        name = self.project.replace(":", "_")
        return self.home / "cloud" / f"{'fake-' if self.fake else ''}{name}.json"

    @property
    def image_prefix(self) -> str:
        """Return the start of image names in the repository."""
        return f"{self.region}-docker.pkg.dev/{self.project.replace(':', '/')}/{self.repository}"


def secret_id(variable: str) -> str:
    """Return the Secret Manager name of a variable."""
    return f"{APP}-{variable.lower().replace('_', '-')}"


def home_folder(env: Mapping[str, str]) -> Path:
    """Return the folder of saccade's own files: SACCADE_HOME, else ~/.config/saccade."""
    named = env.get("SACCADE_HOME")
    return Path(named).expanduser() if named else Path.home() / ".config" / APP


def read_settings(
    env: Mapping[str, str], *, project: str | None = None, regions: Sequence[str] = (),
    quotas: Sequence[QuotaNeed] = (),
) -> CloudSettings:  # fmt: skip
    """Derive the settings from the environment; raises InputError naming the variable."""
    fake = bool(env.get("SACCADE_FAKE_CLOUD"))
    project = project or env.get("GOOGLE_CLOUD_PROJECT") or (FAKE_PROJECT if fake else "")
    if not project:
        raise InputError(
            "GOOGLE_CLOUD_PROJECT is not set: which project?\n"
            "  fix: echo GOOGLE_CLOUD_PROJECT=my-project >> .env"
            "   (or try everything without an account: --fake)"
        )
    _check("GOOGLE_CLOUD_PROJECT", project, _PROJECT, "a project id such as my-project-123")
    home_region = env.get("GOOGLE_CLOUD_REGION") or DEFAULT_REGION
    for region in (home_region, *regions):
        _check("GOOGLE_CLOUD_REGION", region, _REGION, "a region (not a zone) such as us-central1")
    plain = project.replace(":", "-").replace(".", "-")
    bucket = (env.get("SACCADE_BUCKET") or f"{plain}-{APP}-{home_region}").removeprefix("gs://")
    _check("SACCADE_BUCKET", bucket, _BUCKET, "3 to 63 of a-z, 0-9, - and _")
    caller = env.get("GOOGLE_CLOUD_ACCOUNT") or None
    if caller:
        _check("GOOGLE_CLOUD_ACCOUNT", caller, _EMAIL, "an e-mail address")
    return CloudSettings(
        project=project,
        region=home_region,
        bucket=bucket,
        home=home_folder(env),
        regions=tuple(dict.fromkeys((home_region, *regions))),
        caller=caller,
        fake=fake,
        secrets={name: SecretStr(env[name]) for name in SECRET_VARIABLES if env.get(name)},
        quotas=tuple(quotas),
    )


def _check(name: str, value: str, pattern: re.Pattern[str], expected: str) -> None:
    if not pattern.fullmatch(value):
        raise InputError(f"{name} = {value}: expected {expected}\n  fix: correct it in .env")
