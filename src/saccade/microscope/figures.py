"""Figures of a run: training curves from its events, and the panel of one looked-at sample.

In go events or an `Explanation`; out come matplotlib figures that look the same on every run, in
the house style of `evaluation/plot.py`. Nothing is computed here that is not drawn: numbers come
from the run directory. Left out: the comparison plot (it belongs to the comparison) and HTML.

Shapes: H x W cells of one image.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from saccade.evaluation.cells import budget_label
from saccade.evaluation.plot import LIGHT, OTHERS, Theme, new_figure, save_png, styled
from saccade.microscope import overlays
from saccade.microscope.explain import POLES, SCORES, Explanation, View
from saccade.training.events import step_series

SCORE_COLORS = {"information": "#0072b2", "salience": "#e69f00", "participation": "#009e73"}
LEGEND_ENTRIES = 12
"""Gradient groups that are named beside the plot; the others are drawn without a name."""
UNDER_HEAT = 0.6
"""Brightness of the picture under a heat map, so that colours carry the map."""
SMOOTHING_SHARE = 0.06
"""Width of the running mean over the loss, as a share of all steps."""

STRIP_COLUMNS = 7
"""Pictures side by side in a strip, at most; fewer are drawn at the same size."""

Curve = Callable[[Axes, Sequence[Mapping[str, Any]], Theme], bool]


def training_figures(events: Sequence[Mapping[str, Any]], *, theme: Theme) -> dict[str, Figure]:
    """The curves a run has data for: loss, held-out accuracy, learning rate, gradient groups."""
    drawers: dict[str, Curve] = {
        "loss": _draw_loss,
        "held-out accuracy": _draw_accuracy,
        "learning rate": _draw_learning_rate,
        "gradients by group": _draw_gradients,
    }
    figures = {}
    with styled(theme):
        for title, draw in drawers.items():
            figure = new_figure(width=5.4, height=3.0)
            axes = figure.subplots()
            if draw(axes, events, theme):
                axes.set_title(title[0].upper() + title[1:])
                axes.set_xlabel("step")
                _mark_interruptions(axes, events, theme)
                figures[title] = figure
    return figures


def save_training_figures(events: Sequence[Mapping[str, Any]], *, folder: Path) -> list[Path]:
    """Write each curve as a PNG; returns the files."""
    figures = training_figures(events, theme=LIGHT)
    names = {title: f"{title.replace(' ', '-')}.png" for title in figures}
    return [save_png(figure, folder / names[title]) for title, figure in figures.items()]


def _draw_loss(axes: Axes, events: Sequence[Mapping[str, Any]], theme: Theme) -> bool:
    steps = [s for s in step_series(events) if s.get("loss") is not None]
    if not steps:
        return False
    x, y = [s["step"] for s in steps], [s["loss"] for s in steps]
    axes.plot(x, y, color=theme.trained, alpha=0.3, linewidth=0.9)
    axes.plot(x, running_mean(y, share=SMOOTHING_SHARE), color=theme.trained, linewidth=2)
    axes.set_ylim(bottom=0 if min(y) >= 0 else None)
    return True


def _draw_accuracy(axes: Axes, events: Sequence[Mapping[str, Any]], theme: Theme) -> bool:
    evaluations = step_series(events, type="eval")
    names = sorted({n for e in evaluations for n in e["metrics"] if n.startswith("accuracy")})
    if not names:
        return False
    plain = [name for name in names if name != "accuracy"]
    for name in [*plain, *(["accuracy"] if "accuracy" in names else [])]:
        points = [
            (e["step"], 100 * e["metrics"][name])
            for e in evaluations if e["metrics"].get(name) is not None
        ]  # fmt: skip
        main = name == "accuracy"
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=5 if main else 3.5,
            color=theme.trained if main else OTHERS[plain.index(name) % len(OTHERS)],
            linewidth=2.4 if main else 1.1, label="all" if main else name.removeprefix("accuracy_"),
        )  # fmt: skip
    axes.set_ylabel("right answers (%)")
    axes.set_ylim(0, 103)
    axes.legend(fontsize=7.5, ncols=2, loc="lower right")
    return True


def _draw_learning_rate(axes: Axes, events: Sequence[Mapping[str, Any]], theme: Theme) -> bool:
    steps = [s for s in step_series(events) if s.get("learning_rate") is not None]
    if not steps:
        return False
    axes.plot([s["step"] for s in steps], [s["learning_rate"] for s in steps], color=theme.resize)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return True


def _draw_gradients(axes: Axes, events: Sequence[Mapping[str, Any]], theme: Theme) -> bool:
    measured = step_series(events, type="gradients")
    names = sorted({name for m in measured for name in m["groups"]})
    if not names:
        return False
    last = measured[-1]["groups"]
    named = sorted(names, key=lambda name: -last.get(name, {}).get("norm", 0.0))[:LEGEND_ENTRIES]
    for number, name in enumerate(names):
        points = [
            (m["step"], m["groups"][name]["norm"] or math.nan)
            for m in measured if name in m["groups"]
        ]  # fmt: skip
        axes.plot(
            *zip(*points, strict=True), color=OTHERS[number % len(OTHERS)], linewidth=1.2,
            linestyle=("-", "--", ":")[number // len(OTHERS) % 3],
            label=name if name in named else None,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylabel("gradient norm")
    title = f"largest {len(named)} of {len(names)}" if len(named) < len(names) else None
    axes.legend(
        fontsize=6.5, title_fontsize=6.5, title=title, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return True


def _mark_interruptions(axes: Axes, events: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    for event in events:
        if event["type"] == "resume":
            axes.axvline(event["step"], color=theme.muted, linewidth=0.9, linestyle=":")


def running_mean(values: Sequence[float], *, share: float) -> list[float]:
    """Centred mean over about `share` of all values; shorter at the ends."""
    radius = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - radius, 0), np.minimum(index + radius + 1, len(values))
    return ((sums[high] - sums[low]) / (high - low)).tolist()


@dataclass(frozen=True)
class Tile:
    """One picture of a strip: an overlay on the view's image, on grey when it is a heat map."""

    title: str
    view: View
    overlay: Image.Image
    grey: bool = False
    signs: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # sign -> (row, column)


