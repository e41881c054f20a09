"""A diamond of toy stages as a pipeline file, and what became of it: shared by pipeline tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOY = Path(__file__).parent / "toy_stage.py"
SOURCE = Path(__file__).parents[1] / "src"
NEEDS = {"load": [], "left": ["load"], "right": ["load"], "join": ["left", "right"]}
NAME = "toy"
COMMAND = [sys.executable, "-m", "saccade.cli", "pipeline"]


def toy_text(*, more: str = "", size: int = 0) -> str:
    """A pipeline `load -> left, right -> join`; `more` is added below the last stage."""
    lines = [f"name: {NAME}", "stages:"]
    for name, needs in NEEDS.items():
        words = [
            "python", str(TOY), name, "--folder", "${folder}", "--out", "${outputs.data}",
            "--metrics", "${metrics}", "--bytes", str(size),
        ]  # fmt: skip
        for one in needs:
            words += ["--in", "${stages." + one + ".data}"]
        lines += [
            f"  {name}:",
            "    uses: command",
            f"    command: {json.dumps(words)}",
            "    outputs: [data]",
            "    metrics: [score, seconds]",
        ]
    return "\n".join(lines) + "\n" + more


def write_toy(folder: Path, *, more: str = "", size: int = 0) -> Path:
    """Write the pipeline into a folder."""
    path = folder / "toy.yaml"
    path.write_text(toy_text(more=more, size=size))
    return path


def toy_env(folder: Path, **more: str) -> dict[str, str]:
    """Environment for the command line with the journal in this folder."""
    base = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    base |= {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return base | {"TOY_JOURNAL": str(folder / "journal.txt"), **more}


def start(folder: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    """Start `saccade pipeline run toy.yaml` in a folder, in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, "run", "toy.yaml", *words],
        cwd=folder,
        env=toy_env(folder, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def journal(folder: Path) -> list[str]:
    """All starts and ends so far."""
    path = folder / "journal.txt"
    return path.read_text().splitlines() if path.is_file() else []


def finished(folder: Path) -> set[str]:
    """Stages with a record."""
    return {
        json.loads(path.read_text())["stage"]
        for path in (folder / "runs" / NAME).glob("*/stage.json")
    }


def digests(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """{artifact: its versions and their digests}."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in sorted((folder / "runs" / "artifacts" / "names").glob("*/v*.json")):
        stored = json.loads(path.read_text())
        found.setdefault(stored["name"], []).append((stored["version"], stored["digest"]))
    return found
