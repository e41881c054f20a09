"""Kill a training run again and again, then compare it with one that was never touched.

A training command flows in: the real command line, or the toy of the tests. It runs once in peace;
then again with kills at random moments (SIGKILL and SIGTERM, at start-up, between steps, while a
checkpoint is being written, during an evaluation), each followed by the same command. A table
flows out: where each kill landed, and whether final weights, optimizer, losses, sample order and
evaluations are equal to the last bit.

    python benchmarks/kills.py --toy
    python benchmarks/kills.py --recipe smoke/relevance --kills 20 --seed 7
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from saccade.training.checkpoints import list_checkpoints, verify
from saccade.training.events import read_events, step_series

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "tests" / "invariant" / "toy_run.py"
TOY_SETTINGS = ("training.steps=240", "training.eval_every=20", "training.save_every=5")
PATIENCE_SECONDS = 600.0
PREEMPTED = 143


class Process(Protocol):
    """A running training: a subprocess, or a fork in the tests."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def send_signal(self, sig: int) -> None: ...


Launch = Callable[[Path], Process]
"""Starts or continues training into a folder."""


@dataclass(frozen=True)
class Kill:
    """One kill: what was wanted, and where it landed."""

    signal: str
    moment: str
    exit_code: int
    last_step: int
    landed: str


@dataclass(frozen=True)
class Comparison:
    """What differs between two finished runs; everything empty means equal."""

    differences: tuple[str, ...]
    compared: tuple[str, ...]


MOMENTS = ("between steps", "saving", "evaluating", "start-up")


def plan_kills(count: int, *, chance: random.Random) -> list[tuple[signal.Signals, str]]:
    """Every moment equally often, signals at random; saves are only worth a SIGKILL."""
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(count)]
    chance.shuffle(moments)
    return [
        (
            signal.SIGKILL if moment == "saving" or chance.random() < 0.5 else signal.SIGTERM,
            moment,
        )
        for moment in moments
    ]


def launcher(command: Callable[[Path], list[str]]) -> Launch:
    """Launch a command as a subprocess; its output goes to a log beside the run."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}

    def launch(run: Path) -> Process:
        with run.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command(run), env=os.environ | own, stdout=log, stderr=log)

    return launch


def run_in_peace(launch: Launch, run: Path) -> None:
    """Run to the end; raises when it fails."""
    code = launch(run).wait()
    if code != 0:
        raise RuntimeError(f"exit {code}: {tail_of(run)}")


def tail_of(run: Path) -> str:
    """The last output of a run."""
    log = run.with_suffix(".log")
    return log.read_text("utf-8")[-2000:] if log.is_file() else ""


def last_of(run: Path, kind: str, *, since: int = 0) -> int:
    """The last step that an event of this type names, leaving out the first `since` events."""
    series = step_series(read_events(run / "events.jsonl")[since:], type=kind)
    return series[-1]["step"] if series else 0


def being_saved(run: Path, *, pid: int) -> bool:
    """Whether this process is (or was, when it died) writing a checkpoint."""
    folder = run / "checkpoints"
    return folder.is_dir() and any(folder.glob(f".tmp-step-*-{pid}"))


def being_evaluated(run: Path, *, every: int) -> bool:
    """Whether the newest checkpoint is waiting for its evaluation."""
    saved = last_of(run, "checkpoint")
    return saved > 0 and saved % every == 0 and last_of(run, "eval") < saved


@dataclass(frozen=True)
class Moment:
    """When to kill: not before the target step, at a kind of moment, after a delay."""

    name: str
    since: int
    target: int
    delay_s: float
    eval_every: int


def kill_once(process: Process, run: Path, *, number: signal.Signals, when: Moment) -> Kill:
    """Wait for the moment, kill, and look where it landed."""
    if when.name != "start-up":
        wait_until(process, lambda: last_of(run, "step", since=when.since) >= when.target)
    if when.name == "saving":
        wait_until(process, lambda: being_saved(run, pid=process.pid))
    else:
        if when.name == "evaluating":
            wait_until(process, lambda: being_evaluated(run, every=when.eval_every))
        pause(process, when.delay_s)
    process.send_signal(number)
    code = process.wait()
    return Kill(
        signal=number.name,
        moment=when.name,
        exit_code=code,
        last_step=last_of(run, "step"),
        landed=landing(run, code, pid=process.pid, eval_every=when.eval_every),
    )


def landing(run: Path, code: int, *, pid: int, eval_every: int) -> str:
    """Where a kill landed, judged by what it left behind."""
    if code == 0:
        return "after the end"
    if being_saved(run, pid=pid):
        return "during save"
    if being_evaluated(run, every=eval_every):
        return "during evaluation"
    return "preempted" if code == PREEMPTED else "elsewhere"


def wait_until(process: Process, condition: Callable[[], bool]) -> None:
    """Spin until the condition holds or the process ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None and not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the run makes no progress")
        time.sleep(0.0005)