@dataclass(frozen=True)
class Strip:
    """A titled row of pictures under the main panel."""

    title: str
    tiles: tuple[Tile, ...]


def sample_panel(
    explanation: Explanation, *, theme: Theme = LIGHT, strips: Sequence[Strip] = ()
) -> Figure:
    """One sample: picture, kept cells, three scores and the balance, with the answers above."""
    views = explanation.views
    tallest = max((v.image.height / v.image.width for v in views), default=0.2)
    with styled(theme):
        width, header = 14.0, 1.3
        panel = (width / 6.2) * min(1.9, max(0.3, tallest)) + 0.36
        strip = (width / STRIP_COLUMNS) * min(1.9, max(0.3, tallest)) + 0.8
        height = header + len(views) * (panel + 0.5) + len(strips) * strip
        figure = new_figure(width=width, height=height)
        figure.set_layout_engine("none")
        _write_header(figure, explanation, theme, inch=1 / height)
        for place, view in enumerate(views):
            top = height - header - place * (panel + 0.5)
            _draw_view(figure, view, theme, top=top / height, inch=1 / height, panel=panel)
        for place, one in enumerate(strips):
            top = (len(strips) - place) * strip
            _draw_strip(figure, one, theme, top=top / height, inch=1 / height, tall=strip)
    return figure


def _draw_strip(
    figure: Figure, strip: Strip, theme: Theme, *, top: float, inch: float, tall: float
) -> None:
    left, gap = 0.012, 0.008
    width = (1 - 2 * left - (STRIP_COLUMNS - 1) * gap) / STRIP_COLUMNS
    clean = "".join(c if c.isprintable() else " " for c in strip.title)
    figure.text(left, top - 0.16 * inch, clean, va="center", parse_math=False, fontsize=11)
    for place, tile in enumerate(strip.tiles):
        x = left + place * (width + gap)
        axes = figure.add_axes((x, top - (tall - 0.1) * inch, width, (tall - 0.75) * inch))
        picture(axes, tile.view, title=tile.title, overlay=tile.overlay, grey=tile.grey)
        axes.title.set_fontsize(8.5)
        for sign, cells in tile.signs.items():
            _draw_signs(axes, tile.view, cells, marker={"-": "_"}.get(sign, sign))


def _draw_signs(axes: Axes, view: View, cells: Sequence[tuple[int, int]], *, marker: str) -> None:
    rows, columns = view.keep_HW.shape
    y = [(row + 0.5) * view.image.height / rows for row, _ in cells]
    x = [(column + 0.5) * view.image.width / columns for _, column in cells]
    axes.scatter(x, y, marker=marker, s=11, c="#ffffff", linewidths=1.0)


