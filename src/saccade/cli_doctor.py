"""`saccade doctor`: what this machine has and lacks, each lack with the command that mends it.

Nothing flows in but the machine; a list of `Check`s flows out. A check never raises: what breaks
is reported as a failure. The network is touched only when asked for. Left out: benchmarks.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from saccade.config.errors import SaccadeError

TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "safetensors": "0.8.0",
    "datasets": "5.2.0",
    "pydantic": "2.14.3",
    "hydra-core": "1.3.8",
}
"""Versions saccade was tested with; a test keeps them equal to constraints.txt."""

REQUIRED_SERIES = ("torch", "transformers")
"""Packages whose minor version must be the tested one."""

MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 2.0
MIN_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """One finding; `fix` says what to do and is empty when nothing is to be done."""

    name: str
    status: Literal["ok", "note", "fail"]
    found: str
    fix: str = ""


def examine(*, online: bool) -> list[Check]:
    """Run every check in order; with `online`, the hub is asked too."""
    checks: list[Check] = []
    steps: list[Callable[[], Iterator[Check]]] = [
        _python, _packages, _processor, _memory, _configuration, _disk, _cuda, _tiny_base, _keys,
        _cloud,
    ]  # fmt: skip
    for step in [*steps, _hub] if online else steps:
        try:
            checks.extend(step())
        except Exception as error:
            # whatever breaks on a sick machine is a finding, not a crash of the doctor
            name = step.__name__.strip("_").replace("_", " ")
            checks.append(Check(name, "fail", f"{type(error).__name__}: {error}", _reinstall()))
    return checks


def _python() -> Iterator[Check]:
    good = sys.version_info >= MIN_PYTHON
    yield Check(
        "Python",
        "ok" if good else "fail",
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "" if good else "install Python 3.11 or newer, then: make PYTHON=python3.12 demo",
    )


def _packages() -> Iterator[Check]:
    for name, tested in TESTED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "fail", "not installed", _reinstall())
            continue
        series = found.split(".")[:2] == tested.split(".")[:2]
        if found.split("+")[0] == tested:
            yield Check(name, "ok", found)
        elif series or name not in REQUIRED_SERIES:
            yield Check(name, "note", f"{found} (tested with {tested})")
        else:
            yield Check(name, "fail", f"{found} (tested with {tested})", _reinstall())
    try:
        found = metadata.version("torchvision")
        yield Check("torchvision", "ok", f"{found}: image resizing by torchvision")
    except metadata.PackageNotFoundError:
        yield Check("torchvision", "ok", "absent (not needed): image resizing by Pillow")


def _processor() -> Iterator[Check]:
    from saccade.training.threads import available_cores, choose_threads

    threads = choose_threads(0, earlier=None)
    found = f"{available_cores()} cores, {threads} idle: training would use {threads} thread(s)"
    yield Check("CPU", "ok", found)


def _memory() -> Iterator[Check]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    good = total >= MIN_MEMORY_GB
    fix = "" if good else "use a machine with more memory or a smaller training.batch_size"
    yield Check("memory", "ok" if good else "note", f"{total:.1f} GB", fix)


def _configuration() -> Iterator[Check]:
    from saccade.cli_inputs import SECRETS_FILE, TRAINING_FILE, resolve_words

    files = [str(file) for file in (TRAINING_FILE, SECRETS_FILE) if file.exists()]
    try:
        resolved = resolve_words([])
    except SaccadeError as error:
        yield Check("configuration", "fail", str(error), "mend the lines named here")
        return
    own = [key for key, source in resolved.sources.items() if source.startswith((".tr", "env"))]
    found = f"{' and '.join(files) or 'no .training or .env here'}; {len(own)} value(s) set"
    yield Check("configuration", "ok", found)


def _disk() -> Iterator[Check]:
    from saccade.cli_inputs import resolve_words

    root = resolve_words([]).config.run.root
    existing = root.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free / 2**30
    good = free >= MIN_DISK_GB
    fix = "" if good else "free some space, or set OUTPUT_DIR in .training to another disk"
    yield Check("disk", "ok" if good else "fail", f"{free:.1f} GB free at {existing}", fix)
    probe = existing / f".saccade-doctor-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
        yield Check("run folder", "ok", f"{root}{os.sep} can be written")
    except OSError as error:
        fix = f"chmod u+w {existing}, or set OUTPUT_DIR in .training to another folder"
        yield Check("run folder", "fail", f"{root}{os.sep}: {error.strerror}", fix)


def _cuda() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield Check("CUDA", "ok", f"{', '.join(names)} ({memory:.0f} GB), {torch.version.cuda}")
    elif torch.version.cuda:
        fix = "check the driver with: nvidia-smi"
        yield Check("CUDA", "note", f"torch is built for CUDA {torch.version.cuda}, no GPU", fix)
    else:
        yield Check("CUDA", "ok", "absent (not needed): everything runs on the CPU")


def _tiny_base() -> Iterator[Check]:
    from saccade.config.schema import ModelConfig
    from saccade.models.backbone import load_backbone

    try:
        backbone = load_backbone(ModelConfig(name="tiny", device="cpu"))
    except SaccadeError as error:
        yield Check("tiny base", "fail", str(error).splitlines()[0], _reinstall())
        return
    millions = sum(weight.numel() for weight in backbone.model.parameters()) / 1e6
    yield Check("tiny base", "ok", f"loads, {millions:.2f}M parameters")


def _keys() -> Iterator[Check]:
    wandb = os.environ.get("WANDB_API_KEY", "")
    token = os.environ.get("HF_TOKEN", "")
    try:
        metadata.version("wandb")
        have = f"key {_masked(wandb)}" if wandb else "no key: nothing is sent there"
        yield Check("W&B", "ok", have)
    except metadata.PackageNotFoundError:
        fix = "pip install 'saccade[train]'" if wandb else ""
        yield Check("W&B", "note", "wandb is not installed", fix)
    have = f"token {_masked(token)}" if token else "no token: gated models cannot be loaded"
    yield Check("Hugging Face", "ok", have)


def _cloud() -> Iterator[Check]:
    project = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    fake = os.environ.get("SACCADE_FAKE_CLOUD", "")
    if not project and not fake:
        found = "no project: everything runs here (to try it: saccade cloud setup --fake)"
        yield Check("cloud", "ok", found)
        return
    missing = []
    for name in ("google-auth", "requests"):
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        found = f"{', '.join(missing)} not installed"
        yield Check("cloud", "note", found, "pip install 'saccade[cloud]'")
        return
    from saccade.cloud.settings import read_settings

    try:
        settings = read_settings(os.environ)
    except SaccadeError as error:
        message, _, fix = str(error).partition("\n  fix: ")
        yield Check("cloud", "fail", message, fix)
        return
    where = f"local stand-in at {fake}" if fake else f"project {settings.project}"
    yield Check("cloud", "ok", f"{where}, store {settings.store}", "saccade cloud status")
    yield from _login(fake=bool(fake))


def _login(*, fake: bool) -> Iterator[Check]:
    """Say where the credentials would come from, without reading them."""
    if fake:
        return
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    own = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    if named and not Path(named).is_file():
        fix = "correct GOOGLE_APPLICATION_CREDENTIALS in .env"
        yield Check("cloud login", "fail", f"{named}: no such file", fix)
    elif named or own.is_file():
        yield Check("cloud login", "ok", f"{'key file' if named else 'login'} {named or own}")
    else:
        fix = "gcloud auth application-default login"
        yield Check("cloud login", "note", "nobody is logged in on this computer", fix)


def _hub() -> Iterator[Check]:
    from urllib.error import URLError
    from urllib.request import Request, urlopen

    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urlopen(Request(address, method="HEAD"), timeout=10) as answer:
            yield Check("hub", "ok", f"{address} answers ({answer.status})")
    except (URLError, OSError, ValueError) as error:
        fix = "check network and proxy, or point model.name at a local folder"
        yield Check("hub", "fail", f"{address}: {getattr(error, 'reason', error)}", fix)


def _masked(secret: str) -> str:
    """Show that a secret is there, and nothing of it."""
    return "set (**********)" if secret else "not set"


def _reinstall() -> str:
    in_checkout = Path("constraints.txt").is_file() and Path("Makefile").is_file()
    return "make install" if in_checkout else "pip install --force-reinstall saccade"
