"""A Space folder from a run: the model in one piece, a page that answers, and an honest card.

In goes a run directory, a run with an adapter or a model folder; out comes a folder with `app.py`,
`requirements.txt` (pinned), `README.md` (Space front matter and model card), `model/`, `saccade/`
(the modules the model runs with) and `LICENSE`. The adapter is merged, the written model is loaded
anew and compared with the one it was made of; drift leaves nothing behind. The folder is made aside
and renamed. A secret of this machine in any file stops it. Left out: publishing (`deploy_hub.py`).
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError
from saccade.config.schema import Config

if TYPE_CHECKING:
    from pydantic import SecretStr

    from saccade.evaluation.load import Progress
    from saccade.models.relevance.merge import Parity
    from saccade.pipeline.deploy_source import Subject
    from saccade.pipeline.stages import StageContext, StageResult
    from saccade.training.rundir import RunDir

FACTS = "space.json"
"""Marks a folder that was written here, and tells the page what it shows."""
FORMAT = 1
SAMPLES = 16
SHOWN_VERSIONS = ("saccade", "torch", "transformers", "gradio")
TEXTS = {".json", ".md", ".py", ".txt", ".yaml", ".jinja", ".model", ""}
TOKENS = re.compile(rb"\bhf_[A-Za-z]{34}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b")


@dataclass(frozen=True)
class Deployed:
    """The folder that was written and what was checked."""

    folder: Path
    files: int
    bytes: int
    parity: Parity


def deploy(
    source: Path,
    folder: Path,
    *,
    run: RunDir | None = None,
    config: Config | None = None,
    adapter: Path | None = None,
    limit: int = SAMPLES,
    tolerance: float | None = None,
    secrets: Mapping[str, SecretStr] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Deployed:
    """Write the Space folder; one that was written here before is replaced in one rename.

    `run` is the run at `source`, or None for a model folder, whose samples `config` then names.
    Raises InputError when merging changes the model, when `folder` holds something else, or when a
    file would carry a secret; OutsideError when a package is missing.
    """
    from saccade.models.relevance.merge import write_merged
    from saccade.pipeline.deploy_check import check_merged
    from saccade.pipeline.deploy_source import held_out, open_subject

    refuse_other_folder(folder)
    subject = open_subject(source, run=run, config=config, adapter=adapter)
    samples = held_out(subject.config, limit=limit)
    earlier = check_merged(subject, samples=samples, tolerance=tolerance, progress=progress)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _made_aside(folder) as aside:
        parity = write_merged(
            subject.model,
            aside / "merged",
            samples=samples,
            renderer=subject.renderer,
            adapter=subject.adapter,
            tolerance=tolerance,
            max_new_tokens=subject.config.eval.max_new_tokens,
            progress=progress,
        )
        if earlier is not None and earlier.largest_drift >= parity.largest_drift:
            parity = earlier  # the run merged its adapter itself: that is the difference to tell
        _place_model(aside, subject)
        _write_files(aside, subject, parity=parity, example=samples[0].question)
        refuse_secrets(aside, secrets=secrets or {})
        put_in_place(aside, folder)
    sizes = [path.stat().st_size for path in _files(folder)]
    return Deployed(folder=folder, files=len(sizes), bytes=sum(sizes), parity=parity)


def deploy_stage(context: StageContext) -> StageResult:
    """The pipeline's kind `deploy`: the run given as input becomes the artifact `space`."""
    from saccade.launch.package import secret_values
    from saccade.pipeline.stages import StageResult, opened

    run = opened(context)
    made = deploy(
        run.path, context.folder / "space", run=run, progress=context.stoppable,
        secrets=secret_values(Path.cwd(), env=os.environ),
    )  # fmt: skip
    parity = made.parity
    metrics = {
        "drift": parity.largest_drift,
        "answers_changed": float(parity.answers_changed),
        "samples": float(parity.samples),
    }
    return StageResult(metrics, {"space": made.folder, "model": made.folder / "model"})


def is_space(folder: Path) -> bool:
    """Whether a folder was written here."""
    return (folder / FACTS).is_file() and (folder / "app.py").is_file()