def _write_header(figure: Figure, shown: Explanation, theme: Theme, *, inch: float) -> None:
    def write(x: float, down: float, words: str, **style: Any) -> None:
        # data may hold dollars and control characters; neither is meant for matplotlib
        clean = "".join(c if c.isprintable() else " " for c in words)
        figure.text(x, 1 - down * inch, clean, va="center", parse_math=False, **style)

    question = textwrap.shorten(shown.sample.question, 110, placeholder=" ...")
    write(0.012, 0.36, question, fontsize=15, fontweight="bold")
    lines = [("reading the kept cells", shown.selected.prediction)]
    if shown.everything is not None:
        lines.append(("reading every cell", shown.everything.prediction))
    if shown.sample.answers:
        lines.append(("truth", " or ".join(shown.sample.answers)))
    for place, (name, words) in enumerate(lines):
        x = 0.012 + 0.24 * place
        write(x, 0.76, name, fontsize=9, color=theme.muted)
        answer = textwrap.shorten(words, 34, placeholder=" ...") or "(nothing)"
        write(x, 1.05, answer, fontsize=14, color=theme.trained)


def _draw_view(
    figure: Figure, view: View, theme: Theme, *, top: float, inch: float, panel: float
) -> None:
    left, gap = 0.012, 0.008
    width = (1 - 2 * left - 5 * gap) / 6
    axes = [
        figure.add_axes(
            (left + k * (width + gap), top - panel * inch, width, (panel - 0.36) * inch)
        )
        for k in range(6)
    ]
    draw_cells(axes[0], view, title="image", overlay=None, theme=theme)
    draw_cells(
        axes[1], view, title=f"kept: {view.kept} of {view.full} cells",
        overlay=overlays.dropped(view.keep_HW), theme=theme,
    )  # fmt: skip
    for axis, name in zip(axes[2:], (*SCORES, "balance"), strict=True):
        if name in view.maps:
            weight = view.weights.get(name)
            title = name if weight is None else f"{name}, weight {weight:.2f}"
            draw_cells(axis, view, title=title, overlay=overlays.heat(view.maps[name]), theme=theme)
        else:
            axis.axis("off")
    notes = "     ".join(tension_text(name, value) for name, value in view.tensions.items())
    figure.text(0.012, top - (panel + 0.22) * inch, notes, fontsize=9, color=theme.muted)


def draw_cells(
    axes: Axes, view: View, *, title: str, overlay: Image.Image | None, theme: Theme
) -> None:
    """Picture with one overlay; cells that carry the answer are outlined where they were kept."""
    width, height = view.image.size
    picture(axes, view, title=title, overlay=overlay, grey="kept" not in title)
    if view.answer_cells and "kept" in title:
        rows, columns = view.keep_HW.shape
        edges = overlays.outline(view.answer_cells, grid=(rows, columns))
        scale = np.array([width / columns, height / rows])
        lines = [np.array(edge).reshape(2, 2) * scale for edge in edges]
        axes.add_collection(LineCollection(lines, colors="#ffffff", linewidths=1.6))


def picture(axes: Axes, view: View, *, title: str, overlay: Image.Image | None, grey: bool) -> None:
    """Picture under an overlay of one pixel per cell; `grey` lets a heat map carry the colour."""
    width, height = view.image.size
    extent = (0, width, height, 0)
    under = view.image
    if grey and overlay is not None:
        under = under.convert("L").point(lambda v: v * UNDER_HEAT)
    axes.imshow(np.asarray(under.convert("RGB")), extent=extent, interpolation="antialiased")
    if overlay is not None:
        axes.imshow(np.asarray(overlay), extent=extent, interpolation="nearest")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal", anchor="NW")
    axes.axis("off")
    axes.set_title(title, fontsize=9.5, fontweight="normal", pad=5, loc="left")


def tension_text(name: str, value: float) -> str:
    """A tension in words: which pole, and how far on the way to it."""
    low, high = POLES[name]
    return f"{low} 0 .. 1 {high}: {value:.2f}"


def save_panel(explanation: Explanation, path: Path, *, strips: Sequence[Strip] = ()) -> Path:
    """Write the panel of one sample, and strips under it, as a PNG."""
    return save_png(sample_panel(explanation, strips=strips), path, dpi=110)


def budget_text(explanation: Explanation) -> str:
    """How much was kept, for people."""
    kept = sum(view.kept for view in explanation.views)
    full = sum(view.full for view in explanation.views)
    return f"{kept} of {full} visual tokens (budget {budget_label(explanation.keep)})"
