"""Pictures of thinking: accuracy per step, where samples stop, and one puzzle being solved.

The result and the stored answers of `saccade eval` flow in; out come `figures/thinking.png` (what a
step of thinking buys, how many stop where, accuracy against mean steps), `figures/puzzle.png` (the
steps of one puzzle side by side) and `figures/puzzle.gif` (the same, one after another). The puzzle
shown is the one that took longest to become right. Nothing is computed here that is not drawn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from saccade.data.shards.render import PALETTE
from saccade.evaluation.plot import LIGHT, OTHERS, Theme, new_figure, save_png, styled

Row = Mapping[str, Any]
GIVEN, WRONG, CHANGED, OPEN = "#e3e7ec", "#f6d5c2", "#cfe3f1", "#ffffff"
MAZE = {"#": "#4a525c", " ": "#ffffff", "S": "#009e73", "G": "#d55e00", "o": "#56b4e9"}
MOST_STEPS = 6
"""Steps shown side by side."""
FRAME_MS, LAST_FRAME_MS = 700, 2500


def save_thinking(result: Row, rows: Sequence[Row], *, folder: Path) -> list[Path]:
    """Write all pictures; returns the files."""
    with styled(LIGHT):
        figure = new_figure(width=11.5, height=3.4)
        left, middle, right = figure.subplots(1, 3)
        draw_steps(left, result, theme=LIGHT)
        draw_halting(middle, result, theme=LIGHT)
        draw_tradeoff(right, result, theme=LIGHT)
        files = [save_png(figure, folder / "thinking.png")]
    row = most_interesting(rows)
    return [*files, save_strip(row, folder / "puzzle.png"), save_film(row, folder / "puzzle.gif")]


def draw_steps(axes: Axes, result: Row, *, theme: Theme) -> None:
    """Exact and cell accuracy after every step."""
    steps = range(1, len(result["accuracy_by_step"]) + 1)
    for name, label, color, marker in (
        ("accuracy_by_step", "every cell right", theme.trained, "o"),
        ("cells_by_step", "cells right", OTHERS[2], "s"),
    ):
        values = [100 * one for one in result[name]]
        axes.plot(steps, values, color=color, marker=marker, markersize=3.5, label=label)
    axes.set(title="What a step of thinking buys", xlabel="step of thinking", ylabel="%")
    axes.set_ylim(0, 102)
    axes.legend(loc="lower right")


def draw_halting(axes: Axes, result: Row, *, theme: Theme) -> None:
    """How many samples stop at each step, by the careful and by the published rule."""
    arms = [("halting", "sure or settled", theme.trained), ("published", "published", OTHERS[2])]
    if "q_halting" in result:
        arms.append(("q_halting", "learned values", OTHERS[1]))
    width = 0.8 / len(arms)
    for place, (name, label, color) in enumerate(arms):
        histogram = result[name]["histogram"]
        at = [int(step) - 0.4 + width * (place + 0.5) for step in histogram]
        axes.bar(at, list(histogram.values()), width=width, color=color, label=label)
    axes.set(title="Where samples stop", xlabel="step of thinking", ylabel="samples")
    axes.legend(loc="upper right")


def draw_tradeoff(axes: Axes, result: Row, *, theme: Theme) -> None:
    """Accuracy against mean steps: equal steps for all, and each sample its own."""
    fixed = [100 * one for one in result["accuracy_by_step"]]
    steps = range(1, len(fixed) + 1)
    axes.plot(steps, fixed, color=theme.muted, marker=".", label="equal steps for all")
    points = [(row["mean_steps"], 100 * row["accuracy"]) for row in result["tradeoff"]]
    axes.plot(*zip(*points, strict=True), color=theme.trained, marker="o", markersize=4,
              label="sure or settled")  # fmt: skip
    for name, label, color, marker in (
        ("published", "published", OTHERS[2], "^"), ("q_halting", "learned values", OTHERS[1], "D"),
    ):  # fmt: skip
        if name in result:
            found = result[name]
            axes.plot([found["mean_steps"]], [100 * found["accuracy"]], color=color, marker=marker,
                      linestyle="none", label=label)  # fmt: skip
    axes.set(title="Accuracy against time", xlabel="mean steps", ylabel="every cell right, %")
    axes.set_xscale("log", base=2)
    axes.set_xticks([n for n in (1, 2, 4, 8, 16, 32, 64) if n <= len(fixed)])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right")


def most_interesting(rows: Sequence[Row]) -> Row:
    """The puzzle that is right at the end and took longest; else the one with most right cells."""
    solved = [row for row in rows if row["right"][-1]]
    if solved:
        return max(solved, key=lambda row: (row["right"].index(True), row["id"]))
    return max(rows, key=lambda row: (row["cells"][-1], row["id"]))


def shown_steps(row: Row) -> list[int]:
    """Steps worth showing: the answer changed there; the first and the last of them at least."""
    answers = row["answers"]
    changed = [n for n in range(len(answers)) if n == 0 or answers[n] != answers[n - 1]]
    if len(changed) > MOST_STEPS:
        keep = {round(i * (len(changed) - 1) / (MOST_STEPS - 1)) for i in range(MOST_STEPS)}
        changed = [changed[i] for i in sorted(keep)]
    return [n + 1 for n in changed]


def save_strip(row: Row, path: Path) -> Path:
    """The question and the steps that changed something, side by side."""
    steps = shown_steps(row)
    with styled(LIGHT):
        figure = new_figure(width=2.0 * (len(steps) + 1), height=2.5)
        panels = figure.subplots(1, len(steps) + 1)
        draw_grid(panels[0], row["question"], row, before=None)
        panels[0].set_title("puzzle")
        before = row["question"]
        for axes, step in zip(panels[1:], steps, strict=True):
            draw_grid(axes, row["answers"][step - 1], row, before=before)
            axes.set_title(_caption(row, step))
            before = row["answers"][step - 1]
        return save_png(figure, path)


def save_film(row: Row, path: Path) -> Path:
    """An animated picture: the question, then every step until nothing changes any more."""
    frames = [_frame(row, 0)] + [_frame(row, step) for step in range(1, shown_steps(row)[-1] + 1)]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    return path


def _frame(row: Row, step: int) -> Image.Image:
    with styled(LIGHT):
        figure = new_figure(width=2.6, height=2.9)
        axes = figure.subplots()
        if step:
            before = row["answers"][step - 2] if step > 1 else row["question"]
            draw_grid(axes, row["answers"][step - 1], row, before=before)
            axes.set_title(_caption(row, step))
        else:
            draw_grid(axes, row["question"], row, before=None)
            axes.set_title("puzzle")
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=110, facecolor=LIGHT.paper)
    return Image.open(stream).convert("P", palette=Image.Palette.ADAPTIVE)


def _caption(row: Row, step: int) -> str:
    state = "solved" if row["right"][step - 1] else f"{100 * row['cells'][step - 1]:.0f} %"
    return f"step {step}: {state}"


def draw_grid(axes: Axes, text: str, row: Row, *, before: str | None) -> None:
    """One grid: given cells grey, changed ones blue, wrong ones orange and crossed out."""
    lines, target = text.split("\n"), row["target"].split("\n")
    question = row["question"].split("\n")
    earlier = before.split("\n") if before is not None else lines
    high, wide = len(lines), len(lines[0])
    for r in range(high):
        for c in range(wide):
            letter, wanted = lines[r][c], target[r][c]
            wrong = before is not None and wanted not in ("?", letter)
            _draw_cell(
                axes, letter, at=(c, high - 1 - r), kind=row["kind"], wrong=wrong,
                given=question[r][c] == letter and letter not in ". ",
                changed=earlier[r][c] != letter,
            )  # fmt: skip
    axes.set_xlim(-0.05, wide + 0.05)
    axes.set_ylim(-0.05, high + 0.05)
    axes.set_aspect("equal")
    axes.axis("off")


def _draw_cell(
    axes: Axes, letter: str, *, at: tuple[int, int], kind: str, given: bool, wrong: bool,
    changed: bool,
) -> None:  # fmt: skip
    x, y = at
    coloured = _colour(letter, kind=kind)
    face = coloured or (WRONG if wrong else CHANGED if changed else GIVEN if given else OPEN)
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="#c3cad2", linewidth=0.6))
    if coloured is None and letter not in ". ":
        axes.text(x + 0.5, y + 0.47, letter, ha="center", va="center", fontsize=8.5,
                  color=LIGHT.resize if wrong else LIGHT.ink,
                  fontweight="bold" if given else "normal")  # fmt: skip
    if wrong:
        axes.plot([x + 0.15, x + 0.85], [y + 0.15, y + 0.85], color=LIGHT.resize, linewidth=0.9)


def _colour(letter: str, *, kind: str) -> str | None:
    """What a cell is painted in, where cells are painted and not written."""
    if kind == "arc":
        if letter.isdigit():
            return "#{:02x}{:02x}{:02x}".format(*PALETTE[int(letter)])
        return "#f4f5f7"
    return MAZE.get(letter) if kind.startswith(("path", "maze")) else None
