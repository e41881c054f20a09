"""What every run has to show for itself: metrics, evaluation, comparison, figures, report.

A folder of runs flows in, rows of plain values flow out: what stands in DONE, `evaluation.json` and
`comparison.json`, and which files can be opened. A file that cannot be read is named in its row.
Left out: making any of it (`saccade eval`, `compare`, `report`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PICTURES = (".png", ".jpg", ".jpeg")
SKIPPED = frozenset({"artifacts", "stages"})


def results_of(root: Path) -> list[dict[str, Any]]:
    """One row per run with a result, the newest first."""
    rows = []
    try:
        folders = [one for one in root.iterdir() if one.is_dir() and not one.name.startswith(".")]
    except FileNotFoundError:
        return []
    for folder in folders:
        row = result_of(folder)
        if row is not None:
            rows.append(row)
    return sorted(rows, key=lambda row: -row["time"])


def result_of(folder: Path) -> dict[str, Any] | None:
    """What one folder has to show; None when it is nothing."""
    problems: list[str] = []
    done = _json(folder / "DONE", problems)
    evaluation = _json(folder / "evaluation.json", problems)
    comparison = _json(folder / "comparison.json", problems)
    report = folder / "report.html"
    figures = _pictures(folder, problems)
    if not (done or evaluation or comparison or figures or problems or report.is_file()):
        return None
    metrics = (done or {}).get("metrics") or {}
    moment = (done or {}).get("time") or _changed(folder)
    return {
        "key": folder.name, "run": folder.name, "path": str(folder), "time": float(moment),
        "metrics": {name: value for name, value in metrics.items() if _is_number(value)},
        "accuracy": (evaluation or {}).get("accuracy", metrics.get("accuracy")),
        "evaluation": evaluation, "comparison": comparison,
        "report": str(report) if report.is_file() else None,
        "figures": figures, "problem": "; ".join(problems),
    }  # fmt: skip


def _json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
        return None
    except ValueError:
        problems.append(f"{path.name}: half written or damaged")
        return None
    return value if isinstance(value, Mapping) else None  # type: ignore[return-value]


def _pictures(folder: Path, problems: list[str]) -> list[str]:
    try:
        return sorted(
            str(path) for path in (folder / "figures").rglob("*") if path.suffix in PICTURES
        )[:200]
    except OSError as error:
        problems.append(f"figures: {error.strerror}")
        return []


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
