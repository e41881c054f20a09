"""How a policy learned when to look: looks, hits and what was paid, over the steps of a training.

In go the events of a run; out come one figure and the section around it. A run that paid no
episodes (the phases before) has no such section. Left out: loss and learning rate (`figures.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from saccade.evaluation.plot import OTHERS, Theme, new_figure
from saccade.microscope.figures import SMOOTHING_SHARE, running_mean
from saccade.microscope.markup import picture, section
from saccade.training.events import step_series

Row = Mapping[str, Any]


def learning_section(events: Sequence[Row]) -> str:
    """Looks, accuracy and what was paid over the steps; nothing where no episode was paid."""
    if not learning_names(events):
        return ""

    def draw(theme: Theme) -> Figure:
        figure = new_figure(width=9.6, height=3.4)
        draw_learning(figure, events, theme)
        return figure

    alt = "Share of episodes that look again and that are right, and the parts of the reward"
    return section(
        "learning", title="Learning when to look",
        body=f'<div class="plots">{picture(draw, alt=alt)}</div>',
    )  # fmt: skip


def learning_names(events: Sequence[Row]) -> list[str]:
    """The reward parts that the steps of a training log and that are ever anything but nothing."""
    found = step_series(events)
    names = sorted({n for one in found for n in one["metrics"] if n.startswith("reward_")})
    return [n for n in names if any(one["metrics"].get(n) for one in found)]


def draw_learning(figure: Figure, events: Sequence[Row], theme: Theme) -> None:
    """Looks and hits over the steps of a training (sampled episodes, and greedy ones held out),
    and the parts of the reward."""
    left, right = figure.subplots(1, 2)
    _smooth(left, _series(events, "hit"), label="right", color=theme.trained, scale=100)
    _smooth(left, _series(events, "zoomed"), label="look again", color=OTHERS[2], scale=100)
    for name, color, marker in (("accuracy", theme.trained, "o"), ("zoom_rate", OTHERS[2], "s")):
        points = _series(events, name, type="eval")
        left.plot([step for step, _ in points], [100 * value for _, value in points], color=color,
                  marker=marker, markersize=5, linestyle="none")  # fmt: skip
    left.set(title="Episodes (points: held out, greedy)", ylabel="share (%)", ylim=(-2, 104))
    for number, name in enumerate(learning_names(events)):
        _smooth(right, _series(events, name), label=name.removeprefix("reward_"),
                color=OTHERS[number % len(OTHERS)], scale=1)  # fmt: skip
    _smooth(right, _series(events, "reward"), label="in all", color=theme.ink, scale=1)
    right.set(title="Mean reward by part")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _series(events: Sequence[Row], name: str, *, type: str = "step") -> list[tuple[int, float]]:
    """Step and value, wherever a value is logged."""
    return [
        (one["step"], one["metrics"][name])
        for one in step_series(events, type=type)
        if one["metrics"].get(name) is not None
    ]


def _smooth(
    axes: Axes, points: Sequence[tuple[int, float]], *, label: str, color: str, scale: float
) -> None:
    if points:
        x, y = [step for step, _ in points], [scale * value for _, value in points]
        axes.plot(x, y, color=color, alpha=0.25, linewidth=0.9)
        smooth = running_mean(y, share=SMOOTHING_SHARE)
        axes.plot(x, smooth, color=color, linewidth=1.9, label=label)
