"""Builder and reader killed at random moments end as if nothing had happened.

Real processes and real SIGKILLs: the shards of the killed build equal the unbroken ones byte for
byte, and the ledger of the killed reader shows each sample exactly once per epoch, in the order of
the unbroken reader, which is the order of trainings.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from saccade.data.shards.manifest import read_manifest
from tests.toy_shards import builder, config, digests, encoded, read_with_ledger

ROOT = Path(__file__).parents[2]
BATCH_SECONDS = 0.05
SAMPLE_SECONDS = 0.01


def start(*words: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, str(ROOT / "tests" / "toy_shards.py"), *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_until_built(folder: Path, samples: int, process: subprocess.Popen[bytes]) -> None:
    """Kills spread over the work, not over Python's start, which takes most of a short life."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = read_manifest(folder)
        if found is not None and found.built >= samples:
            return
        time.sleep(0.01)


def unbroken(folder: Path) -> tuple[dict[str, str], list[str]]:
    builder(config(folder)).build()
    ledger = folder.with_suffix(".ledger")
    read_with_ledger(folder, ledger, epochs=2, pause_s=0.0)
    return digests(folder), ledger.read_text().split("\n")


def check(folder: Path, ledger: Path, expected: tuple[dict[str, str], list[str]]) -> None:
    assert digests(folder) == expected[0]
    seen = ledger.read_text().split("\n")
    assert seen == expected[1]
    size = len(encoded(folder))
    assert 50 <= size < 70
    assert len(seen) == 2 * size and len(set(seen[:size])) == len(set(seen[size:])) == size
    assert seen[:size] != seen[size:]
    assert not list(folder.glob("batch_*")) and not list(folder.glob(".*.tmp"))


def test_a_killed_builder_and_a_killed_reader_continue_exactly(tmp_path: Path) -> None:
    expected = unbroken(tmp_path / "whole")
    folder, ledger = tmp_path / "killed", tmp_path / "killed.ledger"
    build = start("build", str(folder), str(BATCH_SECONDS))
    wait_until_built(folder, 24, build)
    read = start("read", str(folder), str(ledger), "2", str(SAMPLE_SECONDS))
    kill(build)
    built = read_manifest(folder)
    assert built is not None and 24 <= built.built < 70
    # the reader waits for the next shard, is killed there, and started again beside the builder
    deadline = time.monotonic() + 120
    while not ledger.with_suffix(".json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(read)
    build = start("build", str(folder), str(BATCH_SECONDS))
    finish(start("read", str(folder), str(ledger), "2"))
    finish(build)
    check(folder, ledger, expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills_of_both_sides_change_nothing(tmp_path: Path, seed: int) -> None:
    expected = unbroken(tmp_path / "whole")
    chance = random.Random(seed)
    folder, ledger = tmp_path / "killed", tmp_path / "killed.ledger"
    landed = 0
    for attempt in range(60):
        build = start("build", str(folder), str(BATCH_SECONDS))
        read = start("read", str(folder), str(ledger), "2", str(SAMPLE_SECONDS))
        before = read_manifest(folder)
        goal = (before.built if before else 0) + chance.choice([0, 4, 4, 8, 12])
        wait_until_built(folder, goal, build)
        time.sleep(chance.uniform(0.0, 2 * BATCH_SECONDS))
        # apart and together: one side lives on until the next round begins
        for process in chance.sample([build, read], k=2):
            landed += process.poll() is None
            kill(process)
            time.sleep(chance.choice([0.0, 0.1, 0.3]))
        if landed >= 20 and attempt >= 9:
            break
    assert landed >= 20
    build = start("build", str(folder))
    finish(start("read", str(folder), str(ledger), "2"))
    finish(build)
    check(folder, ledger, expected)
