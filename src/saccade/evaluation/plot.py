"""Draw a comparison: accuracy against visual tokens and against operations, one line per selector.

In goes the content of `comparison.json`; out come matplotlib figures, light or dark, that look the
same on every run. Colours are the Okabe-Ito set and every line has its own marker and a label at
its end, so nothing rests on colour alone. The house style (`Theme`, `styled`, `save`) is shared
with the microscope's figures. Left out: numbers that the table states better.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

XAxis = Literal["tokens", "flops"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Theme:
    """Colours of one look; figures have no background of their own."""

    name: str
    ink: str
    muted: str
    grid: str
    paper: str
    trained: str
    resize: str


LIGHT = Theme("light", "#1b1f24", "#6b7480", "#e3e7ec", "#ffffff", "#0072b2", "#d55e00")
DARK = Theme("dark", "#e8ebef", "#9aa4b0", "#2c333c", "#14181d", "#56b4e9", "#ff8a3d")
# the rest of Okabe-Ito; yellow is darkened, it vanishes on white
OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#7a5195", "#b8a100", "#56b4e9", "#8c564b", "#5f6b78")
MARKERS = ("s", "^", "v", "D", "P", "X", "*", "h", "<")


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Apply the house style while drawing; nothing outside the block changes."""
    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans", "font.size": 9.5,
        "svg.hashsalt": "saccade", "svg.fonttype": "path",
        "text.color": theme.ink, "axes.labelcolor": theme.muted, "axes.edgecolor": theme.grid,
        "axes.titlecolor": theme.ink, "axes.titlesize": 10.5, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "axes.titlepad": 10, "axes.labelsize": 9,
        "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": theme.grid,
        "grid.linewidth": 0.8, "xtick.color": theme.muted, "ytick.color": theme.muted,
        "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "ytick.left": False,
        "lines.solid_capstyle": "round", "legend.frameon": False,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def new_figure(*, width: float, height: float) -> Figure:
    """An Agg figure that belongs to no window system and to no global list."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def svg_text(figure: Figure) -> str:
    """The figure as SVG markup without dates, so that equal figures are equal bytes."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def save_png(figure: Figure, path: Path, *, theme: Theme = LIGHT, dpi: int = 160) -> Path:
    """Write a PNG on the theme's paper colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi, facecolor=theme.paper, metadata={"Software": None})
    return path


def save_comparison(result: Row, *, folder: Path) -> Path:
    """Write `comparison.png`: both panels side by side."""
    with styled(LIGHT):
        figure = new_figure(width=12.4, height=4.8)
        for axes, x in zip(figure.subplots(1, 2), ("tokens", "flops"), strict=True):
            draw_comparison(axes, result, x=x, theme=LIGHT)
        return save_png(figure, folder / "comparison.png")


def comparison_figure(result: Row, *, x: XAxis, theme: Theme) -> Figure:
    """One panel on its own; call inside `styled(theme)`."""
    figure = new_figure(width=6.4, height=4.5)
    draw_comparison(figure.subplots(), result, x=x, theme=theme)
    return figure


def draw_comparison(axes: Axes, result: Row, *, x: XAxis, theme: Theme) -> None:
    """Accuracy of every selector over tokens or operations; trained and resize stand out."""
    rows = [row for row in result["rows"] if row["arm"] != "full"]
    full = next((row for row in result["rows"] if row["arm"] == "full"), None)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    arms.sort(key=lambda arm: (arm == "trained", arm == "resize"))  # drawn last, on top
    ends, plain = [], 0
    for arm in arms:
        emphasised = arm in ("trained", "resize")
        points = [r for r in rows if r["arm"] == arm and _shown(r, x)]
        points.sort(key=lambda row: _x(row, x))
        color = getattr(theme, arm) if emphasised else OTHERS[plain % len(OTHERS)]
        marker = {"trained": "o", "resize": "s"}.get(arm, MARKERS[1 + plain % (len(MARKERS) - 1)])
        plain += not emphasised
        _draw_line(axes, points, x=x, color=color, marker=marker, emphasised=emphasised)
        ends.append((points[-1], color, emphasised))
    if full is not None:
        level = 100 * full["accuracy"]
        axes.axhline(level, color=theme.muted, linestyle=(0, (5, 4)), linewidth=1.2, zorder=1)
        axes.annotate(
            f"all tokens {level:.1f}%", (0.0, level), xycoords=("axes fraction", "data"),
            xytext=(2, 4), textcoords="offset points", color=theme.muted, fontsize=8.5,
        )  # fmt: skip
    _finish_axes(axes, rows, x=x)
    _label_ends(axes, ends, x=x, taken=None if full is None else 100 * full["accuracy"])


def _shown(row: Row, x: XAxis) -> bool:
    # the row at equal operations belongs where operations are the axis
    return x == "flops" or row["matched"] == "tokens"


def _x(row: Row, x: XAxis) -> float:
    return row["visual_tokens_kept"] if x == "tokens" else row["flops"]["total"]


def _draw_line(
    axes: Axes,
    points: Sequence[Row],
    *,
    x: XAxis,
    color: str,
    marker: str,
    emphasised: bool,
) -> None:
    xs, ys = [_x(p, x) for p in points], [100 * p["accuracy"] for p in points]
    axes.plot(
        xs, ys, color=color, marker=marker,
        linewidth=2.6 if emphasised else 1.2, markersize=7 if emphasised else 5,
        alpha=1.0 if emphasised else 0.85, zorder=4 if emphasised else 2,
        markeredgecolor="none",
    )  # fmt: skip
    if emphasised:
        low, high = [100 * p["low"] for p in points], [100 * p["high"] for p in points]
        axes.fill_between(xs, low, high, color=color, alpha=0.14, linewidth=0, zorder=1)


def _finish_axes(axes: Axes, rows: Sequence[Row], *, x: XAxis) -> None:
    axes.set_ylabel("accuracy (%)")
    values = sorted({round(_x(row, x), 6) for row in rows if _shown(row, x)})
    axes.set_xscale("log")
    low, high = values[0], values[-1]
    spread = max(high / low, 1.5)
    axes.set_xlim(low / spread**0.06, high * spread**0.42)  # room for the labels on the right
    axes.xaxis.set_minor_locator(NullLocator())
    if x == "tokens":
        axes.set_title("At equal visual tokens")
        axes.set_xlabel("visual tokens per image that the language model reads (mean, log scale)")
        axes.set_xticks(
            _spaced([row["visual_tokens_kept"] for row in rows if row["matched"] == "tokens"])
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    else:
        axes.set_title("At equal cost")
        axes.set_xlabel("operations per question: vision + selector + language (log scale)")
        axes.set_xticks(_spaced([row["flops"]["total"] for row in rows]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: flops_text(value)))


def _spaced(values: Sequence[float], *, ratio: float = 1.3) -> list[float]:
    """Ticks at values that occur, none closer to its neighbour than `ratio`."""
    ticks: list[float] = []
    for value in sorted(values):
        if not ticks or value / ticks[-1] >= ratio:
            ticks.append(value)
    return ticks


def _label_ends(
    axes: Axes, ends: Sequence[tuple[Row, str, bool]], *, x: XAxis, taken: float | None
) -> None:
    """Name every line at its right end, moved apart where lines end together.

    No name is written across the level `taken` (the line of all tokens).
    """
    low, high = axes.get_ylim()
    gap = (high - low) / 21
    placed: list[float] = []
    for row, color, emphasised in sorted(ends, key=lambda end: end[0]["accuracy"]):
        y = 100 * row["accuracy"]
        height = max(y, placed[-1] + gap) if placed else y
        if taken is not None and abs(height - taken) < gap / 2:
            height = taken + gap / 2
        placed.append(height)
        title = row["title"].removesuffix(" (equal FLOPs)")
        axes.annotate(
            title, (_x(row, x), y), xytext=(_label_x(axes), height), textcoords="data",
            color=color, fontsize=9 if emphasised else 8, va="center",
            fontweight="bold" if emphasised else "normal",
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.35, "linewidth": 0.7,
                        "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
    axes.set_ylim(low, max(high, placed[-1] + gap if placed else high))


def _label_x(axes: Axes) -> float:
    left, right = axes.get_xlim()
    return left * (right / left) ** 0.79


def flops_text(value: float) -> str:
    """Operations for people: `1.23 G`."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
