"""Does `saccade sweep` with TPE and hyperband find a better point than random at equal budget?

For each seed: a sweep of 30 trials (bayes, hyperband) through the real command line, on a small
real objective (`sweep_objective.py`); then a random sweep without early stopping that may spend as
many epochs (those of stopped trials counted, rounded up to whole trials). Out comes a table: best
error of both, trials stopped early, epochs spent. Finished sweeps are not repeated, so the same
command continues after a stop.

    python benchmarks/sweep.py                       # 5 seeds, a few minutes, mostly waiting
    python benchmarks/sweep.py --seeds 0 1 --trials 20 --out results
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

EPOCHS = 9
OBJECTIVE = Path(__file__).resolve().with_name("sweep_objective.py")
PARAMETERS = {
    "rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 3.0},
    "momentum": {"min": 0.0, "max": 0.99},
    "width": {"distribution": "q_log_uniform_values", "min": 2, "max": 256, "q": 1},
    "decay": {"distribution": "log_uniform_values", "min": 1e-7, "max": 0.3},
    "dropout": {"min": 0.0, "max": 0.8},
    "gain": {"distribution": "log_uniform_values", "min": 0.01, "max": 10.0},
    "batch": {"values": [8, 32, 128, 512]},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.3, help="seconds an epoch sleeps")
    parser.add_argument("--out", type=Path, default=Path("runs/sweep-benchmark"))
    return parser.parse_args()


def one_sweep(options: argparse.Namespace, *, seed: int, method: str, trials: int) -> dict:
    """Run one sweep through the command line; returns its summary."""
    words = ["python", str(OBJECTIVE), "${parameters}", "${reports}", "${folder}"]
    words += ["--epochs", str(EPOCHS), "--seed", str(seed), "--pause", str(options.pause)]
    content: dict[str, Any] = {
        "name": f"{method}-{seed}",
        "method": method,
        "metric": {"name": "error", "goal": "minimize"},
        "run_cap": trials,
        "parameters": PARAMETERS,
        "saccade": {"command": words, "reports": EPOCHS, "seed": seed},
    }
    if method == "bayes":
        content["early_terminate"] = {"type": "hyperband", "min_iter": 1, "eta": 3}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{method}-{seed}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    call = [sys.executable, "-m", "saccade.cli", "sweep", str(file), f"run.root={options.out}"]
    call += ["--json", "--parallel", str(options.parallel)]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def compare(options: argparse.Namespace, *, seed: int) -> dict[str, Any]:
    """One seed: the sweep, then random with as many epochs."""
    ours = one_sweep(options, seed=seed, method="bayes", trials=options.trials)
    budget = math.ceil(ours["reports"] / EPOCHS)  # random never gets less
    random = one_sweep(options, seed=seed, method="random", trials=budget)
    return {
        "seed": seed,
        "ours": ours["best"]["value"],
        "random": random["best"]["value"],
        "stopped": ours["counts"]["stopped"],
        "trials": options.trials,
        "random_trials": budget,
        "epochs": ours["reports"],
        "random_epochs": random["reports"],
    }


def main() -> None:
    options = arguments()
    rows = []
    for seed in options.seeds:
        rows.append(compare(options, seed=seed))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    (options.out / "benchmark.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    table = Table(title="Best error on held-out digits, at equal numbers of epochs")
    for name in ("seed", "bayes + hyperband", "random", "stopped early", "epochs", "random's"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["seed"]), f"{row['ours']:.3f}", f"{row['random']:.3f}",
            f"{row['stopped']} of {row['trials']}", str(row["epochs"]),
            f"{row['random_epochs']} ({row['random_trials']} trials)",
        )  # fmt: skip
    ours, random = mean(row["ours"] for row in rows), mean(row["random"] for row in rows)
    table.add_row("mean", f"{ours:.3f}", f"{random:.3f}", "", "", "")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
