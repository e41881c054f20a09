"""When to stop thinking: halting learned as "is it right?" (BCE) against values learned by reward.

Nothing flows in. Both kinds are trained through the real command line, once per seed, alike but for
`recursion.q_halting.enabled`, and scored on easy and on hard puzzles of the task. A table flows
out: accuracy against mean steps for every rule of stopping, beside all steps for everybody; and
overthinking, the share that was right at some step and is wrong at the last. A model with learned
values has the BCE score as well, so it stands in three rows. Runs are kept, so a second call only
measures. Which grade is easy or hard is said in keys of the source.

    python benchmarks/halting.py --seeds 0,1,2
    python benchmarks/halting.py --arch sudoku6 --easy clues=16 --hard clues=9,min_guesses=1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ARMS = {"bce": "false", "q": "true"}
RULES = {
    "all steps": None, "BCE, as published": "published", "BCE, sure or settled": "halting",
    "learned values": "q_halting",
}  # fmt: skip
"""Rules of stopping, and where `saccade eval` tells them."""


def saccade(*words: str) -> str:
    """Run the command line; what it writes to stdout comes back."""
    command = [sys.executable, "-m", "saccade.cli", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def trained(arm: str, *, seed: int, args: argparse.Namespace) -> Path:
    """The folder of a finished run."""
    place = (f"run.root={args.root}", f"run.name={args.arch}-{arm}-{seed}", f"run.seed={seed}")
    how = f"recursion.q_halting.enabled={ARMS[arm]}"
    saccade("train", "recursion", f"arch={args.arch}", how, *place, *args.overrides)
    return args.root / f"{args.arch}-{arm}-{seed}"


def scored(run: Path, grade: str) -> dict[str, Any]:
    """What `saccade eval` finds on puzzles of a grade, such as `clues=9,min_guesses=1`."""
    keys = [f"data.eval.{word}" for word in grade.split(",")]
    return json.loads(saccade("eval", str(run), *keys, "--json"))


def stops(found: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Accuracy and mean steps of every rule that this model can follow."""
    rules: dict[str, tuple[float, float]] = {}
    for name, key in RULES.items():
        if key is None:
            rules[name] = (found["accuracy"], float(len(found["accuracy_by_step"])))
        elif key in found:
            rules[name] = (found[key]["accuracy"], found[key]["mean_steps"])
    return rules


def rows(results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """One row per grade, arm and rule: means over seeds with their deviation."""
    told = [["puzzles", "trained", "stops by", "right %", "mean steps", "overthinking %"]]
    for (grade, arm), runs in results.items():
        each = [stops(run) for run in runs]
        over = _spread([100 * run["overthinking"] for run in runs])
        for rule in each[0]:
            right = _spread([100 * one[rule][0] for one in each])
            steps = _spread([one[rule][1] for one in each], digits=2)
            told.append([grade, arm, rule, right, steps, over if rule == "all steps" else ""])
    return told


def _spread(values: Sequence[float], *, digits: int = 1) -> str:
    text = f"{mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} +- {stdev(values):.{digits}f}"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns under each other."""
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", default="0", help="training seeds, as 0,1,2")
    parser.add_argument("--arch", default="sudoku4")
    parser.add_argument("--easy", default="clues=8", help="keys of data.eval, as clues=8")
    parser.add_argument("--hard", default="clues=4")
    parser.add_argument("--root", type=Path, default=Path("runs/halting-benchmark"))
    parser.add_argument("overrides", nargs="*", help="key=value for every training")
    return parser.parse_args()


def main() -> int:
    args = read_arguments()
    seeds = [int(one) for one in args.seeds.split(",")]
    runs = {arm: [trained(arm, seed=seed, args=args) for seed in seeds] for arm in ARMS}
    grades = {f"easy ({args.easy})": args.easy, f"hard ({args.hard})": args.hard}
    results = {
        (name, arm): [scored(run, grade) for run in runs[arm]]
        for name, grade in grades.items()
        for arm in ARMS
    }
    print(aligned(rows(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
