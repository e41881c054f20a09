"""Small HTML pieces the report is made of: escaped text, tables, pictures for both themes.

In go plain values and figures; out come strings of HTML. Every text that comes from data passes
`text`. Left out: what the report says.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from saccade.evaluation.plot import DARK, LIGHT, Theme, styled, svg_text


def text(value: Any) -> str:
    """A value as escaped HTML text."""
    return html.escape(str(value), quote=True)


def picture(draw: Callable[[Theme], Figure], *, alt: str) -> str:
    """A figure as inline SVG data, drawn once for light and once for dark readers."""
    uris = []
    for theme in (LIGHT, DARK):
        with styled(theme):
            markup = svg_text(draw(theme))
        uris.append("data:image/svg+xml;base64," + base64.b64encode(markup.encode()).decode())
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{uris[1]}">'
        f'<img src="{uris[0]}" alt="{text(alt)}"></picture>'
    )


@dataclass(frozen=True)
class Column:
    """One table column: heading, how a row's cell reads, and the number it sorts by."""

    heading: str
    show: Callable[[Mapping[str, Any]], str]
    value: Callable[[Mapping[str, Any]], float | None] | None = None
    is_text: bool = False
    shaded: bool = False  # tint the cell by its value, a share in [0, 1]


def table(
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    *,
    row_class: Callable[[Mapping[str, Any]], str],
    caption: str,
) -> str:
    """A sortable table; without scripts it is simply a table in the given order."""
    heads = "".join(
        f'<th scope="col"{_cell_class(c)}><button type="button">{text(c.heading)}</button></th>'
        for c in columns
    )
    body = "".join(
        f'<tr class="{row_class(row)}">' + "".join(_cell(c, row) for c in columns) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell_class(column: Column) -> str:
    name = "text" if column.is_text else "shade" if column.shaded else ""
    return f' class="{name}"' if name else ""


def _cell(column: Column, row: Mapping[str, Any]) -> str:
    value = column.value(row) if column.value else None
    data = f' data-value="{value:.6g}"' if value is not None else ""
    if column.shaded and value is not None:
        data += f' style="--level:{0.45 * value**2:.3f}"'
    return f"<td{_cell_class(column)}{data}>{column.show(row)}</td>"


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """A list of named values."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{items}</dl>'


def section(key: str, *, title: str, body: str) -> str:
    """A titled part of the page that the navigation can jump to."""
    return (
        f'<section id="{key}" aria-labelledby="{key}-title">'
        f'<h2 id="{key}-title">{text(title)}</h2>{body}</section>'
    )


def duration(seconds: float) -> str:
    """Seconds for people: `4.2 s`, `3 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
