"""How a page looks: colours, letters, cards, spacing.

A random generator flows in, a `Theme` flows out. Colours other than those of the targets are greys
and faint tints, so that a saturated colour on a page is a target's. Left out: what stands where
(`layouts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

FONTS = (
    '"Liberation Sans", Arial, sans-serif',
    '"DejaVu Sans", Verdana, sans-serif',
    '"Liberation Serif", Georgia, serif',
    '"DejaVu Serif", Georgia, serif',
    '"Liberation Sans Narrow", "Arial Narrow", sans-serif',
    '"Liberation Mono", monospace',
)
PALETTES = {
    # ground, card, ink, muted ink, line, bar, ink on the bar, field
    "light": ("#eef0f3", "#ffffff", "#22262b", "#767d86", "#d5d9de", "#ffffff", "#22262b",
              "#f7f8fa"),
    "paper": ("#ffffff", "#ffffff", "#1d1d1f", "#6e6e73", "#dcdce0", "#f5f5f7", "#1d1d1f",
              "#ffffff"),
    "slate": ("#e9ecef", "#ffffff", "#2b2f36", "#7c838c", "#cfd4da", "#343a46", "#eef0f3",
              "#ffffff"),
    "dark": ("#101215", "#191c21", "#e4e6e9", "#8a9099", "#31363d", "#0b0c0e", "#e4e6e9",
             "#22262c"),
    "night": ("#1a1d22", "#101216", "#d8dade", "#80868f", "#2c3036", "#22262c", "#d8dade",
              "#1a1d22"),
    "sand": ("#ece6da", "#fbf8f1", "#332f28", "#857e71", "#d8d0c0", "#d9d0be", "#332f28",
             "#ffffff"),
    "mint": ("#e2ebe6", "#f8fbf9", "#26302b", "#74807a", "#ccd8d1", "#c9d7cf", "#26302b",
             "#ffffff"),
    "lavender": ("#e7e5ef", "#faf9fd", "#2a2833", "#7b7886", "#d3d0de", "#d0cddd", "#2a2833",
                 "#ffffff"),
    "rose": ("#efe5e5", "#fdf9f9", "#332829", "#867879", "#ded0d0", "#dccdcd", "#332829",
             "#ffffff"),
}  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """Colours as `#rrggbb`; lengths in pixels."""

    name: str
    ground: str
    card: str
    ink: str
    muted: str
    line: str
    bar: str
    bar_ink: str
    field: str
    font: str
    letter: int
    space: int
    radius: int
    framed: bool
    shadow: bool


def draw_theme(rng: np.random.Generator, *, width: int, height: int) -> Theme:
    """A theme for a page of this size; small pages have small letters."""
    name = tuple(PALETTES)[int(rng.integers(len(PALETTES)))]
    scale = min(width / 768, height / 576)
    card = int(rng.integers(3))  # framed, with a shadow, or both
    return Theme(
        name,
        *PALETTES[name],
        font=FONTS[int(rng.integers(len(FONTS)))],
        letter=max(6, round(float(rng.uniform(11, 15)) * min(1.4, scale))),
        space=max(2, round(float(rng.choice([7, 10, 14])) * scale)),
        radius=int(rng.choice([0, 3, 6, 10])),
        framed=card != 1,
        shadow=card != 0,
    )


def dimmed(theme: Theme) -> Theme:
    """The same theme behind something that is asked for first: greys of little contrast."""
    if theme.name in ("dark", "night"):
        shades = ("#08090a", "#0d0e10", "#4a4e54", "#3a3e44", "#1a1c1f", "#060708", "#4a4e54",
                  "#101214")  # fmt: skip
    else:
        shades = ("#989ca2", "#a3a7ad", "#5a5e64", "#6f737a", "#8a8e94", "#888c92", "#55595f",
                  "#9da1a7")  # fmt: skip
    names = ("ground", "card", "ink", "muted", "line", "bar", "bar_ink", "field")
    return replace(theme, **dict(zip(names, shades, strict=True)))
