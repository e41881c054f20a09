"""Starting up: what is loaded, what help says, how colour and streams behave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from saccade_cli import saccade

HEAVY = {"torch", "transformers", "numpy", "matplotlib", "hydra", "datasets", "wandb"}
VERBS = (
    "train", "eval", "compare", "look", "report", "ablate", "doctor",
    "data check", "data show", "config show", "config schema", "config keys",
)  # fmt: skip


def loaded_by(*words: str) -> set[str]:
    code = (
        "import sys, io; sys.argv = ['saccade', *sys.argv[1:]]\n"
        "from saccade.cli import main\n"
        "real, sys.stdout = sys.stdout, io.StringIO()\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "real.write('\\n'.join(sys.modules))\n"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("words", [("--help",), ("train", "--help"), ("data", "--help")])
def test_help_loads_no_heavy_library(words: tuple[str, ...]) -> None:
    assert not loaded_by(*words) & HEAVY


def test_showing_the_configuration_loads_no_deep_learning_library() -> None:
    assert not loaded_by("config", "show") & {"torch", "transformers", "datasets", "wandb"}


def test_help_lists_every_verb_and_each_verb_has_help_with_an_example(tmp_path: Path) -> None:
    overview = saccade("--help", folder=tmp_path)
    assert overview.code == 0
    for verb in VERBS:
        assert verb.split()[0] in overview.out
        help_text = saccade(*verb.split(), "--help", folder=tmp_path)
        assert help_text.code == 0
        if verb not in ("config schema", "doctor"):
            assert f"saccade {verb}" in " ".join(help_text.out.split()), verb


def test_a_misspelt_verb_and_option_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    wrong = saccade("trian", folder=tmp_path)
    assert (wrong.code, "Did you mean 'train'?" in wrong.err) == (2, True)
    assert saccade("train", "--dryrun", folder=tmp_path).code == 2


def test_the_version_is_the_packages_own(tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        expected = version("saccade")
    except PackageNotFoundError:
        pytest.skip("saccade is not installed here, only on the path")
    assert saccade("--version", folder=tmp_path).out.strip() == f"saccade {expected}"


@pytest.mark.parametrize("env", [{"NO_COLOR": "1", "FORCE_COLOR": "1"}, {}])
def test_piped_output_and_no_color_have_no_escape_codes(
    tmp_path: Path, env: dict[str, str]
) -> None:
    for words in (("config", "keys", "training"), ("train", "training.stps=1")):
        outcome = saccade(*words, folder=tmp_path, env=env)
        assert "\x1b[3" not in outcome.out + outcome.err


def test_results_go_to_stdout_as_json_and_messages_to_stderr(tmp_path: Path) -> None:
    shown = saccade("config", "show", "training.steps=5", "--json", folder=tmp_path)
    assert json.loads(shown.out)["training.steps"] == {"value": 5, "source": "command line"}
    assert shown.err == ""
    keys = json.loads(saccade("config", "keys", "--json", folder=tmp_path).out)
    assert {"name": "training.steps", "type": "integer >= 1"}.items() <= next(
        key for key in keys if key["name"] == "training.steps"
    ).items()
    assert json.loads(saccade("config", "schema", folder=tmp_path).out)["title"] == "Config"


def test_a_dry_run_shows_every_value_with_its_source_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / ".training").write_text("LEARNING_RATE=1e-5\n")
    outcome = saccade(
        "train", "--dry-run", "training.steps=5", folder=tmp_path, env={"SACCADE_SEED": "3"}
    )
    lines = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line.split()}
    assert lines["training.steps"][1:] == ["5", "command", "line"]
    assert lines["training.learning_rate"][1:] == ["1e-05", ".training:1"]
    assert lines["run.seed"][1:] == ["3", "environment", "SACCADE_SEED"]
    assert lines["model.name"][1:] == ["tiny", "model/tiny.yaml:2"]
    assert [path.name for path in tmp_path.iterdir()] == [".training"]
