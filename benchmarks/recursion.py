"""What recursion is worth on a puzzle, and what a step of it costs.

Nothing flows in. The recursive model and its control (`arch=sudoku6-single`: the same network, the
same operations in every step of training, equally many steps, one step of thinking per puzzle) are
trained through the real command line, once per seed, and scored on puzzles whose solutions were
never trained on. A table of exact accuracy per step of thinking and three bars flow out; a bar that
is not met makes the exit code 1. Runs are kept, so a second call only measures. `--speed` prints
training steps per second and peak memory against batch and cycles instead, `--extras` what each
extra costs; on a CPU also seconds of CPU time per step, which other work does not stretch.

    python benchmarks/recursion.py --seeds 0,1,2
    python benchmarks/recursion.py --speed
    python benchmarks/recursion.py --extras
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ARMS = {"recursion": "sudoku6", "single pass": "sudoku6-single"}
SHOWN = (1, 2, 4, 8, 16)
JUDGED_STEP = 8
LEAST_ACCURACY, LEAST_GAIN = 0.90, 0.30
SPEED_STEPS = 5
EXTRAS = ("", "planning", "memory", "codebook", "mtp", "distill", "q_halting", "cheap")
BATCHES, CYCLES = (16, 64, 256), ((1, 2), (2, 2), (3, 6))


def saccade(*words: str) -> str:
    """Run the command line; its JSON or table comes back."""
    command = [sys.executable, "-m", "saccade.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def measured(arch: str, *, seed: int, root: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train one arm (or take the finished run) and score it; with the seconds that took."""
    name = f"{arch}-{seed}"
    place = (f"run.root={root}", f"run.name={name}")
    started = time.perf_counter()
    finished = (root / name / "DONE").is_file()
    saccade("train", "recursion", f"arch={arch}", f"run.seed={seed}", *place, *overrides)
    seconds = time.perf_counter() - started
    noted = root / name / "seconds.json"
    if not finished:
        noted.write_text(json.dumps(seconds))
    found = json.loads(saccade("eval", str(root / name), "--json"))
    return {**found, "seconds": json.loads(noted.read_text()) if noted.is_file() else None}


def at_step(result: Mapping[str, Any], step: int) -> float | None:
    """Exact accuracy after so many steps of thinking, where the model made them."""
    by_step = result["accuracy_by_step"]
    return by_step[step - 1] if step <= len(by_step) else None


def verdicts(recursion: Mapping[str, Any], single: Mapping[str, Any]) -> dict[str, bool]:
    """The three bars, each with its numbers in words."""
    first, judged = at_step(recursion, 1), at_step(recursion, JUDGED_STEP)
    assert first is not None
    assert judged is not None
    control = single["accuracy"]
    return {
        f"accuracy at step {JUDGED_STEP} is {judged:.1%}, at least {LEAST_ACCURACY:.0%}":
            judged >= LEAST_ACCURACY,
        f"that is {100 * (judged - first):.1f} points above step 1, at least {LEAST_GAIN:.0%}":
            judged - first >= LEAST_GAIN,
        f"and {100 * (judged - control):.1f} above the single pass, at least {LEAST_GAIN:.0%}":
            judged - control >= LEAST_GAIN,
    }  # fmt: skip


def table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """One line per arm and seed."""
    head = ["arm", "seed", *(f"step {step}" for step in SHOWN), "halting", "steps", "minutes"]
    rows = [head]
    for arm, runs in results.items():
        for seed, run in enumerate(runs):
            steps = [at_step(run, step) for step in SHOWN]
            seconds = run["seconds"]
            rows.append([
                arm, str(seed), *("" if one is None else f"{100 * one:.1f}" for one in steps),
                f"{100 * run['halting']['accuracy']:.1f}", f"{run['halting']['mean_steps']:.2f}",
                "" if seconds is None else f"{seconds / 60:.1f}",
            ])  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]


