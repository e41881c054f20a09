"""Secrets and infrastructure: the `.env` file and the process environment.

`NAME=value` lines of `.env` (python-dotenv's rules, no shell evaluation) and the environment flow
in, the environment winning; a `Secrets` model flows out. Secret values are `SecretStr`: masked in
every display, never part of a run's configuration, never written anywhere. Training values do not
belong here (see `training_file.py`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

from saccade.config.errors import InputError
from saccade.config.keys import nearest, sentence
from saccade.config.layers import Problem
from saccade.config.resolve import format_problems
from saccade.config.training_file import FLAT_NAMES, line_of


class Secrets(BaseModel):
    """Everything `.env` may hold; the field name is the variable's name."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    WANDB_API_KEY: SecretStr | None = None
    """Key of Weights & Biases; without it runs log nothing there."""
    WANDB_BASE_URL: str | None = None
    """Address of a self-hosted W&B server."""
    HF_TOKEN: SecretStr | None = None
    """Token of the Hugging Face hub, for gated models and private datasets."""
    HF_ENDPOINT: str | None = None
    """Address of a hub mirror."""
    HF_HOME: str | None = None
    """Folder of the hub's downloads; default ~/.cache/huggingface."""
    HF_HUB_OFFLINE: str | None = None
    """Set to 1 to never contact the hub."""
    GOOGLE_APPLICATION_CREDENTIALS: str | None = None
    """Key file of a Google Cloud service account."""
    GOOGLE_CLOUD_PROJECT: str | None = None
    """Google Cloud project."""
    GOOGLE_CLOUD_REGION: str | None = None
    """Region of the bucket and the images, and the first one for jobs; default us-central1."""
    GOOGLE_CLOUD_ACCOUNT: str | None = None
    """Your Google account: gets the roles that launching needs, and answers to quota requests."""
    SACCADE_BUCKET: str | None = None
    """Storage bucket of runs and code; default PROJECT-saccade-REGION."""
    SACCADE_HOME: str | None = None
    """Folder of saccade's own files; default ~/.config/saccade."""
    SACCADE_FAKE_CLOUD: str | None = None
    """Address of a fake cloud (`saccade cloud fake`) to use instead of Google's."""
    CUDA_VISIBLE_DEVICES: str | None = None
    """GPUs that may be used, for example 0,1."""

    def shown(self) -> dict[str, str]:
        """Return every variable for display: secrets masked, unset ones empty."""
        values = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            secret = isinstance(value, SecretStr)
            values[name] = "**********" if secret else (value or "")
        return values


def read_secrets(file: Path | None, *, env: Mapping[str, str]) -> Secrets:
    """Read `.env` below the environment; raises InputError naming every unknown line at once."""
    values, problems = ({}, []) if file is None else _read_file(file)
    if problems:
        raise InputError(format_problems(problems, what=str(file)))
    values.update({name: env[name] for name in Secrets.model_fields if env.get(name)})
    return Secrets.model_validate(values)


def export_secrets(secrets: Secrets, *, env: MutableMapping[str, str]) -> None:
    """Put values of `.env` into the environment that libraries read; what is set there stays."""
    for name in Secrets.model_fields:
        value = getattr(secrets, name)
        if value is not None and not env.get(name):
            env[name] = value.get_secret_value() if isinstance(value, SecretStr) else value


def secret_table() -> list[tuple[str, bool, str]]:
    """List (variable, is it secret, sentence) for the reference."""
    return [
        (name, "SecretStr" in str(field.annotation), sentence(field.description))
        for name, field in Secrets.model_fields.items()
    ]


def _read_file(file: Path) -> tuple[dict[str, str], list[Problem]]:
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    problems: list[Problem] = []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        return values, [Problem(where=str(file), message=f"cannot be read: {reason}")]
    for binding in parse_stream(io.StringIO(text)):
        where = f"{file}:{line_of(binding.original)}"
        name = binding.key
        if binding.error or (name is not None and binding.value is None):
            # The line may hold a secret, so it is not shown.
            problems.append(Problem(where=where, message="not NAME=value"))
        elif name is not None and name not in Secrets.model_fields:
            problems.append(Problem(where=where, key=name, message=_hint(name)))
        elif name is not None and binding.value:
            values[name] = binding.value
    return values, problems


def _hint(name: str) -> str:
    if name in FLAT_NAMES:
        return "unknown name here; values of a run belong in .training"
    near = nearest(name, Secrets.model_fields)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(Secrets.model_fields)}"
    return f"unknown name; {hint}"
