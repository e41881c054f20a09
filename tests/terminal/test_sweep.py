"""The verb `saccade sweep` as a person meets it: refusals, notes, and a finished sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.terminal.saccade_cli import refused, saccade
from tests.toy_sweep import write_toy

pytest.importorskip("optuna")


def test_an_unknown_sweep_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    message = refused(saccade("sweep", "relevnce", folder=tmp_path), code=2)
    assert "no such sweep; did you mean relevance?" in message


def test_a_missing_file_and_a_swept_override_are_refused(tmp_path: Path) -> None:
    assert "mine.yaml" in refused(saccade("sweep", "mine.yaml", folder=tmp_path), code=2)
    words = ("sweep", "relevance", "selector.width=64")
    assert "sweeps/relevance.yaml varies it" in refused(saccade(*words, folder=tmp_path), code=2)


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    done = saccade("sweep", "relevance", "--dry-run", "--json", folder=tmp_path)
    assert done.code == 0, done.err
    about = json.loads(done.out)
    assert about["trials"] == 30
    assert about["reports_per_trial"] == 8
    assert not (tmp_path / "runs").exists()


def test_a_grid_runs_every_point_once_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path, pause=0.0)
    file = tmp_path / "toy.yaml"
    text = file.read_text("utf-8").replace("bayes", "grid")
    text = text.replace("{distribution: log_uniform_values, min: 1.0e-3, max: 1.0}", "{value: 0.1}")
    text = text.replace("{min: 0.0, max: 0.99}", "{value: 0.9}")
    file.write_text(text, encoding="utf-8")
    done = saccade("sweep", "toy.yaml", "--json", folder=tmp_path)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert [row["parameters"]["width"] for row in summary["trials"]] == [8, 32, 64]
    folder = tmp_path / "runs" / "toy"
    assert (folder / "history.png").stat().st_size > 10_000
    assert (folder / "parallel.png").exists()
    file.write_text(text.replace("[8, 32, 64]", "[8, 32, 128]"), encoding="utf-8")
    message = refused(saccade("sweep", "toy.yaml", folder=tmp_path), code=2)
    assert "was started with other values of parameters" in message.replace("toy: ", "")


def test_trials_that_all_fail_end_the_sweep_with_their_message(tmp_path: Path) -> None:
    write_toy(tmp_path)
    file = tmp_path / "toy.yaml"
    file.write_text(file.read_text("utf-8").replace("--pause", "--puase"), encoding="utf-8")
    done = saccade("sweep", "toy.yaml", folder=tmp_path)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "the first 3 trials failed" in done.err
    assert "unrecognized arguments" in done.err


@pytest.mark.slow
def test_a_real_recipe_is_swept(tmp_path: Path) -> None:
    done = saccade("sweep", "smoke/relevance", "--trials", "2", "--json", folder=tmp_path)
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["counts"]["finished"] + summary["counts"]["stopped"] == 2
    assert (tmp_path / "runs" / "smoke-sweep-relevance" / "trial-0" / "DONE").exists()
