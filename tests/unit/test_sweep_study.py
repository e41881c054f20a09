"""The database of a sweep: what is told when it cannot be written any more."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from saccade.config.errors import OutsideError
from saccade.pipeline.sweep_file import find_sweep
from saccade.pipeline.sweep_study import Study, lost_database_is_named
from tests.toy_sweep import write_toy

pytest.importorskip("optuna")


def test_a_full_disk_is_one_clear_error_and_what_was_drawn_stays(tmp_path: Path) -> None:
    write_toy(tmp_path, method="random")
    sweep = find_sweep(str(tmp_path / "toy.yaml"))
    study = Study(sweep, folder=tmp_path, home="here", key={})
    first = study.ask()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with (
            pytest.raises(OutsideError, match="database cannot be used"),
            lost_database_is_named("here"),
        ):
            study.ask()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Study(sweep, folder=tmp_path, home="here", key={})
    assert [one.params for one in again.running_here()] == [first.params]
