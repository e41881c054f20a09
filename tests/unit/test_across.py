"""Comparisons of several runs in one table: means over seeds, and who beats whom at what cost."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from saccade.evaluation.across import across, across_table, verdicts
from tests.report_example import comparison


def seeds(*shifts: float, cheaper: float = 1.0) -> list[dict[str, Any]]:
    """Comparisons whose trained rows are shifted in accuracy and scaled in cost."""
    found = []
    for shift in shifts:
        one = copy.deepcopy(comparison())
        for row in one["rows"]:
            row.setdefault("kv_tokens_after_prefill", row["tokens_into_layer_0"])
            if row["arm"] == "trained":
                row["accuracy"] += shift
                row["flops"] = {part: cheaper * value for part, value in row["flops"].items()}
        found.append(one)
    return found


def ours(rows: list[dict[str, Any]], variant: str) -> dict[str, Any]:
    return next(row for row in rows if row["ours"] and row["variant"] == variant)


def test_accuracy_is_the_mean_and_its_deviation_over_seeds() -> None:
    row = ours(across({"features": seeds(0.0, 0.02, -0.02)}), "features")
    assert row["accuracy"] == pytest.approx(0.9) and row["accuracy_sd"] == pytest.approx(0.02)
    assert len(row["accuracies"]) == 3


def test_rivals_come_from_the_first_variant_only() -> None:
    rows = across({"features": seeds(0.0), "glance": seeds(-0.1, cheaper=0.2)})
    tokens = [row for row in rows if row["matched"] == "tokens"]
    assert sum(row["arm"] == "resize" for row in tokens) == 1
    assert {row["variant"] for row in rows if row["ours"]} == {"features", "glance"}
    assert ours(rows, "glance")["title"] == "ours, at a glance"


def test_a_better_rival_counts_only_when_it_costs_no_more() -> None:
    ahead = ours(across({"features": seeds(-0.6)}), "features")
    assert ahead["beaten_at_tokens"]
    assert not any("all tokens" in name for name in ahead["beaten_at_tokens"])
    cheap = ours(across({"features": seeds(-0.6, cheaper=0.01)}), "features")
    assert cheap["beaten_at_tokens"] and not cheap["beaten_at_flops"]
    best = ours(across({"features": seeds(0.05)}), "features")
    assert not best["beaten_at_tokens"]


def test_the_verdict_says_first_or_names_who_is_ahead() -> None:
    (line,) = verdicts(across({"features": seeds(0.05, cheaper=0.01)}))
    assert line.endswith("at equal tokens: first; at equal flops: first")
    (line,) = verdicts(across({"features": seeds(-0.6)}))
    assert "at equal tokens: behind " in line


def test_the_table_shows_every_row_once() -> None:
    rows = across({"features": seeds(0.0, 0.01)})
    console = Console(width=200, file=io.StringIO())
    console.print(across_table(rows, seeds=2, samples=400))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("| ours, after the tower".replace("|", "\u2502")) == 1
    assert "2 training seeds" in text
