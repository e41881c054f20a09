"""Train the selector from several seeds and compare it with every baseline on held-out scenes.

In go a recipe, seeds and overrides; each seed is trained and compared through the real command
line, so what is measured is what a user gets. Out comes, per budget, accuracy as mean and standard
deviation over the training seeds for the trained selector and every baseline, and the margin to
each: it counts as outside the seed spread only when the *worst* trained seed beats the *best* run
of the baseline. Finished runs are not repeated, so the same command continues after a stop.

    python benchmarks/seeds.py                            # 3 seeds, recipe relevance
    python benchmarks/seeds.py --seeds 0 1 2 --out results training.steps=400

The folder then holds one run directory per seed, `seeds.json` and `seeds.txt`.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from saccade.evaluation.cells import budget_label
from saccade.evaluation.statistics import mean_sd
from saccade.training.provenance import machine, versions


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for `saccade train`")
    parser.add_argument("--recipe", default="relevance")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"), help="results folder")
    return parser.parse_intermixed_args()


def saccade(*words: str) -> None:
    """Run one verb of the command line, showing what is run."""
    print("$ " + shlex.join(["saccade", *words]), flush=True)
    done = subprocess.run([sys.executable, "-m", "saccade.cli", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def one_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train and compare one seed; returns its comparison."""
    name = f"seed-{seed}"
    settings = [f"run.root={options.out}", f"run.name={name}", f"run.seed={seed}"]
    saccade("train", options.recipe, *settings, *options.overrides)
    saccade("compare", str(options.out / name))
    return json.loads((options.out / name / "comparison.json").read_text("utf-8"))


def key_of(row: dict[str, Any]) -> str:
    """Rows of different seeds belong together when selector, budget and matching agree."""
    budget = "all" if row["arm"] == "full" else budget_label(row["budget"])
    return f"{budget} | {row['title']}"


def summarise(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread per selector and budget, and the trained selector's margin over it."""
    seeds = [{key_of(row): row for row in one["rows"]} for one in comparisons]
    found = []
    for key, first in seeds[0].items():
        rows = [one[key] for one in seeds]
        values = [row["accuracy"] for row in rows]
        mean, sd = mean_sd(values)
        kinds = {k: mean_sd([row["kinds"][k] for row in rows])[0] for k in first["kinds"]}
        found.append(
            {
                "arm": first["arm"], "title": first["title"], "matched": first["matched"],
                "budget": first["budget"], "label": first["budget_label"],
                "accuracy": mean, "accuracy_sd": sd, "accuracies": values, "kinds": kinds,
                "visual_tokens_kept": mean_sd([r["visual_tokens_kept"] for r in rows])[0],
                "flops": mean_sd([r["flops"]["total"] for r in rows])[0],
                "answer_cells_kept": first["answer_cells_kept"] and mean_sd(
                    [r["answer_cells_kept"] for r in rows])[0],
            }
        )  # fmt: skip
    for row in found:
        row["margin"] = _margin(row, found)
    return found


def _margin(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Trained minus this row, seed by seed."""
    ours = next(
        (r for r in rows if r["arm"] == "trained" and r["budget"] == row["budget"]), None
    )  # fmt: skip
    if row["arm"] in ("trained", "full") or ours is None:
        return None
    pairs = zip(ours["accuracies"], row["accuracies"], strict=True)
    mean, sd = mean_sd([a - b for a, b in pairs])
    worst = min(ours["accuracies"]) - max(row["accuracies"])
    return {"mean": mean, "sd": sd, "worst_case": worst, "outside_spread": worst > 0}


def table_of(rows: list[dict[str, Any]], *, seeds: int, samples: int) -> Table:
    table = Table(
        title=f"{seeds} training seeds, {samples} held-out questions each", title_justify="left"
    )
    for name in ("budget", "selector"):
        table.add_column(name)
    for name in ("accuracy %", "trained is better by", "worst case", "outside spread", "tokens",
                 "answer cells"):  # fmt: skip
        table.add_column(name, justify="right")
    budget = None
    for row in sorted(rows, key=lambda r: (r["arm"] != "full", -r["budget"], -r["accuracy"])):
        if budget not in (None, row["label"]):
            table.add_section()
        budget, margin, recall = row["label"], row["margin"], row["answer_cells_kept"]
        table.add_row(
            row["label"],
            row["title"],
            f"{100 * row['accuracy']:.1f} \u00b1 {100 * row['accuracy_sd']:.1f}",
            f"{100 * margin['mean']:+.1f} \u00b1 {100 * margin['sd']:.1f}" if margin else "",
            f"{100 * margin['worst_case']:+.1f}" if margin else "",
            ("yes" if margin["outside_spread"] else "NO") if margin else "",
            f"{row['visual_tokens_kept']:.1f}",
            "" if recall is None else f"{100 * recall:.0f}%",
            style="bold" if row["arm"] == "trained" else "",
        )
    table.caption = (
        "\u00b1 is the standard deviation over training seeds; worst case = worst trained seed "
        "minus best run of the baseline; baselines that learn nothing vary only where they draw "
        "at random"
    )
    table.caption_justify = "left"
    return table


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """One line per budget: against the best selector at equal tokens, and against all tokens."""
    lines = []
    full = next((r for r in rows if r["arm"] == "full"), None)
    for ours in (r for r in rows if r["arm"] == "trained"):
        rivals = [
            r for r in rows
            if r["budget"] == ours["budget"] and r["margin"] and r["matched"] == "tokens"
        ]  # fmt: skip
        if not rivals:
            continue
        best = max(rivals, key=lambda r: r["accuracy"])
        clear = all(r["margin"]["outside_spread"] for r in rivals)
        line = (
            f"{ours['label']}: trained {100 * ours['accuracy']:.1f}, best other {best['title']} "
            f"{100 * best['accuracy']:.1f}, margin {100 * best['margin']['mean']:+.1f} "
            f"(worst case {100 * best['margin']['worst_case']:+.1f}); beats every baseline at "
            f"equal tokens outside the seed spread: {'yes' if clear else 'NO'}"
        )
        if full is not None:
            apart = 100 * (ours["accuracy"] - full["accuracy"])
            line += f"; {apart:+.1f} points against all tokens"
        lines.append(line)
    return lines


def main() -> None:
    options = arguments()
    setting = {
        "command": shlex.join(["python", "benchmarks/seeds.py", *sys.argv[1:]]),
        "seeds": options.seeds,
        "machine": machine(),
        "versions": versions(),
        "python": platform.python_version(),
    }
    for name, value in setting.items():
        print(f"{name}: {value}")
    comparisons = [one_seed(options, seed) for seed in options.seeds]
    rows = summarise(comparisons)
    lines = verdict(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {**setting, "samples": comparisons[0]["samples"], "rows": rows, "verdict": lines}
    (options.out / "seeds.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    table = table_of(rows, seeds=len(options.seeds), samples=comparisons[0]["samples"])
    with (options.out / "seeds.txt").open("w", encoding="utf-8") as file:
        for console in (Console(width=150), Console(width=150, file=file)):
            console.print(table)
            console.print("\n".join(lines), soft_wrap=True)


if __name__ == "__main__":
    main()