def step_cost(
    *, batch: int, cycles: int, inner: int, device: str, extra: str = ""
) -> dict[str, float]:
    """Steps per second, CPU seconds per step and peak memory in MB, in a process of its own."""
    case = f"{batch},{cycles},{inner},{extra},{device}"
    here = [sys.executable, str(Path(__file__)), "--one", case]
    return json.loads(subprocess.run(here, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_one(text: str) -> dict[str, float]:
    """What `step_cost` asks for."""
    import torch

    from saccade.config.recursion import RecursionConfig
    from saccade.models.recursion.model import Geometry, RecursiveModel
    from saccade.training.adam_atan2 import AdamAtan2

    *numbers, extra, device = text.split(",")
    batch, cycles, inner = map(int, numbers)
    plain = RecursionConfig(
        width=96, mixer="mlp", positions="none", ffn_multiple=32, cycles=cycles, inner_cycles=inner
    )
    switched = {extra: {"enabled": True}} if extra else {}
    config = RecursionConfig.model_validate({**plain.model_dump(), **switched})
    model = RecursiveModel(config, Geometry(36, 8)).to(device)
    optimizer = AdamAtan2(model.parameters(), lr=1e-4)
    ids = torch.randint(1, 8, (batch, 36), device=device)
    fresh = {"input_ids": ids, "labels": ids, "puzzles": torch.zeros_like(ids[:, 0])}
    carry = model.empty_carry(batch).refilled(fresh, start=model.start(batch))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    least_B, started, cpu = torch.full((batch,), 99, device=device), 0.0, 0.0
    for step in range(SPEED_STEPS + 1):
        if step == 1:  # the first one warms up
            started, cpu = time.perf_counter(), time.process_time()
        carry, _, losses = model.step(carry, least_B=least_B)
        optimizer.zero_grad()
        more = sum(term_B.mean() for term_B in losses.extras.values())
        (losses.answer_B.mean() + losses.halt_B.mean() + more).backward()
        optimizer.step()
        float(carry.steps[0])  # waits for the device
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    if device == "cuda":
        megabytes = torch.cuda.max_memory_allocated() / 1e6
    return {
        "steps_per_s": SPEED_STEPS / seconds, "cpu_s": cpu / SPEED_STEPS, "megabytes": megabytes,
    }  # fmt: skip


def cost_text(found: Mapping[str, float]) -> str:
    """A measured step in words."""
    return (
        f"{found['steps_per_s']:7.2f} steps/s {found['cpu_s']:7.3f} CPU s/step"
        f" {found['megabytes']:6.0f} MB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0", help="training seeds, as 0,1,2")
    parser.add_argument("--root", type=Path, default=Path("runs/recursion-benchmark"))
    parser.add_argument("--speed", action="store_true", help="measure steps per second instead")
    parser.add_argument("--extras", action="store_true", help="measure what each extra costs")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="key=value for every training")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_one(args.one)))
        return 0
    if args.speed:
        threads = os.environ.get("OMP_NUM_THREADS", "all")
        print(f"6x6 Sudoku, width 96, {args.device}, {threads} threads")
        for cycles, inner in CYCLES:
            for batch in BATCHES:
                found = step_cost(batch=batch, cycles=cycles, inner=inner, device=args.device)
                print(f"T={cycles} n={inner} batch {batch:4d}: {cost_text(found)}", flush=True)
        return 0
    if args.extras:
        base = 0.0
        for extra in EXTRAS:
            found = step_cost(batch=64, cycles=1, inner=2, device=args.device, extra=extra)
            spent = found["cpu_s"] if args.device == "cpu" else 1 / found["steps_per_s"]
            base = base or spent
            print(f"{extra or 'plain':10s} x{spent / base:.2f} {cost_text(found)}", flush=True)
        return 0
    seeds = [int(one) for one in args.seeds.split(",")]
    results: dict[str, list[dict[str, Any]]] = {
        arm: [measured(arch, seed=seed, root=args.root, overrides=args.overrides) for seed in seeds]
        for arm, arch in ARMS.items()
    }
    print("\n".join(table(results)))
    met = True
    for recursion, single in zip(*results.values(), strict=True):
        for words, holds in verdicts(recursion, single).items():
            print(f"{'yes' if holds else 'NO '}  {words}")
            met = met and holds
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
