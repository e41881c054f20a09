"""Many comparisons as one table: mean and spread over training seeds, several placements.

In go the contents of `comparison.json` of runs that differ in seed, and in where or how the
selector chooses (`variant`); out come rows with mean and standard deviation over seeds, and for
each of our rows who beats it: anyone who is better on average and needs no more tokens (mean over
the layers of the language model), or no more operations. Pure functions. Left out: training and
answering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from saccade.evaluation.plot import flops_text
from saccade.evaluation.statistics import mean_sd

Row = dict[str, Any]
TITLES = {
    "features": "ours, after the tower",
    "pixels": "ours, from pixels",
    "glance": "ours, at a glance",
}
SAME_COST = 1.02
"""Costs within two percent count as equal: budgets are whole cells."""
MEANS = (
    "visual_tokens_kept", "visual_tokens_full", "tokens_into_layer_0", "kv_tokens_after_prefill",
    "answer_cells_kept",
)  # fmt: skip


def across(variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Rows over the seeds of each variant. Selectors that ours are held against come from the
    first variant; of the others only their own trained selector (and what costs as much) counts.
    """
    rows: list[Row] = []
    for place, (variant, comparisons) in enumerate(variants.items()):
        seeds = [{_key(row): row for row in one["rows"]} for one in comparisons]
        for key, first in seeds[0].items():
            if place and not _is_ours(first) and first["matched"] != "flops":
                continue
            # a selector that learns nothing may have been measured in the first run alone
            rows.append(_row(variant, [one[key] for one in seeds if key in one]))
    for row in rows:
        row["beaten_at_tokens"] = _names(r for r in rows if _beats(r, row, at="tokens"))
        row["beaten_at_flops"] = _names(r for r in rows if _beats(r, row, at="flops"))
    return rows


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['arm']}/{row['matched']}/{row['budget']}"


def _is_ours(row: Mapping[str, Any]) -> bool:
    """A run's own selector, with or without a set step."""
    return row["arm"].partition("+")[0] == "trained"


def _row(variant: str, seeds: Sequence[Mapping[str, Any]]) -> Row:
    first = seeds[0]
    ours = _is_ours(first)
    accuracy, sd = mean_sd([row["accuracy"] for row in seeds])
    if len(seeds) == 1:
        sd = first["accuracy_sd"]  # over its own draws
    title = TITLES.get(variant, variant) if ours else first["title"]
    if ours and first["arm"] != "trained":
        title += " + MMR"
    if first["matched"] == "flops":
        title = f"resized to the cost of {TITLES.get(variant, variant)}"
    means: Row = {}
    for name in MEANS:
        values = [row[name] for row in seeds if row.get(name) is not None]
        means[name] = mean_sd(values)[0] if values else None
    times = [row["milliseconds"] for row in seeds if row["milliseconds"]]
    return {
        "variant": variant,
        "arm": first["arm"],
        "title": title,
        "ours": ours and variant in TITLES,
        "matched": first["matched"],
        "budget": first["budget"],
        "label": first["budget_label"],
        "accuracies": [row["accuracy"] for row in seeds],
        "accuracy": accuracy,
        "accuracy_sd": sd,
        "kinds": {k: mean_sd([row["kinds"][k] for row in seeds])[0] for k in first["kinds"]},
        "flops": {k: mean_sd([row["flops"][k] for row in seeds])[0] for k in first["flops"]},
        "flops_speedup": mean_sd([row["flops_speedup"] for row in seeds])[0],
        "milliseconds": {k: mean_sd([t[k] for t in times])[0] for k in times[0]} if times else None,
        "measured_speedup": _mean_or_none([row["measured_speedup"] for row in seeds]),
        **means,
    }


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_sd(known)[0] if known else None


def _beats(rival: Row, ours: Row, *, at: str) -> bool:
    """Whether a rival is better on average at no higher cost."""
    if not ours["ours"] or rival is ours or rival["ours"] or rival["arm"] == "full":
        return False
    return _cost(rival, at) <= SAME_COST * _cost(ours, at) and rival["accuracy"] > ours["accuracy"]


def _cost(row: Row, at: str) -> float:
    """Operations, or tokens in a layer of the language model (mean over layers)."""
    if at == "flops":
        return row["flops"]["total"]
    return row["kv_tokens_after_prefill"] or row["tokens_into_layer_0"]


def _names(rows: Any) -> list[str]:
    ordered = sorted(rows, key=lambda row: -row["accuracy"])
    return list(dict.fromkeys(f"{row['title']} ({row['label']})" for row in ordered))


def across_table(rows: Sequence[Row], *, seeds: int, samples: int) -> Table:
    """Budget by budget, best first; ours in bold."""
    table = Table(
        title=f"{samples} held-out questions, {seeds} training seeds", title_justify="left"
    )
    for name in ("budget", "selector"):
        table.add_column(name, no_wrap=True)
    for name in ("accuracy", "layer 0", "KV", "vision", "scoring", "language", "x FLOPs", "ms",
                 "x time", "answer cells"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=name != "answer cells")
    previous = None
    for row in sorted(rows, key=lambda r: (r["arm"] != "full", -r["budget"], -r["accuracy"])):
        if previous not in (None, row["label"]):
            table.add_section()
        previous, cost, recall = row["label"], row["milliseconds"], row["answer_cells_kept"]
        parts = [flops_text(row["flops"][part]) for part in ("vision", "selector", "language")]
        table.add_row(
            row["label"],
            row["title"],
            f"{100 * row['accuracy']:.1f} \u00b1 {100 * row['accuracy_sd']:.1f}",
            f"{row['tokens_into_layer_0']:.0f}",
            f"{row['kv_tokens_after_prefill'] or row['tokens_into_layer_0']:.0f}",
            *parts,
            f"{row['flops_speedup']:.2f}",
            "" if cost is None else f"{cost['total_ms']:.1f}",
            "" if row["measured_speedup"] is None else f"{row['measured_speedup']:.2f}",
            "" if recall is None else f"{100 * recall:.0f}%",
            style="bold" if row["ours"] else ("dim" if row["arm"] == "full" else ""),
        )
    table.caption = (
        "accuracy in percent, mean and deviation over training seeds; KV = tokens in the cache "
        "after prefill (mean over layers); FLOPs and ms per question"
    )
    table.caption_justify = "left"
    return table


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For each of our rows: first at equal tokens and at equal operations, or who is ahead."""
    lines = []
    for row in sorted((r for r in rows if r["ours"]), key=lambda r: (r["variant"], -r["budget"])):
        parts = []
        for at in ("tokens", "flops"):
            ahead = row[f"beaten_at_{at}"]
            parts.append(
                f"at equal {at}: first" if not ahead else f"at equal {at}: behind {ahead[0]}"
                + (f" and {len(ahead) - 1} more" if len(ahead) > 1 else "")
            )  # fmt: skip
        lines.append(
            f"{row['label']}, {row['title']} ({100 * row['accuracy']:.1f}): {'; '.join(parts)}"
        )
    return lines
