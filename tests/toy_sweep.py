"""A sweep whose trials are a small numpy training, and helpers to start and read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OBJECTIVE = ROOT / "benchmarks" / "sweep_objective.py"
EPOCHS = 9
TEXT = """\
name: toy
method: {method}
metric: {{name: error, goal: minimize}}
run_cap: {trials}
parameters:
  rate: {{distribution: log_uniform_values, min: 1.0e-3, max: 1.0}}
  momentum: {{min: 0.0, max: 0.99}}
  width: {{values: [8, 32, 64]}}
  decay: {{value: 1.0e-5}}
  dropout: {{value: 0.1}}
  gain: {{value: 1.0}}
  batch: {{value: 128}}
early_terminate: {{type: hyperband, min_iter: 1, eta: 3}}
saccade:
  command: [
    python, {objective}, "${{parameters}}", "${{reports}}", "${{folder}}", --pause, "{pause}",
  ]
  reports: 9
"""


def write_toy(
    folder: Path, *, trials: int = 30, pause: float = 0.05, method: str = "bayes"
) -> None:
    """Write `toy.yaml`."""
    text = TEXT.format(trials=trials, pause=pause, objective=OBJECTIVE, method=method)
    (folder / "toy.yaml").write_text(text, encoding="utf-8")


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the sweep as a user would."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SACCADE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "saccade.cli", "sweep", "toy.yaml", "--json", *more],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def summary(folder: Path) -> dict[str, Any]:
    """What `sweep.json` says."""
    return json.loads((folder / "runs" / "toy" / "sweep.json").read_text("utf-8"))


def settled(folder: Path) -> dict[int, tuple[str, float, dict[str, Any]]]:
    """Finished and stopped trials as the database has them: {number: (state, value, drawn)}."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    database = folder / "runs" / "toy" / "sweep.db"
    if not database.exists():
        return {}
    try:
        study = optuna.load_study(study_name="toy", storage=f"sqlite:///{database}")
    except (KeyError, optuna.exceptions.StorageInternalError, RuntimeError):
        return {}  # killed while the database was being made
    found = {}
    for one in study.get_trials():
        if one.state.is_finished() and not one.user_attrs.get("void"):
            found[one.number] = (one.state.name, one.value, one.params)
    return found
