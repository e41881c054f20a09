"""What an ablation found, as plain data, terminal table, Markdown and CSV.

The stored results of finished trials flow in; a summary flows out: for each variant the mean
accuracy over seeds with its deviation at every budget, the difference to the reference variant
paired by sample (seeds averaged first, images resampled), and the cost. A variant that is not
finished stands there with nothing to show. Pure functions of their arguments, except
`write_reports`. Left out: running trials.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.schema import Budget
from saccade.evaluation.cells import budget_label
from saccade.evaluation.statistics import mean_sd, paired_difference
from saccade.pipeline.variants import Ablation
from saccade.training.progress import duration
from saccade.training.rundir import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

Result = Mapping[str, Any]
Summary = Mapping[str, Any]


def summarise(
    ablation: Ablation,
    *,
    name: str,
    seeds: Sequence[int],
    results: Mapping[tuple[str, int], Result],
) -> dict[str, Any]:
    """The content of `ablation.json`; `results` are the finished trials by variant and seed."""
    of = {
        variant.name: {
            seed: found for (owner, seed), found in results.items() if owner == variant.name
        }
        for variant in ablation.variants
    }
    reference = of[ablation.reference]
    rows = [
        {
            "variant": variant.name,
            "groups": list(variant.groups),
            "about": variant.about,
            "set": variant.settings(),
            **_measured(
                of[variant.name], reference, is_reference=variant.name == ablation.reference
            ),
        }
        for variant in ablation.variants
    ]
    samples = [row["budgets"][0]["samples"] for row in rows if row["budgets"]]
    return {
        "v": 1,
        "name": name,
        "recipe": ablation.recipe,
        "file": ablation.shown,
        "reference": ablation.reference,
        "seeds": list(seeds),
        "samples": max(samples, default=0),
        "trials": len(ablation.variants) * len(seeds),
        "finished": len(results),
        "variants": rows,
    }


def _measured(
    own: Mapping[int, Result], reference: Mapping[int, Result], *, is_reference: bool
) -> dict[str, Any]:
    """One variant's numbers over its finished seeds."""
    if not own:
        return {"seeds": [], "budgets": [], "trainable_parameters": None, "train_seconds": None}
    first = next(iter(own.values()))
    shared = sorted(own.keys() & reference.keys())
    budgets = []
    for place, entry in enumerate(first["budgets"]):
        each = {str(seed): _accuracy(one["budgets"][place]) for seed, one in sorted(own.items())}
        mean, sd = mean_sd(list(each.values()))
        difference = None
        if shared and not is_reference:
            difference = _difference(
                [own[seed] for seed in shared], [reference[seed] for seed in shared], place=place
            )
        budgets.append(
            {
                "budget": entry["budget"],
                "accuracy": mean,
                "sd": sd,
                "per_seed": each,
                "samples": len(entry["correct"]),
                "difference": difference,
            }
        )
    return {
        "seeds": sorted(own),
        "budgets": budgets,
        "trainable_parameters": first["trainable_parameters"],
        "train_seconds": mean_sd([one["train_seconds"] for one in own.values()])[0],
        **_thinking(own),
    }


def _thinking(own: Mapping[int, Result]) -> dict[str, float]:
    """Mean steps until halting, of models that have them."""
    if not all("mean_steps" in one for one in own.values()):
        return {}
    return {"mean_steps": mean_sd([one["mean_steps"] for one in own.values()])[0]}


def _accuracy(entry: Mapping[str, Any]) -> float:
    return sum(entry["correct"].values()) / len(entry["correct"])


def _difference(ours: Sequence[Result], theirs: Sequence[Result], *, place: int) -> dict[str, Any]:
    """Variant minus reference, on the seeds both have."""
    found = paired_difference(
        _scores(ours, place=place), _scores(theirs, place=place), groups=ours[0]["groups"]
    )
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "clear": found.clear,
        "seeds": len(ours),
    }


def _scores(results: Sequence[Result], *, place: int) -> dict[str, float]:
    """Each sample's share of right answers over seeds."""
    hits: dict[str, list[int]] = {}
    for result in results:
        for sample, correct in result["budgets"][place]["correct"].items():
            hits.setdefault(sample, []).append(correct)
    return {sample: sum(found) / len(found) for sample, found in hits.items()}


def budgets_of(summary: Summary) -> list[Budget]:
    """Budgets of the first variant that has any."""
    rows = [row["budgets"] for row in summary["variants"] if row["budgets"]]
    return [entry["budget"] for entry in rows[0]] if rows else []


def accuracy_text(entry: Mapping[str, Any]) -> str:
    """Percent, with the deviation over seeds where there are several."""
    text = f"{100 * entry['accuracy']:.1f}"
    return f"{text} \u00b1 {100 * entry['sd']:.1f}" if len(entry["per_seed"]) > 1 else text


