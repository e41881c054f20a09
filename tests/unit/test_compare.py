"""Comparisons: the grid of cells, answers that survive a kill, and the rows made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from saccade.evaluation.cells import Cell, CellStore, KeyedLines, budget_label, plan_cells
from saccade.evaluation.plot import save_comparison
from saccade.evaluation.summary import Measured, resize_share
from saccade.evaluation.table import comparison_table, sorted_rows
from saccade.models.flops import published_config
from tests.report_example import answers, comparison, prediction


def row(result: dict[str, Any], arm: str, matched: str = "tokens") -> dict[str, Any]:
    return next(r for r in result["rows"] if r["arm"] == arm and r["matched"] == matched)


def test_full_is_planned_once_and_random_once_per_seed() -> None:
    cells = plan_cells(["full", "random", "grid"], [0.25, 0.1], random_arms=["random"], seeds=3)
    assert [c.arm for c in cells].count("full") == 1
    assert [c.arm for c in cells].count("random") == 6
    assert [c.arm for c in cells].count("grid") == 2
    assert len({c.name for c in cells}) == len(cells)


def test_budgets_read_as_shares_or_counts() -> None:
    assert [budget_label(b) for b in (0.25, 0.055, 64, 1)] == [
        "25%",
        "5.5%",
        "64 tokens",
        "1 token",
    ]


def test_stored_answers_come_back_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    cell = Cell("grid", 0.25, 0.25)
    store = CellStore(tmp_path, key={"model": "a"})
    store.append(cell, answers("grid", 2, of=3))
    (file,) = tmp_path.iterdir()
    with file.open("a") as stream:
        stream.write('{"id": "half')
    again = CellStore(tmp_path, key={"model": "a"})
    assert sorted(again.answers(cell)) == ["q0", "q1", "q2"]
    again.append(cell, [prediction(7, correct=True)])
    assert sorted(CellStore(tmp_path, key={"model": "a"}).answers(cell)) == ["q0", "q1", "q2", "q7"]


def test_answers_of_other_weights_are_not_reused(tmp_path: Path) -> None:
    cell = Cell("grid", 0.25, 0.25)
    CellStore(tmp_path, key={"model": "a"}).append(cell, answers("grid", 2, of=3))
    other = CellStore(tmp_path, key={"model": "b"})
    assert other.answers(cell) == {}
    other.append(cell, [prediction(9, correct=True)])
    assert sorted(CellStore(tmp_path, key={"model": "b"}).answers(cell)) == ["q9"]


def test_rows_state_accuracy_spread_and_the_paired_difference() -> None:
    result = comparison()
    assert row(result, "trained")["accuracy"] == pytest.approx(0.9)
    assert row(result, "trained")["difference"] is None
    random = row(result, "random")
    assert random["seeds"] == 2
    assert random["accuracy"] == pytest.approx(12.5 / 40)
    assert random["accuracy_sd"] == pytest.approx(0.025 / 2**0.5)
    assert random["difference"]["mean"] == pytest.approx(0.9 - 12.5 / 40)
    assert random["difference"]["clear"]


def test_only_resizing_saves_in_the_vision_tower() -> None:
    result = comparison()
    vision = {r["arm"]: r["flops"]["vision"] for r in result["rows"] if r["matched"] == "tokens"}
    assert vision["trained"] == vision["full"] == vision["random"] > 3 * vision["resize"]
    assert row(result, "trained")["flops"]["selector"] == 1e9
    assert row(result, "full")["flops_speedup"] == pytest.approx(1.0)
    assert 1.0 < row(result, "trained")["flops_speedup"] < result["ceiling"]


def test_measured_speed_up_stands_beside_the_operations() -> None:
    result = comparison()
    assert row(result, "trained")["measured_speedup"] == pytest.approx(2.0)
    assert row(result, "random")["measured_speedup"] is None


def test_resizing_at_equal_operations_keeps_more_tokens() -> None:
    config = published_config("2b")
    share = resize_share(config, answers("trained", 10), selector_flops=1e9)
    assert 0.4 < share < 1.0


def test_measured_costs_are_read_back_only_under_their_key(tmp_path: Path) -> None:
    measured = Measured({("grid", 0.25): {"total_ms": 3.0}})
    measured.write(tmp_path / "costs.json", key={"model": "a"})
    assert Measured.read(tmp_path / "costs.json", key={"model": "a"}) == measured
    assert Measured.read(tmp_path / "costs.json", key={"model": "b"}).costs == {}
    assert Measured.read(tmp_path / "none.json", key={}).costs == {}


def test_the_result_is_plain_json_and_the_table_starts_with_all_tokens() -> None:
    result = json.loads(json.dumps(comparison()))
    assert [r["arm"] for r in sorted_rows(result)][:2] == ["full", "trained"]
    assert comparison_table(result).row_count == 5


def test_the_plot_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = save_comparison(comparison(), folder=tmp_path / "a").read_bytes()
    assert first == save_comparison(comparison(), folder=tmp_path / "b").read_bytes()


def test_a_line_torn_inside_a_letter_is_cut_off(tmp_path: Path) -> None:
    file = KeyedLines(tmp_path / "x.jsonl", key={"model": "a"})
    file.read()
    file.append([{"text": "one"}, {"text": "größer"}])
    content = file.path.read_bytes()
    file.path.write_bytes(content[: content.index("ö".encode()) + 1])
    again = KeyedLines(file.path, key={"model": "a"})
    assert again.read() == [{"text": "one"}]
    again.append([{"text": "größer"}])
    assert file.path.read_bytes() == content
