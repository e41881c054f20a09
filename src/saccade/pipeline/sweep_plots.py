"""Figures of a sweep: history, learning curves, parallel coordinates and importance, as PNG.

The summary (`sweep.json`) flows in; PNG files in the sweep's folder flow out. The same summary
gives the same pictures; no window is opened. Left out: numbers (`sweep_report.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"finished": "#1f6fb4", "stopped": "#e08214", "failed": "#b2182b", "running": "#999999"}
FADED = "#c9ced6"


def draw_sweep(summary: Mapping[str, Any], *, folder: Path) -> list[Path]:
    """Write every figure the summary has enough trials for; returns their paths."""
    rows = [row for row in summary["trials"] if _is_number(row["value"]) and row["parameters"]]
    if not rows:
        return []
    drawn = {"history": history(summary, rows), "parallel": parallel_coordinates(summary, rows)}
    if summary["importance"]:
        drawn["importance"] = importance(summary)
    paths = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths


def history(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Each trial's value with the best so far, beside the learning curves."""
    figure = _figure(11, 4.2)
    values, curves = figure.subplots(1, 2)
    for state, colour in COLOURS.items():
        own = [row for row in rows if row["state"] == state]
        if own:
            x, y = [row["trial"] for row in own], [row["value"] for row in own]
            values.scatter(x, y, s=26, color=colour, label=f"{state} ({len(own)})", zorder=3)
        for row in own:
            numbers = range(1, len(row["curve"]) + 1)
            curves.plot(numbers, row["curve"], color=colour, linewidth=1, alpha=0.75)
    best: list[tuple[int, float]] = []
    for row in (row for row in rows if row["state"] == "finished"):
        so_far = best[-1][1] if best else row["value"]
        best.append((row["trial"], _better(summary)(so_far, row["value"])))
    if best:
        values.step(*zip(*best, strict=True), where="post", color="#222222", label="best so far")
    _label(values, "trial", summary["metric"])
    _label(curves, "report", summary["metric"])
    values.legend(frameon=False, fontsize=8)
    return figure


def parallel_coordinates(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Figure:
    """One line per trial through its parameters to its value; stopped trials are grey."""
    import matplotlib
    from matplotlib.colors import Normalize

    keys = [key for key in rows[0]["parameters"] if _varies(key, rows)]
    scales = [_Scale([row["parameters"][key] for row in rows]) for key in keys]
    values = [row["value"] for row in rows]
    scales.append(_Scale(values))
    figure = _figure(max(6.0, 2.0 * len(scales)), 4.6)
    axes = figure.subplots()
    shade, colours = Normalize(min(values), max(values) or 1.0), matplotlib.colormaps["viridis"]
    for row in sorted(rows, key=lambda one: one["state"] == "finished"):
        cells = [*(row["parameters"][key] for key in keys), row["value"]]
        heights = [scale.at(cell) for scale, cell in zip(scales, cells, strict=True)]
        finished = row["state"] == "finished"
        axes.plot(
            range(len(heights)), heights, linewidth=1.8 if finished else 0.9,
            color=colours(shade(row["value"])) if finished else FADED,
        )  # fmt: skip
    for position, scale in enumerate(scales):
        axes.axvline(position, color="#444444", linewidth=0.8)
        for height, text in scale.ticks():
            axes.text(position + 0.03, height, text, fontsize=7, va="center")
    names = [*(key.rpartition(".")[2] for key in keys), summary["metric"]]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(names) - 0.6)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def importance(summary: Mapping[str, Any]) -> Figure:
    """Shares of each parameter, the largest on top."""
    items = sorted(summary["importance"].items(), key=lambda pair: pair[1])
    figure = _figure(6.5, 1.2 + 0.4 * len(items))
    axes = figure.subplots()
    bars = axes.barh([key for key, _ in items], [share for _, share in items], color="#1f6fb4")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlim(0, 1.1)
    _label(axes, "importance (PED-ANOVA)", "")
    return figure


class _Scale:
    """Maps the values of one axis to 0..1; texts and flags get equal steps."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.names: list[str] = []
        self.logarithmic = False
        self.low = self.high = 0.0
        if not all(_is_number(one) for one in values):
            self.names = list(dict.fromkeys(sorted(json.dumps(one) for one in values)))
            return
        self.low, self.high = min(values), max(values)
        self.logarithmic = self.low > 0 and self.high / self.low > 30

    def at(self, value: Any) -> float:
        """The height of a value."""
        if self.names:
            return self.names.index(json.dumps(value)) / max(len(self.names) - 1, 1)
        if self.low == self.high:
            return 0.5
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and texts to write beside the axis."""
        if self.names:
            steps = max(len(self.names) - 1, 1)
            return [(i / steps, name.strip('"')) for i, name in enumerate(self.names)]
        if self.low == self.high:
            return [(0.5, f"{self.low:.3g}")]
        middle = math.sqrt(self.low * self.high) if self.logarithmic else None
        half = (self.low + self.high) / 2 if middle is None else middle
        ends = ((0.0, self.low), (0.5, half), (1.0, self.high))
        return [(height, f"{value:.3g}") for height, value in ends]


def _varies(key: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({json.dumps(row["parameters"][key]) for row in rows}) > 1


def _better(summary: Mapping[str, Any]) -> Any:
    return max if summary["goal"] == "maximize" else min


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
