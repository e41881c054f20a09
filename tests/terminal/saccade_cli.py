"""Run the real command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a call left behind."""

    code: int
    out: str
    err: str


def saccade(*words: str, folder: Path, env: dict[str, str] | None = None) -> Outcome:
    """Call `saccade` in a folder, away from the developer's own `.training`."""
    source = Path(__file__).parents[2] / "src"
    base = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    base |= {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "saccade.cli", *words],
        cwd=folder,
        env=base | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(code=done.returncode, out=done.stdout, err=done.stderr)


def refused(outcome: Outcome, *, code: int) -> str:
    """Assert one clear message and no traceback; returns the message."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error: ") == 1, outcome.err
    assert outcome.out == ""
    return outcome.err
