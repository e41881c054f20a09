"""What a person typed, turned into configurations and runs.

Command-line words flow in; resolved configurations, run directories and data sources flow out. The
ambient layers (`./.training`, `./.env`, the environment) are read here and nowhere else, so that
the packages below stay functions of their arguments. Left out: what is done with them (`cli.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saccade.config.errors import InputError
from saccade.training.rundir import MEASURING_KEYS

if TYPE_CHECKING:
    from saccade.config.resolve import Resolved
    from saccade.config.schema import Config, ModelConfig, Source
    from saccade.training.rundir import RunDir

TRAINING_FILE = Path(".training")
SECRETS_FILE = Path(".env")
DEFAULT_RUN = "relevance"
FREE_AFTER_TRAINING = (*MEASURING_KEYS, "run", "tracking", "launch")
"""Keys and sections that may differ from the trained run when it is measured."""

SOURCE_ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".csv", ".tsv")


class NoSuchRun(InputError):
    """No run directory has this path or name."""


@dataclass(frozen=True)
class PixelRules:
    """How a model sizes images: area limits in pixels and the side of one visual token."""

    min_pixels: int
    max_pixels: int
    cell_pixels: int


HUB_PIXELS = PixelRules(min_pixels=65_536, max_pixels=16_777_216, cell_pixels=32)
"""Qwen3-VL's own limits, for models whose files are not on this machine."""


def split_words(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Split `[RECIPE] key=value ...` into the recipe and the overrides."""
    words = list(words or [])
    recipe = words.pop(0) if words and not _is_override(words[0]) else None
    strays = [word for word in words if not _is_override(word)]
    if strays:
        raise InputError(
            f"command line: {strays[0]}: expected key=value, for example training.steps=100"
        )
    return recipe, words


def resolve_words(words: Sequence[str] | None, *, file: Path | None = None) -> Resolved:
    """Resolve what was typed on top of `./.training` and the environment.

    A launched job has its resolved file (SACCADE_CONFIG): there, only what is typed counts.
    """
    from saccade.config.resolve import resolve

    recipe, overrides = split_words(words)
    if os.environ.get("SACCADE_CONFIG"):
        return resolve(recipe, overrides=overrides, file=file)
    return resolve(
        recipe,
        overrides=overrides,
        file=file,
        training_file=TRAINING_FILE if TRAINING_FILE.exists() else None,
        env=os.environ,
    )


def export_dotenv() -> None:
    """Hand the values of `./.env` to the libraries that read them from the environment."""
    from saccade.config.secrets import export_secrets, read_secrets

    if SECRETS_FILE.exists():
        export_secrets(read_secrets(SECRETS_FILE, env=os.environ), env=os.environ)


def open_run(name: str, overrides: Sequence[str] = ()) -> RunDir:
    """Find a run by its path or by its name under `run.root`, with keys changed for one command."""
    from saccade.config.resolve import resolve
    from saccade.training.rundir import RunDir

    strays = [word for word in overrides if not _is_override(word)]
    if strays:
        raise InputError(f"command line: {strays[0]}: expected key=value, e.g. eval.samples=100")
    folder = Path(name)
    if not (folder / "config.yaml").is_file():
        folder = _run_by_name(name, [word for word in overrides if word.startswith("run.root=")])
    run = RunDir.open(folder)
    kept = [word for word in overrides if not word.startswith("run.root=")]
    if not kept:
        return run
    changed = resolve(file=run.config_file, overrides=kept)
    _refuse_training_keys(changed.sources, run=run)
    return _changed_run(run, config=changed.config)


def looking_run(name: str | None, overrides: Sequence[str]) -> tuple[RunDir | None, Config]:
    """Pick who looks: the named run, else the run `relevance` if there, else an untrained base."""
    if name is None:
        try:
            opened = open_run(DEFAULT_RUN, overrides)
        except NoSuchRun:
            return None, resolve_words(overrides).config
    else:
        opened = open_run(name, overrides)
    return opened, opened.config()


def source_words(words: Sequence[str] | None) -> tuple[list[str], bool]:
    """Let the first word be a data path: returns overrides for `data.train`, and whether it was."""
    words = list(words or [])
    if not words or _is_override(words[0]):
        return words, False
    path = Path(words[0])
    if not (path.is_dir() or path.suffix.lower() in SOURCE_ENDINGS):
        return words, False
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    from saccade.data.sources import infer_source

    told = {"type": "folder", "path": path}
    try:
        told = infer_source(path).model_dump(exclude_unset=True)
    except InputError:
        if not path.is_dir():
            raise  # of a folder, opening says what is missing, unless further words name it
    return [*(f"data.train.{key}={value}" for key, value in told.items()), *words[1:]], True


def sources_of(config: Config, *, split: str) -> dict[str, Source]:
    """Return the data sources named by `train`, `eval` or `both`."""
    both: dict[str, Source] = {"train": config.data.train, "eval": config.data.eval}
    if split == "both":
        return both
    if split not in both:
        raise InputError(f"--split {split}: expected train, eval or both")
    return {split: both[split]}


def pixel_rules(model: ModelConfig) -> PixelRules:
    """Read how the base model sizes images, without loading it."""
    folder = Path(model.name).expanduser()
    if model.name == "tiny":
        folder = Path(__file__).parent / "assets" / "tiny-base"
    rules = HUB_PIXELS
    for file in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if file.is_file():
            stored = json.loads(file.read_text(encoding="utf-8"))
            rules = _stored_rules(stored.get("image_processor", stored))
            break
    return PixelRules(
        min_pixels=model.min_pixels or rules.min_pixels,
        max_pixels=model.max_pixels or rules.max_pixels,
        cell_pixels=rules.cell_pixels,
    )


def _stored_rules(stored: dict) -> PixelRules:
    size = stored.get("size") or {}
    side = stored.get("patch_size", 16) * stored.get("merge_size", 2)
    return PixelRules(
        min_pixels=size.get("shortest_edge") or HUB_PIXELS.min_pixels,
        max_pixels=size.get("longest_edge") or HUB_PIXELS.max_pixels,
        cell_pixels=side,
    )


def _is_override(word: str) -> bool:
    return "=" in word or word.startswith("~")


def _run_by_name(name: str, root_words: list[str]) -> Path:
    from saccade.config.keys import nearest

    root = resolve_words(root_words).config.run.root
    if (root / name / "config.yaml").is_file():
        return root / name
    known = sorted(path.parent.name for path in root.glob("*/config.yaml"))
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else "start one with `saccade train`"
    if known and not near:
        hint = f"there is {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}"
    if Path(name).is_dir() or (root / name).is_dir():
        hint = "the folder has no config.yaml, so it is not a run directory"
    raise NoSuchRun(f"{name}: no such run (looked here and in {root}/); {hint}")


def _refuse_training_keys(sources: dict[str, str], *, run: RunDir) -> None:
    fixed = [
        key
        for key, source in sources.items()
        if "command line" in source
        and not any(key == free or key.startswith(free + ".") for free in FREE_AFTER_TRAINING)
    ]
    if fixed:
        raise InputError(
            f"command line: {', '.join(fixed)}: fixed when {run.path} was trained"
            "\n  fix: train another run with run.name=NAME and this value"
        )


def _changed_run(run: RunDir, *, config: Config) -> RunDir:
    """The same run directory, seen with another configuration; nothing is written."""
    from saccade.training.rundir import RunDir

    class ChangedRun(RunDir):
        def config(self) -> Config:
            return config

    return ChangedRun(run.path)
