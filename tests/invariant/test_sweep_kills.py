"""A sweep killed at random moments loses no finished trial and takes running ones up again."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.toy_sweep import EPOCHS, settled, start, summary, write_toy

pytest.importorskip("optuna")


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])
def test_thirty_trials_survive_ten_kills(tmp_path: Path, more: tuple[str, ...]) -> None:
    torment(tmp_path, more, trials=30, kills=10, seed=11)
    counts = summary(tmp_path)["counts"]
    assert counts["stopped"] >= 15
    assert counts["failed"] == 0


def test_a_few_trials_survive_three_kills(tmp_path: Path) -> None:
    torment(tmp_path, ("--parallel", "2"), trials=4, kills=3, seed=5)


def torment(folder: Path, more: tuple[str, ...], *, trials: int, kills: int, seed: int) -> None:
    """SIGKILL the sweep at random moments, half of the times with its programs; then let it end."""
    write_toy(folder, trials=trials)
    chance = random.Random(seed)
    for number in range(kills):
        before = settled(folder)
        process = start(folder, *more)
        time.sleep(1.0 + chance.random() * 5.0)
        programs = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        if number % 2:
            for one in programs:
                with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
                    one.kill()
        process.communicate(timeout=280)
        after = settled(folder)
        assert {key: after.get(key) for key in before} == before, "a finished trial was lost"
    process = start(folder, *more)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["counts"]["running"] == 0
    assert sum(result["counts"].values()) == trials
    assert_curves_are_whole(folder)


def assert_curves_are_whole(folder: Path) -> None:
    """No report is missing or doubled: an interrupted trial went on where it was."""
    for row in summary(folder)["trials"]:
        lines = (Path(folder) / row["run"] / "reports.jsonl").read_text("utf-8").splitlines()
        steps = sorted({json.loads(line)["step"] for line in lines})
        assert steps == list(range(1, len(steps) + 1))
        if row["state"] == "finished":
            assert len(steps) == EPOCHS


@pytest.mark.slow
def test_a_sweep_that_was_killed_draws_the_points_it_would_have_drawn(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
        write_toy(folder, trials=5, method="random", pause=0.02)
    assert start(whole).wait(timeout=300) == 0
    process = start(broken)
    while len(settled(broken)) < 2:
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=280)
    assert start(broken).wait(timeout=300) == 0
    drawn = [[row["parameters"] for row in summary(one)["trials"]] for one in (whole, broken)]
    assert drawn[0] == drawn[1]


def test_ctrl_c_leaves_with_143_and_the_same_command_continues(tmp_path: Path) -> None:
    write_toy(tmp_path, trials=2, pause=0.6)  # the first goes on for seconds when it is stopped
    process = start(tmp_path)
    reports = tmp_path / "runs" / "toy" / "trial-0" / "reports.jsonl"
    deadline = time.monotonic() + 280
    while not reports.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert not [one for one in psutil.process_iter() if _belongs_to(one, tmp_path)]
    process = start(tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "trial 0: taken up again" in err
    assert_curves_are_whole(tmp_path)


def _belongs_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and any(str(folder) in w for w in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(tmp_path: Path) -> None:
    write_toy(tmp_path, trials=6)
    both = [start(tmp_path), start(tmp_path)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sorted(settled(tmp_path)) == list(range(6))
    assert_curves_are_whole(tmp_path)
