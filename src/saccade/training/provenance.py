"""Where a run came from: versions, git state, machine, data, command line.

A resolved configuration and data fingerprints flow in, one mapping for `provenance.json` flows
out. Only package metadata is read, so no torch is imported here. Secrets never enter: neither the
environment nor `.env` is looked at.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from saccade.config.resolve import Resolved
from saccade.training.threads import available_cores

PACKAGES = ("saccade", "torch", "transformers", "accelerate", "safetensors", "numpy", "pillow")


def provenance(
    resolved: Resolved, *, fingerprints: Mapping[str, str], threads: int, world_size: int
) -> dict[str, Any]:
    """Collect everything that a person repeating this run would ask for."""
    return {
        "v": 1,
        "time": round(time.time(), 3),
        "recipe": resolved.recipe,
        "argv": sys.argv,
        "seed": resolved.config.run.seed,
        "threads": threads,
        "world_size": world_size,
        "data": dict(fingerprints),
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "machine": machine(),
        "sources": dict(resolved.sources),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that move the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether there are uncommitted changes; None outside saccade's own checkout."""
    # an installed copy inside somebody else's checkout is not that checkout's commit
    tracked = _git(folder, "ls-files", "--error-unmatch", "provenance.py")
    commit = _git(folder, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """CPU model, usable cores and memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_bytes": memory,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
