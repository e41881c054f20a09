"""Comparisons and evaluations as terminal tables.

In goes the content of `comparison.json` or `evaluation.json`; out come rich renderables. Left out:
printing (the command line's business) and HTML (the report's).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from saccade.evaluation.plot import flops_text

Row = Mapping[str, Any]


def compared(result: Row) -> Any:
    """What a comparison came to, in the form its recipe has."""
    if result.get("recipe") == "grounding":
        from saccade.evaluation.grounding_table import compared_table, readings_table

        return readings_table(result) if "readings" in result else compared_table(result)
    return comparison_table(result)


def compared_plots(result: Row, *, folder: Path) -> str:
    """Where a comparison's plots lie."""
    if "readings" in result:
        return f"written: {folder.parent / 'selectors.json'}"
    if result.get("recipe") == "grounding":
        return f"plots: {folder}/accuracy_cost.png, zoom_by_size.png, calibration.png"
    return f"plot: {folder / 'comparison.png'}"


def scores(result: Row) -> Any:
    """What an evaluation came to, in the form its recipe has."""
    from saccade.evaluation import dataset_scores, grounding_table, reading, reasoning, thinking

    tables: dict[str, Callable[[Row], Any]] = {
        "stream": reading.reading_table,
        "grounding": grounding_table.grounding_table,
        "thoughts": reasoning.reasoning_table,
        "recursion": thinking.thinking_table,
    }
    form = result.get("reads") or result.get("recipe")
    if form in tables:
        return tables[form](result)
    table = evaluation_table(result)
    return Group(table, dataset_scores.scores_table(result)) if result["scores"] else table


def comparison_table(result: Row) -> Table:
    """One line per selector and budget, best first within a budget."""
    table = Table(title=f"{result['samples']} held-out questions", title_justify="left")
    for name in ("budget", "selector"):
        table.add_column(name, no_wrap=True)
    for name in ("accuracy", "trained is better by", "tokens", "answer cells", "FLOPs", "x FLOPs",
                 "ms", "sees question", "learned"):  # fmt: skip
        table.add_column(name, justify="right")
    budget = None
    for row in sorted_rows(result):
        if budget is not None and row["budget_label"] != budget:
            table.add_section()
        budget = row["budget_label"]
        style = {"trained": "bold", "full": "dim"}.get(row["arm"], "")
        table.add_row(*_cells(row), style=style)
    table.caption = _caption(result)
    table.caption_justify = "left"
    return table


def sorted_rows(result: Row) -> list[Row]:
    """Full first, then budget by budget, most accurate first."""
    order = {str(budget): place for place, budget in enumerate(result["budgets"])}

    def key(row: Row) -> tuple[int, float]:
        place = -1 if row["arm"] == "full" else order[str(row["budget"])]
        return place, -row["accuracy"]

    return sorted(result["rows"], key=key)


def difference_text(row: Row) -> str:
    """How much better the trained selector is, in points, with its interval."""
    found = row["difference"]
    if found is None:
        return ""
    mean, low, high = (100 * found[part] for part in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def accuracy_text(row: Row) -> str:
    """Accuracy in percent; the spread over seeds where the selector draws at random."""
    text = f"{100 * row['accuracy']:.1f}"
    return f"{text} \u00b1 {100 * row['accuracy_sd']:.1f}" if row["seeds"] > 1 else text


def _cells(row: Row) -> list[str | Text]:
    recall, cost = row["answer_cells_kept"], row["milliseconds"]
    return [
        row["budget_label"],
        row["title"],
        accuracy_text(row),
        difference_text(row),
        f"{row['visual_tokens_kept']:.0f} of {row['visual_tokens_full']:.0f}",
        "" if recall is None else f"{100 * recall:.0f}%",
        flops_text(row["flops"]["total"]),
        f"{row['flops_speedup']:.2f}",
        "" if cost is None else f"{cost['total_ms']:.1f}",
        "yes" if row["query_aware"] else "no",
        "yes" if row["trained"] else "no",
    ]


def _caption(result: Row) -> str:
    return (
        "accuracy in percent; differences in points with 95% intervals, paired by image; FLOPs = "
        "vision + selector + language per question; dropping after the encoder can reach at most "
        f"{result['ceiling']:.2f}x FLOPs here"
    )


def evaluation_table(result: Row) -> Table:
    """Accuracy per question kind beside the majority baseline."""
    metrics = [name for name in result.get("metrics", ()) if name != "accuracy"]
    title = ", ".join([f"{result['samples']} held-out questions", *metrics])
    table = Table(title=title, title_justify="left")
    table.add_column("kind")
    worth = metrics[0] if len(metrics) == 1 and metrics == list(result["metrics"]) else "accuracy"
    for name in (worth, "95% interval", "majority", "questions"):
        table.add_column(name, justify="right")
    scores = [*result["kinds"].items(), ("all", result)]
    for kind, score in scores:
        if kind == "all":
            table.add_section()
        table.add_row(
            kind,
            f"{100 * score['accuracy']:.1f}",
            f"{100 * score['low']:.1f} to {100 * score['high']:.1f}",
            f"{100 * score['majority']:.1f}",
            str(score["samples"]),
            style="bold" if kind == "all" else "",
        )
    tokens = result["tokens"]
    table.caption = (
        f"visual tokens kept {tokens['visual_tokens_kept']:.1f} of "
        f"{tokens['visual_tokens_full']:.1f}; tokens into layer 0 (and in the KV cache after "
        f"prefill) {tokens['tokens_into_layer_0']:.1f}"
    )
    return table
