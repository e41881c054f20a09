"""The benchmarks' own arithmetic, and that the speed benchmark runs on a real tiny model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.report_example import comparison
from tests.scored_run import base_folder

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shifted(by: float) -> dict[str, Any]:
    found = comparison()
    for row in found["rows"]:
        if row["arm"] == "trained":
            row["accuracy"] += by
    return found


def row(rows: list[dict[str, Any]], arm: str, matched: str = "tokens") -> dict[str, Any]:
    return next(r for r in rows if r["arm"] == arm and r["matched"] == matched)


def test_a_margin_counts_only_when_the_worst_seed_beats_the_best_baseline() -> None:
    seeds = load("seeds")
    rows = seeds.summarise([shifted(0.0), shifted(0.02), shifted(-0.02)])
    assert row(rows, "trained")["accuracy"] == pytest.approx(0.9)
    assert row(rows, "trained")["accuracy_sd"] == pytest.approx(0.02)
    margin = row(rows, "resize")["margin"]
    assert margin["mean"] == pytest.approx(0.4)
    assert margin["worst_case"] == pytest.approx(0.38)
    assert margin["outside_spread"]
    close = seeds.summarise([shifted(0.0), shifted(-0.5)])
    assert not row(close, "resize")["margin"]["outside_spread"]


def test_the_verdict_names_the_best_rival_at_equal_tokens() -> None:
    seeds = load("seeds")
    (line,) = seeds.verdict(seeds.summarise([shifted(0.0), shifted(0.0)]))
    assert "best other resized image 50.0" in line
    assert "outside the seed spread: yes" in line
    assert "-5.0 points against all tokens" in line


def test_the_speed_benchmark_states_parts_and_ceiling(tmp_path: Path) -> None:
    model, out = base_folder(tmp_path / "base"), tmp_path / "speed.json"
    command = [
        sys.executable, str(FOLDER / "prefill.py"), "--model", str(model), "--sizes", "64",
        "--keep", "0.5", "--repeat", "1", "--warmup", "0", "--batch", "2", "--threads", "1",
        "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "physical ceiling" in done.stdout
    (found,) = json.loads(out.read_text())["measured"]
    rows = {row["arm"]: row for row in found["rows"]}
    assert list(rows) == ["full", "features", "pixels", "glance", "resize"]
    full = rows["full"]
    assert full["visual_tokens"] == 16
    assert full["measured_speedup"] == pytest.approx(1.0)
    spent = {arm: row["flops"]["vision"] for arm, row in rows.items()}
    assert spent["features"] == spent["full"] > spent["glance"] > spent["pixels"]
    assert spent["resize"] == spent["pixels"]
    assert all(row["kv_bytes"] < full["kv_bytes"] for arm, row in rows.items() if arm != "full")
    assert found["ceiling"]["flops"] > 1.0


def test_rules_of_stopping_stand_beside_each_other_with_their_spread() -> None:
    halting = load("halting")

    def scored(right: float) -> dict[str, Any]:
        stop = {"accuracy": right, "mean_steps": 2.0}
        return {
            "accuracy": right, "accuracy_by_step": [0.5] * 4, "overthinking": 0.1,
            "halting": stop, "published": stop,
        }  # fmt: skip

    learned = {**scored(0.9), "q_halting": {"accuracy": 0.8, "mean_steps": 1.5}}
    rows = halting.rows({("hard", "bce"): [scored(0.8), scored(0.9)], ("hard", "q"): [learned]})
    assert rows[1] == ["hard", "bce", "all steps", "85.0 +- 7.1", "4.00 +- 0.00", "10.0 +- 0.0"]
    assert [row[2] for row in rows[1:]].count("learned values") == 1
    assert rows[-1] == ["hard", "q", "learned values", "80.0", "1.50", ""]
    assert len({line.index("all steps") for line in halting.aligned(rows).split("\n")[1:5:3]}) == 1


def test_grounding_seeds_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    found = load("grounding_seeds")

    def seed(name: str, accuracy: float, standing: str) -> dict[str, Any]:
        gap = {"mean": accuracy - 0.5}
        arm = {"arm": "never", "title": "never look again", "accuracy": 0.5, "accuracy_small": 0.1,
               "zoom_rate": 0.0, "pixels": 6400, "difference": gap}  # fmt: skip
        verdict = {"name": "better", "value": gap["mean"], "bar": 0.1, "unit": "points",
                   "sign": ">=", "standing": standing, "detail": ""}  # fmt: skip
        compared = {"rows": [arm], "verdicts": [verdict],
                    "zoom_by_size": [{"bucket": "<4", "zoom_rate": 0.9}]}  # fmt: skip
        return {"run": name, "comparison": compared, "hours": 1.0}

    seeds = [seed("a", 0.7, "clear"), seed("b", 0.55, "missed")]
    cells = [list(column.cells) for column in found.arms(seeds).columns]
    assert [one[0] for one in cells][:3] == ["never look again", "50.0 \u00b1 0.0", "+20.0, +5.0"]
    (row,) = zip(*(list(column.cells) for column in found.bars(seeds).columns), strict=True)
    assert row == ("better", ">= 10", "20, 5", "1 of 2")