def refuse_other_folder(folder: Path) -> None:
    """Raise InputError when the place is taken by something that was not written here."""
    if folder.name in ("", ".."):
        raise InputError(f"{folder}: cannot be replaced as a whole\n  fix: name a folder inside it")
    if folder.exists() and not is_space(folder) and (folder.is_file() or any(folder.iterdir())):
        raise InputError(
            f"{folder}: exists already and is not a Space that saccade wrote"
            "\n  fix: name a new folder with --out"
        )


def refuse_secrets(folder: Path, *, secrets: Mapping[str, SecretStr]) -> None:
    """Raise InputError when a file holds a secret of this machine, or something like a key."""
    values = {
        name: value.get_secret_value().encode()
        for name, value in secrets.items()
        if len(value.get_secret_value()) >= 8
    }
    for path in _files(folder):
        if path.suffix not in TEXTS:
            continue
        content, shown = path.read_bytes(), path.relative_to(folder)
        found = [name for name, value in values.items() if value in content]
        if not found and TOKENS.search(content):
            found = ["something that looks like a token or a private key"]
        if found:
            raise InputError(
                f"{shown}: holds {', '.join(found)}; nothing was written"
                "\n  fix: take it out of the run or model folder, and replace that secret"
            )


def put_in_place(aside: Path, folder: Path) -> None:
    """Let the finished folder take its place; what was there is moved away first, then removed."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    aside.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _place_model(aside: Path, subject: Subject) -> None:
    """A selector stays around its base; a plain model is the base alone."""
    merged = aside / "merged"
    if not subject.selects:
        (merged / "base").replace(aside / "model")
        shutil.rmtree(merged)
        return
    merged.replace(aside / "model")
    card = aside / "model" / "relevance.json"
    values = json.loads(card.read_text("utf-8"))
    values["base"] = subject.base  # not the path it had on this machine
    values["selector"]["feature_cache"] = None
    card.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_files(aside: Path, subject: Subject, *, parity: Parity, example: str) -> None:
    from saccade.launch.package import project_file
    from saccade.pipeline.deploy_card import model_card, space_readme, title_of
    from saccade.pipeline.deploy_code import needed_code, requirements

    page = Path(str(resources.files("saccade") / "assets" / "space" / "app.py"))
    code = needed_code(page)
    needed = requirements(code.imports, pins=project_file("constraints.txt"))
    versions = _versions(needed)
    for name, content in {"app.py": page.read_bytes(), **code.files}.items():
        place = aside / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    texts = {
        "requirements.txt": needed,
        "README.md": space_readme(subject, parity=parity, versions=versions),
        "model/README.md": model_card(subject, parity=parity, versions=versions),
        "LICENSE": project_file("LICENSE"),
        "model/LICENSE": project_file("LICENSE"),
        FACTS: json.dumps(_facts(subject, title_of(subject), parity, example), indent=2) + "\n",
    }
    for name, text in texts.items():
        (aside / name).write_text(text, encoding="utf-8")


def _facts(subject: Subject, title: str, parity: Parity, example: str) -> dict[str, Any]:
    keep = subject.config.selector.keep
    percent = round(100 * keep) if isinstance(keep, float) else 25
    kept = f"It reads the visual tokens its selector chooses, {percent} % by default, and shows"
    return {
        "format": FORMAT,
        "title": title,
        "sentence": "Bring a picture and ask about it."
        + (f" {kept} which." if subject.selects else ""),
        "example": example,
        "selects": subject.selects,
        "percent": max(1, percent),
        "min_pixels": subject.config.model.min_pixels,
        "max_pixels": subject.config.model.max_pixels,
        "max_new_tokens": subject.config.eval.max_new_tokens,
        "parity": asdict(parity),
    }


def _versions(needed: str) -> dict[str, str]:
    from saccade.pipeline.deploy_code import pinned_version

    found = {
        name: pinned_version(name, requirements=needed)
        for name in SHOWN_VERSIONS
        if name != "saccade"
    }
    try:
        found["saccade"] = metadata.version("saccade")
    except metadata.PackageNotFoundError:
        found["saccade"] = "a checkout"
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@contextmanager
def _made_aside(folder: Path) -> Iterator[Path]:
    """A place beside the folder, gone at the end; those that killed calls left are removed, too.

    Each is locked by whoever writes it, so that two calls at once leave each other alone.
    """
    prefix = f".{folder.name}.deploying-"
    for stale in folder.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), _locked(stale):
            shutil.rmtree(stale, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    aside.chmod(0o755)
    with _locked(aside):
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; raises OSError when somebody else does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
