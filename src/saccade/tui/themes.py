"""Colours by meaning: the themes that ship, and the style of each role in the theme that is on.

A theme's colours flow in, Rich styles by role flow out. `saccade-colour-blind` uses the palette of
Okabe and Ito, which stays apart for all common kinds of colour blindness; `saccade-plain` uses the
terminal's own colours. Symbols and words carry every meaning too, so NO_COLOR loses nothing. Left
out: layout (`app.tcss`).
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

DARK = Theme(
    name="saccade-dark", primary="#6cb6ff", secondary="#8b9bb4", accent="#f2b866",
    success="#57c785", warning="#e8b84a", error="#ff7b72", foreground="#d7dde8",
    background="#10141c", surface="#161c27", panel="#1f2735", dark=True,
)  # fmt: skip
LIGHT = Theme(
    name="saccade-light", primary="#0b5cad", secondary="#55617a", accent="#8a5200",
    success="#1a7f43", warning="#8f5d00", error="#b3261e", foreground="#1b2230",
    background="#fbfcfe", surface="#f1f4f9", panel="#e2e8f1", dark=False,
)  # fmt: skip
COLOUR_BLIND = Theme(
    name="saccade-colour-blind", primary="#56b4e9", secondary="#999999", accent="#cc79a7",
    success="#0095d9", warning="#f0e442", error="#e66100", foreground="#e6e6e6",
    background="#101010", surface="#181818", panel="#262626", dark=True,
)  # fmt: skip
THEMES = (DARK, LIGHT, COLOUR_BLIND)
NAMES = (*(one.name for one in THEMES), "ansi-dark")
"""Themes in the order `ctrl+t` goes through them; the last uses the terminal's own colours."""

_VARIABLES = {
    "good": "success", "busy": "primary", "wait": "secondary", "warn": "warning", "bad": "error",
    "dim": "secondary", "accent": "accent",
}  # fmt: skip
_BOLD = frozenset({"strong", "bad", "warn", "accent"})


def role_styles(variables: Mapping[str, str]) -> dict[str, Style]:
    """Make the style of each role from the variables of the theme that is on."""
    styles = {"plain": Style(), "strong": Style(bold=True)}
    for role, name in _VARIABLES.items():
        try:
            color = Color.parse(variables[name]).rich_color
        except (KeyError, ValueError):
            color = None
        styles[role] = Style(color=color, bold=role in _BOLD or None)
    return styles
