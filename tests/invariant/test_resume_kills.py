"""Many kills at random moments end like the unbroken run (the harness of `benchmarks/kills.py`).

The fast test uses forks, the slow one real processes and the 20 kills that are promised.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from toy_run import ForkedRun

KILLS = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kills", KILLS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def torment(harness: ModuleType, launch: object, folder: Path, *, kills: int, seed: int) -> list:
    chance = random.Random(seed)
    landed: list = []
    harness.run_in_peace(launch, folder / "peaceful")
    harness.torment(
        launch, folder / "killed", peaceful=folder / "peaceful", chance=chance,
        plan=harness.plan_kills(kills, chance=chance), startup_s=0.5, report=landed.append,
    )  # fmt: skip
    assert harness.compare_runs(folder / "peaceful", folder / "killed").differences == ()
    return landed


@pytest.mark.parametrize("seed", [11, 12])
def test_four_kills_change_nothing(harness: ModuleType, tmp_path: Path, seed: int) -> None:
    settings = [*harness.TOY_SETTINGS, "training.steps=80"]
    kills = torment(harness, lambda run: ForkedRun(run, settings), tmp_path, kills=4, seed=seed)
    assert {kill.moment for kill in kills} == set(harness.MOMENTS)


@pytest.mark.slow
def test_twenty_kills_of_real_processes_change_nothing(harness: ModuleType, tmp_path: Path) -> None:
    launch = harness.launcher(harness.toy_command([]))
    kills = torment(harness, launch, tmp_path, kills=20, seed=2024)
    assert sum(kill.exit_code != 0 for kill in kills) >= 16
    assert {"during save", "during evaluation"} <= {kill.landed for kill in kills}
