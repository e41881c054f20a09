"""The report's tables: which columns there are, how a value reads, what it sorts by.

In go the contents of `comparison.json`, `evaluation.json` and the configuration; out comes HTML.
Left out: sentences and plots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saccade.evaluation.plot import flops_text
from saccade.evaluation.table import accuracy_text, difference_text, sorted_rows
from saccade.microscope.markup import Column, table, text

Data = Mapping[str, Any]


def comparison_table(comparison: Data) -> str:
    """One row per selector and budget: accuracy, tokens, operations and times by part."""
    columns = [
        _budget(),
        Column("selector", lambda r: text(r["title"]), is_text=True),
        Column("accuracy %", accuracy_text, lambda r: r["accuracy"]),
        Column("trained better by", difference_text, lambda r: (r["difference"] or {}).get("mean")),
        _number("visual tokens", "visual_tokens_kept", digits=1),
        _number("into layer 0 = KV", "tokens_into_layer_0", digits=1),
        _number("KV kB", "kv_bytes", scale=1e-3),
        _number("answer cells %", "answer_cells_kept", scale=100),
        _operations("vision", heading="vision FLOPs"),
        _operations("selector", heading="selector"),
        _operations("language", heading="language"),
        _number("x fewer", "flops_speedup", digits=2),
        _milliseconds("encoder"),
        _milliseconds("selector"),
        _milliseconds("prefill"),
        _number("x measured", "measured_speedup", digits=2),
        _yes_no("sees question", "query_aware"),
        _yes_no("learned", "trained"),
    ]
    return table(
        columns,
        sorted_rows(comparison),
        row_class=_row_class(),
        caption="Comparison of selectors",
    )


def kinds_table(comparison: Data) -> str:
    """Accuracy per question kind: where each selector wins and loses."""
    columns = [
        _budget(),
        Column("selector", lambda r: text(r["title"]), is_text=True),
        *(_kind(kind) for kind in comparison["kinds"]),
        Column("all", accuracy_text, lambda r: r["accuracy"]),
    ]
    inner = table(
        columns,
        sorted_rows(comparison),
        row_class=_row_class(),
        caption="Accuracy per question kind",
    )
    return f"<h3>By question kind, accuracy in percent</h3>{inner}"


def evaluation_table(evaluation: Data) -> str:
    """Accuracy per question kind beside the majority baseline."""
    total = {k: evaluation[k] for k in ("accuracy", "low", "high", "majority", "samples")}
    rows = [{"kind": kind, **score} for kind, score in evaluation["kinds"].items()]
    columns = [
        Column("kind", lambda r: text(r["kind"]), is_text=True),
        _number("accuracy %", "accuracy", digits=1, scale=100),
        Column(
            "95% interval",
            lambda r: f"{100 * r['low']:.1f} to {100 * r['high']:.1f}",
            lambda r: r["low"],
        ),
        _number("majority %", "majority", digits=1, scale=100),
        _number("questions", "samples"),
    ]
    return table(
        columns,
        [*rows, {"kind": "all", **total}],
        row_class=lambda r: "trained" if r["kind"] == "all" else "",
        caption="Accuracy per question kind beside the majority baseline",
    )


def values_table(config: Data, *, sources: Data) -> str:
    """Every configuration value and where it came from."""
    rows = [{"key": k, "value": v, "source": sources.get(k, "")} for k, v in config.items()]
    columns = [
        Column("key", lambda r: f"<code>{text(r['key'])}</code>", is_text=True),
        Column("value", lambda r: text(r["value"]), is_text=True),
        Column("from", lambda r: text(r["source"]), is_text=True),
    ]
    return table(columns, rows, row_class=lambda r: "", caption="All configuration values")


def _budget() -> Column:
    return Column(
        "budget", lambda r: text(r["budget_label"]), lambda r: r["visual_tokens_kept"], is_text=True
    )


def _number(heading: str, key: str, *, digits: int = 0, scale: float = 1.0) -> Column:
    def show(row: Data) -> str:
        return "" if row[key] is None else f"{scale * row[key]:.{digits}f}"

    return Column(heading, show, lambda row: row[key])


def _operations(part: str, *, heading: str) -> Column:
    return Column(heading, lambda r: flops_text(r["flops"][part]), lambda r: r["flops"][part])


def _milliseconds(part: str) -> Column:
    def value(row: Data) -> float | None:
        return row["milliseconds"][f"{part}_ms"] if row["milliseconds"] else None

    def show(row: Data) -> str:
        found = value(row)
        return "" if found is None else f"{found:.1f}"

    return Column(f"{part} ms", show, value)


def _kind(kind: str) -> Column:
    def show(row: Data) -> str:
        share = row["kinds"].get(kind)
        return "" if share is None else f"{100 * share:.0f}"

    return Column(kind, show, lambda row: row["kinds"].get(kind), shaded=True)


def _yes_no(heading: str, key: str) -> Column:
    return Column(heading, lambda r: "yes" if r[key] else "no", is_text=True)


def _row_class() -> Callable[[Data], str]:
    """Mark the trained selector, the full model, and the first row of each budget."""
    seen: list[str] = []

    def name(row: Data) -> str:
        new = "new" if seen and seen[-1] != row["budget_label"] else ""
        seen.append(row["budget_label"])
        kind = row["arm"] if row["arm"] in ("trained", "full") else ""
        return f"{kind} {new}".strip()

    return name
