"""Train a grounding policy from several seeds and set it beside every gate and bar.

In go a recipe, seeds and overrides; each seed is trained, evaluated and compared by the command
line, so what is measured is what a user gets. Out come, over the seeds, accuracy and cost of every
way to look again, how often the policy looks by size of the target, what the demonstrations alone
had reached, and each bar with the number of seeds that meet it. What is finished is not made again.

    python benchmarks/grounding_seeds.py                      # seeds 0, 1, 2 of grounding-full
    python benchmarks/grounding_seeds.py --runs a b c         # these finished runs instead

Writes `grounding-seeds.json` and `grounding-seeds.txt` into `--out`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from seeds import saccade

from saccade.evaluation.statistics import mean_sd
from saccade.training.events import read_events
from saccade.training.provenance import machine, versions

Row = Mapping[str, Any]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for `saccade train`")
    parser.add_argument("--recipe", default="grounding-full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, nargs="+", help="finished runs, in place of training")
    parser.add_argument("--out", type=Path, default=Path("runs/grounding-seeds"))
    return parser.parse_intermixed_args()


def trained(options: argparse.Namespace, seed: int) -> Path:
    """The folder of a seed's finished run."""
    settings = [f"run.root={options.out}", f"run.name=seed-{seed}", f"run.seed={seed}"]
    saccade("train", options.recipe, *settings, *options.overrides)
    return options.out / f"seed-{seed}"


def measured(run: Path) -> dict[str, Any]:
    """A run's comparison, and its demonstrations' own evaluation where that phase is there."""
    if not (run / "comparison.json").is_file():
        saccade("compare", str(run))
    found = {"run": run.name, "comparison": json.loads((run / "comparison.json").read_text())}
    warm = run.with_name(f"{run.name}-warm")
    for name, folder in (("demonstrations alone", warm), ("the policy", run)):
        if folder.is_dir():
            if not (folder / "evaluation.json").is_file():
                saccade("eval", str(folder))
            found[name] = json.loads((folder / "evaluation.json").read_text())
    phases = [run.with_name(f"{run.name}-places"), warm, run]
    return found | {"hours": sum(spent(one) for one in phases if one.is_dir()) / 3600}


def spent(run: Path) -> float:
    """Seconds between a run's first and last event; a pause between two starts counts."""
    times = [float(one["time"]) for one in read_events(run / "events.jsonl")]
    return times[-1] - times[0] if times else 0.0


def told(values: Sequence[float], *, scale: float = 100.0) -> str:
    """Mean and standard deviation."""
    mean, sd = mean_sd([scale * value for value in values])
    return f"{mean:.1f} \u00b1 {sd:.1f}" if len(values) > 1 else f"{mean:.1f}"


def side_by_side(seeds: Sequence[Row], rows: Callable[[Row], Sequence[Row]], *, name: str
                 ) -> list[tuple[str, list[Row]]]:  # fmt: skip
    """Rows of the seeds' comparisons that have one name."""
    named = [{row[name]: row for row in rows(one["comparison"])} for one in seeds]
    return [
        (key, [one[key] for one in named]) for key in named[0] if all(key in one for one in named)
    ]


def arms(seeds: Sequence[Row]) -> Table:
    table = Table(title="Who looks again", title_justify="left")
    table.add_column("")
    for column in ("in box %", "policy is better by", "small %", "looks again %", "kpixels"):
        table.add_column(column, justify="right")
    for title, rows in side_by_side(seeds, lambda one: one["rows"], name="title"):
        gaps = [f"{100 * row['difference']['mean']:+.1f}" for row in rows]
        table.add_row(
            title,
            told([row["accuracy"] for row in rows]),
            "" if rows[0]["arm"] == "learned" else ", ".join(gaps),
            told([row["accuracy_small"] for row in rows]),
            told([row["zoom_rate"] for row in rows]),
            told([row["pixels"] for row in rows], scale=1e-3),
            style="bold" if rows[0]["arm"] == "learned" else "",
        )
    return table


def sizes(seeds: Sequence[Row]) -> Table:
    table = Table(title="Looks again, %", title_justify="left")
    table.add_column("side in first look, px")
    for one in seeds:
        table.add_column(one["run"], justify="right")
    for bucket, rows in side_by_side(seeds, lambda one: one["zoom_by_size"], name="bucket"):
        table.add_row(bucket, *(f"{100 * row['zoom_rate']:.0f}" for row in rows))
    return table


def phases(seeds: Sequence[Row]) -> Table:
    table = Table(title="All held-out targets", title_justify="left")
    table.add_column("")
    for column in ("in box %", "looks again %", "kpixels"):
        table.add_column(column, justify="right")
    for name in ("demonstrations alone", "the policy"):
        found = [one[name] for one in seeds if name in one]
        if found:
            table.add_row(
                name, told([one["accuracy"] for one in found]),
                told([one["zoom_rate"]["share"] for one in found]),
                told([one["pixels"] for one in found], scale=1e-3),
            )  # fmt: skip
    return table


def bars(seeds: Sequence[Row]) -> Table:
    table = Table(title="Against the bars", title_justify="left")
    for column in ("what", "bar", "measured", "seeds that meet it"):
        table.add_column(column)
    for name, rows in side_by_side(seeds, lambda one: one["verdicts"], name="name"):
        met = sum(row["standing"] in ("met", "clear") for row in rows)
        scale = 1 if rows[0]["unit"] == "loss" else 100
        values = [row["detail"] if row["value"] is None else f"{scale * row['value']:.3g}"
                  for row in rows]  # fmt: skip
        bar = "" if rows[0]["bar"] is None else f"{rows[0]['sign']} {scale * rows[0]['bar']:g}"
        table.add_row(name, bar, ", ".join(values), f"{met} of {len(rows)}")
    return table


def main() -> None:
    options = arguments()
    setting = {
        "command": shlex.join(["python", "benchmarks/grounding_seeds.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "python": platform.python_version(),
    }
    for name, value in setting.items():
        print(f"{name}: {value}", flush=True)
    runs = options.runs or [trained(options, seed) for seed in options.seeds]
    seeds = [measured(run) for run in runs]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "grounding-seeds.json").write_text(json.dumps(setting | {"seeds": seeds}) + "\n")
    with (options.out / "grounding-seeds.txt").open("w", encoding="utf-8") as file:
        for console in (Console(width=130), Console(width=130, file=file)):
            for table in (arms(seeds), sizes(seeds), phases(seeds), bars(seeds)):
                console.print(table)
            hours = ", ".join(f"{one['hours']:.2f}" for one in seeds)
            samples = ", ".join(str(one["comparison"]["samples"]) for one in seeds)
            console.print(f"hours of training: {hours}; targets compared: {samples}")


if __name__ == "__main__":
    main()
