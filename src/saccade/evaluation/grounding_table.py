"""Grounding as terminal tables: scores of one run, ways to look, and how the bars stand.

In go the content of `evaluation.json` or `comparison.json`; out come rich renderables that fit 80
columns, and the sentences that the report shares. Left out: prices of a look (the report has
them), printing and HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table

from saccade.evaluation.cells import budget_label
from saccade.evaluation.plot import flops_text

Row = Mapping[str, Any]

PARTS = {"platform": "platform", "element": "element", "size": "side in first look, px"}
COST_NAMES = ("visual tokens", "all tokens", "operations")
STANDINGS = {"clear": "met, beyond the interval", "met": "met", "missed": "missed",
             "unknown": "cannot be told"}  # fmt: skip
STYLES = {"clear": "green", "met": "green", "missed": "red", "unknown": "dim"}


def grounding_table(result: Row) -> Any:
    """Accuracy by platform, element and size beside clicking at random, with looks and cost."""
    right = _by_part(result, _right, title=_title(result))
    spent = _by_part(result, _spent, title="What it took")
    spent.caption = "\n".join([*notes(result), *setting_lines(result["settings"])])
    spent.caption_justify = "left"
    return Group(right, spent)


def _by_part(result: Row, cells: Callable[[Row], dict[str, str]], *, title: str) -> Table:
    table = _table(title, "targets", "", right=list(cells(result)))
    for part, heading in PARTS.items():
        for place, (name, found) in enumerate(result["parts"][part].items()):
            table.add_row(heading if not place else "", name, *cells(found).values())
        table.add_section()
    table.add_row("all", "", *cells(result).values(), style="bold")
    return table


def _table(title: str, *names: str, right: Sequence[str]) -> Table:
    """An empty table of words on the left and numbers on the right."""
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _title(result: Row) -> str:
    name = f"{result['name']}: " if result.get("name") else ""
    return f"{name}{result['samples']} held-out targets, judged by point in box"


def _right(found: Row) -> dict[str, str]:
    accuracy, iou = found["accuracy"], found["iou"]
    return {
        "in\nbox %": percent(accuracy),
        "95% interval": "" if accuracy is None else _between(found),
        "random %": percent(found["random"], digits=2),
        "IoU\n>=0.5 %": "" if iou is None else percent(iou["share"]),
        "targets": str(found["samples"]),
    }


def _spent(found: Row) -> dict[str, str]:
    return {
        "looks\nagain %": percent(found["zoom_rate"]["share"]),
        "kpixels": "" if found["pixels"] is None else f"{found['pixels'] / 1000:.1f}",
        "tokens": "" if found["tokens"] is None else f"{found['tokens']:.1f}",
    }


def _between(found: Row) -> str:
    return f"{percent(found['low'])} to {percent(found['high'])}"


def percent(value: float | None, *, digits: int = 1) -> str:
    """A share in percent without the sign; empty where there is none."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def notes(result: Row) -> list[str]:
    """What must be known to read the scores: targets that are points, ends, broken rows."""
    lines = []
    points = result["points"]
    if points:
        near, chance = percent(points["share"]), percent(points["random"])
        lines.append(
            f"{points['samples']} targets are known by a click point alone: {near} % of the answers"
            f" come within {points['near']:g} of a side of it [{percent(points['low'])},"
            f" {percent(points['high'])}], random {chance} %"
        )
    ends = ", ".join(f"{name} {count}" for name, count in result["finishes"].items())
    lines.append(f"episodes: {ends}; tool calls refused: {result['failed_calls']}")
    if result.get("costs"):
        visual, read, spent = cost_cells(result["costs"])
        lines.append(
            f"per target: {visual} visual tokens, {read} tokens read in all, {spent} operations"
        )
    if result["skipped"]:
        lines.append(f"{len(result['skipped'])} broken rows left out, e.g. {result['skipped'][0]}")
    return lines


def setting_lines(settings: Row) -> list[str]:
    """The conditions of a score, as the benchmarks' traps want them told."""
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    limit = settings["max_pixels"] or "the processor's limit of"
    pruned = settings.get("selector")
    return [
        *(
            [f"of every look {budget_label(settings['keep'])} is read, chosen by {pruned}"]
            if pruned
            else []
        ),
        f"first look at most {limit} pixels, crops {settings['crop_pixels']}, at most"
        f" {settings['calls']} zoom(s); coordinates {settings['coordinates']}; a box is clicked in"
        " its middle",
        f"prompt: {settings['prompt']}; temperature {settings['temperature']:g} (greedy)",
        versions,
    ]


def compared_table(result: Row) -> Any:
    """Ways to look, how they differ, looks by size, calibration, and how the bars stand."""
    return Group(
        _arms(result), _differences(result), _sizes(result), _calibration(result), _bars(result)
    )


