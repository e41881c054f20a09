"""The public judge of ScreenSpot-Pro on a file of predictions: its verdicts and its accuracies.

In goes the file that the public script writes (eval_screenspot_pro.py at 588f1f2 of
likaixin2000/ScreenSpot-Pro-GUI-Grounding): `details` with a row per prediction (`pred` = point in
pixels of the screenshot or null, `bbox`, `gt_type`, groups, `correctness`) and `metrics`. Out come
our own verdicts by that script's rules, its grouped accuracies, and where the file says otherwise.
Its rules differ from ours (`points.py`) in one thing: all four edges belong to the target; how many
verdicts hang on that is told. A box that contradicts the declared meaning, and points in another
unit, are refused, for their scores would mean nothing. Left out: reading answers of models.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from saccade.config.errors import InputError
from saccade.data.boxes import Box
from saccade.data.samples import DataError
from saccade.data.screens.conventions import (
    OTHER,
    SPELT,
    Edges,
    Meaning,
    Noted,
    Sides,
    contradiction,
    edges_of,
    finite_numbers,
    four_numbers,
)
from saccade.data.tables import json_type, read_text
from saccade.scoring.points import judge_point

Verdict = Literal["correct", "wrong", "wrong_format"]
VERDICTS: tuple[Verdict, ...] = ("correct", "wrong", "wrong_format")
STYLES = {
    "fine_grained": ("platform", "application", "instruction_style", "gt_type"),
    "seeclick_style": ("platform", "instruction_style", "gt_type"),
    "leaderboard_simple_style": ("group",),
    "leaderboard_detailed_style": ("application",),
}
"""The script's tables and what each is grouped by."""
SHORT = {"platform": "plat", "application": "app", "instruction_style": "inst_style"}
"""How the script writes these in its keys; the others stand as they are."""
SHOWN_BY = ("ui_type", "platform", "group", "application")
ON_THE_EDGE = 1e-12
"""The script compares shares of the screenshot and stores pixels, the share times the side, which
may be one rounding off the edge that it was equal to."""
SHOWN_DIFFERENCES = 20


@dataclass(frozen=True)
class Judged:
    """One row: the public verdict, whether the half-open rule agrees, and what the file says."""

    verdict: Verdict
    edge_only: bool
    stored: str | None
    where: str
    groups: Mapping[str, Any]


def judge_screenspot_file(
    path: Path, *, boxes: Literal["auto", "xywh", "xyxy"] = "auto"
) -> dict[str, Any]:
    """Judge a predictions file anew; `boxes` is the meaning of `bbox` (auto: the format's, xyxy).

    Returns `metrics` (in the script's own structure), `verdicts`, `by` (accuracies), `differences`
    (rows whose stored verdict is another), `metrics_equal` (None where the file has none). Raises
    `InputError` for another format, contradicting boxes and points that are not in pixels.
    """
    rows, stored = _read(path)
    meaning: Meaning = "xyxy" if boxes == "auto" else boxes
    _refuse_contradiction(rows, meaning=meaning)
    _refuse_other_units(rows)
    judged = [_judged(row, meaning=meaning, where=where) for where, row in rows]
    other = [one for one in judged if one.stored is not None and one.stored != one.verdict]
    _refuse_other_verdicts(rows, judged, differing=len(other), meaning=meaning)
    metrics = grouped_metrics(judged)
    counts = Counter(one.verdict for one in judged)
    return {
        "file": str(path),
        "boxes": meaning,
        "rows": len(judged),
        "verdicts": {verdict: counts[verdict] for verdict in VERDICTS},
        "accuracy": metrics["overall"]["action_acc"],
        "by": _accuracies(judged),
        "edge_only": sum(one.edge_only for one in judged),
        "stored_verdicts": sum(one.stored is not None for one in judged),
        "differences": [
            {"where": one.where, "stored": one.stored, "ours": one.verdict} for one in other
        ],
        "metrics": metrics,
        "metrics_equal": None if stored is None else _equal(stored, metrics),
    }


def public_verdict(*, point: Sequence[float] | None, edges: Edges) -> tuple[Verdict, bool]:
    """The script's verdict on a point in pixels, and whether it hangs on a right or lower edge."""
    if point is None:
        return "wrong_format", False
    inside = judge_point(point=point, box=Box(*edges)).hit
    left, top, right, bottom = edges
    touching = _between(left, point[0], right) and _between(top, point[1], bottom)
    return ("correct" if inside or touching else "wrong"), touching and not inside


