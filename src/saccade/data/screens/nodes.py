"""The elements a generated page is made of: plain values that both renderers lay out alike.

A `Node` is one element of a page: a flexible row or column of others, a line or paragraph of text,
an input, an icon. Layouts (`layouts.py`) build trees of them; `html.py` writes them as HTML for a
browser and `drawn.py` lays them out and draws them by itself. Left out: what is asked about a page
(`pages.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

ROLES = {
    "header": "banner", "nav": "navigation", "main": "main", "aside": "complementary",
    "footer": "contentinfo", "section": "region", "form": "form", "ul": "list", "li": "listitem",
    "h1": "heading", "h2": "heading", "p": "paragraph", "a": "link", "button": "button",
    "input": "textbox", "label": "label", "check": "checkbox", "dialog": "dialog",
    "spinner": "progressbar", "span": "text",
}  # fmt: skip
"""Accessible role of each tag where no browser is asked for it."""


@dataclass(frozen=True)
class Node:
    """One element; lengths in pixels, colours as `#rrggbb`.

    Along its parent's flow it is `basis` long (else as long as its content, or 0 where it grows)
    and takes the share `grow` of what is left; across, it fills the parent that stretches it. The
    children of a `stack` lie on each other, the last one in front.
    `ghost` leaves its place and shows a grey block: content that is not there yet.
    """

    tag: str = "div"
    text: str = ""
    children: tuple[Node, ...] = ()
    flow: Literal["row", "column", "stack"] = "column"
    gap: int = 0
    pad: tuple[int, int] = (0, 0)  # above and below, left and right
    grow: float = 0.0
    basis: int | None = None
    width: int | None = None
    height: int | None = None
    align: Literal["start", "center", "end", "stretch"] = "stretch"
    justify: Literal["start", "center", "end", "between"] = "start"
    fill: str = ""
    line: str = ""
    ink: str = "#000000"
    radius: int = 0
    shadow: bool = False
    size: int = 13
    bold: bool = False
    wrap: bool = False
    centered: bool = False
    name: str = ""
    icon: tuple[str, str] | None = None  # shape and colour name
    target: int | None = None
    ghost: str = ""

    def walk(self) -> Iterator[Node]:
        """This node and everything in it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def as_ghost(node: Node, fill: str) -> Node:
    """The same layout before its content has come: every text and icon is a block of `fill`."""
    if node.children:
        return replace(node, children=tuple(as_ghost(child, fill) for child in node.children))
    if node.text or node.icon or node.tag in ("input", "check"):
        return replace(node, ghost=fill)
    return node
