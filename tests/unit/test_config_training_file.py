"""`.training` and `.env`: python-dotenv's rules, no shell, strict names, hidden secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.config.errors import InputError
from saccade.config.resolve import resolve
from saccade.config.secrets import export_secrets, read_secrets


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_quotes_comments_and_export_are_understood(tmp_path: Path) -> None:
    text = (
        "# my values\n\nexport RUN_NAME='a b'  # a comment\n"
        'WANDB_PROJECT="quoted # not a comment"\nMAX_STEPS = 7\n'
    )
    file = written(tmp_path, ".training", text)
    resolved = resolve(training_file=file)
    assert resolved.config.run.name == "a b"
    assert resolved.config.tracking.project == "quoted # not a comment"
    assert resolved.config.training.steps == 7
    assert resolved.sources["run.name"] == f"{file}:3"
    assert resolved.sources["training.steps"] == f"{file}:5"


def test_nothing_is_evaluated_by_a_shell(tmp_path: Path) -> None:
    file = written(tmp_path, ".training", "RUN_NAME=$(whoami)-${HOME}-`id`\n")
    assert resolve(training_file=file).config.run.name == "$(whoami)-${HOME}-`id`"


def test_an_empty_value_counts_as_not_given(tmp_path: Path) -> None:
    file = written(tmp_path, ".training", "WANDB_ENTITY=\nMAX_STEPS=\n")
    assert resolve(training_file=file).config == resolve().config


def test_null_clears_a_value_that_may_be_null(tmp_path: Path) -> None:
    file = written(tmp_path, ".training", "MAX_PIXELS=null\n")
    config = resolve(overrides=["model=qwen3-vl-2b"]).config
    assert config.model.max_pixels is not None
    assert resolve(training_file=file).config.model.max_pixels is None


def test_a_name_given_twice_is_a_mistake(tmp_path: Path) -> None:
    file = written(tmp_path, ".training", "SEED=1\nSEED=2\n")
    with pytest.raises(InputError, match=r":2: SEED is given twice \(first in line 1\)"):
        resolve(training_file=file)


def test_the_shipped_examples_are_accepted_with_every_line_uncommented(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    lines = []
    for line in (root / ".training.example").read_text().splitlines():
        bare = line.removeprefix("# ")
        known = bare.split("=")[0].isupper() and bare.split("=")[0] not in " ".join(lines)
        lines.append(bare if "=" in bare and known else line)
    resolved = resolve(training_file=written(tmp_path, ".training", "\n".join(lines)))
    assert sum(str(tmp_path) in where for where in resolved.sources.values()) >= 15
    assert read_secrets(root / ".env.example", env={}).WANDB_API_KEY is None


def test_secrets_are_masked_in_every_display(tmp_path: Path) -> None:
    file = written(tmp_path, ".env", "WANDB_API_KEY=sesame\nHF_HOME=/data\n")
    secrets = read_secrets(file, env={"HF_TOKEN": "open"})
    shown = f"{secrets} {secrets!r} {secrets.shown()} {secrets.model_dump()}"
    shown += secrets.model_dump_json()
    assert "sesame" not in shown
    assert "'open'" not in shown
    assert secrets.shown()["HF_HOME"] == "/data"


def test_the_environment_wins_over_dotenv_and_is_never_overwritten(tmp_path: Path) -> None:
    file = written(tmp_path, ".env", "HF_HOME=/file\nWANDB_API_KEY=sesame\n")
    env = {"HF_HOME": "/mine"}
    secrets = read_secrets(file, env=env)
    export_secrets(secrets, env=env)
    assert env == {"HF_HOME": "/mine", "WANDB_API_KEY": "sesame"}


def test_unknown_names_in_dotenv_are_named_at_once_and_values_are_not_shown(
    tmp_path: Path,
) -> None:
    file = written(tmp_path, ".env", "WANDB_API_KY=sesame\nLEARNING_RATE=1\nbroken sesame\n")
    with pytest.raises(InputError) as caught:
        read_secrets(file, env={})
    text = str(caught.value)
    assert f"{file}:1: WANDB_API_KY: unknown name; did you mean WANDB_API_KEY?" in text
    assert f"{file}:2: LEARNING_RATE: unknown name here; values of a run belong in" in text
    assert f"{file}:3: not NAME=value" in text
    assert "sesame" not in text
