"""Pictures of looking again: accuracy against cost, looks by target size, and calibration.

In goes the content of `comparison.json`; out come matplotlib figures, light or dark, in the house
style of `plot.py`: gates are curves over their thresholds, the learned policy is one point with its
interval. Markers and labels carry what colours do. Nothing is computed here that is not drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saccade.evaluation.plot import LIGHT, OTHERS, Theme, new_figure, save_png, styled

Row = Mapping[str, Any]

CURVES = (
    ("dispersion", "dispersion gate", OTHERS[0], "-"),
    ("confidence", "confidence gate", OTHERS[1], "--"),
    ("size", "predicted-size gate", OTHERS[2], "-."),
)
"""Gates drawn over their thresholds; eight whole passes are far right of everything and stay in the
table."""
SIZE_ARMS = (
    ("never", "never looks again", OTHERS[7], "s"),
    ("always", "always looks again", OTHERS[3], "^"),
    ("learned", "learned policy", None, "o"),
)
STAGES = (
    ("raw", "as measured", OTHERS[7], "s"),
    ("temperature", "temperature", OTHERS[2], "^"),
    ("isotonic", "isotonic", None, "o"),
)


def save_grounding(result: Row, *, folder: Path) -> list[Path]:
    """Write the three figures as PNGs; returns the files."""
    with styled(LIGHT):
        return [
            save_png(figure_of(name, result, theme=LIGHT), folder / f"{name}.png")
            for name in FIGURES
            if name != "calibration" or "raw" in result["calibration"]
        ]


def figure_of(name: str, result: Row, *, theme: Theme) -> Figure:
    """One figure by its name; call inside `styled(theme)`."""
    width, height, draw = FIGURES[name]
    figure = new_figure(width=width, height=height)
    draw(figure, result, theme)
    return figure


def draw_accuracy_cost(figure: Figure, result: Row, theme: Theme) -> None:
    """Accuracy over mean pixels: gates as curves, policies as points, the oracle above them."""
    axes = figure.subplots()
    rows = {row["arm"]: row for row in result["rows"]}
    never, always, learned = (rows[name] for name in ("never", "always", "learned"))
    ends = [(row["pixels"] / 1000, 100 * row["accuracy"]) for row in (never, always)]
    axes.plot(*zip(*ends, strict=True), color=theme.muted, linestyle=":", label="random gate")
    for name, label, color, line in CURVES:
        points = result["curves"].get(name, ())
        if not points:
            continue
        xs, ys = [p["pixels"] / 1000 for p in points], [100 * p["accuracy"] for p in points]
        axes.plot(xs, ys, color=color, linestyle=line, linewidth=1.5, label=label)
    for row, label, marker in ((never, "never", "s"), (always, "always", "^"),
                               (rows["oracle"], "oracle", "*")):  # fmt: skip
        _point(axes, row, color=theme.ink, marker=marker, size=9 if marker == "*" else 6.5)
        _name(axes, row, label, color=theme.ink, above=marker == "*")
    error = [[100 * (learned["accuracy"] - learned["low"])],
             [100 * (learned["high"] - learned["accuracy"])]]  # fmt: skip
    axes.errorbar(
        [learned["pixels"] / 1000], [100 * learned["accuracy"]], yerr=error, color=theme.trained,
        marker="o", markersize=9, capsize=4, linewidth=1.8, linestyle="none", zorder=5,
        label="learned policy, 95 % interval",
    )  # fmt: skip
    axes.set(xlabel="mean pixels the model sees per target (thousands)", ylabel="point in box (%)")
    axes.set_title("What a second look buys")
    axes.margins(x=0.08, y=0.1)
    axes.legend(loc="lower right", fontsize=8)


def _point(axes: Axes, row: Row, *, color: str, marker: str, size: float) -> None:
    axes.plot(
        [row["pixels"] / 1000], [100 * row["accuracy"]], color=color, marker=marker,
        markersize=size, linestyle="none", zorder=4,
    )  # fmt: skip


def _name(axes: Axes, row: Row, label: str, *, color: str, above: bool) -> None:
    axes.annotate(
        label, (row["pixels"] / 1000, 100 * row["accuracy"]), xytext=(0, 8 if above else -15),
        textcoords="offset points", ha="center", color=color, fontsize=8.5,
    )  # fmt: skip


def draw_zoom_by_size(figure: Figure, result: Row, theme: Theme) -> None:
    """How often the learned policy looks again, and how right each way is, by target size."""
    left, right = figure.subplots(1, 2)
    rates = result["zoom_by_size"]
    places = range(len(rates))
    values = [100 * row["zoom_rate"] for row in rates]
    error = [
        [100 * (row["zoom_rate"] - row["low"]) for row in rates],
        [100 * (row["high"] - row["zoom_rate"]) for row in rates],
    ]
    left.bar(places, values, color=theme.trained, alpha=0.85, width=0.62)
    left.errorbar(places, values, yerr=error, color=theme.ink, capsize=4, linestyle="none")
    left.set(title="Looks again", ylabel="targets looked at again (%)", ylim=(0, 104))
    arms = {row["arm"]: row for row in result["rows"]}
    for name, label, color, marker in SIZE_ARMS:
        ys = [100 * arms[name]["by_bucket"][row["bucket"]] for row in rates]
        right.plot(places, ys, color=color or theme.trained, marker=marker, label=label,
                   linewidth=2.2 if color is None else 1.4, markersize=6)  # fmt: skip
    right.set(title="Is right", ylabel="point in box (%)", ylim=(0, 104))
    right.legend(loc="lower right", fontsize=8)
    for axes in (left, right):
        axes.set_xticks(list(places), [f"{row['bucket']}\n({row['samples']})" for row in rates])
        axes.set_xlabel("side of the target in pixels of the first look (targets)")


def draw_calibration(figure: Figure, result: Row, theme: Theme) -> None:
    """Reliability before and after: how often answers of a confidence are right."""
    found = result["calibration"]
    panels = figure.subplots(1, len(STAGES), sharey=True)
    for axes, (name, label, color, marker) in zip(panels, STAGES, strict=True):
        axes.plot([0, 100], [0, 100], color=theme.muted, linestyle=":", linewidth=1.2)
        bins = [one for one in found[name]["bins"] if one["count"]]
        most = max(one["count"] for one in bins)
        for one in bins:
            axes.plot(
                [100 * one["confidence"]], [100 * one["accuracy"]], color=color or theme.trained,
                marker=marker, markersize=4 + 9 * (one["count"] / most) ** 0.5, alpha=0.85,
                linestyle="none",
            )  # fmt: skip
        axes.plot([100 * one["confidence"] for one in bins],
                  [100 * one["accuracy"] for one in bins],
                  color=color or theme.trained, linewidth=1.2, alpha=0.6)  # fmt: skip
        axes.set_title(
            f"{label}\nBrier {found[name]['brier']:.3f}, ECE {found[name]['ece']:.3f}", fontsize=9.5
        )
        axes.set(xlabel="confidence (%)", xlim=(-3, 103), ylim=(-3, 103))
        axes.set_aspect("equal")
    panels[0].set_ylabel("right (%)")


FIGURES = {
    "accuracy_cost": (9.6, 4.6, draw_accuracy_cost),
    "zoom_by_size": (9.6, 3.7, draw_zoom_by_size),
    "calibration": (9.6, 3.9, draw_calibration),
}
"""Name -> width and height in inches, and who draws it."""
