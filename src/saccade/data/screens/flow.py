"""Lay a tree of nodes out as flexible boxes, without a browser.

A `Node` flows in; every node's place on the page, and which part of it shows, flows out. Lengths
are those of content, room that is left is shared by `grow`, as CSS has it. The letters are those
that come with matplotlib, measured with Pillow's own engine: the same on every machine. Left out:
drawing (`drawn.py`), shrinking, everything of CSS that our pages do not use.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

from saccade.data.screens.nodes import Node

LINE = 1.3
"""Height of a line of text as a multiple of the letters' size."""
Area = tuple[int, int, int, int]
"""Left, top, width, height."""
Extent = tuple[float, float]
"""Width and height."""


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # the basic engine is in every Pillow; the other one depends on libraries of the machine
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=1 << 14)
def _word_length(word: str, name: str, size: int) -> float:
    return _font(name, size).getlength(word)


@dataclass(frozen=True)
class Flow:
    """Layout with the letters of one family, named as in CSS."""

    family: str

    def font(self, node: Node) -> ImageFont.FreeTypeFont:
        """The letters of a node's text."""
        return _font(self._style(node), node.size)

    def _style(self, node: Node) -> str:
        kind = "Sans"
        if self.family.endswith("monospace"):
            kind = "SansMono"
        elif not self.family.endswith("sans-serif"):
            kind = "Serif"
        return f"DejaVu{kind}-Bold" if node.bold else f"DejaVu{kind}"

    def length(self, text: str, node: Node) -> float:
        """Width of a line in pixels; words are measured one by one and remembered."""
        style = self._style(node)
        words = text.split(" ")
        spaces = (len(words) - 1) * _word_length(" ", style, node.size)
        return sum(_word_length(word, style, node.size) for word in words) + spaces

    def lines(self, node: Node, room: float) -> list[str]:
        """The text broken into lines no wider than `room`, or one line cut to it."""
        if not node.wrap:
            text = node.text
            if self.length(text, node) <= room + 1:
                return [text]
            while text and self.length(text + "…", node) > room + 1:
                text = text[:-1]
            return [text.rstrip() + "…" if text else ""]
        lines = [""]
        for word in node.text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self.length(longer, node) <= room:
                lines[-1] = longer
            else:
                lines.append(word)
        return [line for line in lines if line]

    def placed(self, node: Node, area: Area, *, clip: Area) -> Iterator[tuple[Node, Area, Area]]:
        """The node and all below it, parents first: where they lie, which part of that shows."""
        clip = overlap(area, clip)
        yield node, area, clip
        if node.flow == "stack":
            for child in node.children:
                yield from self.placed(child, area, clip=clip)
            return
        if not node.children:
            return
        left, top = area[0] + node.pad[1], area[1] + node.pad[0]
        wide, high = area[2] - 2 * node.pad[1], area[3] - 2 * node.pad[0]
        row = node.flow == "row"
        sized = self._sized(node, wide, high)
        used = sum(size[0 if row else 1] for _, size in sized) + node.gap * (len(sized) - 1)
        ahead, extra = _justified(node.justify, (wide if row else high) - used, len(sized))
        at = (left if row else top) + ahead
        for child, (width, height) in sized:
            room = high if row else wide
            across = _across(node, child, natural=height if row else width, room=room)
            shift = {"center": (room - across) / 2, "end": room - across}.get(node.align, 0.0)
            if row:
                inner = (round(at), round(top + shift), round(width), round(across))
            else:
                inner = (round(left + shift), round(at), round(across), round(height))
            yield from self.placed(child, inner, clip=clip)
            at += (width if row else height) + node.gap + extra

    def _natural(self, node: Node, room: float) -> Extent:
        """Size of a node that has `room` across, as wide as its content."""
        width, height = 0.0, 0.0
        inner = (node.width if node.width is not None else room) - 2 * node.pad[1]
        if node.children:
            sizes = [size for _, size in self._sized(node, inner, None)]
            gaps = node.gap * (len(sizes) - 1)
            if node.flow == "row":
                width, height = sum(w for w, _ in sizes) + gaps, max(h for _, h in sizes)
            else:
                width, height = max(w for w, _ in sizes), sum(h for _, h in sizes) + gaps
        elif node.text:
            lines = self.lines(node, inner)
            width = max(self.length(line, node) for line in lines) + 1
            height = len(lines) * round(node.size * LINE)
        return (
            float(node.width) if node.width is not None else width + 2 * node.pad[1],
            float(node.height) if node.height is not None else height + 2 * node.pad[0],
        )

    def _sized(self, node: Node, wide: float, high: float | None) -> list[tuple[Node, Extent]]:
        """Children with their sizes; without `high` a column is as high as its content."""
        row = node.flow == "row"
        main = wide if row else high
        sizes = [self._natural(child, wide) for child in node.children]
        lengths = [size[0 if row else 1] for size in sizes]
        if main is not None:
            lengths = [
                float(child.basis or 0) if child.grow or child.basis is not None else length
                for child, length in zip(node.children, lengths, strict=True)
            ]
            spare = main - sum(lengths) - node.gap * (len(lengths) - 1)
            # as browsers have it, shares below one in all leave some room over
            unit = max(0.0, spare) / max(1.0, sum(child.grow for child in node.children))
            lengths = [
                length + child.grow * unit
                for length, child in zip(lengths, node.children, strict=True)
            ]
        return [
            (child, (length, self._natural(child, length)[1] if row else length))
            if row
            else (child, (size[0], length))
            for child, length, size in zip(node.children, lengths, sizes, strict=True)
        ]


def _across(node: Node, child: Node, *, natural: float, room: float) -> float:
    """Length of a child across its parent's flow."""
    own = child.height if node.flow == "row" else child.width
    if own is not None:
        return float(own)
    return room if node.align == "stretch" else natural


def _justified(how: str, spare: float, count: int) -> tuple[float, float]:
    """Room ahead of the first child, and more room between any two."""
    if how == "between":
        return 0.0, max(0.0, spare) / (count - 1) if count > 1 else 0.0
    return {"center": spare / 2, "end": spare}.get(how, 0.0), 0.0


def overlap(area: Area, clip: Area) -> Area:
    """The part of an area inside another, perhaps without width or height."""
    left, top = max(area[0], clip[0]), max(area[1], clip[1])
    right = min(area[0] + area[2], clip[0] + clip[2])
    bottom = min(area[1] + area[3], clip[1] + clip[3])
    return left, top, max(0, right - left), max(0, bottom - top)