def pause(process: Process, seconds: float) -> None:
    """Sleep, but not longer than the process lives."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def torment(
    launch: Launch,
    run: Path,
    *,
    peaceful: Path,
    plan: Sequence[tuple[signal.Signals, str]],
    chance: random.Random,
    startup_s: float,
    report: Callable[[Kill], None],
) -> None:
    """Kill as planned, starting the same again after each kill, and let the last one finish."""
    steps, every = limits_of(peaceful)
    for done, (number, moment) in enumerate(plan):
        now = last_of(run, "checkpoint")
        # spread what is left of the run over the kills that are left
        room = max(1, (steps - now) // (len(plan) - done + 1))
        when = Moment(
            name=moment,
            since=len(read_events(run / "events.jsonl")),
            target=min(steps - 1, now + chance.randint(1, 2 * room)),
            delay_s=chance.uniform(0.0, startup_s if moment == "start-up" else 0.05),
            eval_every=every,
        )
        kill = kill_once(launch(run), run, number=number, when=when)
        report(kill)
        # a finished run ends with 0; before the handlers stand, SIGTERM is an ordinary death
        if kill.exit_code not in {0, -number, PREEMPTED if number == signal.SIGTERM else 0}:
            raise RuntimeError(f"{kill}: unexpected exit code\n{tail_of(run)}")
    run_in_peace(launch, run)


def compare_runs(peaceful: Path, killed: Path) -> Comparison:
    """Compare two finished runs bit by bit."""
    logs = {run: read_events(run / "events.jsonl") for run in (peaceful, killed)}

    def of(run: Path, kind: str, *fields: str) -> list[tuple[Any, ...]]:
        series = step_series(logs[run], type=kind)
        return [tuple(json.dumps(event[name]) for name in fields) for event in series]

    checks: dict[str, Callable[[Path], Any]] = {
        "losses": lambda run: of(run, "step", "step", "loss", "grad_norm", "learning_rate"),
        "metrics": lambda run: of(run, "step", "metrics"),
        "sample order": lambda run: of(run, "step", "step", "sample_ids"),
        "evaluations": lambda run: of(run, "eval", "step", "metrics"),
        "final checkpoint": final_checksums,
        "DONE": lambda run: json.loads((run / "DONE").read_text("utf-8"))["metrics"],
    }
    different = tuple(name for name, check in checks.items() if check(peaceful) != check(killed))
    return Comparison(differences=different, compared=tuple(checks))


def final_checksums(run: Path) -> dict[str, str]:
    """SHA-256 of each file of the newest checkpoint, which must verify."""
    newest = list_checkpoints(run / "checkpoints")[0]
    damage = verify(newest)
    if damage is not None:
        raise RuntimeError(f"{damage}")
    files = json.loads((newest / "checksums.json").read_text("utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in files.items()}


def limits_of(run: Path) -> tuple[int, int]:
    """Steps and evaluation interval of a run; the final evaluation is always there to be hit."""
    training = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["training"]
    return training["steps"], training["eval_every"] or training["steps"]


def toy_command(overrides: Sequence[str]) -> Callable[[Path], list[str]]:
    """Train the toy of the tests."""
    return lambda run: [sys.executable, str(TOY), str(run), *TOY_SETTINGS, *overrides]


def recipe_command(recipe: str, overrides: Sequence[str]) -> Callable[[Path], list[str]]:
    """Train a recipe through the real command line."""

    def command(run: Path) -> list[str]:
        place = [f"run.root={run.parent}", f"run.name={run.name}"]
        return [sys.executable, "-m", "saccade.cli", "train", recipe, *place, *overrides]

    return command


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recipe", default="smoke/relevance", help="recipe to train")
    parser.add_argument("--toy", action="store_true", help="train the toy of the tests instead")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary folder")
    parser.add_argument("overrides", nargs="*", help="key=value")
    return parser.parse_args()


def show(kill: Kill) -> None:
    """Print one row of the table."""
    print(
        f"{kill.signal:8} {kill.moment:14} {kill.landed:18} {kill.exit_code:5} {kill.last_step:6}",
        flush=True,
    )


def main() -> int:
    arguments = read_arguments()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    peaceful, killed = folder / "peaceful", folder / "killed"
    overrides = arguments.overrides
    toy, recipe = toy_command(overrides), recipe_command(arguments.recipe, overrides)
    launch = launcher(toy if arguments.toy else recipe)
    print(f"seed {arguments.seed}, {arguments.kills} kills, in {folder}", flush=True)
    chance, started = random.Random(arguments.seed), time.monotonic()
    run_in_peace(launch, peaceful)
    print(f"unbroken run: {time.monotonic() - started:.0f} s", flush=True)
    print(f"{'signal':8} {'wanted':14} {'landed':18} {'exit':>5} {'step':>6}", flush=True)
    plan = plan_kills(arguments.kills, chance=chance)
    torment(
        launch, killed, peaceful=peaceful, plan=plan, chance=chance, startup_s=10.0, report=show
    )
    result = compare_runs(peaceful, killed)
    for name in result.compared:
        print(f"{name:18} {'DIFFERENT' if name in result.differences else 'equal'}")
    print(f"{time.monotonic() - started:.0f} s in all")
    return 1 if result.differences else 0


if __name__ == "__main__":
    sys.exit(main())
