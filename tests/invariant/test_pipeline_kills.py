"""A pipeline killed at random moments ends like the unbroken one, and nothing finished reruns.

Half of the kills take the pipeline process alone, so that the programs of its stages live on for a
while and the next run waits for them; half take everything at once, as a lost machine does.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from saccade.pipeline.artifacts import Store
from tests.toy_pipeline import NEEDS, digests, finished, journal, start, write_toy

WORK = {"TOY_TICKS": "10", "TOY_TICK_SECONDS": "0.08"}
KILLS = 10
MODES = pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])


def peaceful(folder: Path) -> dict[str, list[tuple[int, str]]]:
    folder.mkdir()
    write_toy(folder)
    process = start(folder, TOY_TICKS="10", TOY_TICK_SECONDS="0")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return digests(folder)


def starts_of(folder: Path, stages: set[str]) -> dict[str, int]:
    lines = journal(folder)
    return {stage: lines.count(f"start {stage}") for stage in stages}


@pytest.mark.slow
@MODES
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path, more: tuple[str, ...]) -> None:
    assert torment(tmp_path, more, kills=KILLS, seed=2024) == KILLS


@MODES
def test_three_kills_at_random_moments_change_nothing(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    assert torment(tmp_path, more, kills=3, seed=7) == 3


def torment(tmp_path: Path, more: tuple[str, ...], *, kills: int, seed: int) -> int:
    """Kill, run again, and so on until it finishes; then the next pipeline, until all kills hit."""
    wanted = peaceful(tmp_path / "peaceful")
    chance = random.Random(seed)
    landed = pipelines = 0
    while landed < kills:
        folder = tmp_path / f"killed-{pipelines}"
        pipelines += 1
        folder.mkdir()
        write_toy(folder)
        code: int | None = None
        while code != 0:
            done = finished(folder)
            before = starts_of(folder, done)
            process = start(folder, *more, **WORK)
            hit = landed < kills and killed(process, folder, chance=chance, alone=landed % 2 == 0)
            landed += hit
            _, err = process.communicate(timeout=300)
            code = process.returncode
            assert hit or code == 0, err
            assert starts_of(folder, done) == before, "a finished stage ran again"
            assert_nothing_half_written(folder)
        assert finished(folder) == set(NEEDS)
        assert digests(folder) == wanted
    return landed


def killed(
    process: subprocess.Popen[str], folder: Path, *, chance: random.Random, alone: bool
) -> bool:
    """Kill a run at a random moment, mostly inside a stage; False when it ended before."""
    begun = len(journal(folder))
    if chance.random() < 0.8:  # else also while Python is still importing, or while it waits
        while process.poll() is None and len(journal(folder)) == begun:
            time.sleep(0.01)
    time.sleep(chance.uniform(0, 1.0))
    if process.poll() is not None:
        return False
    family = [] if alone else psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return True


def assert_nothing_half_written(folder: Path) -> None:
    """Every version that has a name has all its files, whole."""
    store = Store(folder / "runs" / "artifacts")
    for name in store.names():
        for version in store.versions(name):
            assert store.fault(version.digest) is None


@MODES
def test_two_runs_at_once_share_the_work(tmp_path: Path, more: tuple[str, ...]) -> None:
    wanted = peaceful(tmp_path / "peaceful")
    folder = tmp_path / "both"
    folder.mkdir()
    write_toy(folder)
    both = [start(folder, *more, **WORK) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert starts_of(folder, set(NEEDS)) == dict.fromkeys(NEEDS, 1)
    assert digests(folder) == wanted