def difference_text(entry: Mapping[str, Any]) -> str:
    """Points against the reference with the interval; a star where it leaves zero out."""
    found = entry["difference"]
    if found is None:
        return ""
    mean, low, high = (100 * found[part] for part in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{'*' if found['clear'] else ''}"


def ablation_table(summary: Summary) -> Table:
    """One line per variant; under each accuracy the difference to the reference."""
    from rich.table import Table

    title = (
        f"{summary['name']}: {summary['finished']} of {summary['trials']} trials,"
        f" {summary['samples']} held-out questions"
    )
    table = Table(title=title, title_justify="left", caption=caption(summary))
    table.caption_justify = "left"
    table.add_column("variant")
    table.add_column("groups")
    for budget in budgets_of(summary):
        table.add_column(budget_label(budget), justify="right")
    for name in _costs(summary):
        table.add_column(name, justify="right")
    for row in summary["variants"]:
        is_reference = row["variant"] == summary["reference"]
        cells = [
            "\n".join(filter(None, (accuracy_text(entry), difference_text(entry))))
            for entry in row["budgets"]
        ] or ["" for _ in budgets_of(summary)]
        table.add_row(
            row["variant"],
            _groups(summary, row),
            *cells,
            *_tail(summary, row),
            style="bold" if is_reference else ("" if row["budgets"] else "dim"),
        )
    return table


def _groups(summary: Summary, row: Mapping[str, Any]) -> str:
    return "reference" if row["variant"] == summary["reference"] else ", ".join(row["groups"])


def _costs(summary: Summary) -> list[str]:
    """Names of the last columns."""
    thinks = any("mean_steps" in row for row in summary["variants"])
    return [*(["steps"] if thinks else []), "seeds", "parameters", "seconds"]


def _tail(summary: Summary, row: Mapping[str, Any]) -> list[str]:
    if not row["seeds"]:
        return ["none yet", *("" for _ in _costs(summary)[1:])]
    parameters = row["trainable_parameters"]
    return [
        *([f"{row['mean_steps']:.2f}"] if "mean_steps" in row else []),
        str(len(row["seeds"])),
        "" if parameters is None else f"{parameters:,}",
        duration(row["train_seconds"]),
    ]


def caption(summary: Summary) -> str:
    """How to read the numbers."""
    if summary["recipe"] == "recursion":
        return (
            "puzzles right in every cell in percent, mean \u00b1 deviation over seeds, after some"
            f" steps of thinking and with halting; below: points against {summary['reference']}"
            " with 95% interval, paired by puzzle (* leaves zero out); mean steps with halting;"
            " seconds of training per trial"
        )
    return (
        "accuracy of hard selection in percent, mean \u00b1 deviation over seeds; below: points"
        f" against {summary['reference']} with 95% interval, paired by question, images resampled"
        " (* leaves zero out); seconds of training per trial"
    )


def markdown(summary: Summary) -> str:
    """The same table for a page."""
    budgets = [budget_label(budget) for budget in budgets_of(summary)]
    against = [f"against {summary['reference']}" for _ in budgets]
    pairs = [text for pair in zip(budgets, against, strict=True) for text in pair]
    head = ["variant", "groups", *pairs, *_costs(summary)]
    lines = [f"# Ablation of {summary['name']}\n", caption(summary) + "\n"]
    lines += [_line(head), _line(["---"] * len(head))]
    for row in summary["variants"]:
        cells = [
            text
            for entry in row["budgets"]
            for text in (accuracy_text(entry), difference_text(entry))
        ] or [""] * len(pairs)
        lines.append(_line([row["variant"], _groups(summary, row), *cells, *_tail(summary, row)]))
    lines.append("")
    lines += [
        f"- **{row['variant']}**: {row['about']} {_settings(row['set'])}".rstrip()
        for row in summary["variants"]
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}={json.dumps(value)}`" for key, value in values.items())


def csv_text(summary: Summary) -> str:
    """One line per variant and budget, numbers unrounded."""
    fields = (
        "variant", "groups", "budget", "accuracy", "sd", "seeds", "samples", "difference", "low",
        "high", "trainable_parameters", "train_seconds",
    )  # fmt: skip
    target = io.StringIO()
    writer = csv.DictWriter(target, fieldnames=fields, lineterminator="\n")
    writer.writeheader()
    for row in summary["variants"]:
        for entry in row["budgets"]:
            found = entry["difference"] or {}
            writer.writerow(
                {
                    "variant": row["variant"],
                    "groups": " ".join(row["groups"]),
                    **{name: entry[name] for name in ("budget", "accuracy", "sd", "samples")},
                    "seeds": len(row["seeds"]),
                    "difference": found.get("mean"),
                    "low": found.get("low"),
                    "high": found.get("high"),
                    "trainable_parameters": row["trainable_parameters"],
                    "train_seconds": row["train_seconds"],
                }
            )
    return target.getvalue()


def write_reports(summary: Summary, *, folder: Path) -> None:
    """Write `ablation.json`, `.csv` and `.md`, each whole or not at all."""
    write_atomically(folder / "ablation.json", json.dumps(summary, indent=1) + "\n")
    write_atomically(folder / "ablation.csv", csv_text(summary))
    write_atomically(folder / "ablation.md", markdown(summary))
