"""How fast the cloud verbs answer, and how much the extra `cloud` adds to an installation.

Nothing flows in; a table flows out: `saccade launch --dry-run` against the fake cloud, `saccade
jobs` over 200 launches, and the installed size of every package that `saccade[cloud]` needs beyond
`saccade`, as pip's own records of this environment list them. Wall time depends on who else uses
the machine, so the processor time of the same process stands beside it; a bar is met by the best
wall time. Called by `cloud_life.py --speed`.

    python benchmarks/cloud_life.py --speed
"""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DRY_RUN_BAR_S, JOBS_BAR_S, EXTRA_BAR_MB = 2.0, 1.0, 60.0
LAUNCHES, REPETITIONS = 200, 5
WORDS = ("launch", "smoke/relevance", "launch.target=fake", "model.device=cpu", "launch.hours=1")


@dataclass(frozen=True)
class Measured:
    """One number and its bar."""

    name: str
    value: float
    bar: float
    unit: str
    more: str = ""

    @property
    def met(self) -> bool:
        """Whether it stays below the bar."""
        return self.value < self.bar


def main() -> int:
    """Measure, print the table, leave with 1 when a bar is missed."""
    rows = [*verbs(), extra_size()]
    for row in rows:
        verdict = "met" if row.met else "MISSED"
        bar = f"{row.value:6.2f} {row.unit}  (bar {row.bar:.0f} {row.unit}: {verdict})"
        print(f"{row.name:44} {bar}  {row.more}")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}; best of {REPETITIONS} cold processes each")
    return 0 if all(row.met for row in rows) else 1


def verbs() -> list[Measured]:
    """The verbs that people wait for."""
    folder = Path(tempfile.mkdtemp(prefix="cloud-speed-"))
    try:
        with cloud(folder) as env:
            call(["cloud", "setup", "--yes"], folder, env)
            dry = timed([*WORDS, "--dry-run"], folder, env)
            # a real launch gives the log that the 200 are made from
            call([*WORDS, "--yes", "--detach"], folder, env)
            call(["cancel", "--yes"], folder, env)
            copy_launches(folder / "runs" / ".launches")
            first = timed(["jobs", "--all"], folder, env, forget=True)
            jobs = timed(["jobs", "--all"], folder, env)
        return [
            Measured("saccade launch --dry-run, warm", dry[0], DRY_RUN_BAR_S, "s", dry[1]),
            Measured(f"saccade jobs, {LAUNCHES} launches", jobs[0], JOBS_BAR_S, "s", jobs[1]),
            Measured("the same, no view kept from before", first[0], JOBS_BAR_S, "s", first[1]),
        ]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def cloud(folder: Path) -> Iterator[dict[str, str]]:
    """A fake cloud of its own, and the environment that reaches it."""
    private = ("SACCADE_", "GOOGLE_", "WANDB_", "HF_TOKEN", "STORAGE_EMULATOR_HOST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    paths = [str(ROOT / "src"), env.get("PYTHONPATH", "")]
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    env |= {"SACCADE_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "saccade.cli", "cloud", "fake", "--state", "cloud"]
    with subprocess.Popen(
        words, cwd=folder, env=env, stdout=subprocess.PIPE, text=True
    ) as server:  # fmt: skip
        assert server.stdout is not None
        env["SACCADE_FAKE_CLOUD"] = server.stdout.readline().strip().partition("=")[2]
        try:
            yield env
        finally:
            server.terminate()


def call(words: list[str], folder: Path, env: dict[str, str]) -> None:
    """Run a verb that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "saccade.cli", *words], cwd=folder, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"saccade {' '.join(words)}: exit {done.returncode}\n{done.stderr}")


def timed(
    words: list[str], folder: Path, env: dict[str, str], *, forget: bool = False
) -> tuple[float, str]:
    """Best wall time of fresh processes after one that warms the caches, and processor time.

    `forget` removes what the verb kept of every launch, so that all logs are read again.
    """
    walls, processor = [], []
    call(words, folder, env)
    for _ in range(REPETITIONS):
        for kept in folder.glob("runs/.launches/*/view.json") if forget else ():
            kept.unlink()
        begin, before = time.perf_counter(), _processor_s()
        call(words, folder, env)
        walls.append(time.perf_counter() - begin)
        processor.append(_processor_s() - before)
    middle = sorted(walls)[len(walls) // 2]
    return min(walls), f"median {middle:.2f} s, processor {min(processor):.2f} s"


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def copy_launches(folder: Path) -> None:
    """Make 200 launches of one: half of them still under way."""
    source = next(path for path in folder.iterdir() if path.is_dir())
    lines = (source / "events.jsonl").read_text("utf-8").splitlines()
    kinds = [json.loads(line)["type"] for line in lines]
    until = kinds.index("submitted") + 1
    for number in range(1, LAUNCHES):
        copy = folder / f"copy-{number:03d}-{number:010x}"
        copy.mkdir()
        kept = lines if number % 2 else lines[:until]
        text = "\n".join(kept).replace("smoke-relevance", f"copy-{number:03d}") + "\n"
        (copy / "events.jsonl").write_text(text, encoding="utf-8")


def extra_size() -> Measured:
    """Installed megabytes of what the extra brings along, largest packages named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = closure(project["dependencies"])
    added = closure(project["optional-dependencies"]["cloud"]) - base
    sizes = {name: installed_mb(name) for name in added}
    largest = sorted(sizes.items(), key=lambda entry: -entry[1])
    words = ", ".join(f"{name} {size:.1f}" for name, size in largest)
    return Measured(
        "installed size of saccade[cloud] beyond saccade", sum(sizes.values()), EXTRA_BAR_MB, "MB",
        f"{len(sizes)} packages: {words}",
    )  # fmt: skip


def closure(requirements: list[str]) -> set[str]:
    """All packages that these need, extras included, as installed here."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        name = str(canonicalize_name(one.name))
        for extra in ("", *sorted(one.extras)):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            found.add(name)
            for text in metadata.requires(name) or []:
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return found


def installed_mb(name: str) -> float:
    """Size of the files that pip recorded for a package."""
    files: Any = metadata.files(name) or []
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6