def grouped_metrics(judged: Sequence[Judged]) -> dict[str, Any]:
    """Accuracies in the structure of the script's `metrics`.

    As there, every combination of the values that occur is a group, and a row without a value
    (null) makes a group of all rows, whatever their value is.
    """
    found: dict[str, Any] = {}
    for style, names in STYLES.items():
        values = [list(dict.fromkeys(one.groups.get(name) for one in judged)) for name in names]
        groups = {}
        for combination in itertools.product(*values):
            chosen = [
                one
                for one in judged
                if all(
                    value is None or one.groups.get(name) == value
                    for name, value in zip(names, combination, strict=True)
                )
            ]
            if chosen:
                pairs = zip(names, combination, strict=True)
                key = " ".join(f"{SHORT.get(name, name)}:{value}" for name, value in pairs)
                groups[key] = _metrics(chosen)
        found[style] = groups
    found["overall"] = _metrics(judged)
    return found


def screenspot_table(result: Mapping[str, Any]) -> Any:
    """What was judged, for a terminal."""
    from rich.console import Group
    from rich.table import Table

    table = Table(title=f"{result['rows']} predictions, boxes {result['boxes']}")
    table.add_column("by")
    table.add_column("rows", justify="right")
    table.add_column("right %", justify="right")
    table.add_row("all", str(result["rows"]), f"{100 * result['accuracy']:.2f}")
    for name, values in result["by"].items():
        for value, found in values.items():
            accuracy = f"{100 * found['accuracy']:.2f}"
            table.add_row(f"{name} {value}", str(found["rows"]), accuracy)
    counts = ", ".join(f"{count} {name}" for name, count in result["verdicts"].items())
    lines = [counts]
    if result["edge_only"]:
        lines.append(
            f"{result['edge_only']} verdicts hang on a right or lower edge, which the public judge"
            " counts to the target and we do not"
        )
    if result["stored_verdicts"]:
        same = result["stored_verdicts"] - len(result["differences"])
        lines.append(f"verdicts as in the file: {same} of {result['stored_verdicts']}")
    lines += [
        f"  {one['where']}: the file says {one['stored']}, we say {one['ours']}"
        for one in result["differences"][:SHOWN_DIFFERENCES]
    ]
    if result["metrics_equal"] is not None:
        equal = "equal to" if result["metrics_equal"] else "NOT"
        lines.append(f"accuracies: {equal} those in the file")
    return Group(table, *lines)


# -- one row -------------------------------------------------------------------------------------


def _judged(row: Mapping[str, Any], *, meaning: Meaning, where: str) -> Judged:
    stored = row.get("correctness")
    stored = stored if isinstance(stored, str) else None
    if row.get("gt_type") == "negative":
        # nothing is to be found there, and what the model said of that is not in the file
        if stored not in VERDICTS:
            raise DataError(
                f"a row of gt_type negative with correctness {stored!r}",
                where=where,
                fix=f"one of {', '.join(VERDICTS)}",
            )
        return Judged(cast(Verdict, stored), False, stored, where, row)
    numbers = four_numbers(row.get("bbox"))
    if numbers is None:
        raise DataError(
            f"bbox is {row.get('bbox')!r}, four numbers are needed",
            where=where,
            fix="judge the file as the public script wrote it",
        )
    point = _point(row, where=where)
    verdict, edge_only = public_verdict(point=point, edges=edges_of(numbers, meaning=meaning))
    return Judged(verdict, edge_only, stored, where, row)


def _point(row: Mapping[str, Any], *, where: str) -> tuple[float, float] | None:
    value = row.get("pred")
    if value is None:
        return None
    sound = isinstance(value, list) and len(value) == 2
    if not sound or not all(type(one) in (int, float) for one in value):
        raise DataError(
            f"pred is {value!r}, a point in pixels or null is needed", where=where, fix="correct it"
        )
    return float(value[0]), float(value[1])


def _between(low: float, value: float, high: float) -> bool:
    """Both ends included."""
    if low <= value <= high:
        return True
    return any(math.isclose(value, edge, rel_tol=ON_THE_EDGE) for edge in (low, high))


# -- the whole file ------------------------------------------------------------------------------