def readings_table(result: Row) -> Any:
    """Ways to read a look, with what each really costs."""
    found = _table(
        _counted(result), "what is read",
        right=("in box %", "95% interval", "small %", "ours is better by"),
    )  # fmt: skip
    spent = _table("What it costs", "what is read", right=("looks again %", *COST_NAMES))
    for row in result["readings"]:
        style = "bold" if row["ours"] else ""
        found.add_row(
            row["title"], percent(row["accuracy"]), _between(row), percent(row["accuracy_small"]),
            "" if row["ours"] else points(row["difference"]), style=style,
        )  # fmt: skip
        spent.add_row(
            row["title"], percent(row["zoom_rate"]), *cost_cells(row["costs"]), style=style
        )
    spent.caption = (
        "means per target over all its looks; operations of the vision tower, the\n"
        "selector and the language model; differences in points with 95% intervals,\n"
        "paired by screenshot"
    )
    spent.caption_justify = "left"
    return Group(found, spent)


def _counted(result: Row) -> str:
    return f"{result['samples']} held-out targets, {result['small_samples']} of them small"


def cost_cells(costs: Row | None) -> tuple[str, str, str]:
    """What an episode costs, in the order of `COST_NAMES`."""
    if costs is None:
        return "", "", ""
    visual, read = f"{costs['tokens_visual']:.1f}", f"{costs['tokens_read']:.1f}"
    return visual, read, flops_text(costs["flops"])


def _arms(result: Row) -> Table:
    table = _table(
        _counted(result), "who looks again",
        right=("in\nbox %", "95% interval", "small %", "looks\nagain %", "kpixels"),
    )  # fmt: skip
    for row in result["rows"]:
        table.add_row(
            row["title"], percent(row["accuracy"]), _between(row), percent(row["accuracy_small"]),
            percent(row["zoom_rate"]), f"{row['pixels'] / 1000:.1f}", style=_style(row),
        )  # fmt: skip
    table.caption = (
        f"gates decide by a threshold fitted on {result['validation_samples']} validation targets"
        " to look\nas often as the learned policy there; `at equal pixels` = at exactly the\n"
        "learned policy's cost here"
    )
    table.caption_justify = "left"
    return table


def _differences(result: Row) -> Table:
    table = _table(
        "How much better the learned policy is", "than", right=("in all", "on small targets")
    )
    for row in result["rows"]:
        if row["arm"] != "learned":
            both = (points(row[key]) for key in ("difference", "difference_small"))
            table.add_row(row["title"], *both)
    table.caption = "points with 95% intervals, paired by screenshot"
    table.caption_justify = "left"
    return table


def _style(row: Row) -> str:
    return "bold" if row["arm"] == "learned" else ""


def points(found: Row) -> str:
    """A difference in points with its interval."""
    if not found["samples"]:
        return ""
    mean, low, high = (100 * found[part] for part in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _sizes(result: Row) -> Table:
    table = Table(title="By size of the target", title_justify="left")
    table.add_column("side in first look, px", justify="right")
    arms = [row for row in result["rows"] if row["arm"] in ("never", "learned", "always")]
    for name in ("targets", "learned looks again %", "95% interval",
                 *(f"{row['arm']} in box %" for row in arms)):  # fmt: skip
        table.add_column(name, justify="right")
    for rate in result["zoom_by_size"]:
        table.add_row(
            rate["bucket"], str(rate["samples"]), percent(rate["zoom_rate"]),
            _between(rate),
            *(percent(row["by_bucket"][rate["bucket"]]) for row in arms),
        )  # fmt: skip
    return table


def _calibration(result: Row) -> Table:
    table = Table(title="Confidence of the answer at first look", title_justify="left")
    table.add_column("confidence")
    for name in ("Brier", "ECE"):
        table.add_column(name, justify="right")
    for name, found in result["calibration"].items():
        table.add_row(name, f"{found['brier']:.4f}", f"{found['ece']:.4f}")
    table.caption = "fitted on validation, measured on test"
    table.caption_justify = "left"
    return table


def _bars(result: Row) -> Table:
    table = Table(title="Against the bars", title_justify="left")
    table.add_column("what")
    for name in ("measured", "95% interval", "bar"):
        table.add_column(name, justify="right")
    table.add_column("stands")
    for one in result["verdicts"]:
        style = STYLES[one["standing"]]
        table.add_row(*verdict_cells(one), style=style)
    return table


def verdict_cells(one: Row) -> tuple[str, ...]:
    """A verdict as words: what, measured, interval, bar, standing."""
    write = {"points": _signed, "share": percent, "loss": "{:+.4f}".format}[one["unit"]]
    value = one["detail"] if one["value"] is None else write(one["value"])
    interval = "" if one["low"] is None else f"{_signed(one['low'])} to {_signed(one['high'])}"
    bar = "" if one["bar"] is None else f"{one['sign']} {100 * one['bar']:g}"
    return one["name"], value, interval, bar, STANDINGS[one["standing"]]


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
