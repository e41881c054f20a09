"""The W&B sink: off by default, offline without an account, never a reason to stop."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.config.schema import Config
from saccade.training.rundir import RunDir
from saccade.training.tracking import NullSink, WandbSink, open_sink, wandb_id


def config(mode: str) -> Config:
    return Config.model_validate({"tracking": {"wandb": mode, "project": "test"}})


def run_in(folder: Path) -> RunDir:
    run = RunDir(folder / "one")
    run.prepare()
    return run


def test_without_a_key_auto_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for mode in ("auto", "off"):
        sink = open_sink(config(mode), run=run_in(tmp_path), warn=pytest.fail)
        assert isinstance(sink, NullSink)
    sink.log({"loss": 1.0}, step=1)
    sink.close(exit_code=0)


def test_wandb_is_not_imported_when_it_is_off() -> None:
    check = "import sys, saccade.training.tracking; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_the_id_is_made_once_per_run(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    first = wandb_id(run)
    assert wandb_id(run) == first
    assert json.loads((run.path / "wandb.json").read_text())["id"] == first


def test_a_failing_sink_warns_once_and_goes_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    # nothing listens there: online mode fails at login, as with a wrong key or no network
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "wrong")
    warnings: list[str] = []
    sink = open_sink(config("online"), run=run_in(tmp_path), warn=warnings.append)
    sink.log({"loss": 1.0}, step=1)
    sink.close(exit_code=0)
    assert len(warnings) == 1
    assert "W&B is off" in warnings[0]


@pytest.mark.slow
def test_offline_runs_stay_inside_the_run_directory(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = run_in(tmp_path)
    for step in (1, 2):  # started, then resumed under the same id
        sink = open_sink(config("offline"), run=run, warn=pytest.fail)
        assert isinstance(sink, WandbSink)
        sink.log({"loss": 1.0 / step}, step=step)
        sink.close(exit_code=0)
    assert len(list((run.path / "wandb").glob(f"offline-run-*-{wandb_id(run)}"))) == 2
