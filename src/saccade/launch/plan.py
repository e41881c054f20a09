"""From a configuration to everything a launch needs: job, places, price, findings, token.

A resolved configuration flows in; a `LaunchPlan` flows out, which `--dry-run` shows and the launch
log keeps. Planning spends nothing and makes nothing. The token names the launch: the same run,
configuration and code give the same token, so launching twice is launching once. Left out: putting
code and configuration where the job finds them (`deliver.py`).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.cloud.findings import Finding, Level
from saccade.config.errors import InputError, OutsideError, SaccadeError
from saccade.config.resolve import Resolved, to_yaml
from saccade.config.schema import Config
from saccade.launch.inputs import Input, point_at, read_inputs
from saccade.launch.inputs import findings as input_findings
from saccade.launch.log import FOLDER, Launch, launch_of
from saccade.launch.machines import Strategy
from saccade.launch.spec import JobSpec, labels
from saccade.launch.targets import open_target
from saccade.launch.targets.base import Settings, Target
from saccade.launch.view import Offer, Policy

if TYPE_CHECKING:
    from saccade.cloud.settings import CloudSettings
    from saccade.launch.candidates import Choice
    from saccade.launch.package import Archive

GOOGLE_TARGETS = ("vertex", "fake")
HERE = ("local", "docker")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
TOKEN = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
TOKEN_DIGITS = 10
POLICY_KEYS = ("max_attempts", "wait_minutes", "backoff_seconds", "budget", "hours")
"""Keys that may change between two launches of one job: they move no job, only limits."""


@dataclass(frozen=True)
class LaunchPlan:
    """What would be launched."""

    launch: Launch
    target: Target
    spec: JobSpec
    config: Config
    """The configuration as the job gets it."""
    config_text: str
    run_dir: Path
    choice: Choice
    policy: Policy
    env: Mapping[str, str]
    """The environment targets connect with (a fake cloud's address is among it)."""
    findings: tuple[Finding, ...] = ()
    request: Mapping[str, Any] = field(default_factory=dict)
    archive: Archive | None = None
    settings: CloudSettings | None = None
    inputs: tuple[Input, ...] = ()

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Where it may run, in order."""
        return self.choice.offers

    def planned(self) -> dict[str, Any]:
        """Return the fields of the `planned` event: all that is needed to go on from it."""
        return {
            "spec": self.spec.to_json(), "target": self.target.name,
            "run_dir": str(self.run_dir), "offers": [asdict(offer) for offer in self.offers],
            "policy": asdict(self.policy), "source": self.choice.source,
            "kept": [asdict(offer) for offer in self.choice.kept],
            "estimate": self.choice.estimate, "project": _project(self.config, self.env),
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return everything `--dry-run --json` shows."""
        return {
            "run": self.spec.run, "token": self.spec.token, "launch": self.launch.key,
            "target": self.target.name, "spec": self.spec.to_json(),
            "request": dict(self.request), "ranking": list(self.choice.ranking),
            "offers": [asdict(offer) for offer in self.offers], "policy": asdict(self.policy),
            "estimate": self.choice.estimate, "prices": self.choice.source,
            "findings": [finding.to_json() for finding in self.findings],
            "code": _archive_json(self.archive),
            "inputs": [{"path": str(one.path), "place": one.place, "bytes": one.manifest.bytes,
                        "files": len(one.manifest.files)} for one in self.inputs],
        }  # fmt: skip


def plan_launch(
    resolved: Resolved,
    *,
    env: Mapping[str, str],
    token: str | None = None,
    inputs: Sequence[Path] = (),
) -> LaunchPlan:
    """Plan a launch; raises InputError or OutsideError where not even a plan is possible.

    `inputs` are files and folders of this machine that the job shall find under their settings.
    """
    config = resolved.config
    name = config.run.name or config.recipe
    if not RUN_NAME.fullmatch(name):
        raise InputError(f"run.name = {name}: letters, digits, `.`, `_` and `-` (80 at most)")
    target_name = config.launch.target
    env = connected(target_name, env=env)
    settings = _cloud(config, env=env) if target_name in GOOGLE_TARGETS else None
    taken = _inputs(inputs, target=target_name, env=env)
    shipped = point_at(_as_shipped(config, name=name, settings=settings), taken)
    archive, code_hash = _code(target_name, home=_home(env), env=env)
    token = _checked(token) if token else _token(shipped, code_hash=code_hash)
    launch = launch_of(config.run.root, run=name, token=token)
    target = open_target(target_name, settings=target_settings(config, env=env))
    first = _first_findings(target, settings)
    choice = _choice(config, target=target, settings=settings)
    spec = _spec(
        shipped, launch=launch, name=name, token=token, choice=choice, settings=settings,
        archive=archive, inputs=taken, env=env,
    )  # fmt: skip
    spec, image_findings = _with_image(spec, target=target, settings=settings)
    findings = [*_bucket_findings(target, settings, first), *choice.findings, *image_findings]
    if target_name != "local":
        disk_gb = config.launch.disk_gb if settings is not None else None
        findings += input_findings(shipped, taken, disk_gb=disk_gb)
    findings += _secret_findings(target, settings, spec)
    findings += _target_findings(target, spec, told={one.name for one in image_findings})
    return LaunchPlan(
        launch=launch,
        target=target,
        spec=spec,
        config=shipped,
        config_text=to_yaml(shipped),
        run_dir=(config.run.root / name).absolute(),
        choice=choice,
        policy=policy_of(config),
        env=env,
        findings=tuple(findings),
        request=_request(target, spec) if choice.offers else {},
        archive=archive,
        settings=settings,
        inputs=taken,
    )


def connected(target: str, *, env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment a target connects with; `fake` gets its server, started if need be."""
    if target != "fake":
        return dict(env)
    from saccade.launch.targets.fake import fake_env

    return fake_env(dict(env))


def target_settings(config: Config, *, env: Mapping[str, str]) -> Settings:
    """Return what targets need to connect."""
    return Settings(
        env=env, project=_project(config, env), region=env.get("GOOGLE_CLOUD_REGION"),
        home=(config.run.root / FOLDER).absolute(),
    )  # fmt: skip


def policy_of(config: Config) -> Policy:
    """Return what the launch may do by itself."""
    launch = config.launch
    return Policy(
        max_attempts=launch.max_attempts, wait_s=launch.wait_minutes * 60,
        backoff_s=launch.backoff_seconds, budget_usd=launch.budget,
    )  # fmt: skip


def _project(config: Config, env: Mapping[str, str]) -> str | None:
    return config.launch.project or env.get("GOOGLE_CLOUD_PROJECT") or None


def _cloud(config: Config, *, env: Mapping[str, str]) -> CloudSettings:
    from saccade.cloud.settings import read_settings

    return read_settings(env, project=config.launch.project, regions=config.launch.regions)


def _as_shipped(config: Config, *, name: str, settings: CloudSettings | None) -> Config:
    """The configuration as the job gets it: its own name, and the store it shall use."""
    run: dict[str, Any] = {"name": name}
    store = config.run.store
    if settings is not None:
        run |= {"store": _in_a_bucket(store) if store else settings.store, "root": Path("runs")}
    elif config.launch.target == "docker":
        run |= {"store": store or str((config.run.root / ".store").absolute())}
    return config.model_copy(update={"run": config.run.model_copy(update=run)})


def _in_a_bucket(store: str) -> str:
    """Refuse now what the job would refuse on a machine that is paid for."""
    from saccade.training.store import open_store

    if not store.startswith("gs://"):
        raise InputError(
            f"run.store = {store}: a job in Google Cloud keeps its run in a bucket"
            "\n  fix: leave run.store empty, or run.store=gs://BUCKET"
        )
    open_store(store, env={})
    return store


def _home(env: Mapping[str, str]) -> Path:
    from saccade.cloud.settings import home_folder

    return home_folder(env)


def _inputs(
    paths: Sequence[Path], *, target: str, env: Mapping[str, str]
) -> tuple[Input, ...]:  # fmt: skip
    """What is brought to another machine; on this one files are read where they lie."""
    if not paths or target == "local":
        return ()
    if target == "hf-jobs":
        raise InputError(
            f"--input {paths[0]}: inputs are not brought to buckets of Hugging Face"
            "\n  fix: saccade export hub, and name the model on the hub; or another target"
        )
    from saccade.launch.package import secret_values

    return read_inputs(paths, secrets=secret_values(Path.cwd(), env=env))


def _code(target: str, *, home: Path, env: Mapping[str, str]) -> tuple[Archive | None, str]:
    """Pack the code for another machine; on this one its hash is enough."""
    if target == "local":
        return None, _tree_hash(Path(__file__).parents[1])
    from saccade.launch.package import pack, secret_values

    archive = pack(folder=home / "code", secrets=secret_values(Path.cwd(), env=env))
    return archive, archive.sha256


def _tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _token(config: Config, *, code_hash: str) -> str:
    plain = config.model_dump(mode="json")
    for key in POLICY_KEYS:
        plain["launch"].pop(key)
    text = f"{config.run.name}\0{sorted(plain.items())!r}\0{code_hash}"
    return hashlib.sha256(text.encode()).hexdigest()[:TOKEN_DIGITS]


def _checked(token: str) -> str:
    if not TOKEN.fullmatch(token):
        raise InputError(f"--token {token}: small letters, digits and `-` (40 at most)")
    return token


def _choice(config: Config, *, target: Target, settings: CloudSettings | None) -> Choice:
    from saccade.launch import candidates

    if target.name in HERE:
        return candidates.here(config)
    if settings is None:
        return candidates.hugging_face(config)
    from saccade.launch.prices import load_prices

    google = getattr(target, "google", None)
    assert google is not None
    return candidates.in_google_cloud(
        config, google=google,
        prices=load_prices(home=settings.home, fake=settings.fake), store_region=settings.region,
    )  # fmt: skip


def _spec(
    config: Config,
    *,
    launch: Launch,
    name: str,
    token: str,
    choice: Choice,
    settings: CloudSettings | None,
    archive: Archive | None,
    inputs: Sequence[Input],
    env: Mapping[str, str],
) -> JobSpec:
    first = choice.offers[0] if choice.offers else None
    strategy = config.launch.strategy
    wanted = Strategy.SPOT if strategy == "cheapest" else Strategy(strategy)
    code, file = "", str(launch.config_file.absolute())
    if settings is not None and archive is not None:
        code = f"{settings.store}/code/{archive.name}"
        file = f"{settings.store}/launches/{token}/config.yaml"
    elif archive is not None:
        code = str(archive.path.absolute())
    made = JobSpec(
        run=name, token=token, attempt=1, recipe=config.recipe,
        machine=first.machine if first else config.launch.machine,
        replicas=config.launch.replicas,
        strategy=Strategy(first.strategy) if first else wanted,
        region=first.region if first else (settings.region if settings else "local"),
        image=config.launch.image, code=code, config=file, store=config.run.store or "",
        env=_job_env(config, env=env), inputs={one.place: str(one.path) for one in inputs},
        secrets=_secrets(settings, env=env),
        timeout_s=choice.timeout_s, max_wait_s=int(config.launch.wait_minutes * 60),
        disk_gb=config.launch.disk_gb,
        service_account=settings.account_email if settings else None,
    )  # fmt: skip
    return made.at(attempt=1, labels=labels(made))


def _job_env(config: Config, *, env: Mapping[str, str]) -> dict[str, str]:
    if config.launch.target != "local":
        return {}
    gpus = 0 if config.model.device == "cpu" else _gpus_here(env)
    return {"SACCADE_GPUS": str(gpus)} if gpus > 1 else {}


def _gpus_here(env: Mapping[str, str]) -> int:
    """GPUs of this machine that may be used, counted without loading torch."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(os.listdir(folder)) if folder.is_dir() else 0  # noqa: PTH208


def _secrets(settings: CloudSettings | None, *, env: Mapping[str, str]) -> dict[str, str]:
    """Variable -> where the job gets its value; never the value."""
    from saccade.cloud.settings import SECRET_VARIABLES, secret_id

    found = [name for name in SECRET_VARIABLES if env.get(name)]
    if settings is None:
        return dict.fromkeys(found, "here")
    root = f"projects/{settings.project}/secrets"
    return {name: f"{root}/{secret_id(name)}/versions/latest" for name in found}


def _with_image(
    spec: JobSpec, *, target: Target, settings: CloudSettings | None
) -> tuple[JobSpec, list[Finding]]:  # fmt: skip
    """Name the image for the plan; one that must be built first is a warning, not an error."""
    if settings is None or spec.image is not None:
        return spec, []
    from saccade.cloud.api import registry
    from saccade.launch.images import IMAGE, image_tag

    google = getattr(target, "google", None)
    address, tag = f"{settings.image_prefix}/{IMAGE}", image_tag()
    assert google is not None
    try:
        digest = registry.image_digest(
            google, region=settings.region, repository=settings.repository,
            image=f"{IMAGE}:{tag}",
        )  # fmt: skip
    except SaccadeError as error:
        text, _, fix = str(error).partition("\n  fix: ")
        known = isinstance(error, OutsideError)
        finding = Finding("image", Level.UNKNOWN if known else Level.BLOCK, text, fix=fix)
        return spec.at(attempt=1, image=f"{address}:{tag}"), [finding]
    if digest is not None:
        return spec.at(attempt=1, image=f"{address}@{digest}"), []
    said = f"{IMAGE}:{tag} is not in the registry: it is built first (its dependencies are new)"
    finding = Finding("image", Level.WARN, said, have="absent", need="present")
    return spec.at(attempt=1, image=f"{address}:{tag}"), [finding]


def _first_findings(target: Target, settings: CloudSettings | None) -> list[Finding]:
    """Credentials, project and billing; where those do not answer, nothing else is waited for."""
    google = getattr(target, "google", None)
    if settings is None or google is None:
        return []
    from saccade.cloud.api.transport import Patience
    from saccade.cloud.checks import first_checks

    found = first_checks(google, settings)
    if found[0].level is not Level.OK:
        hurried = google.patient(Patience(deadline_s=0.0, timeout_s=5.0))
        setattr(target, "google", hurried)  # noqa: B010  a protocol does not know this field
    return found


def _bucket_findings(
    target: Target, settings: CloudSettings | None, found: list[Finding]
) -> list[Finding]:  # fmt: skip
    """The first findings and the bucket: what must be there before anything is spent."""
    if settings is None:
        return []
    from saccade.cloud.api import storage

    google = getattr(target, "google", None)
    assert google is not None
    if any(one.level is Level.BLOCK for one in found):
        return found
    fix = "saccade cloud setup" + (" --fake" if settings.fake else "")
    try:
        there = storage.get_bucket(google, settings.bucket) is not None
    except SaccadeError as error:
        text, _, its_fix = str(error).partition("\n  fix: ")
        return [*found, Finding("bucket", Level.BLOCK, text, fix=its_fix or fix)]
    level = Level.OK if there else Level.BLOCK
    said = settings.bucket if there else f"{settings.bucket} does not exist"
    return [*found, Finding("bucket", level, said, fix="" if there else fix)]


def _secret_findings(
    target: Target, settings: CloudSettings | None, spec: JobSpec
) -> list[Finding]:  # fmt: skip
    if settings is None:
        return []
    from saccade.cloud.api import secrets
    from saccade.cloud.settings import secret_id

    found = []
    google = getattr(target, "google", None)
    for name in spec.secrets:
        try:
            there = google is not None and secrets.get(google, secret_id(name)) is not None
        except SaccadeError as error:
            text = str(error).splitlines()[0]
            found.append(Finding(f"secret {name}", Level.UNKNOWN, text))
            continue
        level = Level.OK if there else Level.BLOCK
        said = "in Secret Manager" if there else f"{name} is set here, but not in Secret Manager"
        fix = "" if there else "saccade cloud setup --only secrets"
        found.append(Finding(f"secret {name}", level, said, fix=fix))
    return found


def _target_findings(target: Target, spec: JobSpec, *, told: set[str]) -> list[Finding]:
    return [one for one in target.check(spec) if one.name not in told]


def _request(target: Target, spec: JobSpec) -> dict[str, Any]:
    try:
        return target.plan(spec)
    except SaccadeError as error:  # said by a finding already
        return {"error": str(error).splitlines()[0]}


def _archive_json(archive: Archive | None) -> dict[str, Any] | None:
    if archive is None:
        return None
    return {
        "name": archive.name, "bytes": archive.size_bytes, "files": len(archive.files),
        "left_out": len(archive.left_out),
    }  # fmt: skip