def _read(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], Any]:
    try:
        document = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: JSON syntax error: {error.msg}\n  fix: correct the file"
        ) from None
    details = document.get("details") if isinstance(document, dict) else document
    if not isinstance(details, list) or not details:
        raise InputError(
            f"{path}: no list of predictions under details; found {json_type(document)}"
            "\n  fix: give the .json that eval_screenspot_pro.py wrote"
        )
    rows = []
    for number, row in enumerate(details, start=1):
        where = f"{path}, row {number} of details"
        if not isinstance(row, dict) or "pred" not in row:
            raise DataError(
                "a prediction with the key pred is needed",
                where=where,
                fix="give the .json that eval_screenspot_pro.py wrote",
            )
        rows.append((where, row))
    return rows, document.get("metrics") if isinstance(document, dict) else None


def _refuse_contradiction(
    rows: Iterable[tuple[str, Mapping[str, Any]]], *, meaning: Meaning
) -> None:
    noted = []
    for where, row in rows:
        numbers = four_numbers(row.get("bbox"))
        if numbers is not None:
            size = finite_numbers(row.get("img_size"), count=2)
            noted.append(Noted(numbers, cast("Sides | None", size), where))
    problem = contradiction(noted, meaning=meaning)
    if problem:
        raise InputError(problem)


def _refuse_other_units(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Points in shares would all be wrong, and look like a bad model's."""
    points = [found for where, row in rows if (found := _point(row, where=where)) is not None]
    boxes = [found for _, row in rows if (found := four_numbers(row.get("bbox"))) is not None]
    values = [value for point in points for value in point]
    if not boxes or all(value.is_integer() for value in values if math.isfinite(value)):
        return
    if all(0 <= value <= 1 for value in values) and all(max(box) > 2 for box in boxes):
        raise InputError(
            f"{rows[0][0]}: pred are shares of the screenshot (all within 0 and 1), bbox are pixels"
            "\n  fix: multiply pred by the screenshot's width and height"
        )


def _refuse_other_verdicts(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    judged: Sequence[Judged],
    *,
    differing: int,
    meaning: Meaning,
) -> None:
    """The file's own verdicts tell the meaning of its boxes, where the boxes alone do not."""
    if not differing:
        return
    other = OTHER[meaning]
    again = [_judged(row, meaning=other, where=where) for where, row in rows]
    left_over = sum(one.stored is not None and one.stored != one.verdict for one in again)
    if left_over < differing:
        first = next(one for one in judged if one.stored not in (None, one.verdict))
        raise InputError(
            f"{first.where}: with bbox as {SPELT[meaning]} this and {differing - 1} other verdicts"
            f" are not those of the file; as {SPELT[other]}, {left_over} are not"
            f"\n  fix: boxes={other}"
        )


# -- accuracies ----------------------------------------------------------------------------------


def _metrics(judged: Sequence[Judged]) -> dict[str, Any]:
    text = [one for one in judged if one.groups.get("ui_type") == "text"]
    icon = [one for one in judged if one.groups.get("ui_type") == "icon"]
    return {
        "num_correct_action": _right(judged),
        "num_total": len(judged),
        "wrong_format_num": sum(one.verdict == "wrong_format" for one in judged),
        "action_acc": _share(judged),
        "text_acc": _share(text),
        "icon_acc": _share(icon),
    }


def _right(judged: Sequence[Judged]) -> int:
    return sum(one.verdict == "correct" for one in judged)


def _share(judged: Sequence[Judged]) -> float:
    """Whole 0 for an empty group, as in the script."""
    return _right(judged) / len(judged) if judged else 0


def _accuracies(judged: Sequence[Judged]) -> dict[str, dict[str, dict[str, float]]]:
    """Rows and accuracy by every fact that rows have."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in SHOWN_BY:
        values = sorted({str(one.groups[name]) for one in judged if one.groups.get(name)})
        for value in values:
            chosen = [one for one in judged if str(one.groups.get(name)) == value]
            part = {"rows": len(chosen), "accuracy": _share(chosen)}
            found.setdefault(name, {})[value] = part
    return found


def _equal(stored: Any, ours: Mapping[str, Any]) -> bool:
    """Whether the file's accuracies are ours; tables that the file leaves out are not missed."""
    return isinstance(stored, dict) and all(ours.get(name) == stored[name] for name in stored)
